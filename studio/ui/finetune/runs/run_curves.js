// The curves of one run, in two groups with one range of steps: training and routing.

import { Board } from "../../common/charts/board.js";
import { el, setText } from "../../common/dom.js";
import { hint } from "./pieces.js";
import { isActive } from "./run_state.js";

// For each chart its series: name in RunData, label, number of the colour, and whether points are marked.
const TRAINING = [
  { name: "loss", title: "Loss", isLoss: true, series: [["loss", "training", 0], ["eval_loss", "held-out", 5, true]] },
  {
    name: "quality", title: "Held-out quality",
    series: [["eval_accuracy", "accuracy", 0, true], ["eval_macro_f1", "macro-F1", 3, true]],
  },
  {
    name: "error", title: "Held-out error", startsAtZero: true,
    series: [["eval_mean_absolute_error", "mean absolute error", 5, true]],
  },
  {
    name: "learning_rate", title: "Learning rate", startsAtZero: true,
    series: [["learning_rate", "learning rate", 0]],
  },
  { name: "grad_norm", title: "Gradient norm", startsAtZero: true, series: [["grad_norm", "gradient norm", 0]] },
  { name: "tok_s", title: "Speed", unit: "tokens/s", startsAtZero: true, series: [["tok_s", "tokens/s", 0]] },
  { name: "memory_gib", title: "Memory", unit: "GiB", startsAtZero: true, series: [["memory_gib", "GiB", 0]] },
];
const ROUTING = [
  {
    name: "drift", title: "Routing drift", startsAtZero: true,
    series: [["flip_rate", "flips", 0, true], ["js", "divergence", 3, true], ["load_shift", "load shift", 2, true]],
  },
  { name: "entropy", title: "Router entropy", unit: "nats", series: [["entropy", "entropy", 0, true]] },
];

export class RunCurves {
  constructor() {
    this.board = new Board();
    this.empty = hint("");
    const add = ({ series, ...options }) => ({ series, chart: this.board.add(options) });
    this.charts = TRAINING.map(add);
    const routing = ROUTING.map(add);
    this.charts.push(...routing);
    this.root = el("div", {}, this.empty, this.board.tools, this.board.root);
    this.routing = el("div", { class: "ch-board" }, ...routing.map(({ chart }) => chart.root));
  }

  show(data) {
    for (const { chart, series } of this.charts) {
      const begun = series.filter(([name]) => data.series[name].x.length);
      const curves = begun.map(([name, label, colour, isMarked = false]) =>
        ({ name: label, colour: `var(--u${colour})`, points: data.series[name], isMarked }));
      chart.show(curves, `${data.id} ${data.version}`);
    }
    const hasCurves = data.series.loss.x.length + data.series.eval_loss.x.length > 0;
    this.empty.hidden = hasCurves;
    this.board.tools.hidden = !hasCurves;
    setText(this.empty, isActive(data.row) ? "The curves begin with the first logged step." : "Nothing was logged.");
  }
}
