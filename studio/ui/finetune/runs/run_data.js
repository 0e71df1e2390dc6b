// The events of one run, in order, as the series and other data that the page draws.

import { compareNumbers } from "../../common/numbers.js";

const LOGGED = ["loss", "learning_rate", "grad_norm", "tok_s", "memory_gib"];
// Held-out figures: those of a classifier depend on its task.
const EVALUATED = ["eval_loss", "eval_accuracy", "eval_macro_f1", "eval_mean_absolute_error"];
const ROUTED = ["flip_rate", "js", "load_shift", "entropy"];
const ADD = {
  log: (data, step, values) => data.addLog(step, values),
  eval: (data, step, values) => data.addEvaluation(step, values),
  routing: (data, step, values) => data.addRouting(step, values),
  sample: (data, step, values) => data.addSample(step, values),
  audit: (data, step, values) => data.addAudit(values),
  preparing: (data, step, values) => data.addPreparing(values),
  warning: (data, step, values) => data.addWarning(values.message),
  resumed: (data, step, values) => (data.ranBefore += values.ran_s ?? 0),
};

export class RunData {
  constructor(id) {
    this.id = id;
    this.row = null; // the run in the list
    this.now = 0; // the server's time
    this.lastSeq = 0;
    this.version = 0; // changes when points are removed
    this.series = Object.fromEntries([...LOGGED, ...EVALUATED, ...ROUTED].map((name) => [name, { x: [], y: [] }]));
    this.routings = []; // { step, values }
    this.samples = new Map(); // answers by step, for each prompt
    this.sampledSteps = [];
    this.audit = this.gradients = this.logged = null;
    this.preparing = null; // { parts, part, notes } until the first step
    this.warnings = [];
    this.ranBefore = 0; // seconds, until the run was resumed
  }

  add(events) {
    for (const { seq, kind, step, values } of events) {
      if (seq <= this.lastSeq) continue;
      this.lastSeq = seq;
      if (Object.hasOwn(ADD, kind)) ADD[kind](this, step, values ?? {});
    }
  }

  // Returns the seconds that the run has run: the time in the queue does not count.
  get ran() {
    const { started, ended } = this.row;
    if (started === null) return this.ranBefore;
    return this.ranBefore + (ended ?? (this.now || Date.now() / 1000)) - started;
  }

  addPreparing({ part, parts, note }) {
    if (!Array.isArray(parts)) return;
    const notes = { ...this.preparing?.notes, [part]: note };
    this.preparing = { parts: parts.map(String), part: String(part), notes };
  }

  addLog(step, values) {
    this.preparing = null;
    for (const name of LOGGED) this.addPoint(name, step, values[name]);
    this.logged = values;
  }

  addEvaluation(step, values) {
    // The evaluation before training ends with the answers to the sample prompts.
    if (this.preparing?.part === "baseline") this.preparing = { ...this.preparing, part: "samples" };
    for (const name of EVALUATED) this.addPoint(name, step, values[name]);
  }

  addRouting(step, values) {
    for (const name of ROUTED) this.addPoint(name, step, values[name]);
    while (this.routings.length && this.routings.at(-1).step >= step) this.routings.pop();
    this.routings.push({ step, values });
  }

  addSample(step, { prompt, answer }) {
    if (typeof prompt !== "string") return;
    if (!this.samples.has(prompt)) this.samples.set(prompt, new Map());
    this.samples.get(prompt).set(step, String(answer ?? ""));
    this.sampledSteps = [...new Set([...this.sampledSteps, step])].sort(compareNumbers);
  }

  // The parts are counted before the first step, and the gradients after the first steps.
  addAudit(values) {
    if (values.rows) this.audit = values;
    if (values.gradients) this.gradients = values.gradients;
    if (Array.isArray(values.warnings)) values.warnings.forEach((message) => this.addWarning(message));
  }

  addWarning(message) {
    const sentence = String(message ?? "");
    if (sentence && !this.warnings.includes(sentence)) this.warnings.push(sentence);
  }

  // A resumed run continues from its last checkpoint, so it repeats the steps after that.
  addPoint(name, step, value) {
    if (value === undefined) return;
    const { x, y } = this.series[name];
    while (x.length && x.at(-1) >= step) {
      x.pop();
      y.pop();
      this.version++;
    }
    x.push(step);
    y.push(typeof value === "number" ? value : NaN);
  }
}
