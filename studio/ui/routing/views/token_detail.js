// One token in every layer: the strongest unit of each router, and the selected experts as a sentence.

import { el } from "../../common/dom.js";
import { kindName } from "../../common/router_kinds.js";
import { percent } from "../../common/numbers.js";
import { colourClass } from "../panel/colours.js";
import { hasEqualGates, selectedText, tokenText } from "../panel/token_text.js";

const ROWS = 2; // of cells, for each kind of router

export default class TokenDetail {
  static title = "One token across layers";
  static help = ["router", "Each cell is a router: the number of its strongest expert, or copy, for this token."];

  constructor(root, panel) {
    this.panel = panel;
    this.name = el("p", { class: "rp-which" });
    this.grids = el("div", { class: "rp-grids" });
    this.line = el("p", { class: "rp-line" });
    this.cells = []; // [N][L]
    this.hovered = null; // [l, n]
    root.append(this.name, this.grids, this.line);
  }

  reset() {
    const { trace } = this.panel;
    this.hovered = null;
    this.cells = trace.kinds.map((_, n) => Array.from({ length: trace.L }, (_, l) => this.cell(l, n)));
    this.grids.replaceChildren(...trace.kinds.map((kind, n) =>
      el("div", { class: "rp-kind" }, el("span", { class: "rp-kind-name" }, kindName(kind)),
        el("div", { class: "rp-cells", style: `--columns: ${Math.ceil(trace.L / ROWS)}` }, ...this.cells[n]))));
  }

  cell(l, n) {
    const node = el("span", { class: "rp-cell" }, el("small", {}, String(l)), el("b"), el("i"));
    node.addEventListener("pointerenter", () => this.hover([l, n]));
    node.addEventListener("pointerleave", () => this.hover(null));
    node.addEventListener("click", () => this.panel.setLayer(l));
    return node;
  }

  hover(router) {
    this.hovered = router;
    this.showSentence();
  }

  select() {
    this.update();
  }

  update() {
    const { trace, current: t } = this.panel;
    if (t < 0 || t >= trace.count) return;
    const number = trace.isPrompt(t) ? t + 1 : t + 1 - trace.prompt;
    this.name.replaceChildren(el("code", { class: "rp-token-name" }, ...tokenText(trace.texts[t])),
      ` token ${number} of the ${trace.part(t)}${this.state()}`);
    this.cells.forEach((row, n) => row.forEach((node, l) => this.paint(node, t, l, n, this.panel.colours(l, n))));
    this.showSentence();
  }

  state() {
    const { focused, pinned } = this.panel;
    if (focused !== null) return "";
    return pinned === null ? " · latest" : " · pinned, click again to unpin";
  }

  paint(node, t, l, n, colours) {
    const { trace, settings, single } = this.panel, [, number, bar] = node.children;
    const unit = trace.strongest(t, l, n, single), gate = trace.gatesOf(t, l, n, single)[unit];
    const base = trace.baseUnit(t, l, n, single);
    node.className = `rp-cell ${colourClass(colours[unit])}`;
    node.classList.toggle("rp-on", l === settings.layer && n === settings.kind);
    node.classList.toggle("rp-flip", base !== null);
    number.textContent = base === null ? unit : `${base}→${unit}`;
    bar.style.setProperty("--gate", gate > 0.999 ? 0 : gate); // a full bar would say nothing
    node.title = this.sentence(t, l, n);
  }

  showSentence() {
    const { trace, settings, current: t } = this.panel;
    if (t < 0 || t >= trace.count) return;
    const [l, n] = this.hovered ?? [settings.layer, settings.kind];
    this.line.textContent = this.sentence(t, l, n);
  }

  sentence(t, l, n) {
    const { trace } = this.panel;
    const group = trace.tied ? ` · copy ${trace.strongest(t, l, n, false)}` : "";
    const entropy = `entropy ${percent(trace.entropy(t, l, n))} of the maximum`;
    const selected = trace.selected(t, l, n), name = hasEqualGates(selected) ? "experts" : "experts (gates)";
    const experts = `${name} ${selectedText(selected)}${this.held(t, l, n)}`;
    return `Layer ${l}, ${kindName(trace.kinds[n])}: ${experts}${group} · ${entropy}${this.difference(t, l, n)}`;
  }

  // Gates that are probabilities add up to the share of the probability that the selected experts hold.
  held(t, l, n) {
    const { trace } = this.panel;
    if (trace.gatesSumToOne) return "";
    return `, together ${percent(trace.selected(t, l, n).reduce((sum, { gate }) => sum + gate, 0))} of the probability`;
  }

  difference(t, l, n) {
    const { trace, single, unitName } = this.panel, base = trace.baseUnit(t, l, n, single);
    if (base === null) return "";
    return ` · strongest ${unitName} in the base model: ${base}, with the adapter: ${trace.strongest(t, l, n, single)}`;
  }
}
