// The head of a run's page: its name and state, the actions, a message, the progress, figures and warnings.

import { el, setText } from "../../common/dom.js";
import { formatNumber } from "../../common/numbers.js";
import { DeleteDialog } from "./delete_dialog.js";
import { EditForm } from "./edit_form.js";
import { button } from "./pieces.js";
import { Preparation } from "./preparation.js";
import { isActive, ProgressBar, queuePlace, showState } from "./run_state.js";
import { duration, timeOf } from "./times.js";

export class RunHead {
  constructor(onAction, onClose) {
    this.onAction = onAction;
    this.deletion = new DeleteDialog((id) => onAction("delete", id));
    this.back = button("‹ All runs", "rn-back");
    this.back.addEventListener("click", onClose);
    this.title = el("h3");
    this.state = el("span", { class: "rn-state" });
    this.source = el("p", { class: "rn-about" });
    this.notes = el("p", { class: "rn-notes" });
    this.edit = new EditForm((id, name, notes) => onAction("describe", id, { name, notes }));
    this.preparation = new Preparation();
    this.message = el("p", { class: "rn-message" });
    this.figures = el("dl", { class: "rn-figures" });
    this.progress = new ProgressBar({
      role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": "Progress",
    });
    this.actions = el("div", { class: "rn-actions" });
    this.warnings = el("ul", { class: "rn-warnings", "aria-label": "Warnings" });
    this.shownActions = this.shownWarnings = "";
    this.root = el("div", { class: "rn-run-head" }, this.back,
      el("div", { class: "rn-head" }, el("div", { class: "rn-name" }, this.title, this.edit.open, this.state),
        this.actions),
      this.source, this.edit.root, this.notes, this.message, this.preparation.root, this.progress.root, this.figures,
      this.warnings);
  }

  show(data) {
    const { row: run } = data;
    setText(this.title, run.name);
    showState(this.state, run);
    setText(this.source, [run.model, run.data, `created ${timeOf(run.created)}`].join(" · "));
    setText(this.notes, run.notes ?? "");
    this.notes.hidden = !run.notes;
    this.edit.offer(run);
    this.showMessage(run);
    this.preparation.show(data);
    this.progress.show(run, data.logged?.progress);
    this.showFigures(run, data);
    this.showActions(run);
    this.showWarnings(data);
  }

  showMessage(run) {
    const text = messageOf(run);
    setText(this.message, run.folder_exists ? text : `${text} The files of this run are missing.`.trim());
    this.message.hidden = !this.message.textContent;
    this.message.classList.toggle("rn-failed", run.state === "failed" || !run.folder_exists);
  }

  showFigures(run, data) {
    const pairs = figuresOf(run, data);
    if (this.figures.childElementCount !== pairs.length)
      this.figures.replaceChildren(...pairs.map(() => el("div", {}, el("dt"), el("dd"))));
    pairs.forEach(([name, text], i) => {
      setText(this.figures.children[i].firstChild, name);
      setText(this.figures.children[i].lastChild, text);
    });
    this.figures.hidden = run.state === "queued" && !run.step;
  }

  showActions(run) {
    const actions = actionsOf(run), key = `${run.id} ${actions.map(([action]) => action)}`;
    if (this.shownActions === key) return;
    this.shownActions = key;
    this.actions.replaceChildren(...actions.map(([action, text, , look]) => {
      const node = button(text, look, { "data-action": action });
      const act = action === "delete" ? () => this.deletion.open(run) : () => this.onAction(action, run.id);
      node.addEventListener("click", act);
      return node;
    }));
  }

  showWarnings({ id, warnings }) {
    const key = `${id} ${warnings.length}`;
    if (this.shownWarnings === key) return;
    this.shownWarnings = key;
    this.warnings.replaceChildren(...warnings.map((text) => el("li", {}, text)));
  }

  focus() {
    if (this.back.offsetParent) this.back.focus();
  }
}

function messageOf(run) {
  if (run.state === "queued") return `Waiting: ${queuePlace(run)}.`;
  if (run.state === "running" && run.cancel_requested) return "Stopping at the next step …";
  if (run.state !== "running" || run.message) return run.message;
  return run.step ? "" : "Preparing the first step.";
}

function figuresOf(run, { logged, ran }) {
  const { left_s: left, memory_gib: memory, tok_s: speed } = logged ?? {};
  const step = formatNumber(run.step);
  return [
    ["Step", run.steps ? `${step} / ${formatNumber(run.steps)}` : step],
    ["Elapsed", ran ? duration(ran) : "–"],
    ...(run.state === "running" ? [["Remaining", duration(left)]] : []),
    ["Tokens/s", formatNumber(speed)],
    ["Memory", memory === undefined ? "–" : `${formatNumber(memory)} GiB`],
    ["Best held-out loss", formatNumber(run.best_eval_loss)],
  ];
}

// Returns the actions that apply, as [action, text, true, look]. Runs shared by others are read-only.
function actionsOf(run) {
  if (run.mine === false) return [];
  const isUsable = !isActive(run) && run.has_adapter;
  const canResume = ["failed", "cancelled", "interrupted"].includes(run.state) && run.folder_exists;
  return [
    ["chat", "Chat with it", isUsable && !run.classifies, "rn-main"],
    ["classify", "Classify with it", isUsable && run.classifies, "rn-main"],
    ["export", "Export", isUsable],
    ["resume", "Resume", canResume],
    ["cancel", "Cancel", isActive(run) && !run.cancel_requested],
    ["again", "New run from these settings", run.folder_exists],
    ["share", "Share", run.has_owner && !run.shared],
    ["unshare", "Stop sharing", run.has_owner && run.shared],
    ["delete", "Delete", run.state !== "running", "rn-risky"],
  ].filter(([, , applies]) => applies);
}
