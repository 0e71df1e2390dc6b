// Times as text.

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !(seconds >= 0)) return "–";
  const whole = Math.round(seconds), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

// Returns a time in seconds since 1970, in the viewer's time zone; `today` precedes the time of today.
export function timeOf(seconds, today = "today ") {
  const then = new Date(1000 * seconds), now = new Date();
  const clock = then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (then.toDateString() === now.toDateString()) return today + clock;
  const year = then.getFullYear() === now.getFullYear() ? undefined : "numeric";
  return `${then.toLocaleDateString([], { day: "numeric", month: "short", year })} ${clock}`;
}
