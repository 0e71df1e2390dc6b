// The keyboard shortcuts of the Chat tab, and the list of them. They press the buttons of the page.

import { el } from "../common/dom.js";

const SHORTCUTS = [
  ["Enter or Ctrl+Enter", "Send the message"],
  ["Shift+Enter", "New line"],
  ["Esc", "Stop the answer"],
  ["↑ in the empty message box", "Edit the last message"],
  ["?", "Show this list"],
];

export function mount({ element }) {
  const list = new List();
  element.append(list.button, list.dialog);
  document.addEventListener("keydown", (event) => {
    const act = event.defaultPrevented ? null : actionOf(event, list);
    if (!act) return;
    event.preventDefault();
    act();
  });
}

class List {
  constructor() {
    const name = "Keyboard shortcuts";
    this.button = el("button", { type: "button", class: "shortcuts-open", "aria-label": name, title: name }, "?");
    this.button.addEventListener("click", () => this.open());
    const rows = SHORTCUTS.map(([keys, what]) => el("div", {}, el("dt", {}, keys), el("dd", {}, what)));
    const close = el("button", { type: "button" }, "Close");
    close.addEventListener("click", () => this.dialog.close());
    this.dialog = el("dialog", { "aria-label": name }, el("h2", {}, name),
      el("dl", {}, ...rows), close);
  }

  open() {
    this.dialog.showModal();
  }
}

// Returns what a key does where it was pressed, or null.
function actionOf(event, list) {
  const box = document.querySelector("#box textarea");
  if (!box?.offsetParent || document.querySelector("dialog[open]")) return null;
  const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key === "?" && !isTyping) return () => list.open();
  if (event.key === "Escape") return pressing(document.querySelector("#box .stop-button"));
  return event.target === box ? actionInBox(event, box) : null;
}

function actionInBox(event, box) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey))
    return pressing(document.querySelector("#box .submit-button"));
  if (event.key === "ArrowUp" && !box.value) return pressing(lastEdit());
  return null;
}

function pressing(button) {
  return button ? () => button.click() : null;
}

// Returns the button that edits the last message of the user.
function lastEdit() {
  return [...document.querySelectorAll('#chat .message-buttons-right button[aria-label="Edit"]')].at(-1) ?? null;
}
