const KEYS = "Arrow keys move a crosshair, plus and minus zoom; the table below has the numbers.";

// A chart: curves over steps as SVG, a legend with the values under the crosshair, and the same numbers as a table.
// Nodes are reused when points arrive, so that zoom and crosshair are kept.
function createChart(board, { name, title, unit = "", isLoss = false, zero = false }) {
  const HEIGHT = isLoss ? 250 : 170, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 24;
  const grid = svg("g", { class: "rn-grid" }), lines = svg("svg", { class: "rn-lines" });
  const cross = svg("line", { class: "rn-cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const picked = svg("rect", { class: "rn-picked", y: TOP, height: HEIGHT - TOP - BOTTOM, visibility: "hidden" });
  const dots = svg("g");
  const plot = svg("svg", { class: "rn-plot", height: HEIGHT, tabindex: "0", role: "img" });
  plot.append(grid, picked, lines, cross, dots);
  const legend = el("ul", { class: "rn-legend" }), stepOut = el("span", { class: "rn-step" });
  const twin = createTwin(title);
  const chart = { name };
  const heading = el("span", { class: "rn-title" }, title, unit && el("small", {}, ` ${unit}`));
  chart.root = el("figure", { class: `rn-chart${isLoss ? " rn-wide" : ""}`, "data-chart": name, hidden: "" },
    el("figcaption", {}, heading, stepOut), legend, plot, twin.root);
  let series = [], across = null, down = null, dragged = null;

  // series: [{ name, colour, points: { x, y }, isMarked }]; the same list of names reuses its nodes.
  chart.show = (shown, version = 0) => {
    const key = (all) => all.map((each) => each.name + each.colour).join("\n"), isSame = key(shown) === key(series);
    series = shown.map((each, i) => ({ ...each, ...(isSame ? nodesOf(series[i]) : createNodes(each)) }));
    if (!isSame) {
      lines.replaceChildren(...series.flatMap((each) => [each.raw, each.line, each.marks]));
      legend.replaceChildren(...series.map((each) => each.item));
      dots.replaceChildren(...series.map((each) => each.dot));
    }
    chart.root.hidden = !series.some((each) => each.points.x.length);
    twin.show(series, version);
    board.schedule();
  };
  chart.last = () => Math.max(0, ...series.map((each) => each.points.x.at(-1) ?? 0));
  chart.first = () => Math.min(Infinity, ...series.map((each) => each.points.x[0] ?? Infinity));

  chart.draw = () => {
    const width = plot.clientWidth;
    if (!width || chart.root.hidden) return;
    const [from, to] = board.range(), isLog = isLoss && board.isLog;
    const curves = series.map((each) => curveOf(each, from, to));
    const [low, high] = bounds(curves, isLog, zero);
    across = scaleOf(from, to, LEFT, width - RIGHT);
    down = scaleOf(low, high, HEIGHT - BOTTOM, TOP, isLog);
    frame(width, from, to, isLog ? logTicksOf(low, high) : ticksOf(low, high, 4));
    for (const [index, each] of series.entries()) drawCurve(each, curves[index], width);
    const names = series.map((each) => each.name).join(", "), steps = [from, to].map((step) => figure(Math.round(step)));
    plot.setAttribute("aria-label", `${title}: ${names}, steps ${steps.join(" to ")}. ${KEYS}`);
    chart.mark();
    if (dragged) select();
  };

  // Draws the crosshair and shows the values under it, or the latest values if there is none.
  chart.mark = () => {
    if (!across || chart.root.hidden) return;
    const { hover } = board, [from, to] = board.range(), isShown = hover !== null && hover >= from && hover <= to;
    cross.setAttribute("visibility", isShown ? "visible" : "hidden");
    if (isShown) for (const end of ["x1", "x2"]) cross.setAttribute(end, across.to(hover).toFixed(1));
    setText(stepOut, isShown ? `step ${figure(hover)}` : "");
    for (const each of series) {
      const { x, y } = each.points, at = hover === null ? x.length - 1 : nearest(x, hover);
      // Curves with other steps, such as evaluations, show their nearest value only if it is close.
      const isNear = hover === null || (x.length && Math.abs(across.to(x[at]) - across.to(hover)) < 12);
      setText(each.out, at >= 0 && isNear ? figure(y[at]) : "–");
      const place = isShown && isNear ? down.to(y[at]) : NaN;
      each.dot.setAttribute("visibility", Number.isFinite(place) ? "visible" : "hidden");
      if (Number.isFinite(place)) {
        each.dot.setAttribute("cx", across.to(x[at]).toFixed(1));
        each.dot.setAttribute("cy", place.toFixed(1));
      }
    }
  };
  chart.spelled = () => {
    const values = series.map((each) => `${each.name} ${each.out.textContent}`).join(", ");
    return chart.root.hidden ? "" : `${stepOut.textContent} ${values}`;
  };

  function curveOf({ points: { x, y }, isMarked, memory }, from, to) {
    const start = Math.max(0, lowerBound(x, from) - 1), end = Math.min(x.length, lowerBound(x, to + 1e-9) + 1);
    const weight = isLoss && !isMarked ? board.smoothing : 0;
    if (weight && (memory.of !== y || memory.count !== y.length || memory.weight !== weight))
      Object.assign(memory, { of: y, count: y.length, weight, y: smoothed(y, weight) });
    return { x, y, smooth: weight ? memory.y : null, start, end };
  }

  function drawCurve(each, { x, y, smooth, start, end }, width) {
    const path = pathOf(x, smooth ?? y, start, end, across, down, width);
    each.line.setAttribute("d", path);
    each.raw.setAttribute("d", smooth ? pathOf(x, y, start, end, across, down, width) : "");
    // A line of one point has no length, and evaluations are few, so they are also drawn as dots.
    const isDotted = (each.isMarked && end - start < width / 8) || end - start === 1;
    const places = isDotted ? x.slice(start, end).map((step, i) => [across.to(step), down.to(y[start + i])]) : [];
    const marks = places.filter(([, place]) => Number.isFinite(place));
    each.marks.setAttribute("d", marks.map(([left, top]) => `M${left.toFixed(1)} ${top.toFixed(1)}h0`).join(""));
  }

  function frame(width, from, to, ticks) {
    // Curves are clipped to the range, plus half a dot.
    const [left, inner, height] = [LEFT - 5, Math.max(1, width - LEFT - RIGHT + 10), HEIGHT - BOTTOM + 4];
    const place = { x: left, y: 0, width: inner, height, viewBox: `${left} 0 ${inner} ${height}` };
    for (const [name, value] of Object.entries(place)) lines.setAttribute(name, value);
    const rows = ticks.flatMap((tick) => {
      const y = down.to(tick).toFixed(1);
      const label = svg("text", { x: LEFT - 8, y, dy: "0.32em", "text-anchor": "end" }, tickText(tick));
      return [svg("line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y }), label];
    });
    const columns = ticksOf(from, to, Math.max(2, Math.floor(width / 70)), true).map((tick) => {
      const x = across.to(tick), isLast = x > width - RIGHT - 16;
      return svg("text", { x: isLast ? width - 2 : x.toFixed(1), y: HEIGHT - 6, "text-anchor": isLast ? "end" : "middle" }, tickText(tick));
    });
    grid.replaceChildren(...rows, ...columns);
  }

  function stepAt(event) {
    const place = event.clientX - plot.getBoundingClientRect().left;
    return across.from(Math.max(LEFT, Math.min(plot.clientWidth - RIGHT, place)));
  }

  // Returns the nearest step at which any curve of this chart has a point.
  function snap(step) {
    const found = series.filter((each) => each.points.x.length).map(({ points: { x } }) => x[nearest(x, step)]);
    return found.reduce((best, x) => (best === null || Math.abs(x - step) < Math.abs(best - step) ? x : best), null);
  }

  function select() {
    const [left, right] = [across.to(dragged.from), across.to(dragged.to)].sort((a, b) => a - b);
    picked.setAttribute("x", left);
    picked.setAttribute("width", right - left);
    picked.setAttribute("visibility", right - left > 4 ? "visible" : "hidden");
  }

  plot.addEventListener("pointermove", (event) => {
    if (!across) return;
    if (dragged) {
      dragged.to = stepAt(event);
      select();
    }
    board.point(snap(stepAt(event)));
  });
  plot.addEventListener("pointerleave", () => !dragged && board.point(null));
  plot.addEventListener("blur", () => board.point(null));
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !across) return;
    dragged = { from: stepAt(event), to: stepAt(event), x: event.clientX };
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointerup", (event) => {
    if (!dragged) return;
    const { from, x } = dragged, to = stepAt(event);
    dragged = null;
    picked.setAttribute("visibility", "hidden");
    if (Math.abs(event.clientX - x) > 6) board.zoom([from, to].sort((a, b) => a - b));
  });
  plot.addEventListener("pointercancel", () => {
    dragged = null;
    picked.setAttribute("visibility", "hidden");
  });
  plot.addEventListener("dblclick", () => board.zoom(null));
  plot.addEventListener("keydown", (event) => {
    const keys = {
      ArrowLeft: () => move(-1), ArrowRight: () => move(1), Home: () => move(-Infinity), End: () => move(Infinity),
      "+": () => zoomAround(0.5), "=": () => zoomAround(0.5), "-": () => zoomAround(2), Escape: () => board.forget(),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    keys[event.key]();
    event.preventDefault();
  });

  function move(by) {
    const [from, to] = board.range();
    const all = new Set(series.flatMap((each) => each.points.x));
    const steps = [...all].filter((x) => x >= from && x <= to).sort((a, b) => a - b);
    if (!steps.length) return;
    const isNew = board.hover === null && Number.isFinite(by);
    const at = isNew ? (by < 0 ? steps.length - 1 : 0) : nearest(steps, board.hover ?? 0) + by;
    board.point(steps[Math.max(0, Math.min(steps.length - 1, at))], true);
  }

  function zoomAround(factor) {
    const [from, to] = board.range(), middle = board.hover ?? (from + to) / 2;
    if (factor < 1 || board.zoomed) board.zoom([middle - (middle - from) * factor, middle + (to - middle) * factor]);
  }

  return chart;
}

const nodesOf = ({ raw, line, marks, dot, item, out, memory }) => ({ raw, line, marks, dot, item, out, memory });

function createNodes({ name, colour }) {
  const style = `--c: ${colour}`, out = el("b", {}, "–");
  return {
    raw: svg("path", { class: "rn-raw", style }),
    line: svg("path", { class: "rn-curve", style }),
    marks: svg("path", { class: "rn-marks", style }),
    dot: svg("circle", { class: "rn-dot", r: 4, style, visibility: "hidden" }),
    item: el("li", { style }, el("i", { "aria-hidden": "true" }), el("span", {}, name), out),
    out,
    memory: {},
  };
}

function bounds(curves, isLog, zero) {
  let low = Infinity, high = -Infinity;
  for (const { y, start, end } of curves)
    for (let i = start; i < end; i++)
      if (y[i] === y[i] && !(isLog && y[i] <= 0)) {
        if (y[i] < low) low = y[i];
        if (y[i] > high) high = y[i];
      }
  if (low > high) return isLog ? [0.1, 1] : [0, 1];
  if (isLog) return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
  if (zero) low = Math.min(0, low);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [zero && low >= 0 ? 0 : low - room, high + room];
}
