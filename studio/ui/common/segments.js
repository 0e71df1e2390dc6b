// A row of radio buttons that looks like one control.

import { el } from "./dom.js";

// Radio groups are global to the page by name.
let groups = 0;

export class Segments {
  // `choices` are pairs of a value and its text.
  constructor(label, choices, onChange) {
    this.root = el("div", { class: "ch-segments", role: "radiogroup", "aria-label": label });
    this.group = `segments-${groups++}`;
    this.value = choices[0]?.[0];
    this.onChange = onChange;
    this.offer(choices);
  }

  offer(choices) {
    this.root.replaceChildren(...choices.map(([value, text]) => this.choice(value, text)));
  }

  choice(value, text) {
    const input = el("input", { type: "radio", name: this.group, value });
    input.checked = value === this.value;
    input.addEventListener("change", () => {
      this.value = value;
      this.onChange(value);
    });
    return el("label", {}, input, el("span", {}, text));
  }

  choose(value) {
    this.value = value;
    for (const input of this.root.querySelectorAll("input")) input.checked = input.value === value;
  }
}
