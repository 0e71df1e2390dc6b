// In a frame of another website: a link to the page in its own tab, and what a frame can't do.

import { el } from "../common/dom.js";

const FRAMED = " to sign in, and to find what you made there: a frame and a tab have separate storage.";
const REFUSED = " to sign in, and to keep your conversation: here the browser refuses storage, so a reload loses it.";

const SIGN_IN = "Opens in its own tab, which has nothing of what you made in this frame";

export function mount({ element }) {
  if (window.top === window) return;
  const link = el("a", { href: location.href, target: "_blank", rel: "noopener" }, "Open this studio in its own tab");
  document.querySelector("#sign-in")?.setAttribute("title", SIGN_IN);
  element.append(el("p", { class: "demo-note" }, link, window.isStorageRefused ? REFUSED : FRAMED));
}
