// A run in the list.

import { el, setText } from "../../common/dom.js";
import { formatNumber } from "../../common/numbers.js";
import { ProgressBar, queuePlace, showState, stepText } from "./run_state.js";
import { timeOf } from "./times.js";

export class RunRow {
  constructor(id, onOpen, onSelect) {
    this.checkbox = el("input", { type: "checkbox" });
    this.checkbox.addEventListener("change", () => onSelect(this.checkbox.checked));
    this.progress = new ProgressBar();
    this.name = el("span", { class: "rn-row-name" });
    this.state = el("span", { class: "rn-state" });
    [this.steps, this.loss, this.source, this.time] = Array.from({ length: 4 }, () => el("span"));
    this.figures = el("span", { class: "rn-row-figures" }, this.steps, this.loss);
    this.button = el("button", { type: "button", class: "rn-row", "data-id": id },
      el("span", { class: "rn-row-top" }, this.name, this.state), this.progress.root, this.figures,
      el("span", { class: "rn-row-figures" }, this.source, this.time));
    this.button.addEventListener("click", onOpen);
    this.root = el("li", {}, el("label", { class: "rn-tick" }, this.checkbox), this.button);
  }

  show(run, isOpen) {
    const source = `${run.data} · ${run.model}`;
    setText(this.name, run.name);
    this.button.title = `${run.name}\n${source}`;
    this.checkbox.setAttribute("aria-label", `Compare ${run.name}`);
    showState(this.state, run);
    this.progress.show(run);
    setText(this.steps, run.state === "queued" && run.place ? queuePlace(run) : stepText(run));
    setText(this.loss, run.best_eval_loss === null ? "" : `held-out loss ${formatNumber(run.best_eval_loss)}`);
    this.figures.hidden = !this.steps.textContent && !this.loss.textContent;
    setText(this.source, source);
    setText(this.time, timeOf(run.started ?? run.created, ""));
    this.markOpen(isOpen);
  }

  markOpen(isOpen) {
    this.button.setAttribute("aria-current", String(isOpen));
  }
}
