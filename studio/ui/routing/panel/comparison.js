// The comparison with the base model: a button, and once its routing is known, the shares of differences.

import { el } from "../../common/dom.js";
import { shortKindName } from "../../common/router_kinds.js";
import { percent } from "../../common/numbers.js";

export class Comparison {
  constructor(root, panel, onCompare) {
    Object.assign(this, { root, panel });
    [this.button, this.line] = root.children;
    this.button.addEventListener("click", onCompare);
  }

  show() {
    const { trace, single, unitNames } = this.panel, { flips } = trace;
    this.button.hidden = Boolean(flips);
    this.line.hidden = !flips;
    if (!flips) return;
    const [all, ...shares] = flips[single ? "expert" : "group"].map(shareText);
    const kinds = trace.kinds.map((kind, n) => `${shortKindName(kind)} ${shares[n]}`);
    const byKind = trace.N > 1 ? ` (${kinds.join(", ")})` : "";
    this.line.replaceChildren(
      `${all} of the strongest ${unitNames} differ from the base model, over all layers and tokens${byKind}. ` +
        "Differences have a ",
      el("span", { class: "rp-flip" }, "dashed frame"), ".");
  }
}

// Small shares get a decimal.
function shareText(share) {
  return percent(share, share > 0 && share < 0.1 ? 1 : 0);
}
