// The list of conversations, in a drawer over the page: search, open, rename, delete and undo, export and import.

import { el, setText } from "../../common/dom.js";
import { cleanTitle, messagesText, titleOf } from "./records.js";

const TIME = { dateStyle: "medium", timeStyle: "short" };

export class ConversationList {
  // `actions`: open(id), startNew(), rename(id, title), remove(id), restore(), exportAll() and search(text).
  constructor(actions, note) {
    this.actions = actions;
    this.search = el("input", { type: "search", placeholder: "Search", "aria-label": "Search conversations" });
    this.search.addEventListener("input", () => this.show());
    this.items = el("ul", { "aria-label": "Conversations" });
    this.empty = el("p", { class: "cv-empty" });
    this.undone = el("p", { class: "cv-undo", role: "status", hidden: "" });
    this.dialog = el("dialog", { class: "cv-drawer", "aria-label": "Conversations" },
      el("div", { class: "cv-top" }, el("h2", {}, "Conversations"), button("✕", () => this.close(), "Close")),
      el("div", { class: "cv-top" }, this.search, button("New chat", () => this.leave(actions.startNew))),
      this.undone, this.items, this.empty,
      el("p", { class: "cv-note" }, note),
      el("div", { class: "cv-top" }, button("Export all", () => actions.exportAll()),
        button("Import", () => this.leave(() => document.querySelector("#import")?.click()))));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.close());
  }

  async open(current) {
    this.current = current;
    this.search.value = "";
    this.undone.hidden = true;
    this.dialog.showModal();
    await this.show();
  }

  close() {
    this.dialog.close();
  }

  leave(action) {
    this.close();
    action();
  }

  async show() {
    const text = this.search.value, heads = await this.actions.search(text);
    if (text !== this.search.value) return; // typed on meanwhile
    this.items.replaceChildren(...heads.map((head) => this.item(head)));
    setText(this.empty, heads.length ? "" : text.trim() ? "No conversation contains these words." :
      "Conversations appear here once you send a message.");
  }

  item(head) {
    const name = titleOf(head), when = new Date(head.updated).toLocaleString(undefined, TIME);
    const opening = el("button", { type: "button", class: "cv-open" }, el("b", {}, name),
      el("small", {}, [head.messages ? messagesText(head.messages) : "draft", when].join(" · ")));
    if (head.id === this.current) opening.setAttribute("aria-current", "true");
    opening.addEventListener("click", () => this.leave(() => this.actions.open(head.id)));
    const item = el("li", {}, opening);
    item.append(button("✎", () => this.edit(item, head), `Rename ${name}`),
      button("🗑\ufe0e", () => this.remove(head), `Delete ${name}`));
    return item;
  }

  edit(item, head) {
    const field = el("input", { type: "text", "aria-label": "Name", maxlength: "120" });
    field.value = titleOf(head);
    const form = el("form", { class: "cv-rename" }, field, el("button", { type: "submit" }, "Save"));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      await this.actions.rename(head.id, cleanTitle(field.value));
      await this.show();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault(); // closes the drawer otherwise
      this.show();
    });
    item.replaceChildren(form);
    field.select();
  }

  async remove(head) {
    await this.actions.remove(head.id);
    this.undone.replaceChildren(`“${titleOf(head)}” was deleted.`, button("Undo", async () => {
      this.undone.hidden = true;
      this.actions.restore();
      await this.show();
    }));
    this.undone.hidden = false;
    await this.show();
    this.undone.lastChild.focus();
  }
}

export function button(text, onClick, name) {
  const node = el("button", { type: "button", ...(name ? { "aria-label": name, title: name } : {}) }, text);
  node.addEventListener("click", onClick);
  return node;
}
