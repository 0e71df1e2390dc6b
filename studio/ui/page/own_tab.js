// In a frame of another website: a link to the page in its own tab, and what a frame can't do.

import { el } from "../common/dom.js";

const FRAMED = " to sign in, and to keep what you make: a frame has its own storage, which a tab does not see.";
const REFUSED =
  " to keep what you make: here your browser refuses storage and cookies, so chats and runs are lost on a reload.";

export function mount({ element }) {
  if (window.top === window) return;
  const link = el("a", { href: location.href, target: "_blank", rel: "noopener" }, "Open this studio in its own tab");
  const isRefused = window.isStorageRefused || !navigator.cookieEnabled;
  element.append(el("p", { class: "demo-note" }, link, isRefused ? REFUSED : FRAMED));
}
