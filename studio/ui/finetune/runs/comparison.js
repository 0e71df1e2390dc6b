// A comparison of runs: their curves in one chart, their answers, the settings that differ, and their figures.

import { Board } from "../../common/charts/board.js";
import { el, setText } from "../../common/dom.js";
import { formatNumber } from "../../common/numbers.js";
import { columnHeads, scrollTable, tableRow } from "../../common/tables.js";
import { settingText } from "./run_settings.js";
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
    this.accuracy = this.board.add({ name: "eval_accuracy", title: "Held-out accuracy" });
    this.macroF1 = this.board.add({ name: "eval_macro_f1", title: "Held-out macro-F1" });
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
    this.accuracy.show(curves("eval_accuracy", true), version);
    this.macroF1.show(curves("eval_macro_f1", true), version);
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
    const answers = lastAnswers(runs), key = JSON.stringify([answer, names, answers]);
    if (key === this.shownKey) return;
    this.shownKey = key;
    const tables = () => [settingsTable(answer, names), figuresTable(answer, names), ...answersTable(answers, names)];
    this.tables.replaceChildren(...(answer.error ? [] : tables()));
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

// Returns for each sample prompt the last answer of each run, or null: `[[prompt, [answer]]]`.
export function lastAnswers(runs) {
  const prompts = [...new Set(runs.flatMap(({ samples }) => [...samples.keys()]))];
  const last = ({ samples }, prompt) => [...(samples.get(prompt) ?? [])].sort(([a], [b]) => a - b).at(-1)?.[1] ?? null;
  return prompts.map((prompt) => [prompt, runs.map((run) => last(run, prompt))]);
}

function answersTable(answers, names) {
  if (!answers.length) return [];
  const rows = answers.map(([prompt, texts]) => tableRow(prompt, texts.map((text) => text ?? "not answered")));
  const table = scrollTable("Last answers", [...columnHeads(["Prompt"]), ...runHeads(names)], el("tbody", {}, ...rows));
  return [el("div", { class: "rn-side rn-samples" }, el("h4", {}, "Last answers"), table)];
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
  const lines = rows.map(([name, values]) => {
    const line = tableRow(answer.labels[name] ?? name, answer.runs.map((run) => text(values[run.id] ?? null)));
    line.title = name;
    return line;
  });
  const table = scrollTable(heading, [...columnHeads(["Name"]), ...runHeads(names)], el("tbody", {}, ...lines));
  return el("div", { class: "rn-side" }, el("h4", {}, heading), table);
}

function runHeads(names) {
  return names.map((name, i) =>
    el("th", { scope: "col", style: `--c: ${SERIES_COLOURS[i]}` }, el("i", { "aria-hidden": "true" }), name));
}
