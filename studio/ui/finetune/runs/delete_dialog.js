// The question before a run is deleted.

import { el } from "../../common/dom.js";
import { button } from "./pieces.js";

export class DeleteDialog {
  constructor(onDelete) {
    this.id = "";
    this.question = el("p");
    this.keep = button("Keep it");
    this.keep.addEventListener("click", () => this.root.close());
    const confirm = button("Delete", "rn-risky");
    confirm.addEventListener("click", () => {
      this.root.close();
      onDelete(this.id);
    });
    this.root = el("dialog", { class: "rn-dialog", "aria-label": "Delete run" },
      this.question, el("div", { class: "rn-actions" }, this.keep, confirm));
  }

  open({ id, name }) {
    this.id = id;
    this.question.textContent = `Delete “${name}”? Its checkpoints, adapter and curves can't be restored.`;
    this.root.showModal();
    this.keep.focus();
  }
}
