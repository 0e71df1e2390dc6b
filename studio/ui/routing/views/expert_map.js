// The gates of a token or the load of a part, by layer and unit, as a heat map for each kind of router.

import { HeatMap, HOW_TO_READ } from "../../common/charts/heat_map.js";
import { gradient, lastLabel, lastLoad, sequential } from "../../common/charts/palette.js";
import { el, isDark } from "../../common/dom.js";
import { kindName } from "../../common/router_kinds.js";
import { Segments } from "../../common/segments.js";

const SCOPES = [["token", "current token"], ["answer", "whole answer"], ["prompt", "prompt"]];

export default class ExpertMap {
  static title = "Layers and experts";
  static help = ["chance-level", "Rows are layers, columns are experts. Chance is the share if all got equally much."];

  constructor(root, panel) {
    this.panel = panel;
    const scopes = new Segments("Map scope", SCOPES, (scope) => panel.setScope(scope));
    scopes.choose(panel.settings.scope);
    this.maps = new HeatMap({
      redraw: () => this.update(),
      firstLayer: () => panel.settings.layer,
      onClick: ({ layer }) => panel.setLayer(layer),
    });
    this.bar = el("span", { class: "ch-bar" });
    this.chance = el("span", { class: "rp-chance" });
    this.ends = el("span", { class: "ch-ends" });
    this.value = el("p", { class: "rp-line" });
    const legend = el("div", { class: "ch-scale" }, this.bar, this.chance, this.ends);
    root.append(scopes.root, this.maps.root, legend, this.value);
  }

  reset() {
    this.maps.build(this.panel.trace.kinds.map(kindName));
  }

  select() {
    if (this.panel.settings.scope === "token") this.update();
  }

  update() {
    const { trace, settings, units } = this.panel;
    if (!trace.id) return;
    const layers = Array.from({ length: trace.L }, (_, l) => l);
    const values = trace.kinds.map((_, n) => layers.map((l) => Array.from(this.shares(l, n))));
    const highest = Math.max(...values.flat(2)), last = this.last(highest);
    const colours = sequential(isDark());
    this.maps.draw({
      values, layers: trace.L, units, colours,
      range: [0, last],
      hasEmptyCells: true,
      frame: { map: settings.kind, layer: settings.layer },
      label: (n) => this.label(n),
    });
    this.showLegend(colours, last, highest);
    this.showValue();
  }

  // Returns the share of each unit of a router.
  shares(l, n) {
    const { trace, settings, single, current } = this.panel;
    if (settings.scope !== "token") return trace.load(settings.scope, l, n, single);
    return current < 0 ? [] : trace.gatesOf(current, l, n, single);
  }

  // Returns the value of the last colour. That of gates is the same for all tokens, so that they can be compared.
  last(highest) {
    const { trace, settings, single, units } = this.panel;
    if (settings.scope !== "token") return lastLoad(highest, units);
    return single ? Math.max(Math.min(1, 2 / units), trace.largestGate) : 1;
  }

  // Returns what the colours stand for.
  meaning() {
    const { settings: { scope }, trace } = this.panel;
    if (scope === "token") return trace.gatesSumToOne ? "gate of one token" : "gate (probability) of one token";
    const [start, end] = this.panel.trace.range(scope);
    return `share of assignments in ${end - start} tokens`;
  }

  label(n) {
    const { trace, units, unitNames } = this.panel;
    return `${kindName(trace.kinds[n])}: ${this.meaning()}, ${trace.L} layers by ${units} ${unitNames}. ` +
      "The table below has the numbers; arrow keys move a cursor.";
  }

  showLegend(colours, last, highest) {
    const { units } = this.panel, chance = 1 / units;
    this.bar.style.background = gradient(colours);
    this.chance.style.left = `${(100 * chance) / last}%`;
    this.chance.textContent = `chance ${chance.toFixed(3)} = 1/${units}`;
    this.ends.replaceChildren(...["0", this.meaning(), lastLabel(last, highest)].map((text) => el("span", {}, text)));
  }

  showValue() {
    const { cursor } = this.maps, { trace, units, unitName } = this.panel;
    if (!cursor) {
      this.value.textContent = HOW_TO_READ;
      return;
    }
    const { map, layer, unit } = cursor, share = this.shares(layer, map)[unit] ?? 0;
    const place = `Layer ${layer}, ${kindName(trace.kinds[map])}, ${unitName} ${unit}`;
    this.value.textContent = `${place}: ${share.toFixed(3)} · ${(share * units).toFixed(2)} × chance`;
  }
}
