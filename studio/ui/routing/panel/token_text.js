// A token and its selected experts as text.

import { el } from "../../common/dom.js";

const MARKS = { " ": "·", "\n": "↵", "\t": "⇥", "\r": "␍" };

// Returns a token's text with visible whitespace, as nodes and strings.
export function tokenText(text) {
  if (text === "") return [el("span", { class: "rp-ws", title: "part of a character" }, "⋯")];
  const shown = /^\p{M}/u.test(text) ? "◌" + text : text;
  return shown.split(/([ \n\t\r]+)/).filter(Boolean).map((part) => (part.trim() ? part : whitespace(part)));
}

function whitespace(part) {
  return el("span", { class: "rp-ws" }, [...part].map((sign) => MARKS[sign] ?? "·").join(""));
}

// Returns experts with their gates, as in "3 (0.72), 0 (0.28)"; equal gates, as of tied experts, say nothing.
export function selectedText(selected) {
  if (hasEqualGates(selected)) return selected.map(({ expert }) => expert).join(", ");
  return selected.map(({ expert, gate }) => `${expert} (${gate.toFixed(2)})`).join(", ");
}

export function hasEqualGates(selected) {
  return selected.length > 1 && selected.every(({ gate }) => Math.abs(gate - selected[0].gate) < 0.001);
}
