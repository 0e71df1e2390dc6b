// Formatting of figures and times.
const STATES = {
  queued: "Queued", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled", interrupted: "Interrupted",
};
const isAlive = (run) => run.state === "queued" || run.state === "running";

function figure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size < 0.001) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function percent(share, digits = 0) {
  return `${(100 * share).toFixed(digits)} %`;
}

function timeSpan(seconds) {
  if (seconds === null || seconds === undefined || !(seconds >= 0)) return "–";
  const whole = Math.round(seconds), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

// In the viewer's time zone.
function moment(seconds, today = "today ") {
  const then = new Date(1000 * seconds), clock = then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (then.toDateString() === new Date().toDateString()) return today + clock;
  const isThisYear = then.getFullYear() === new Date().getFullYear();
  return `${then.toLocaleDateString([], { day: "numeric", month: "short", year: isThisYear ? undefined : "numeric" })} ${clock}`;
}

function ordinal(number) {
  const ending = { one: "st", two: "nd", few: "rd", other: "th" };
  return `${number}${ending[new Intl.PluralRules("en", { type: "ordinal" }).select(number)]}`;
}

function inQueue(run) {
  return run.place ? `${ordinal(run.place)} in the queue` : "in the queue";
}

function stepsOf(run) {
  if (!run.steps && !run.step) return "";
  return run.steps ? `step ${figure(run.step)} of ${figure(run.steps)}` : `step ${figure(run.step)}`;
}

// Writes only changes, so that screen readers, selections and the keyboard focus are not disturbed.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
