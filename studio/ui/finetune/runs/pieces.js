// Small building blocks for several parts of the panel.

import { el, svg } from "../../common/dom.js";

// Colours of curves, in the order in which series use them; a comparison has one run for each.
export const SERIES_COLOURS = ["var(--u0)", "var(--u5)", "var(--u2)", "var(--u3)", "var(--u7)", "var(--u1)"];

export function button(text, look = "", attributes = {}) {
  return el("button", { type: "button", class: `rn-button ${look}`, ...attributes }, text);
}

export function hint(text) {
  return el("p", { class: "ch-hint" }, text);
}

// A drawing of two curves, as a placeholder.
export function emptyChart() {
  return svg("svg", { viewBox: "0 0 200 60", class: "rn-ghost", "aria-hidden": "true" },
    svg("path", { d: "M4 8C30 40 60 46 196 52", style: "stroke: var(--u0)" }),
    svg("path", { d: "M4 14C34 38 70 42 196 44", style: "stroke: var(--u5)", "stroke-dasharray": "5 5" }));
}
