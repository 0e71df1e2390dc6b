// The numbers of the other views as tables, filled only while they are open.

import { el } from "../../common/dom.js";
import { Throttle } from "../../common/pacing.js";
import { columnHeads, tableRow } from "../../common/tables.js";
import { selectedText, tokenText } from "../panel/token_text.js";

const REFRESH_MS = 1000;
const FIRST_TOKENS = 500;

export default class Tables {
  static title = "Tables";

  constructor(root, panel) {
    this.panel = panel;
    this.throttle = new Throttle(() => this.refresh(), REFRESH_MS);
    this.load = new Table("rp-load", () => this.fillLoad());
    this.tokens = new Table("rp-token-table", () => this.fillTokens());
    this.listed = 0; // rows of the token table
    this.listsAll = false;
    this.more = el("button", { type: "button", class: "ch-button", hidden: "" });
    this.more.addEventListener("click", () => {
      this.listsAll = true;
      this.fillTokens();
    });
    this.tokens.root.append(this.more);
    root.append(this.load.root, this.tokens.root);
  }

  // While rows arrive, at most once a second.
  update() {
    this.throttle.request();
  }

  reset() {
    this.listsAll = false;
    this.restart();
  }

  recolour() {
    this.restart();
  }

  restart() {
    this.listed = 0;
    this.tokens.body.replaceChildren();
    this.throttle.run();
  }

  refresh() {
    const { trace, unitName, part, settings } = this.panel;
    this.load.summary.textContent = `Load by layer and ${unitName}, ${part}`;
    this.tokens.summary.textContent = `Tokens in layer ${settings.layer}`;
    if (!trace.id) return;
    this.load.fillIfOpen();
    this.tokens.fillIfOpen();
  }

  fillLoad() {
    const { trace, units, single, part } = this.panel, [start, end] = trace.range(part);
    const names = trace.kinds.flatMap((kind) => Array.from({ length: units }, (_, unit) => `${kind} ${unit}`));
    this.load.caption.textContent =
      `Share of assignments in ${end - start} tokens of the ${part}; chance is ${(1 / units).toFixed(4)}.`;
    this.load.head.replaceChildren(...columnHeads(["Layer", ...names]));
    this.load.body.replaceChildren(...Array.from({ length: trace.L }, (_, l) => {
      const shares = trace.kinds.flatMap((_, n) => Array.from(trace.load(part, l, n, single)));
      return tableRow(String(l), shares.map((share) => share.toFixed(4)));
    }));
  }

  fillTokens() {
    const { trace, settings: { layer } } = this.panel;
    this.tokens.caption.textContent = `Experts and gates in layer ${layer}.`;
    this.tokens.head.replaceChildren(...columnHeads(["#", "Part", "Token", ...trace.kinds]));
    const added = document.createDocumentFragment();
    const end = this.listsAll ? trace.count : Math.min(trace.count, FIRST_TOKENS);
    for (; this.listed < end; this.listed++) added.append(this.tokenRow(this.listed, layer));
    this.tokens.body.append(added);
    this.more.hidden = this.listed === trace.count;
    this.more.textContent = `Show all ${trace.count} tokens`;
  }

  tokenRow(t, l) {
    const { trace, single, unitName } = this.panel;
    const experts = trace.kinds.map((_, n) => {
      const base = trace.baseUnit(t, l, n, single);
      const difference = base === null ? "" : ` · ${unitName} in the base model: ${base}`;
      return selectedText(trace.selected(t, l, n)) + difference;
    });
    const row = tableRow(String(t + 1), [trace.part(t), "", ...experts]);
    row.children[2].append(...tokenText(trace.texts[t]));
    return row;
  }
}

class Table {
  constructor(name, fill) {
    [this.summary, this.caption, this.head, this.body] = ["summary", "caption", "tr", "tbody"].map((tag) => el(tag));
    const table = el("table", {}, this.caption, el("thead", {}, this.head), this.body);
    this.root = el("details", { class: `rp-table ${name}` }, this.summary,
      el("div", { class: "rp-scroll", tabindex: "0" }, table));
    this.fill = fill;
    this.root.addEventListener("toggle", () => this.fillIfOpen());
  }

  fillIfOpen() {
    if (this.root.open) this.fill();
  }
}
