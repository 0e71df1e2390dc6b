// The list of runs: search, filter, open, and select for comparison. Only rows down to the visible ones have nodes,
// which are reused when their values change.

import { el } from "../../common/dom.js";
import { emptyChart, hint, SERIES_COLOURS } from "./pieces.js";
import { RunRow } from "./run_row.js";
import { STATES } from "./run_state.js";

// Each compared run needs its own colour.
const MOST_COMPARED = SERIES_COLOURS.length;
const ROWS = 40; // that are added when the end of the list comes into view

export class RunList {
  constructor(onOpen, onSelect) {
    Object.assign(this, { onOpen, onSelect });
    this.runs = [];
    this.rows = new Map(); // RunRow by id, of the rows that have nodes
    this.limit = ROWS;
    this.opened = "";
    this.selectedIds = new Set(); // for comparison
    this.tools = this.buildTools();
    this.items = el("ul", { class: "rn-items" });
    this.end = el("li", { class: "rn-end", "aria-hidden": "true" });
    new IntersectionObserver((entries) => entries.at(-1).isIntersecting && this.showMore()).observe(this.end);
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
    this.empty.hidden = runs.length > 0;
    this.tools.hidden = !runs.length;
    this.compareHint.hidden = runs.length < 2;
    const ids = new Set(runs.map((run) => run.id));
    if (runs.length) this.selectedIds.forEach((id) => ids.has(id) || this.selectedIds.delete(id));
    this.draw();
  }

  filter() {
    this.limit = ROWS;
    this.items.scrollTop = 0;
    this.draw();
  }

  showMore() {
    if (this.limit >= this.runs.length) return;
    this.limit += ROWS;
    this.draw();
  }

  draw() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean), state = this.state.value;
    const matches = this.runs.filter((run) => (!state || run.state === state) && hasWords(run, words));
    const shown = matches.slice(0, this.limit), ids = new Set(shown.map((run) => run.id));
    for (const [id, row] of this.rows) if (!ids.has(id)) this.removeRow(id, row);
    shown.forEach((run, index) => {
      if (!this.rows.has(run.id)) this.rows.set(run.id, this.addRow(run.id));
      const row = this.rows.get(run.id);
      row.show(run, run.id === this.opened);
      const there = this.items.children[index] ?? null;
      if (there !== row.root) this.items.insertBefore(row.root, there);
    });
    if (shown.length < matches.length) this.items.append(this.end);
    else this.end.remove();
    this.noMatch.hidden = matches.length > 0 || !this.runs.length;
    this.limitSelection();
  }

  addRow(id) {
    const row = new RunRow(id, () => this.onOpen(id), (isSelected) => this.select(id, isSelected));
    row.checkbox.checked = this.selectedIds.has(id);
    return row;
  }

  removeRow(id, row) {
    row.root.remove();
    this.rows.delete(id);
  }

  // Selects runs for comparison.
  choose(ids) {
    this.selectedIds = new Set(ids.slice(0, MOST_COMPARED));
    for (const [id, row] of this.rows) row.checkbox.checked = this.selectedIds.has(id);
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

function hasWords(run, words) {
  const text = [run.name, run.model, run.data, run.state, STATES[run.state]].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

// Returns all runs, latest first, from those that were known and an answer with the rows that have changed.
export function mergedRuns(known, { runs, gone, whole }) {
  if (whole) return runs;
  if (!runs.length && !gone.length) return known;
  const changed = new Map(runs.map((run) => [run.id, run])), before = new Set(known.map((run) => run.id));
  const kept = known.filter((run) => !gone.includes(run.id)).map((run) => changed.get(run.id) ?? run);
  return [...runs.filter((run) => !before.has(run.id)), ...kept];
}
