// The numbers of a chart as a table: filled only while it is open, and extended as points arrive.

import { el } from "../dom.js";
import { compareNumbers, formatNumber } from "../numbers.js";
import { columnHeads, scrollTable, tableRow } from "../tables.js";
import { lowerBound } from "./scale.js";

const ROWS = 500;

export class NumberTable {
  constructor(title) {
    this.body = el("tbody");
    this.earlier = el("button", { type: "button", class: "ch-button", hidden: "" });
    const box = scrollTable(`${title}, numbers`, [], this.body, [this.earlier]);
    this.head = box.querySelector("tr");
    this.root = el("details", { class: "ch-numbers" }, el("summary", {}, "Numbers"), box);
    this.curves = [];
    this.version = 0;
    this.filledKey = ""; // the columns and the version of the rows
    this.steps = []; // of the rows
    this.start = 0; // index of the first shown step
    this.isComplete = false;
    this.root.addEventListener("toggle", () => this.root.open && this.fill());
    this.earlier.addEventListener("click", () => {
      this.isComplete = true;
      this.filledKey = "";
      this.fill();
    });
  }

  // The rows are refilled if `version` changes, and otherwise extended.
  show(curves, version) {
    Object.assign(this, { curves, version });
    if (this.root.open) this.fill();
  }

  fill() {
    const steps = [...new Set(this.curves.flatMap((curve) => curve.points.x))].sort(compareNumbers);
    const key = `${this.curves.map((curve) => curve.name).join("\n")}\n${this.version}`;
    if (key !== this.filledKey || steps.length < this.steps.length) this.clear(steps.length);
    this.filledKey = key;
    // An evaluation arrives after the log of its step, so the last row is rewritten.
    if (this.steps.length) {
      this.steps.pop();
      this.body.lastElementChild.remove();
    }
    const added = steps.slice(this.start + this.steps.length);
    const values = (step) => this.curves.map((curve) => valueText(curve.points, step));
    this.body.append(...added.map((step) => tableRow(String(step), values(step))));
    this.steps.push(...added);
  }

  clear(count) {
    this.steps = [];
    this.start = this.isComplete ? 0 : Math.max(0, count - ROWS);
    this.body.replaceChildren();
    this.head.replaceChildren(...columnHeads(["Step", ...this.curves.map((curve) => curve.name)]));
    this.earlier.hidden = this.start === 0;
    this.earlier.textContent = `Show ${formatNumber(this.start)} earlier rows`;
  }
}

function valueText({ x, y }, step) {
  const index = lowerBound(x, step);
  if (x[index] !== step) return "";
  return Number.isNaN(y[index]) ? "not a number" : String(y[index]);
}
