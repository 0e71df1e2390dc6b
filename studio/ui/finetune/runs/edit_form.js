// The form for the name of a run and the notes on it, which opens in the head of its page.

import { el } from "../../common/dom.js";
import { button } from "./pieces.js";

const LONGEST_NAME = "80", LONGEST_NOTES = "10000"; // as in `studio/backend/runs/run.py`

export class EditForm {
  // `onSave(id, name, notes)`
  constructor(onSave) {
    this.id = "";
    this.onSave = onSave;
    this.open = button("✎", "rn-icon", { "aria-label": "Edit name and notes", title: "Edit name and notes" });
    this.open.addEventListener("click", () => this.show());
    this.name = el("input", { type: "text", maxlength: LONGEST_NAME, required: "", autocomplete: "off" });
    this.notes = el("textarea", { rows: "4", maxlength: LONGEST_NOTES });
    const save = button("Save", "rn-main", { type: "submit" }), keep = button("Discard");
    keep.addEventListener("click", () => this.close());
    this.root = el("form", { class: "rn-edit", hidden: "", "aria-label": "Name and notes" },
      el("label", {}, "Name", this.name), el("label", {}, "Notes", this.notes),
      el("div", { class: "rn-edit-buttons" }, save, keep));
    this.root.addEventListener("submit", (event) => this.save(event));
    this.root.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
  }

  // The run whose name and notes the form gets when it opens.
  offer(run) {
    if (run.id !== this.id) this.root.hidden = true;
    this.id = run.id;
    this.run = run;
    this.open.hidden = run.mine === false;
  }

  show() {
    this.name.value = this.run.name;
    this.notes.value = this.run.notes ?? "";
    this.root.hidden = false;
    this.name.focus();
  }

  save(event) {
    event.preventDefault();
    this.onSave(this.id, this.name.value, this.notes.value);
    this.close();
  }

  close() {
    this.root.hidden = true;
    this.open.focus();
  }
}
