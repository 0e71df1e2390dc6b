// Charts with a shared step range and crosshair.
function createBoard() {
  const board = { charts: [], zoomed: null, hover: null, isLog: false, smoothing: 0 };
  const reset = button("Reset zoom", "rn-small", { hidden: "" });
  const log = el("input", { type: "checkbox" });
  const smooth = el("input", { type: "range", min: "0", max: "0.99", step: "0.01", value: "0" });
  const smoothOut = el("output", {}, "off");
  const said = el("p", { class: "rn-said", role: "status" });
  board.tools = el("div", { class: "rn-tools" },
    el("label", { class: "rn-check" }, log, "Log scale for loss"),
    el("label", { class: "rn-slide" }, el("span", {}, "Smoothing"), smooth, smoothOut),
    el("span", { class: "rn-hint" }, "Drag across a chart to zoom in, double-click to reset."),
    reset);
  board.root = el("div", { class: "rn-board" }, said);

  const sizes = new ResizeObserver(() => board.schedule());

  board.add = (options) => {
    const chart = createChart(board, options);
    board.charts.push(chart);
    board.root.append(chart.root);
    sizes.observe(chart.root);
    return chart;
  };

  const draws = onceAFrame(), marks = onceAFrame();
  board.schedule = () => draws(() => {
    for (const chart of board.charts) chart.draw();
  });

  board.range = () => board.zoomed ?? board.full();
  board.full = () => {
    const last = Math.max(1, ...board.charts.map((chart) => chart.last()));
    return [Math.min(last, ...board.charts.map((chart) => chart.first())), last];
  };

  board.zoom = (range) => {
    const [first, last] = board.full();
    const [from, to] = range ? [Math.max(first, range[0]), Math.min(last, range[1])] : [0, 0];
    board.zoomed = to - from >= 1 && (from > first || to < last) ? [from, to] : null;
    reset.hidden = !board.zoomed;
    board.root.dataset.zoom = board.zoomed ? board.zoomed.map(Math.round).join("-") : "";
    board.schedule();
  };

  board.point = (step, isByKey = false) => {
    if (step === board.hover) return;
    board.hover = step;
    marks(() => {
      for (const chart of board.charts) chart.mark();
      if (isByKey && step !== null) setText(said, board.charts.map((chart) => chart.spelled()).filter(Boolean).join("; "));
    });
  };

  board.forget = () => {
    board.point(null);
    board.zoom(null);
  };

  reset.addEventListener("click", () => board.zoom(null));
  log.addEventListener("change", () => {
    board.isLog = log.checked;
    board.schedule();
  });
  smooth.addEventListener("input", () => {
    board.smoothing = Number(smooth.value);
    smoothOut.textContent = board.smoothing ? board.smoothing.toFixed(2) : "off";
    board.schedule();
  });
  return board;
}

// Runs the latest requested work once per animation frame, however often it is requested.
function onceAFrame() {
  let work = null;
  return (asked) => {
    if (!work) requestAnimationFrame(() => {
      const last = work;
      work = null;
      last();
    });
    work = asked;
  };
}
