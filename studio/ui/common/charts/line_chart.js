// A chart: curves over steps as SVG, a legend with the values under the crosshair, and the same numbers as a table.
// Nodes are reused when points arrive, so that zoom and crosshair are kept.

import { el, setAttributes, setText, svg } from "../dom.js";
import { compareNumbers, formatNumber } from "../numbers.js";
import { axes } from "./axes.js";
import { listenToPlot } from "./chart_input.js";
import { Curve } from "./curve.js";
import { NumberTable } from "./number_table.js";
import { valueRange } from "./paths.js";
import { saveButtons } from "./save_chart.js";
import { createScale, linearTicks, logTicks } from "./scale.js";

const LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 24;
const TALL = 250, LOW = 170;
const TICK_PX = 70;
const KEYS = "Arrow keys move a crosshair, plus and minus zoom; the table below has the numbers.";

export class LineChart {
  // A loss chart is larger, and follows the log scale and the smoothing of its board.
  constructor(board, { name, title, unit = "", isLoss = false, startsAtZero = false }) {
    Object.assign(this, { board, name, title, isLoss, startsAtZero });
    this.height = isLoss ? TALL : LOW;
    this.curves = [];
    this.key = ""; // the names and colours of the curves
    this.across = this.down = null; // scales, null until the first drawing
    this.selection = null; // two steps while the pointer drags across the plot
    this.build(unit);
    listenToPlot(this);
  }

  build(unit) {
    const vertical = { y: TOP, height: this.height - TOP - BOTTOM, visibility: "hidden" };
    this.grid = svg("g", { class: "ch-grid" });
    this.selected = svg("rect", { class: "ch-picked", ...vertical });
    this.lines = svg("svg", { class: "ch-lines" });
    this.cross = svg("line", { class: "ch-cross", y1: TOP, y2: this.height - BOTTOM, visibility: "hidden" });
    this.dots = svg("g");
    this.plot = svg("svg", { class: "ch-plot", height: this.height, tabindex: "0", role: "img" },
      this.grid, this.selected, this.lines, this.cross, this.dots);
    this.legend = el("ul", { class: "ch-legend" });
    this.step = el("span", { class: "ch-step" });
    this.table = new NumberTable(this.title);
    const heading = el("span", { class: "ch-title" }, this.title, unit && el("small", {}, ` ${unit}`));
    const look = `ch-chart${this.isLoss ? " ch-wide" : ""}`;
    this.root = el("figure", { class: look, "data-chart": this.name, hidden: "" },
      el("figcaption", {}, heading, this.step), this.legend, this.plot,
      el("div", { class: "ch-below" }, this.table.root, saveButtons(this)));
  }

  // `series` are { name, colour, points: { x, y }, isMarked }. The table is refilled if `version` changes.
  show(series, version = 0) {
    const key = series.map(({ name, colour }) => `${name} ${colour}`).join("\n");
    if (key !== this.key) this.replaceCurves(series.map((each) => new Curve(each)));
    this.key = key;
    series.forEach(({ points, isMarked }, i) => this.curves[i].setPoints(points, isMarked));
    this.root.hidden = !series.some(({ points }) => points.x.length);
    this.table.show(this.curves, version);
    this.board.schedule();
  }

  replaceCurves(curves) {
    this.curves = curves;
    this.lines.replaceChildren(...curves.flatMap((curve) => [curve.raw, curve.line, curve.marks]));
    this.legend.replaceChildren(...curves.map((curve) => curve.entry));
    this.dots.replaceChildren(...curves.map((curve) => curve.dot));
  }

  get firstStep() {
    return Math.min(Infinity, ...this.curves.map((curve) => curve.firstStep));
  }

  get lastStep() {
    return Math.max(0, ...this.curves.map((curve) => curve.lastStep));
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width || this.root.hidden) return;
    const { range } = this.board, [from, to] = range;
    const isLog = this.isLoss && this.board.isLog, smoothing = this.isLoss ? this.board.smoothing : 0;
    const parts = this.curves.map((curve) => curve.part(from, to));
    const [low, high] = valueRange(parts, isLog, this.startsAtZero);
    this.across = createScale(from, to, LEFT, width - RIGHT);
    this.down = createScale(low, high, this.height - BOTTOM, TOP, isLog);
    this.drawAxes(width, range, isLog ? logTicks(low, high) : linearTicks(low, high, 4));
    this.curves.forEach((curve, i) => curve.draw(parts[i], this.across, this.down, width, smoothing));
    const names = this.curves.map((curve) => curve.name).join(", ");
    const steps = range.map((step) => formatNumber(Math.round(step))).join(" to ");
    this.plot.setAttribute("aria-label", `${this.title}: ${names}, steps ${steps}. ${KEYS}`);
    this.drawCrosshair();
    this.drawSelection();
  }

  drawAxes(width, [from, to], rows) {
    const box = { left: LEFT, right: width - RIGHT, top: TOP, bottom: this.height - BOTTOM };
    const columns = linearTicks(from, to, Math.max(2, Math.floor(width / TICK_PX)), true);
    this.grid.replaceChildren(...axes(box, this.across, this.down, { rows, columns }));
    // Curves are clipped to the range, plus half a dot.
    const [x, inner, height] = [LEFT - 5, Math.max(1, width - LEFT - RIGHT + 10), box.bottom + 4];
    setAttributes(this.lines, { x, y: 0, width: inner, height, viewBox: `${x} 0 ${inner} ${height}` });
  }

  // Draws the crosshair and shows the values under it, or the latest values if there is none.
  drawCrosshair() {
    if (!this.across || this.root.hidden) return;
    const { pointed, range: [from, to] } = this.board;
    const isShown = pointed !== null && pointed >= from && pointed <= to;
    this.cross.setAttribute("visibility", isShown ? "visible" : "hidden");
    if (isShown) {
      const x = this.across.place(pointed).toFixed(1);
      setAttributes(this.cross, { x1: x, x2: x });
    }
    setText(this.step, isShown ? `step ${formatNumber(pointed)}` : "");
    for (const curve of this.curves) curve.point(pointed, isShown, this.across, this.down);
  }

  select(selection) {
    this.selection = selection;
    this.drawSelection();
  }

  drawSelection() {
    const places = this.selection?.map((step) => this.across.place(step)).sort(compareNumbers) ?? [0, 0];
    const width = places[1] - places[0];
    setAttributes(this.selected, { x: places[0], width, visibility: width > 4 ? "visible" : "hidden" });
  }

  // Returns the step at a horizontal place of the page.
  stepAt(clientX) {
    const place = clientX - this.plot.getBoundingClientRect().left;
    return this.across.value(Math.max(LEFT, Math.min(this.plot.clientWidth - RIGHT, place)));
  }

  // Returns the nearest step at which any curve has a point, or null.
  nearestStep(step) {
    const steps = this.curves.map((curve) => curve.nearestStep(step)).filter((found) => found !== null);
    return steps.sort((a, b) => Math.abs(a - step) - Math.abs(b - step))[0] ?? null;
  }

  // Returns the visible steps at which any curve has a point.
  visibleSteps() {
    const [from, to] = this.board.range;
    const steps = new Set(this.curves.flatMap((curve) => curve.points.x));
    return [...steps].filter((step) => step >= from && step <= to).sort(compareNumbers);
  }

  // Returns the shown values as a sentence, for screen readers.
  description() {
    const values = this.curves.map((curve) => `${curve.name} ${curve.value.textContent}`).join(", ");
    return this.root.hidden ? "" : `${this.step.textContent} ${values}`;
  }
}
