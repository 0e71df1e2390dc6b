// The routing panel: the controls, the shared trace, and the views that earlier scripts registered.
const of = element.querySelector(".rp-root").dataset.of;
const panel = {
  of,
  // Radio groups are global to the page by name, and a page has several panels.
  group: (name) => `${name}-${of}`,
  trace: createTrace(),
  settings: { layer: 0, kind: 0, single: false, scope: of },
  focused: null,
  pinned: null,
  unitName: () => (panel.single() ? "expert" : panel.trace.tied ? "copy" : "expert"),
  single: () => panel.settings.single || !panel.trace.tied,
  unitNames: () => (panel.unitName() === "copy" ? "copies" : "experts"),
  units: () => (panel.single() ? panel.trace.E : panel.trace.m),
  current: () => panel.focused ?? panel.pinned ?? panel.trace.count - 1,
};
const body = element.querySelector(".rp-body");
const empty = element.querySelector(".rp-empty");
const status = element.querySelector(".rp-status");
const controls = element.querySelector(".rp-controls");
const compare = element.querySelector(".rp-compare");
const mounted = views.map((view) => {
  const root = el("section", { class: `rp-view rp-${view.name}`, "aria-label": view.title });
  root.append(el("h3", { class: "rp-title" }, view.title));
  body.append(root);
  return view.build(root, panel);
});

const layerOut = el("output", { class: "rp-layer-out" });
const layer = el("input", { type: "range", min: "0", value: "0", step: "1", "aria-label": "Layer" });
const kinds = el("div", { class: "rp-segments", role: "radiogroup", "aria-label": "Router kind" });
const single = el("input", { type: "checkbox" });
const singleLabel = el("label", { class: "rp-check" }, single, "single experts");
const answers = el("select", { "aria-label": "Displayed answer" });
controls.append(
  el("label", { class: "rp-answer" }, answers),
  el("label", { class: "rp-layer" }, el("span", {}, "Layer"), layer, layerOut),
  kinds,
  singleLabel,
);

let scheduled = false;
function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    for (const view of mounted) view.update?.();
    element.querySelector(".rp-root").dataset.tokens = panel.trace.count;
  });
}
panel.recolour = () => {
  showDifference();
  layerOut.textContent = `${panel.settings.layer} of 0–${panel.trace.L - 1}`;
  for (const view of mounted) view.recolour?.();
};
panel.setLayer = (value) => {
  layer.value = panel.settings.layer = Math.max(0, Math.min(panel.trace.L - 1, value));
  panel.recolour();
};
panel.focus = (token) => {
  panel.focused = token;
  for (const view of mounted) view.select?.();
};
panel.pin = (token) => {
  panel.pinned = panel.pinned === token ? null : token;
  for (const view of mounted) view.select?.();
};

layer.addEventListener("input", () => panel.setLayer(Number(layer.value)));
single.addEventListener("change", () => {
  panel.settings.single = single.checked;
  for (const view of mounted) view.reset?.();
  panel.recolour();
  schedule();
});
answers.addEventListener("change", () => trigger("pick", { answer: Number(answers.value) }));
compare.firstElementChild.addEventListener("click", () => trigger("compare", { answer: Number(answers.value) }));

function showKinds() {
  kinds.replaceChildren(...panel.trace.kinds.map((name, index) => {
    const input = el("input", { type: "radio", name: panel.group("rp-kind"), value: String(index) });
    input.checked = index === panel.settings.kind;
    input.addEventListener("change", () => {
      panel.settings.kind = index;
      panel.recolour();
    });
    return el("label", {}, input, el("span", {}, name));
  }));
}

function showDifference() {
  const { trace } = panel;
  const [button, line] = compare.children;
  button.hidden = Boolean(trace.flips);
  line.hidden = !trace.flips;
  if (!trace.flips) return;
  const [all, ...kinds] = trace.flips[panel.single() ? "expert" : "group"].map(percent);
  const byKind = trace.kinds.map((kind, n) => `${kind} ${kinds[n]}`).join(", ");
  line.replaceChildren(
    `${all} of the strongest ${panel.unitNames()} differ from the base model, over all layers and tokens (${byKind}). Differences have a `,
    el("span", { class: "rp-flip" }, "dashed frame"), ".");
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

function reset(message) {
  const shown = Boolean(message.id);
  empty.hidden = shown;
  body.hidden = controls.hidden = !shown;
  status.textContent = message.note ?? "";
  status.hidden = !message.note;
  if (!shown) {
    empty.querySelector(".rp-hint").textContent = message.hint ?? "";
    element.querySelector(".rp-root").dataset.tokens = 0;
    panel.trace.id = "";
    compare.hidden = true;
    return;
  }
  const { trace, settings } = panel;
  panel.focused = panel.pinned = null;
  settings.kind = Math.min(settings.kind, trace.N - 1);
  if (layer.max !== String(trace.L - 1)) {
    layer.max = trace.L - 1;
    settings.layer = Math.floor(trace.L / 2);
  }
  layer.value = settings.layer;
  singleLabel.hidden = !trace.tied;
  element.querySelector(".rp-tied").hidden = !trace.tied;
  showKinds();
  for (const view of mounted) view.reset?.();
  panel.recolour();
}

function showAnswers(message) {
  if (!message || message.answers === undefined) return;
  if (answers.options.length !== message.answers)
    answers.replaceChildren(...Array.from({ length: message.answers }, (_, index) =>
      el("option", { value: String(index) }, `Answer ${index + 1}`)));
  answers.value = String(message.answer);
}

function showRows(message) {
  showAnswers(message);
  if (message) {
    compare.hidden = !message.flips;
    showDifference();
  }
  schedule();
}

const receive = createFeed(panel.trace, reset, showRows, () => panel.recolour());
watch("value", () => receive(props.value));
receive(props.value);
new MutationObserver(() => panel.trace.id && panel.recolour()).observe(document.body, { attributeFilter: ["class"] });
