// Tables that scroll in a box, also by keyboard.

import { el } from "./dom.js";

// `heads` are the cells of the header row, and `before` is shown above the table.
export function scrollTable(label, heads, body, before = []) {
  const caption = el("caption", { class: "ch-unseen" }, label);
  const table = el("table", {}, caption, el("thead", {}, el("tr", {}, ...heads)), body);
  return el("div", { class: "ch-scroll", tabindex: "0", role: "region", "aria-label": label }, ...before, table);
}

export function columnHeads(names) {
  return names.map((name) => el("th", { scope: "col" }, name));
}

export function tableRow(name, cells) {
  return el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((content) => el("td", {}, content)));
}
