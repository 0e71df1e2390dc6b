// Small building blocks for several parts of the panel.
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function button(text, look = "", attributes = {}) {
  return el("button", { type: "button", class: `rn-button ${look}`, ...attributes }, text);
}

function hint(text) {
  return el("p", { class: "rn-hint" }, text);
}

// A table that scrolls in its own box, also by keyboard; `heads` are the cells of its header row.
function table(label, heads, body, before = []) {
  const caption = el("caption", { class: "rn-unseen" }, label);
  const whole = el("table", {}, caption, el("thead", {}, el("tr", {}, ...heads)), body);
  return el("div", { class: "rn-scroll", tabindex: "0", role: "region", "aria-label": label }, ...before, whole);
}

function columns(names) {
  return names.map((name) => el("th", { scope: "col" }, name));
}

function tableRow(name, cells) {
  return el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((text) => el("td", {}, text)));
}

// A row of radio buttons.
let segmentGroups = 0;
function segments(label, choices, onChange) {
  const root = el("div", { class: "rn-segments", role: "radiogroup", "aria-label": label });
  const group = `rn-segments-${segmentGroups++}`;
  let chosen = choices[0]?.[0];
  function fill(shown) {
    root.replaceChildren(...shown.map(([name, text]) => {
      const input = el("input", { type: "radio", name: group, value: name });
      input.checked = name === chosen;
      input.addEventListener("change", () => {
        chosen = name;
        onChange(name);
      });
      return el("label", {}, input, el("span", {}, text));
    }));
  }
  fill(choices);
  return { root, fill, value: () => chosen, choose: (name) => {
    chosen = name;
    for (const input of root.querySelectorAll("input")) input.checked = input.value === name;
  } };
}

function showState(node, run) {
  node.dataset.state = run.state;
  setText(node, run.state === "running" && run.cancel_requested ? "Stopping" : STATES[run.state] ?? run.state);
}

// Decorative where the steps are shown as text; `attributes` can make it an accessible progress bar.
function progressBar(attributes = {}) {
  const fill = el("i"), root = el("span", { class: "rn-progress", ...attributes }, fill);
  return {
    root,
    show(run, logged) {
      const share = run.state === "done" ? 1 : run.steps ? Math.min(1, run.step / run.steps) : logged ?? 0;
      root.dataset.state = run.state;
      if (attributes.role) root.setAttribute("aria-valuenow", String(Math.round(100 * share)));
      fill.style.width = `${100 * share}%`;
      root.hidden = run.state === "queued" && !share;
    },
  };
}

// A drawing of two curves, as a placeholder.
function ghost() {
  const lines = svg("svg", { viewBox: "0 0 200 60", class: "rn-ghost", "aria-hidden": "true" });
  lines.append(
    svg("path", { d: "M4 8C30 40 60 46 196 52", style: "stroke: var(--u0)" }),
    svg("path", { d: "M4 14C34 38 70 42 196 44", style: "stroke: var(--u5)", "stroke-dasharray": "5 5" }));
  return lines;
}
