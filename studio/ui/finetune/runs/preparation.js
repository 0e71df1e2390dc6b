// The parts of a run's preparation: those that are done with a tick, and the present one.

import { el, setText } from "../../common/dom.js";

const NAMES = {
  files: "Find the model's files", data: "Read the rows", model: "Load the model", trial: "Measure three steps",
  head: "Fit the head to the frozen model", baseline: "Evaluate before training",
  samples: "Answer the sample prompts, measure the routing",
};
const LOOKS = { done: ["✓", "done"], now: ["●", "in progress"], next: ["○", "not started"] };

export class Preparation {
  constructor() {
    this.shownKey = "";
    this.root = el("ol", { class: "rn-preparing", "aria-label": "Preparation" });
  }

  show({ row, preparing }) {
    this.root.hidden = !preparing || row.state !== "running";
    if (this.root.hidden) return;
    const { parts, part, notes } = preparing, present = parts.indexOf(part);
    const key = JSON.stringify(preparing);
    if (key === this.shownKey) return;
    this.shownKey = key;
    this.root.replaceChildren(...parts.map((name, i) => {
      const look = i < present ? "done" : i > present ? "next" : "now", [sign, word] = LOOKS[look];
      const note = notes[name] ? ` (${notes[name]})` : "";
      const item = el("li", { "data-look": look }, el("i", { "aria-hidden": "true" }, sign), el("span"));
      setText(item.lastChild, `${NAMES[name] ?? name}${note}`);
      item.append(el("span", { class: "ch-unseen" }, `: ${word}`));
      return item;
    }));
  }
}
