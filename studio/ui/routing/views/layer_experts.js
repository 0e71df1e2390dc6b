// The units of the selected router as a table: how often each is the strongest or selected, and its load.

import { el } from "../../common/dom.js";
import { kindName } from "../../common/router_kinds.js";
import { percent } from "../../common/numbers.js";
import { scrollTable, tableRow } from "../../common/tables.js";
import { colourClass } from "../panel/colours.js";
import { sortedBy, unitCounts } from "../panel/unit_counts.js";

const FEWEST_ROWS = 8;

export default class LayerExperts {
  static title = "Experts of this layer";
  static help = ["load", "The load is the share of all assignments that an expert gets; the line in a bar is chance."];

  constructor(root, panel) {
    Object.assign(this, { root, panel, sort: "strongest", showsAll: false, heads: [] });
    this.about = el("p", { class: "rp-line" });
    this.body = el("tbody");
    this.table = scrollTable(LayerExperts.title, [], this.body);
    this.more = el("button", { type: "button", class: "ch-button", hidden: "" });
    this.more.addEventListener("click", () => {
      this.showsAll = !this.showsAll;
      this.update();
    });
    root.append(this.about, this.table, this.more);
  }

  reset() {
    const { single, unitName } = this.panel;
    const selected = single ? [["selected", "selected"]] : [];
    const columns = [["unit", unitName], ["strongest", "strongest"], ...selected, ["load", "load"]];
    this.heads = columns.map(([column, name]) => this.headOf(column, name));
    this.table.querySelector("thead tr").replaceChildren(...this.heads.map(({ node }) => node));
    this.sortBy("strongest");
  }

  headOf(column, name) {
    const button = el("button", { type: "button", class: "rp-sort" }, name);
    button.addEventListener("click", () => {
      this.sortBy(column);
      this.update();
    });
    return { column, node: el("th", { scope: "col" }, button) };
  }

  sortBy(column) {
    this.sort = column;
    for (const head of this.heads) {
      const order = head.column === "unit" ? "ascending" : "descending";
      head.node.setAttribute("aria-sort", head.column === column ? order : "none");
    }
  }

  update() {
    const { trace, part, single, units, unitNames, settings: { layer, kind } } = this.panel;
    const rows = sortedBy(unitCounts(trace, part, layer, kind, single), this.sort);
    const colours = this.panel.colours(layer, kind), highest = Math.max(2 / units, ...rows.map(({ load }) => load));
    const shown = this.showsAll ? rows : rows.slice(0, FEWEST_ROWS);
    this.about.textContent = this.sentence();
    this.body.replaceChildren(...shown.map((row) => this.row(row, colours[row.unit], highest)));
    this.more.hidden = rows.length <= FEWEST_ROWS;
    this.more.textContent = this.showsAll ? `Show the first ${FEWEST_ROWS}` : `Show all ${rows.length} ${unitNames}`;
  }

  row({ unit, strongest, selected, load }, colour, highest) {
    const chance = 1 / this.panel.units;
    const bar = el("span", { class: "rp-bar", style: `--length: ${load / highest}; --chance: ${chance / highest}` });
    const counts = selected === undefined ? [strongest] : [strongest, selected];
    return tableRow(el("span", { class: `rp-chip ${colourClass(colour)}` }, String(unit)),
      [...counts.map((count) => this.countText(count)), el("span", { class: "rp-load-cell" }, bar, percent(load, 1))]);
  }

  countText(count) {
    return `${count} (${percent(count / Math.max(this.tokens, 1))})`;
  }

  get tokens() {
    const [start, end] = this.panel.trace.range(this.panel.part);
    return end - start;
  }

  sentence() {
    const { trace, single, units, unitName, part, settings: { layer, kind } } = this.panel, { K, E } = trace;
    const selected = single ? `selected in ${percent(K / E, 1)} of the tokens (${K}/${E}), ` : "";
    const held = trace.gatesSumToOne ? "" : ` On average, the ${K} experts of a token together hold ` +
      `${percent(trace.gateSum(part, layer, kind))} of the router's probability.`;
    const router = `Layer ${layer}, ${kindName(trace.kinds[kind])}`;
    return `${router}: in how many of the ${this.tokens} tokens of the ${part} each ` +
      `${unitName} is the strongest${single ? " or selected" : ""}, and its share of all assignments. ` +
      `Chance: ${selected}load ${percent(1 / units, 1)} (1/${units}).${held}`;
  }
}
