// The state and the progress of a run.

import { el, setText } from "../../common/dom.js";
import { formatNumber, ordinal } from "../../common/numbers.js";

export const STATES = {
  queued: "Queued", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled",
  interrupted: "Interrupted",
};

export function isActive(run) {
  return run.state === "queued" || run.state === "running";
}

export function queuePlace(run) {
  return run.place ? `${ordinal(run.place)} in the queue` : "in the queue";
}

export function stepText(run) {
  if (!run.steps && !run.step) return "";
  const step = `step ${formatNumber(run.step)}`;
  return run.steps ? `${step} of ${formatNumber(run.steps)}` : step;
}

export function showState(node, run) {
  node.dataset.state = run.state;
  const isStopping = run.state === "running" && run.cancel_requested;
  setText(node, isStopping ? "Stopping" : STATES[run.state] ?? run.state);
}

// Decorative where the steps are shown as text; `attributes` can make it an accessible progress bar.
export class ProgressBar {
  constructor(attributes = {}) {
    this.hasRole = Boolean(attributes.role);
    this.bar = el("i");
    this.root = el("span", { class: "rn-progress", ...attributes }, this.bar);
  }

  // `logged` is the progress in the events, for a run without a known number of steps.
  show(run, logged = 0) {
    const share = progressOf(run, logged);
    this.root.dataset.state = run.state;
    if (this.hasRole) this.root.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    this.bar.style.width = `${100 * share}%`;
    this.root.hidden = run.state === "queued" && !share;
  }
}

function progressOf(run, logged) {
  if (run.state === "done") return 1;
  return run.steps ? Math.min(1, run.step / run.steps) : logged;
}
