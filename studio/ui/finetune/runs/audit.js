// The trained parts, the forecast and the data of a run.

import { el } from "../../common/dom.js";
import { formatNumber, percent } from "../../common/numbers.js";
import { columnHeads, scrollTable, tableRow } from "../../common/tables.js";
import { hint } from "./pieces.js";
import { duration } from "./times.js";

const PART_COLUMNS = ["Part", "Parameters", "Trained", "Share", "Rank", "Dtype", "4-bit", "Gradient"];

export class Audit {
  constructor() {
    this.root = el("section", { class: "rn-audit", "aria-label": "Setup" });
    this.shown = [];
  }

  show({ audit, gradients }) {
    if (this.shown.length && this.shown[0] === audit && this.shown[1] === gradients) return;
    this.shown = [audit, gradients];
    if (audit) this.root.replaceChildren(...sections(audit, gradients));
    else this.root.replaceChildren(hint("The trained parts are counted before the first step."));
  }
}

function sections(audit, gradients) {
  const data = audit.data ?? {};
  return [
    parts(audit, gradients), facts("Forecast", forecast(audit)), facts("Data", dataFacts(data)),
    ...lengths(data), ...example(audit.example),
  ];
}

function parts({ rows, trained }, gradients) {
  const total = rows.reduce((sum, row) => sum + row.parameters, 0);
  const body = el("tbody", {}, ...rows.map((row) => partRow(row, gradients)));
  return section("Parts",
    scrollTable("Model parts", columnHeads(PART_COLUMNS), body),
    hint(`${formatNumber(trained)} trained parameters, for a model with ${formatNumber(total)}.`));
}

function partRow(row, gradients) {
  const isTrained = row.trained > 0;
  const node = tableRow(row.part, [
    formatNumber(row.parameters), isTrained ? formatNumber(row.trained) : "frozen",
    isTrained ? percent(row.share, 1) : "", row.rank ? String(row.rank) : "", row.dtype,
    row.four_bit ? percent(row.four_bit) : "", isTrained ? gradientText(gradients, row.part) : "",
  ]);
  node.classList.toggle("rn-frozen", !isTrained);
  return node;
}

// Returns how many tensors of a part got a gradient in the first steps.
function gradientText(gradients, part) {
  if (!gradients) return "not measured yet";
  if (!gradients[part]) return "none";
  const { tensors, without_gradient: without } = gradients[part];
  return without ? `${formatNumber(without)} of ${formatNumber(tensors)} without` : `all ${formatNumber(tensors)}`;
}

function forecast({ forecast: cost = {}, precision }) {
  return [
    ["Precision", precision],
    ["Memory", `about ${formatNumber(cost.memory_gib)} GiB, ${formatNumber(cost.free_gib)} GiB free`],
    ["Steps", formatNumber(cost.steps)],
    ["Time", `about ${duration(cost.seconds)}, ${formatNumber(cost.step_s)} s per step`],
    ["Speed", `${formatNumber(cost.tok_s)} tokens/s`],
  ];
}

function dataFacts(data) {
  return [
    ["File", data.file],
    ["Format", data.format],
    ["Examples", formatNumber(data.examples)],
    ["Skipped", data.bad_rows ? `${formatNumber(data.bad_rows)} bad rows` : "none"],
    ["Duplicates", formatNumber(data.duplicates)],
    ["Rows", `${formatNumber(data.train_rows)} for training, ${formatNumber(data.held_out_rows)} held out`],
    ["Tokens", `${formatNumber(data.tokens)}, ${formatNumber(data.trained_tokens)} trained`],
    ["Truncated", `${formatNumber(data.cut)} examples`],
  ];
}

function facts(title, pairs) {
  const items = pairs.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(text ?? "–"))));
  return section(title, el("dl", { class: "rn-facts" }, ...items));
}

// A bar for each range of lengths.
function lengths({ edges, counts }) {
  if (!Array.isArray(edges) || !Array.isArray(counts)) return [];
  const most = Math.max(1, ...counts);
  const rows = counts.flatMap((count, i) => {
    const bar = el("i", { "aria-hidden": "true", style: `width: ${(100 * count) / most}%` });
    const range = `${formatNumber(edges[i])} to ${formatNumber(edges[i + 1] - 1)}`;
    return count ? [tableRow(range, [bar, formatNumber(count)])] : [];
  });
  const caption = el("caption", { class: "ch-unseen" }, "Number of examples by length");
  const table = el("table", { class: "rn-lengths" }, caption, el("tbody", {}, ...rows));
  return [section("Tokens per example", table)];
}

// `spans` hold a text, whether it is trained, and whether it is a control token.
function example(spans) {
  if (!Array.isArray(spans) || !spans.length) return [];
  const nodes = spans.map(([text, isTrained, isControl]) => {
    const node = isControl ? el("b", {}, String(text)) : String(text);
    return isTrained ? el("mark", {}, node) : node;
  });
  const title = "First row, trained text marked, control tokens bold";
  return [section(title, el("pre", { class: "rn-example" }, ...nodes))];
}

function section(title, ...nodes) {
  return el("div", {}, el("h4", {}, title), ...nodes);
}
