// The list of runs: search, filter, open, and select for comparison. Row nodes are reused when their values change.

import { el } from "../../common/dom.js";
import { emptyChart, hint, SERIES_COLOURS } from "./pieces.js";
import { RunRow } from "./run_row.js";
import { STATES } from "./run_state.js";

// Each compared run needs its own colour.
const MOST_COMPARED = SERIES_COLOURS.length;

export class RunList {
  constructor(onOpen, onSelect) {
    Object.assign(this, { onOpen, onSelect });
    this.runs = [];
    this.rows = new Map(); // RunRow by id
    this.opened = "";
    this.selectedIds = new Set(); // for comparison
    this.tools = this.buildTools();
    this.items = el("ul", { class: "rn-items" });
    this.noMatch = el("p", { class: "rn-none", hidden: "" }, "No matching runs. Change the search or the filter.");
    this.empty = el("div", { class: "rn-empty" }, emptyChart(),
      el("p", {}, "No runs yet. Choose data under “New run” and click “Start run”."));
    this.compareHint = hint("Select two or more runs to compare them.");
    this.root = el("section", { class: "rn-list", "aria-label": "Training runs" },
      el("h2", {}, "Training runs"), this.tools, this.items, this.noMatch, this.empty, this.compareHint);
  }

  buildTools() {
    this.search = el("input", {
      type: "search", placeholder: "Search runs", autocomplete: "off", maxlength: "100",
      "aria-label": "Search runs by name, model, data or state",
    });
    const states = [["", "All states"], ...Object.entries(STATES)];
    const options = states.map(([value, text]) => el("option", { value }, text));
    this.state = el("select", { "aria-label": "Filter runs by state" }, ...options);
    this.search.addEventListener("input", () => this.filter());
    this.state.addEventListener("change", () => this.filter());
    return el("div", { class: "rn-filter" }, this.search, this.state);
  }

  show(runs) {
    this.runs = runs;
    this.removeGone();
    runs.forEach((run, index) => {
      if (!this.rows.has(run.id)) this.rows.set(run.id, this.addRow(run.id));
      const row = this.rows.get(run.id);
      row.show(run, run.id === this.opened);
      const there = this.items.children[index] ?? null;
      if (there !== row.root) this.items.insertBefore(row.root, there);
    });
    this.empty.hidden = runs.length > 0;
    this.tools.hidden = !runs.length;
    this.compareHint.hidden = runs.length < 2;
    this.filter();
  }

  addRow(id) {
    return new RunRow(id, () => this.onOpen(id), (isSelected) => this.select(id, isSelected));
  }

  removeGone() {
    const ids = new Set(this.runs.map((run) => run.id));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      row.root.remove();
      this.rows.delete(id);
      this.selectedIds.delete(id);
    }
  }

  filter() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let matches = 0;
    for (const run of this.runs) {
      const text = [run.name, run.model, run.data, run.state, STATES[run.state]].join(" ").toLowerCase();
      const isInState = !this.state.value || run.state === this.state.value;
      const isMatch = isInState && words.every((word) => text.includes(word));
      this.rows.get(run.id).root.hidden = !isMatch;
      matches += isMatch;
    }
    this.noMatch.hidden = matches > 0 || !this.runs.length;
  }

  select(id, isSelected) {
    if (isSelected) this.selectedIds.add(id);
    else this.selectedIds.delete(id);
    this.limitSelection();
    this.onSelect();
  }

  clearSelection() {
    this.selectedIds.clear();
    for (const row of this.rows.values()) row.checkbox.checked = false;
    this.limitSelection();
    this.onSelect();
  }

  limitSelection() {
    const isFull = this.selectedIds.size >= MOST_COMPARED;
    for (const [id, row] of this.rows) row.checkbox.disabled = isFull && !this.selectedIds.has(id);
  }

  // The ids of the runs selected for comparison.
  get selected() {
    return [...this.selectedIds];
  }

  markOpen(id) {
    this.opened = id;
    for (const [each, row] of this.rows) row.markOpen(each === id);
  }

  focus(id) {
    this.rows.get(id)?.button.focus();
  }
}
