// Answers to the sample prompts before training and at an evaluation, side by side.

import { el, setText } from "../../common/dom.js";
import { formatNumber } from "../../common/numbers.js";
import { Segments } from "../../common/segments.js";
import { columnHeads, scrollTable } from "../../common/tables.js";
import { hint } from "./pieces.js";
import { wordDifferences } from "./word_differences.js";

export class Samples {
  constructor() {
    this.samples = new Map();
    this.steps = [];
    this.isFollowing = true; // show the last evaluation
    this.shownKey = "";
    this.choice = new Segments("Evaluation", [], (step) => {
      this.isFollowing = step === String(this.steps.at(-1));
      this.fill();
    });
    [this.before, this.after] = [0, 1].map(() => el("th", { scope: "col" }));
    this.body = el("tbody");
    this.answers = el("section", { class: "rn-samples", "aria-label": "Answers" },
      el("div", { class: "ch-tools" }, el("span", {}, "At step"), this.choice.root),
      scrollTable("Answers to the sample prompts", [...columnHeads(["Prompt"]), this.before, this.after], this.body),
      hint("Words that are not in the answer before training are marked."));
    this.empty = hint("The sample prompts are answered before training and at every evaluation.");
    this.root = el("div", {}, this.answers, this.empty);
  }

  show({ samples, sampledSteps }) {
    if (samples !== this.samples) this.isFollowing = true;
    const key = `${sampledSteps} ${[...samples.values()].map((answers) => answers.size)}`;
    const isSame = samples === this.samples && key === this.shownKey;
    Object.assign(this, { samples, steps: sampledSteps, shownKey: key });
    this.answers.hidden = !sampledSteps.length;
    this.empty.hidden = Boolean(sampledSteps.length);
    if (isSame) return;
    const isKnown = sampledSteps.includes(Number(this.choice.value));
    if (this.isFollowing || !isKnown) this.choice.choose(String(sampledSteps.at(-1)));
    this.choice.offer(sampledSteps.map((step) => [String(step), step ? formatNumber(step) : "0, before"]));
    this.fill();
  }

  fill() {
    const first = this.steps[0], step = Number(this.choice.value), isFirst = step === first;
    setText(this.before, first ? `At step ${formatNumber(first)}` : "Before training");
    setText(this.after, isFirst ? "" : `At step ${formatNumber(step)}`);
    this.after.hidden = isFirst;
    this.body.replaceChildren(...[...this.samples].map(([prompt, answers]) => {
      const base = answers.get(first), later = answers.get(step);
      const cells = [answerCell(this.before.textContent, base)];
      if (!isFirst) cells.push(answerCell(this.after.textContent, later, base));
      return el("tr", {}, el("th", { scope: "row", "data-label": "Prompt" }, prompt), ...cells);
    }));
  }
}

function answerCell(label, text, base) {
  return el("td", { "data-label": label }, ...answerParts(text, base));
}

function answerParts(text, base) {
  const note = (sentence) => [el("span", { class: "ch-hint" }, sentence)];
  if (text === undefined) return note("not answered");
  if (text.trim() === "") return note("empty answer");
  if (base === undefined) return [text];
  return wordDifferences(base, text).map(([part, isNew]) => (isNew ? el("mark", {}, part) : part));
}
