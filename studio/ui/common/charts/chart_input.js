// The pointer and the keyboard on a chart's plot: crosshair and zoom of its board.

import { clamp, compareNumbers } from "../numbers.js";
import { nearest } from "./scale.js";

const DRAG_PX = 6;

export function listenToPlot(chart) {
  listenToPointer(chart);
  listenToKeys(chart);
}

function listenToPointer(chart) {
  const { plot, board } = chart;
  let pressedAt = null; // { step, clientX }
  const release = () => {
    pressedAt = null;
    chart.select(null);
  };
  plot.addEventListener("pointermove", (event) => {
    if (!chart.across) return;
    const step = chart.stepAt(event.clientX);
    board.point(chart.nearestStep(step));
    if (pressedAt) chart.select([pressedAt.step, step]);
  });
  plot.addEventListener("pointerleave", () => !pressedAt && board.point(null));
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !chart.across) return;
    pressedAt = { step: chart.stepAt(event.clientX), clientX: event.clientX };
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointerup", (event) => {
    if (!pressedAt) return;
    const { step, clientX } = pressedAt;
    release();
    if (Math.abs(event.clientX - clientX) > DRAG_PX)
      board.zoom([step, chart.stepAt(event.clientX)].sort(compareNumbers));
  });
  plot.addEventListener("pointercancel", release);
  plot.addEventListener("dblclick", () => board.zoom(null));
}

function listenToKeys(chart) {
  const { plot, board } = chart;
  const actions = {
    ArrowLeft: () => movePointed(chart, -1), ArrowRight: () => movePointed(chart, 1),
    Home: () => movePointed(chart, -Infinity), End: () => movePointed(chart, Infinity),
    "+": () => board.zoomBy(0.5), "=": () => board.zoomBy(0.5), "-": () => board.zoomBy(2),
    Escape: () => board.reset(),
  };
  plot.addEventListener("blur", () => board.point(null));
  plot.addEventListener("keydown", (event) => {
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    actions[event.key]();
    event.preventDefault();
  });
}

// Moves the crosshair over the points of a chart; from the side where it enters if there is none.
function movePointed(chart, by) {
  const { board } = chart, steps = chart.visibleSteps();
  if (!steps.length) return;
  const enters = board.pointed === null && Number.isFinite(by);
  const start = by < 0 ? steps.length - 1 : 0;
  const index = enters ? start : nearest(steps, board.pointed ?? 0) + by;
  board.point(steps[clamp(index, 0, steps.length - 1)], true);
}
