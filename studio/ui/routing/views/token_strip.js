// The tokens of the prompt and the answer, coloured by the strongest unit of the selected router.

import { el, setText } from "../../common/dom.js";
import { clamp } from "../../common/numbers.js";
import { COLOURED, colourClass, hasColourEach } from "../panel/colours.js";
import { tokenText } from "../panel/token_text.js";

// Longer prompts start collapsed.
const OPEN_UP_TO = { answer: 40, prompt: 2000 };
const FOLLOW_PX = 40;
const PIECE = 20; // tokens that are drawn at once
const ROW = 10; // tokens that an arrow up or down moves by

export default class TokenStrip {
  static title = "Tokens";
  static help = ["gate", "Each token has the number and colour of its strongest expert, or copy, in the chosen layer."];

  constructor(root, panel) {
    this.panel = panel;
    this.title = el("p", { class: "rp-part" });
    this.summary = el("summary");
    this.prompt = new TokenList("prompt", el("details", { class: "rp-prompt" }, this.summary), panel);
    this.answer = new TokenList("answer", el("div", { class: "rp-answer-tokens" }, this.title), panel);
    this.colouring = el("p", { class: "rp-line" });
    this.marked = []; // nodes of the pinned and the focused token
    this.legend = el("ul", { class: "rp-legend", "aria-label": "Colours" });
    this.legendKey = "";
    root.append(this.prompt.root, this.answer.root, this.legend, this.colouring);
    this.prompt.root.addEventListener("toggle", () => this.panel.draw());
  }

  reset() {
    const { trace, of } = this.panel;
    this.prompt.clear();
    this.answer.clear();
    this.prompt.root.open = trace.prompt <= OPEN_UP_TO[of];
  }

  // Adds the tokens that have arrived, which may change which units have a colour, and paints all.
  *update() {
    const { trace } = this.panel;
    const [, prompt] = trace.range("prompt"), [start, end] = trace.range("answer");
    this.summary.textContent = `Prompt · ${prompt} tokens`;
    this.title.textContent = `Answer · ${end - start} tokens`;
    this.prompt.root.hidden = !trace.prompt;
    this.showColouring();
    const colours = this.colours();
    this.showLegend(colours);
    yield* this.answer.draw(colours);
    if (this.prompt.root.open) yield* this.prompt.draw(colours);
  }

  showLegend(colours) {
    const { unitName } = this.panel, key = `${unitName} ${colours}`;
    if (key === this.legendKey) return;
    this.legendKey = key;
    const units = colours.map((colour, unit) => [colour, `${unitName} ${unit}`]);
    const shown = hasColourEach(colours.length) ? units : units.filter(([colour]) => colour < COLOURED);
    if (shown.length < units.length) shown.push([COLOURED, "others"]);
    this.legend.replaceChildren(...shown.map(([colour, name]) =>
      el("li", {}, el("i", { class: colourClass(colour), "aria-hidden": "true" }), name)));
  }

  // Returns the colours of the selected router's units.
  colours() {
    const { settings: { layer, kind } } = this.panel;
    return this.panel.colours(layer, kind);
  }

  showColouring() {
    const { units, unitName, unitNames, part } = this.panel;
    this.colouring.hidden = hasColourEach(units);
    this.colouring.textContent = `Numbers are the strongest ${unitName} of each token. The ${COLOURED} ${unitNames} ` +
      `that are the strongest most often in the ${part} have a colour, all others are grey.`;
  }

  select() {
    const { pinned, focused } = this.panel;
    for (const node of this.marked) {
      node.classList.remove("rp-on");
      node.setAttribute("aria-selected", "false");
    }
    this.marked = [pinned, focused].filter((t) => t !== null).map((t) => this.node(t)).filter(Boolean);
    for (const node of this.marked) node.classList.add("rp-on");
    if (pinned !== null) this.node(pinned)?.setAttribute("aria-selected", "true");
  }

  node(t) {
    const list = this.panel.trace.isPrompt(t) ? this.prompt : this.answer;
    return list.nodes[t - list.first];
  }
}

class TokenList {
  constructor(part, root, panel) {
    Object.assign(this, { part, root, panel, nodes: [], colours: [] });
    this.list = el("div", { class: "rp-tokens", role: "listbox", "aria-label": `Tokens of the ${part}` });
    this.root.append(this.list);
    this.listen();
  }

  get first() {
    return this.panel.trace.range(this.part)[0];
  }

  clear() {
    this.list.replaceChildren();
    this.nodes = [];
  }

  // In pieces: paints the tokens that have a node, then adds the others.
  *draw(colours) {
    const { list } = this, [first, end] = this.panel.trace.range(this.part);
    this.colours = colours;
    const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < FOLLOW_PX;
    for (let i = 0; i < this.nodes.length; i++) {
      this.paint(this.nodes[i]);
      if (i % PIECE === 0) yield;
    }
    for (let t = first + this.nodes.length; t < end; ) {
      const added = document.createDocumentFragment(), stop = Math.min(end, t + PIECE);
      for (; t < stop; t++) added.append(...this.add(t));
      list.append(added);
      yield;
    }
    if (this.nodes.length && !list.querySelector('[tabindex="0"]')) this.nodes[0].tabIndex = 0;
    if (isAtEnd) list.scrollTop = list.scrollHeight;
  }

  add(t) {
    const text = this.panel.trace.texts[t];
    const label = el("span", { class: "rp-text" });
    const node = el("span", { role: "option", tabindex: "-1" }, label, el("span", { class: "rp-num" }));
    label.append(...tokenText(text));
    node.token = t;
    this.nodes.push(node);
    this.paint(node);
    return text.includes("\n") ? [node, el("br")] : [node];
  }

  // Writes only changes: there may be thousands of tokens.
  paint(node) {
    const unit = this.unit(node), base = this.baseUnit(node), colour = this.colours[unit];
    const look = `${unit} ${colour} ${base}`;
    if (node.look === look) return;
    node.look = look;
    const isOn = node.classList.contains("rp-on");
    node.className = `rp-tok ${colourClass(colour)}${isOn ? " rp-on" : ""}${base === null ? "" : " rp-flip"}`;
    setText(node.lastChild, String(unit));
    if (base !== null) node.title = `base: ${base}, adapter: ${unit}`;
    else if (node.title) node.removeAttribute("title");
  }

  unit(node) {
    const { trace, settings, single } = this.panel;
    return trace.strongest(node.token, settings.layer, settings.kind, single);
  }

  baseUnit(node) {
    const { trace, settings, single } = this.panel;
    return trace.baseUnit(node.token, settings.layer, settings.kind, single);
  }

  listen() {
    const { list, panel } = this;
    const onToken = (action) => (event) => {
      const node = event.target.closest(".rp-tok");
      if (node) action(node);
    };
    list.addEventListener("pointerover", onToken((node) => panel.focus(node.token)));
    list.addEventListener("pointerleave", () => panel.focus(null));
    list.addEventListener("focusin", onToken((node) => this.describe(node)));
    list.addEventListener("focusout", () => panel.focus(null));
    list.addEventListener("click", onToken((node) => panel.pin(node.token)));
    list.addEventListener("keydown", (event) => this.pressKey(event));
  }

  // A token gets its label when it gets the focus, because most of two thousand labels would never be read.
  describe(node) {
    const { trace, unitName } = this.panel, base = this.baseUnit(node);
    const difference = base === null ? "" : `, in the base model ${base}`;
    const label = `${JSON.stringify(trace.texts[node.token])}, ${unitName} ${this.unit(node)}${difference}`;
    node.setAttribute("aria-label", label);
    this.panel.focus(node.token);
  }

  pressKey(event) {
    const index = this.nodes.indexOf(event.target), last = this.nodes.length - 1;
    const moves = {
      ArrowLeft: index - 1, ArrowRight: index + 1, ArrowUp: index - ROW, ArrowDown: index + ROW, Home: 0, End: last,
    };
    if (event.key === "Enter" || event.key === " ") this.panel.pin(event.target.token);
    else if (event.key in moves) this.moveFocus(event.target, this.nodes[clamp(moves[event.key], 0, last)]);
    else return;
    event.preventDefault();
  }

  moveFocus(from, to) {
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}
