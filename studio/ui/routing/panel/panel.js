// The routing panel: the trace of the shown answer, the controls, and the views.

import { el, watchTheme } from "../../common/dom.js";
import { help } from "../../common/help.js";
import { clamp } from "../../common/numbers.js";
import { Slices, Throttle } from "../../common/pacing.js";
import { keepChoices, readChoices } from "./choices.js";
import { hasColourEach, unitColours } from "./colours.js";
import { Comparison } from "./comparison.js";
import { Controls } from "./controls.js";
import { Feed } from "./feed.js";
import { Trace } from "./trace.js";

const UPDATE_MS = 250;

// `views` are the names of the modules in `../views`, in the order of their display.
export async function mount({ element, props, trigger, watch, server }, { views }) {
  const modules = await Promise.all(views.map((name) => import(`../views/${name}.js`)));
  const panel = new Panel(element, trigger, (...asked) => server.alternatives(...asked));
  panel.addViews(views.map((name, i) => ({ name, View: modules[i].default })));
  const feed = new Feed(panel.trace, (...asked) => server.rows(...asked), {
    onReset: (message) => panel.reset(message),
    onRows: (message) => panel.showRows(message),
    onCompared: () => panel.recolour(),
    onKept: () => panel.call("select"),
  });
  watch("value", () => feed.receive(props.value));
  feed.receive(props.value);
}

// What views use: `trace`, `settings`, `single`, `units`, `unitName`, `unitNames`, `part`, `colours`, `current`,
// `pinned`, `answer` and `fetchAlternatives` to read; `setLayer`, `setScope`, `focus`, `pin` and `trigger` to act.
export class Panel {
  constructor(element, trigger, fetchAlternatives) {
    Object.assign(this, { trigger, fetchAlternatives });
    this.root = element.querySelector(".rp-root");
    [this.body, this.empty, this.status, this.tied, this.probabilities] =
      ["body", "empty", "status", "tied", "probabilities"].map((name) => element.querySelector(`.rp-${name}`));
    this.of = this.root.dataset.of; // "answer" or "prompt"
    this.trace = new Trace();
    this.settings = { layer: 0, kind: 0, single: false, scope: this.of, layers: 0, ...readChoices(this.of) };
    this.focused = null; // tokens
    this.pinned = null;
    this.views = [];
    this.updates = new Throttle(() => this.draw(), UPDATE_MS);
    this.slices = new Slices();
    this.controls = new Controls(element.querySelector(".rp-controls"), this, (answer) => trigger("pick", { answer }));
    this.comparison = new Comparison(element.querySelector(".rp-compare"), this, () =>
      trigger("compare", { answer: this.controls.answer }));
    watchTheme(() => this.trace.id && this.recolour());
  }

  addViews(views) {
    this.views = views.map(({ name, View }) => {
      const root = el("section", { class: `rp-view rp-${name}`, "aria-label": View.title });
      root.append(el("h3", { class: "rp-title" }, View.title, help(View.title, ...View.help)));
      this.body.append(root);
      return new View(root, this);
    });
  }

  // Whether units are single experts.
  get single() {
    return !this.trace.tied || (this.settings.single && this.hasSingle);
  }

  // Whether the experts of a copy differ in the shown answer; otherwise they would only repeat the copy.
  get hasSingle() {
    return this.trace.tied && this.trace.isMixed;
  }

  get units() {
    return this.single ? this.trace.E : this.trace.groupCount;
  }

  get unitName() {
    return this.single ? "expert" : "copy";
  }

  get unitNames() {
    return this.single ? "experts" : "copies";
  }

  // The part of the text whose tokens are counted: "answer" or "prompt".
  get part() {
    const [start, end] = this.trace.range("answer");
    return this.settings.scope === "prompt" || start === end ? "prompt" : "answer";
  }

  // Returns the number of the colour of each unit of a router.
  colours(l, n) {
    if (hasColourEach(this.units)) return unitColours(new Array(this.units).fill(0));
    return unitColours(this.trace.countStrongest(this.part, l, n, this.single));
  }

  // The number of the shown answer in the conversation.
  get answer() {
    return this.controls.answer;
  }

  // The token under the pointer or the keyboard cursor, else the pinned one, else the latest.
  get current() {
    return this.focused ?? this.pinned ?? this.trace.count - 1;
  }

  setLayer(layer) {
    this.choose({ layer: clamp(layer, 0, this.trace.L - 1), layers: this.trace.L });
    this.recolour();
  }

  setKind(kind) {
    this.choose({ kind });
    this.recolour();
  }

  setSingle(single) {
    this.choose({ single });
    this.call("reset");
    this.recolour();
  }

  setScope(scope) {
    this.choose({ scope });
    this.recolour();
  }

  choose(choice) {
    Object.assign(this.settings, choice);
    keepChoices(this.of, this.settings);
  }

  focus(token) {
    this.focused = token;
    this.call("select");
  }

  pin(token) {
    this.pinned = this.pinned === token ? null : token;
    this.call("select");
  }

  recolour() {
    this.comparison.show();
    this.controls.show();
    this.call("recolour");
    this.updates.run();
  }

  reset(message) {
    const isShown = Boolean(message.id);
    this.empty.hidden = isShown;
    this.body.hidden = this.controls.root.hidden = !isShown;
    this.status.textContent = message.note ?? "";
    this.status.hidden = !message.note;
    if (isShown) this.start();
    else this.clear(message.hint ?? "");
  }

  clear(hint) {
    this.empty.querySelector(".rp-hint").textContent = hint;
    this.root.dataset.tokens = 0;
    this.trace.id = "";
    this.slices.run([].values());
    this.comparison.root.hidden = true;
  }

  start() {
    const { trace, settings } = this;
    this.focused = this.pinned = null;
    settings.kind = Math.min(settings.kind, trace.N - 1);
    // A layer that was chosen for another model means nothing here.
    if (settings.layers !== trace.L) Object.assign(settings, { layer: Math.floor(trace.L / 2), layers: trace.L });
    this.tied.hidden = !trace.tied;
    this.probabilities.hidden = trace.gatesSumToOne;
    this.controls.reset();
    this.call("reset");
    this.recolour();
  }

  showRows(message) {
    if (this.controls.offerSingle() && this.settings.single) this.setSingle(true);
    if (message) {
      this.controls.showAnswers(message);
      this.comparison.root.hidden = !message.flips;
      this.comparison.show();
    }
    this.updates.request();
  }

  // Draws all views; what arrives meanwhile is drawn the next time.
  draw() {
    if (this.trace.id) this.slices.run(this.pieces());
  }

  // A view whose `update` is a generator has pieces of its own.
  *pieces() {
    const { count } = this.trace;
    for (const view of this.views) {
      yield* view.update?.() ?? [];
      yield;
    }
    this.root.dataset.tokens = count;
  }

  // Calls a method of every view that has it.
  call(method) {
    for (const view of this.views) view[method]?.();
  }
}
