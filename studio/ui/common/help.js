// A question mark beside a term: its meaning as a tooltip, and its entry in the glossary behind it.

import { el } from "./dom.js";

// `entry` is the anchor of the term in `docs/glossary.md`.
export function help(term, entry, meaning) {
  return el("a", {
    class: "ch-help", href: `glossary#${entry}`, target: "_blank", rel: "noopener", title: meaning,
    "aria-label": `What “${term}” means: ${meaning}`,
  }, "?");
}
