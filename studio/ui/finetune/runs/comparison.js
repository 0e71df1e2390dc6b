// A comparison of runs: their curves in one chart, the settings that differ, and their figures.

import { Board } from "../../common/charts/board.js";
import { el, setText } from "../../common/dom.js";
import { formatNumber } from "../../common/numbers.js";
import { columnHeads, scrollTable, tableRow } from "../../common/tables.js";
import { button, hint, SERIES_COLOURS } from "./pieces.js";
import { fetchRuns } from "./poll.js";

const FIGURES_FIRST = [
  "step", "loss", "eval_loss", "best_eval_loss", "tok_s", "memory_gib", "learning_rate", "grad_norm",
];
const FIGURES_LEFT_OUT = ["progress", "left_s"];

export class Comparison {
  constructor(onClose) {
    this.board = new Board();
    this.loss = this.board.add({ name: "loss", title: "Loss", isLoss: true });
    this.evalLoss = this.board.add({ name: "eval_loss", title: "Held-out loss", isLoss: true });
    this.ids = ""; // of the shown runs
    this.answer = null; // the server's comparison
    this.askedKey = this.shownKey = "";
    this.title = el("h3");
    this.error = el("p", { class: "rn-failed", hidden: "" });
    this.tables = el("div", { class: "rn-tables" });
    const close = button("Close comparison");
    close.addEventListener("click", onClose);
    this.root = el("section", { class: "rn-comparison", "aria-label": "Comparison" },
      el("div", { class: "rn-head" }, this.title, close), this.error, this.board.tools, this.board.root, this.tables);
  }

  // `runs` is a list of RunData.
  show(runs) {
    const ids = runs.map((data) => data.id).join();
    if (ids !== this.ids) {
      this.ids = ids;
      this.askedKey = this.shownKey = "";
      this.board.reset();
    }
    setText(this.title, `Comparison of ${runs.length} runs`);
    const names = distinctNames(runs.map((data) => ({ id: data.id, name: data.row?.name ?? data.id.slice(0, 8) })));
    const version = runs.reduce((sum, data) => sum + data.version, 0);
    const curves = (series, isMarked) => runs.map((data, i) =>
      ({ name: names[i], colour: SERIES_COLOURS[i], points: data.series[series], isMarked }));
    this.loss.show(curves("loss", false), version);
    this.evalLoss.show(curves("eval_loss", true), version);
    this.showTables(runs, names);
  }

  // Asks the server only if a run has changed.
  async fetch(runs) {
    const key = runs.map((data) => `${data.id} ${data.lastSeq} ${data.row?.state}`).join();
    if (key === this.askedKey) return;
    this.answer = await fetchRuns("comparison", runs.map((data) => ["id", data.id]));
    this.askedKey = key;
  }

  showTables(runs, names) {
    const { answer } = this;
    const isReady = answer && (answer.error || runs.every((data, i) => answer.runs[i]?.id === data.id));
    if (!isReady) {
      this.tables.replaceChildren();
      return;
    }
    this.error.hidden = !answer.error;
    setText(this.error, answer.error ?? "");
    const key = JSON.stringify([answer, names]);
    if (key === this.shownKey) return;
    this.shownKey = key;
    this.tables.replaceChildren(...(answer.error ? [] : [settingsTable(answer, names), figuresTable(answer, names)]));
  }
}

// Returns the names of { id, name }, with the start of the id where names are equal.
export function distinctNames(runs) {
  const names = runs.map((run) => run.name);
  const isUnique = (name) => names.indexOf(name) === names.lastIndexOf(name);
  return runs.map(({ id, name }) => (isUnique(name) ? name : `${name} (${id.slice(0, 8)})`));
}

function settingsTable(answer, names) {
  const rows = Object.entries(answer.settings);
  if (rows.length) return comparisonTable("Different settings", answer, names, rows, settingText);
  return el("div", {}, el("h4", {}, "Settings"), hint("All settings are the same."));
}

function settingText(value) {
  if (value === null) return "–";
  return typeof value === "string" ? value || "empty" : JSON.stringify(value);
}

function figuresTable(answer, names) {
  const rank = (name) => (FIGURES_FIRST.includes(name) ? FIGURES_FIRST.indexOf(name) : FIGURES_FIRST.length);
  const rows = Object.entries(answer.figures)
    .filter(([name]) => !FIGURES_LEFT_OUT.includes(name))
    .sort(([a], [b]) => rank(a) - rank(b));
  return comparisonTable("Latest figures", answer, names, rows, formatNumber);
}

// `rows` are pairs of a name and the values by run id; `text` formats a value.
function comparisonTable(heading, answer, names, rows, text) {
  const heads = names.map((name, i) =>
    el("th", { scope: "col", style: `--c: ${SERIES_COLOURS[i]}` }, el("i", { "aria-hidden": "true" }), name));
  const lines = rows.map(([name, values]) => tableRow(name, answer.runs.map((run) => text(values[run.id] ?? null))));
  const table = scrollTable(heading, [...columnHeads(["Name"]), ...heads], el("tbody", {}, ...lines));
  return el("div", { class: "rn-side" }, el("h4", {}, heading), table);
}
