// The bar above the chat: the button that opens the list of conversations, the name of the open one, and notes about
// storage and other tabs. The value of the component is the open conversation, which every event sends to the server.

import { el, setText } from "../../common/dom.js";
import { saveText } from "../../common/save_file.js";
import { Library } from "./library.js";
import { button, ConversationList } from "./list.js";
import { titleOf } from "./records.js";
import { openStore } from "./store.js";
import { Tabs } from "./tabs.js";

const OPEN = "jetmoe-studio-open-conversation"; // id, of this tab; `page/storage.js` forgets it for a new conversation
const EARLIER = "jetmoe-studio-conversation"; // where earlier versions stored the only conversation
const DRAFT_MS = 300;
const NOTES = {
  refused: "This browser refuses storage, as in some private windows: conversations last until this page is closed. " +
    "Export what you want to keep.",
  full: "The browser's storage is full. The latest messages are kept until this page is closed: export them, or " +
    "delete other conversations.",
  same: "This conversation is also open in another tab. If both go on, this browser keeps a copy of each.",
  changed: "Another tab has changed this conversation.",
  copied: "Another tab has changed this conversation, so yours goes on as a copy. The list has both.",
};

export async function mount({ element, props, trigger, watch }) {
  const { store, isKept } = await openStore();
  const bar = new Bar(element, { props, trigger }, store);
  if (!isKept) bar.note("refused");
  await bar.library.load();
  watch("value", () => bar.receive());
  await bar.begin();
}

class Bar {
  constructor(element, component, store) {
    this.component = component;
    this.notes = new Set();
    this.typed = null; // text that is not kept yet
    this.library = new Library(store, (event) => this.hear(event));
    this.list = new ConversationList({
      open: (id) => this.open(id), startNew: () => document.querySelector("#new-chat").click(),
      search: (text) => this.library.search(text), rename: (id, title) => this.rename(id, title),
      remove: (id) => this.remove(id), restore: () => this.restore(), exportAll: () => this.exportAll(),
    }, "Kept in this browser only.");
    this.title = el("h2", { class: "cv-title" });
    this.said = el("p", { class: "dp-note cv-said", role: "status", hidden: "" });
    const opening = button("☰", () => this.list.open(this.library.id), "Conversations");
    element.append(el("div", { class: "cv-bar" }, opening, this.title), this.said, this.list.dialog);
    this.listen();
  }

  listen() {
    document.addEventListener("input", ({ target }) => {
      if (!target.matches("#box textarea")) return;
      clearTimeout(this.typing);
      this.typed = target.value;
      this.typing = setTimeout(() => this.keepDraft(), DRAFT_MS);
    });
    addEventListener("pagehide", () => this.keepDraft());
    addEventListener("beforeunload", (event) => this.library.unsaved.size && event.preventDefault());
  }

  // Shows what the tab showed before it was loaded again, unless something was sent meanwhile.
  async begin() {
    const { props } = this.component, id = sessionStorage.getItem(OPEN);
    this.tabs = new Tabs(this.library.id, {
      onChanged: (head) => this.changedElsewhere(head),
      onRemoved: (removed) => this.library.removedElsewhere(removed),
      onSame: (isSame) => this.note("same", isSame),
    });
    if (props.value) this.receive();
    else if (id && this.library.heads.has(id)) await this.open(id);
    else this.hold(this.library.value);
  }

  get box() {
    return document.querySelector("#box textarea");
  }

  // --- values

  receive() {
    const { value } = this.component.props;
    if (!value || value === this.library.value) return;
    // What was typed belongs to the conversation before, whose text box may be another's by now.
    if (this.typed !== null) this.keepDraft(this.typed);
    this.hold(this.library.receive(value));
    // The server may have emptied the text box, which is drawn after this.
    setTimeout(() => this.keepDraft());
  }

  hold(value) {
    this.component.props.value = value;
    sessionStorage.setItem(OPEN, this.library.id);
    this.tabs.show(this.library.id);
    this.showTitle();
  }

  async open(id) {
    const isFirst = !this.component.props.value;
    if (!isFirst) this.keepDraft();
    const { value, draft } = await this.library.open(id);
    this.note("changed", false);
    this.note("copied", false);
    this.hold(value);
    if (!isFirst || !this.box?.value) this.type(draft);
    this.component.trigger("show");
  }

  type(text) {
    if (!this.box) return;
    this.box.value = text;
    this.box.dispatchEvent(new Event("input", { bubbles: true }));
  }

  keepDraft(text = this.box?.value) {
    clearTimeout(this.typing);
    this.typed = null;
    if (text !== undefined) this.library.keepDraft(text);
  }

  // --- the list

  async rename(id, title) {
    await this.library.rename(id, title);
    if (id === this.library.id) this.hold(this.library.value);
  }

  async remove(id) {
    await this.library.remove(id);
    if (id === this.library.id) document.querySelector("#new-chat").click();
  }

  restore() {
    this.library.restore();
  }

  async exportAll() {
    saveText(await this.library.exported(), "conversations.json", "application/json");
  }

  // --- notes

  hear(event) {
    if (event.kind === "changed") this.tabs.changed(event.head);
    if (event.kind === "removed") this.tabs.removed(event.id);
    if (event.kind === "copied") {
      this.hold(this.library.value);
      this.note("copied");
    }
    if (event.kind === "full" || event.kind === "stored") this.note("full", event.kind === "full");
    if (event.kind === "stored") localStorage.removeItem(EARLIER);
    this.showTitle();
  }

  changedElsewhere(head) {
    this.library.changedElsewhere(head);
    if (head.id === this.library.id && this.library.isBehind) this.note("changed");
  }

  note(kind, isOn = true) {
    if (isOn) this.notes.add(kind);
    else this.notes.delete(kind);
    const kinds = Object.keys(NOTES).filter((each) => this.notes.has(each));
    const sentence = kinds.map((each) => NOTES[each]).join(" ");
    this.said.replaceChildren(sentence, ...(this.notes.has("changed") ?
      [" ", button("Show the latest", () => this.open(this.library.id))] : []));
    this.said.hidden = !sentence;
  }

  showTitle() {
    const { head } = this.library;
    setText(this.title, head ? titleOf(head) : "New chat");
  }
}
