// The load by layer and expert (or group) at one evaluation, or its change since the first evaluation.

import { HeatMap, HOW_TO_READ } from "../../common/charts/heat_map.js";
import { diverging, gradient, lastLabel, lastLoad, sequential } from "../../common/charts/palette.js";
import { el, isDark, setText, watchTheme } from "../../common/dom.js";
import { formatNumber } from "../../common/numbers.js";
import { kindName, shortKindName } from "../../common/router_kinds.js";
import { Segments } from "../../common/segments.js";
import { columnHeads, scrollTable, tableRow } from "../../common/tables.js";

const MODES = [["load", "load"], ["moved", "change since the first"]];
const LEAST_CHANGE = 0.02; // the last colour of a map of changes stands for at least this

export class RoutingLoad {
  constructor() {
    this.routings = []; // { step, values } of every evaluation
    this.index = 0; // of the shown one
    this.kinds = "";
    this.modes = new Segments("Map values", MODES, () => this.draw());
    this.slider = el("input", { type: "range", min: "0", max: "0", value: "0", step: "1" });
    this.slider.addEventListener("input", () => this.draw());
    this.position = el("output", { class: "rn-slide-out" });
    this.maps = new HeatMap({ redraw: () => this.draw() });
    [this.bar, this.ends] = ["ch-bar", "ch-ends"].map((look) => el("span", { class: look }));
    this.value = el("p", { class: "rn-value" });
    this.table = this.buildTable();
    const slide = el("label", { class: "ch-slide" }, el("span", {}, "Evaluation"), this.slider, this.position);
    this.root = el("section", { class: "rn-heat", "aria-label": "Routing load", hidden: "" },
      el("h4", {}, "Routing load"), el("div", { class: "ch-tools" }, this.modes.root, slide),
      this.maps.root, el("div", { class: "ch-scale" }, this.bar, this.ends), this.value, this.table);
    watchTheme(() => this.draw());
  }

  buildTable() {
    this.body = el("tbody");
    const box = scrollTable("Routing load, numbers", [], this.body);
    this.head = box.querySelector("tr");
    this.caption = box.querySelector("caption");
    this.listed = null; // the evaluation in the table
    const details = el("details", { class: "ch-numbers" }, el("summary", {}, "Numbers"), box);
    details.addEventListener("toggle", () => this.fillTable());
    return details;
  }

  // While the last evaluation is selected, the map moves on to new ones.
  show(routings) {
    const usable = routings.filter(hasLoad);
    const isFollowing = this.routings.length === 0 || Number(this.slider.value) >= this.routings.length - 1;
    const isNew = usable.at(-1) !== this.routings.at(-1);
    this.routings = usable;
    this.root.hidden = !usable.length;
    if (this.root.hidden) return;
    this.slider.max = String(usable.length - 1);
    if (isFollowing) this.slider.value = this.slider.max;
    const names = usable.at(-1).values.kinds, key = names.join("\n");
    if (key !== this.kinds) this.maps.build(names.map(kindName));
    this.kinds = key;
    if (isNew || isFollowing) this.draw();
  }

  draw() {
    if (this.root.hidden || !this.routings.length) return;
    this.index = Math.min(Number(this.slider.value), this.routings.length - 1);
    setText(this.position, `step ${formatNumber(this.shown.step)}, ${this.index + 1} of ${this.routings.length}`);
    const colours = this.isChange ? diverging(isDark()) : sequential(isDark()), highest = this.highest();
    const last = this.isChange ? Math.max(LEAST_CHANGE, highest) : lastLoad(highest, this.units);
    const { load, kinds } = this.shown.values;
    const numbers = (l, n) => Array.from({ length: this.units }, (_, unit) => this.number(l, n, unit));
    this.maps.draw({
      values: kinds.map((_, n) => load.map((_, l) => numbers(l, n))),
      layers: load.length, units: this.units, colours,
      range: [this.isChange ? -last : 0, last],
      hasEmptyCells: !this.isChange,
      label: (n) => this.label(n),
    });
    this.showLegend(colours, last, highest);
    this.showValue();
    this.fillTable();
  }

  get isChange() {
    return this.modes.value === "moved";
  }

  get shown() {
    return this.routings[this.index];
  }

  get unitName() {
    return this.shown.values.unit === "group" ? "group" : "expert";
  }

  get units() {
    return this.shown.values.load[0][0].length;
  }

  // Returns the shown number of a cell: its load, or the change of its load.
  number(l, n, unit, routing = this.shown) {
    const share = shareIn(routing, l, n, unit);
    return this.isChange ? share - shareIn(this.routings[0], l, n, unit) : share;
  }

  // Returns the maximum of all evaluations, so that colours can be compared while the slider moves.
  highest() {
    let highest = 0;
    for (const routing of this.routings)
      routing.values.load.forEach((kinds, l) => kinds.forEach((units, n) => units.forEach((_, unit) => {
        highest = Math.max(highest, Math.abs(this.number(l, n, unit, routing)));
      })));
    return highest;
  }

  label(n) {
    const { step, values: { load, kinds } } = this.shown;
    return `${kindName(kinds[n])}: load of ${load.length} layers by ${this.units} ${this.unitName}s at step ${step}. ` +
      "Arrow keys move a cursor; the table below has the numbers.";
  }

  showLegend(colours, last, highest) {
    const end = lastLabel(last, highest), chance = (1 / this.units).toFixed(3);
    const labels = this.isChange ? [`−${end}`, "change in share since the first evaluation", `+${end}`]
      : ["0", `share of assignments; chance is ${chance} = 1/${this.units}`, end];
    this.bar.style.background = gradient(colours);
    this.ends.replaceChildren(...labels.map((text) => el("span", {}, text)));
  }

  showValue() {
    const { cursor } = this.maps;
    if (!cursor) {
      setText(this.value, HOW_TO_READ);
      return;
    }
    const { map, layer, unit } = cursor;
    const [now, first] = [this.shown, this.routings[0]].map((routing) => shareIn(routing, layer, map, unit).toFixed(3));
    const cell = `Layer ${layer}, ${kindName(this.shown.values.kinds[map])}, ${this.unitName} ${unit}`;
    setText(this.value, `${cell}: ${now}, ${first} at the first evaluation`);
  }

  fillTable() {
    if (!this.table.open || !this.routings.length || this.listed === this.shown) return;
    this.listed = this.shown;
    const { load, kinds } = this.shown.values;
    const units = Array.from({ length: this.units }, (_, unit) => unit);
    const names = kinds.flatMap((kind) => units.map((unit) => `${shortKindName(kind)} ${unit}`));
    setText(this.caption, `Load by layer at step ${this.shown.step}`);
    this.head.replaceChildren(...columnHeads(["Layer", ...names]));
    this.body.replaceChildren(...load.map((units, l) => tableRow(String(l), units.flat().map(String))));
  }
}

function hasLoad({ values: { load, kinds } }) {
  return Array.isArray(load) && load.length > 0 && Array.isArray(kinds);
}

function shareIn({ values: { load } }, l, n, unit) {
  return load[l]?.[n]?.[unit] ?? 0;
}
