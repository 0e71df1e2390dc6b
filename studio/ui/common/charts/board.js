// Line charts with a shared range of steps and a shared crosshair.

import { el, setText } from "../dom.js";
import { oncePerFrame } from "../pacing.js";
import { LineChart } from "./line_chart.js";

export class Board {
  constructor() {
    this.charts = [];
    this.zoomed = null; // the visible range of steps; null for all
    this.pointed = null; // the step under the crosshair
    this.isLog = false;
    this.smoothing = 0;
    this.spoken = el("p", { class: "ch-unseen", role: "status" });
    this.root = el("div", { class: "ch-board" }, this.spoken);
    this.tools = this.buildTools();
    this.sizes = new ResizeObserver(() => this.schedule());
    this.drawLater = oncePerFrame();
    this.pointLater = oncePerFrame();
  }

  buildTools() {
    this.resetButton = el("button", { type: "button", class: "ch-button", hidden: "" }, "Reset zoom");
    this.resetButton.addEventListener("click", () => this.zoom(null));
    const log = el("input", { type: "checkbox" });
    log.addEventListener("change", () => {
      this.isLog = log.checked;
      this.schedule();
    });
    const slider = el("input", { type: "range", min: "0", max: "0.99", step: "0.01", value: "0" });
    const weight = el("output", {}, "off");
    slider.addEventListener("input", () => {
      this.smoothing = Number(slider.value);
      weight.textContent = this.smoothing ? this.smoothing.toFixed(2) : "off";
      this.schedule();
    });
    return el("div", { class: "ch-tools" },
      el("label", { class: "ch-check" }, log, "Log scale for loss"),
      el("label", { class: "ch-slide" }, el("span", {}, "Smoothing"), slider, weight),
      el("span", { class: "ch-hint" }, "Drag across a chart to zoom in, double-click to reset."),
      this.resetButton);
  }

  add(options) {
    const chart = new LineChart(this, options);
    this.charts.push(chart);
    this.root.append(chart.root);
    this.sizes.observe(chart.root);
    return chart;
  }

  get range() {
    return this.zoomed ?? this.fullRange;
  }

  get fullRange() {
    const last = Math.max(1, ...this.charts.map((chart) => chart.lastStep));
    return [Math.min(last, ...this.charts.map((chart) => chart.firstStep)), last];
  }

  schedule() {
    this.drawLater(() => {
      for (const chart of this.charts) chart.draw();
    });
  }

  zoom(range) {
    const [first, last] = this.fullRange;
    const [from, to] = range ? [Math.max(first, range[0]), Math.min(last, range[1])] : [0, 0];
    this.zoomed = to - from >= 1 && (from > first || to < last) ? [from, to] : null;
    this.resetButton.hidden = !this.zoomed;
    this.root.dataset.zoom = this.zoomed ? this.zoomed.map(Math.round).join("-") : "";
    this.schedule();
  }

  // Zooms around the crosshair, or else around the middle.
  zoomBy(factor) {
    const [from, to] = this.range, middle = this.pointed ?? (from + to) / 2;
    if (factor < 1 || this.zoomed) this.zoom([middle - (middle - from) * factor, middle + (to - middle) * factor]);
  }

  // Moves the crosshair; the values under it are spoken if the keyboard moved it.
  point(step, isByKey = false) {
    if (step === this.pointed) return;
    this.pointed = step;
    this.pointLater(() => {
      for (const chart of this.charts) chart.drawCrosshair();
      if (isByKey && step !== null)
        setText(this.spoken, this.charts.map((chart) => chart.description()).filter(Boolean).join("; "));
    });
  }

  reset() {
    this.point(null);
    this.zoom(null);
  }
}
