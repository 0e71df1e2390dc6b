// What the model could have written instead of the pinned token. The server keeps the most likely tokens of each step
// while an answer is written; for older answers it computes them again, when asked.

import { el } from "../../common/dom.js";
import { percent } from "../../common/numbers.js";
import { tokenText } from "../panel/token_text.js";

const HINT = "Click a token of the answer to see what the model could have written instead.";
const EXPLANATION = "Probabilities of the model, before temperature and filters.";

export default class Alternatives {
  static title = "Alternatives";
  static help = ["probability", "The most likely tokens at this place; one that you follow begins another answer."];

  constructor(root, panel) {
    Object.assign(this, { root, panel, asked: "" });
    this.line = el("p", { class: "rp-line" });
    this.body = el("tbody");
    this.table = el("table", { "aria-label": "Alternatives to the token" }, this.body);
    root.append(this.line, this.table);
    root.hidden = panel.of !== "answer";
  }

  reset() {
    this.show(HINT);
  }

  select() {
    if (!this.root.hidden) this.load(this.panel.pinned);
  }

  async load(token) {
    const { trace, answer } = this.panel, key = `${trace.id} ${token}`;
    if (token === null || trace.isPrompt(token)) {
      this.asked = "";
      this.show(token === null ? HINT : "Only tokens of the answer were chosen by the model.");
      return;
    }
    if (this.shown === key) return;
    const { tokens } = (await this.panel.fetchAlternatives([trace.id, token])) ?? {};
    if (this.panel.pinned !== token || this.panel.trace.id !== trace.id) return;
    if (tokens) this.list(key, token, tokens);
    else if (this.asked !== key) {
      this.asked = key; // once
      this.show("Computing them again …");
      this.panel.trigger("ask", { answer, token });
    }
  }

  show(sentence) {
    this.shown = "";
    this.line.textContent = sentence;
    this.body.replaceChildren();
  }

  list(key, token, tokens) {
    this.show(EXPLANATION);
    this.shown = key;
    this.body.replaceChildren(...tokens.map((each) => this.row(token, each)));
  }

  row(token, { id, text, p, branches, chosen }) {
    const name = el("code", { class: "rp-token-name" }, ...tokenText(text));
    const bar = el("i", { class: "rp-share", style: `width: ${(100 * p).toFixed(1)}%` });
    const row = el("tr", {}, el("td", {}, name), el("td", { "aria-hidden": "true" }, bar),
      el("td", {}, percent(p, 1)), el("td", {}, ...(chosen || !branches ? [] : [this.branch(token, id, text)])));
    if (chosen) row.setAttribute("aria-current", "true");
    return row;
  }

  branch(token, id, text) {
    const name = `Branch with ${JSON.stringify(text)}`;
    const button = el("button", { type: "button", class: "ch-button", "aria-label": name, title: name }, "Branch");
    button.addEventListener("click", () => this.panel.trigger("branch", { answer: this.panel.answer, token, id }));
    return button;
  }
}
