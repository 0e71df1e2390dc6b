// The numbers of a chart as a table: filled only while it is open, and extended as points arrive.
function createTwin(title) {
  const ROWS = 500;
  const body = el("tbody"), earlier = button("", "rn-small", { hidden: "" });
  const scroll = table(`${title}, numbers`, [], body, [earlier]), head = scroll.querySelector("tr");
  const root = el("details", { class: "rn-twin" }, el("summary", {}, "Numbers"), scroll);
  let series = [], version = 0, names = "", listed = [], start = 0, isAll = false;

  root.addEventListener("toggle", () => root.open && fill());
  earlier.addEventListener("click", () => {
    isAll = true;
    fill(true);
  });

  function fill(isAnew = false) {
    const steps = [...new Set(series.flatMap((each) => each.points.x))].sort((a, b) => a - b);
    const now = series.map((each) => each.name).join("\n") + version;
    if (now !== names || isAnew || steps.length < listed.length) {
      names = now;
      listed = [];
      start = isAll ? 0 : Math.max(0, steps.length - ROWS);
      body.replaceChildren();
      head.replaceChildren(...columns(["Step", ...series.map((each) => each.name)]));
    }
    earlier.hidden = start === 0;
    earlier.textContent = `Show ${figure(start)} earlier rows`;
    // An evaluation arrives after the log of its step, so the last row is rewritten.
    if (listed.length) {
      listed.pop();
      body.lastElementChild.remove();
    }
    const fresh = steps.slice(start + listed.length);
    body.append(...fresh.map((step) => tableRow(String(step), series.map((each) => told(each.points, step)))));
    listed.push(...fresh);
  }

  function told({ x, y }, step) {
    const at = lowerBound(x, step);
    return x[at] !== step ? "" : Number.isNaN(y[at]) ? "not a number" : String(y[at]);
  }

  return {
    root,
    show(shown, nowVersion) {
      [series, version] = [shown, nowVersion];
      if (root.open) fill();
    },
  };
}
