// One curve of a chart: its line, its dots, and its entry in the legend.

import { el, setAttributes, setText, svg } from "../dom.js";
import { formatNumber } from "../numbers.js";
import { curvePath, fullPath, smoothed } from "./paths.js";
import { lowerBound, nearest } from "./scale.js";

const NEAR_PX = 12;

export class Curve {
  constructor({ name, colour }) {
    const style = `--c: ${colour}`;
    this.name = name;
    this.raw = svg("path", { class: "ch-raw", style });
    this.line = svg("path", { class: "ch-curve", style });
    this.marks = svg("path", { class: "ch-marks", style });
    this.dot = svg("circle", { class: "ch-dot", r: 4, style, visibility: "hidden" });
    this.value = el("b", {}, "–");
    this.entry = el("li", { style }, el("i", { "aria-hidden": "true" }), el("span", {}, name), this.value);
    this.points = { x: [], y: [] };
    this.isMarked = false;
    this.smoothing = {}; // the result of the last smoothing, and what it was made of
  }

  // `isMarked` draws a dot at each point, for few points such as evaluations, which are never smoothed.
  setPoints(points, isMarked = false) {
    Object.assign(this, { points, isMarked });
  }

  get firstStep() {
    return this.points.x[0] ?? Infinity;
  }

  get lastStep() {
    return this.points.x.at(-1) ?? 0;
  }

  // Returns the part of the points in a range, with one more on each side so that lines leave the plot.
  part(from, to) {
    const { x, y } = this.points;
    return { x, y, start: Math.max(0, lowerBound(x, from) - 1), end: Math.min(x.length, lowerBound(x, to + 1e-9) + 1) };
  }

  draw(part, across, down, width, weight) {
    const smooth = weight && !this.isMarked ? { ...part, y: this.smoothedValues(weight) } : null;
    this.line.setAttribute("d", curvePath(smooth ?? part, across, down, width));
    this.raw.setAttribute("d", smooth ? curvePath(part, across, down, width) : "");
    this.marks.setAttribute("d", this.marksPath(part, across, down, width));
  }

  smoothedValues(weight) {
    const { y } = this.points, known = this.smoothing;
    if (known.source !== y || known.count !== y.length || known.weight !== weight)
      this.smoothing = { source: y, count: y.length, weight, values: smoothed(y, weight) };
    return this.smoothing.values;
  }

  // A line of one point has no length, so such a point is drawn as a dot, too.
  marksPath(part, across, down, width) {
    const count = part.end - part.start;
    if (count !== 1 && !(this.isMarked && count < width / 8)) return "";
    const { x, y } = part;
    const dots = Array.from({ length: count }, (_, i) => ({ x, y, start: part.start + i, end: part.start + i + 1 }));
    return dots.map((dot) => fullPath(dot, across, down)).filter(Boolean).map((dot) => `${dot}h0`).join("");
  }

  // Shows the value at a step, or the latest value if the step is null. A curve with other steps, such as evaluations,
  // shows its nearest value only if it is close.
  point(step, isDotted, across, down) {
    const { x, y } = this.points;
    const index = step === null ? x.length - 1 : nearest(x, step);
    const isNear = step === null || (x.length > 0 && Math.abs(across.place(x[index]) - across.place(step)) < NEAR_PX);
    setText(this.value, index >= 0 && isNear ? formatNumber(y[index]) : "–");
    const top = isDotted && isNear ? down.place(y[index]) : NaN;
    const isShown = Number.isFinite(top);
    this.dot.setAttribute("visibility", isShown ? "visible" : "hidden");
    if (isShown) setAttributes(this.dot, { cx: across.place(x[index]).toFixed(1), cy: top.toFixed(1) });
  }

  // Returns the step of the point that is nearest to a step, or null.
  nearestStep(step) {
    const { x } = this.points;
    return x.length ? x[nearest(x, step)] : null;
  }
}
