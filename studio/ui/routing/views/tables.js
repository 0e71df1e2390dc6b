// The numbers of the other views as tables, filled only while they are open.

import { el } from "../../common/dom.js";
import { oncePerFrame, Throttle } from "../../common/pacing.js";
import { shortKindName } from "../../common/router_kinds.js";
import { columnHeads, tableRow } from "../../common/tables.js";
import { selectedText, tokenText } from "../panel/token_text.js";

const REFRESH_MS = 1000;
const ROW_PX = 26, BESIDE = 8; // height of a row, and rows above and below the visible ones

export default class Tables {
  static title = "Tables";
  static help = ["gate", "The numbers of all views. A gate is the weight of a selected expert."];

  constructor(root, panel) {
    this.panel = panel;
    this.throttle = new Throttle(() => this.refresh(), REFRESH_MS);
    this.load = new Table("rp-load", () => this.fillLoad());
    this.tokens = new Table("rp-token-table", () => this.fillTokens());
    this.rows = new VisibleRows(this.tokens, (t) => this.tokenRow(t));
    root.append(this.load.root, this.tokens.root);
  }

  // While rows arrive, at most once a second.
  update() {
    this.throttle.request();
  }

  // Another layer, or another trace.
  recolour() {
    this.rows.clear();
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
    const all = Array.from({ length: units }, (_, unit) => unit);
    const names = trace.kinds.flatMap((kind) => all.map((unit) => `${shortKindName(kind)} ${unit}`));
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
    this.tokens.head.replaceChildren(...columnHeads(["#", "Part", "Token", ...trace.kinds.map(shortKindName)]));
    this.rows.draw(trace.count);
  }

  tokenRow(t) {
    const { trace, single, unitName, settings: { layer: l } } = this.panel;
    const experts = trace.kinds.map((_, n) => {
      const base = trace.baseUnit(t, l, n, single);
      const difference = base === null ? "" : ` · ${unitName} in the base model: ${base}`;
      return selectedText(trace.selected(t, l, n)) + difference;
    });
    const row = tableRow(String(t + 1), [trace.part(t), "", ...experts]);
    row.children[2].append(...tokenText(trace.texts[t]));
    for (const cell of row.children) cell.title = cell.textContent;
    return row;
  }
}

// The rows of a table that are in view. Two empty rows stand for those above and below, so that the table is as high as
// with all of them.
class VisibleRows {
  constructor({ box, table, body }, row) {
    Object.assign(this, { box, table, body, row, count: 0 });
    [this.above, this.below] = [0, 1].map(() => el("tr", { "aria-hidden": "true" }, el("td")));
    const later = oncePerFrame();
    box.addEventListener("scroll", () => later(() => this.draw(this.count)));
  }

  clear() {
    this.body.replaceChildren();
  }

  draw(count) {
    this.count = count;
    this.table.setAttribute("aria-rowcount", count + 1);
    const top = Math.floor(this.box.scrollTop / ROW_PX), inside = Math.ceil(this.box.clientHeight / ROW_PX);
    const first = Math.max(0, Math.min(top - BESIDE, count - inside)), end = Math.min(count, top + inside + BESIDE);
    for (const each of [this.above, this.below]) each.firstChild.colSpan = this.table.tHead.rows[0].cells.length;
    this.above.firstChild.style.height = `${first * ROW_PX}px`;
    this.below.firstChild.style.height = `${(count - end) * ROW_PX}px`;
    const rows = Array.from({ length: Math.max(0, end - first) }, (_, i) => {
      const row = this.row(first + i);
      row.setAttribute("aria-rowindex", first + i + 2);
      return row;
    });
    this.body.replaceChildren(...(first ? [this.above] : []), ...rows, ...(end < count ? [this.below] : []));
  }
}

class Table {
  constructor(name, fill) {
    [this.summary, this.caption, this.head, this.body] = ["summary", "caption", "tr", "tbody"].map((tag) => el(tag));
    this.table = el("table", {}, this.caption, el("thead", {}, this.head), this.body);
    this.box = el("div", { class: "rp-scroll", tabindex: "0" }, this.table);
    this.root = el("details", { class: `rp-table ${name}` }, this.summary, this.box);
    this.fill = fill;
    this.root.addEventListener("toggle", () => this.fillIfOpen());
  }

  fillIfOpen() {
    if (this.root.open) this.fill();
  }
}
