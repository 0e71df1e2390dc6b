// The controls above the views: answer, layer, router kind, and groups or single experts.

import { el } from "../../common/dom.js";
import { help } from "../../common/help.js";
import { kindName } from "../../common/router_kinds.js";
import { Segments } from "../../common/segments.js";

const KINDS_HELP = ["moa-attention-experts", "Each layer has two routers: one selects experts for the attention, the " +
  "other for the feed-forward part."];

export class Controls {
  constructor(root, panel, onPick) {
    Object.assign(this, { root, panel });
    this.layers = 0; // of the shown trace
    this.answers = el("select", { "aria-label": "Displayed answer" });
    this.answers.addEventListener("change", () => onPick(this.answer));
    this.layer = el("input", { type: "range", min: "0", value: "0", step: "1", "aria-label": "Layer" });
    this.layer.addEventListener("input", () => panel.setLayer(Number(this.layer.value)));
    this.layerText = el("output", { class: "rp-layer-out" });
    const turn = (text, label, by) => {
      const look = { type: "button", class: "ch-button", tabindex: "-1", "aria-label": label, title: label };
      const node = el("button", look, text); // the arrow keys of the slider do the same
      node.addEventListener("click", () => panel.setLayer(panel.settings.layer + by));
      return node;
    };
    this.kinds = new Segments("Router kind", [], (kind) => panel.setKind(Number(kind)));
    const single = el("input", { type: "checkbox" });
    single.checked = panel.settings.single;
    single.addEventListener("change", () => panel.setSingle(single.checked));
    this.single = el("label", { class: "rp-check" }, single, "single experts");
    root.append(
      el("label", { class: "rp-answer" }, this.answers),
      el("div", { class: "rp-layer" }, el("span", {}, "Layer"), turn("‹", "Previous layer", -1), this.layer,
        turn("›", "Next layer", 1), this.layerText),
      el("span", { class: "rp-kinds" }, this.kinds.root, help("Attention and feed-forward experts", ...KINDS_HELP)),
      this.single);
  }

  get answer() {
    return Number(this.answers.value);
  }

  // For another trace.
  reset() {
    const { trace, settings } = this.panel;
    this.layers = trace.L;
    this.layer.max = String(trace.L - 1);
    this.offerSingle();
    this.kinds.root.parentNode.hidden = trace.N === 1;
    this.kinds.value = String(settings.kind);
    this.kinds.offer(trace.kinds.map((name, kind) => [String(kind), kindName(name)]));
  }

  // Returns whether this has changed.
  offerSingle() {
    const wasHidden = this.single.hidden;
    this.single.hidden = !this.panel.hasSingle;
    return wasHidden !== this.single.hidden;
  }

  show() {
    const { settings } = this.panel;
    this.layer.value = String(settings.layer);
    this.layerText.textContent = `${settings.layer} of 0–${this.layers - 1}`;
  }

  showAnswers({ answers, answer }) {
    if (answers === undefined) return;
    if (this.answers.options.length !== answers)
      this.answers.replaceChildren(...Array.from({ length: answers }, (_, index) =>
        el("option", { value: String(index) }, `Answer ${index + 1}`)));
    this.answers.value = String(answer);
  }
}
