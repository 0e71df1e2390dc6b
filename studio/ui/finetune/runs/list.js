// The list of runs: search, filter, open, and tick for comparison. Row nodes are reused when their values change.
function createList(onOpen, onTick) {
  const search = el("input", {
    type: "search", placeholder: "Search runs", autocomplete: "off", maxlength: "100",
    "aria-label": "Search runs by name, model, data or state",
  });
  const states = [["", "All states"], ...Object.entries(STATES)].map(([name, text]) => el("option", { value: name }, text));
  const filter = el("select", { "aria-label": "Filter runs by state" }, ...states);
  const items = el("ul", { class: "rn-items" }), none = el("p", { class: "rn-none", hidden: "" });
  const empty = el("div", { class: "rn-empty" }, ghost(), el("p", {}, "No runs yet. Choose data under “New run” and click “Start run”."));
  const tools = el("div", { class: "rn-filter" }, search, filter), ticking = hint("Select two or more runs to compare them.");
  const root = el("section", { class: "rn-list", "aria-label": "Training runs" },
    el("h2", {}, "Training runs"), tools, items, none, empty, ticking);
  const rows = new Map();
  let runs = [], opened = "";
  const ticked = new Set();
  search.addEventListener("input", sift);
  filter.addEventListener("change", sift);

  function show(now) {
    runs = now;
    const ids = new Set(runs.map((run) => run.id));
    for (const [id, row] of rows) if (!ids.has(id)) {
      row.root.remove();
      rows.delete(id);
      ticked.delete(id);
    }
    runs.forEach((run, place) => {
      if (!rows.has(run.id)) rows.set(run.id, createRow(run.id));
      const row = rows.get(run.id);
      row.show(run);
      if (items.children[place] !== row.root) items.insertBefore(row.root, items.children[place] ?? null);
    });
    empty.hidden = runs.length > 0;
    tools.hidden = !runs.length;
    ticking.hidden = runs.length < 2;
    sift();
  }

  function sift() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const run of runs) {
      const text = [run.name, run.model, run.data, run.state, STATES[run.state]].join(" ").toLowerCase();
      const fits = words.every((word) => text.includes(word)) && (!filter.value || run.state === filter.value);
      rows.get(run.id).root.hidden = !fits;
      count += fits;
    }
    none.hidden = count > 0 || !runs.length;
    setText(none, "No matching runs. Change the search or the filter.");
  }

  function createRow(id) {
    const tick = el("input", { type: "checkbox" }), bar = progressBar();
    const name = el("span", { class: "rn-row-name" }), state = el("span", { class: "rn-state" });
    const steps = el("span"), loss = el("span"), figures = el("span", { class: "rn-row-figures" }, steps, loss);
    const about = el("span"), when = el("span");
    const button = el("button", { type: "button", class: "rn-row", "data-id": id },
      el("span", { class: "rn-row-top" }, name, state), bar.root, figures, el("span", { class: "rn-row-figures" }, about, when));
    const root = el("li", {}, el("label", { class: "rn-tick" }, tick), button);
    button.addEventListener("click", () => onOpen(id));
    tick.addEventListener("change", () => {
      if (tick.checked) ticked.add(id);
      else ticked.delete(id);
      limit();
      onTick([...ticked]);
    });
    return {
      root, tick, button,
      show(run) {
        setText(name, run.name);
        button.title = `${run.name}\n${run.data} · ${run.model}`;
        tick.setAttribute("aria-label", `Compare ${run.name}`);
        showState(state, run);
        bar.show(run);
        setText(steps, run.state === "queued" && run.place ? inQueue(run) : stepsOf(run));
        setText(loss, run.best_eval_loss === null ? "" : `held-out loss ${figure(run.best_eval_loss)}`);
        figures.hidden = !steps.textContent && !loss.textContent;
        setText(about, `${run.data} · ${run.model}`);
        setText(when, moment(run.started ?? run.created, ""));
        button.setAttribute("aria-current", String(id === opened));
      },
    };
  }

  // Each compared run needs its own colour.
  function limit() {
    for (const [id, row] of rows) row.tick.disabled = ticked.size >= RUN_COLOURS.length && !ticked.has(id);
  }

  return {
    root, show,
    open(id) {
      opened = id;
      for (const [each, row] of rows) row.button.setAttribute("aria-current", String(each === id));
    },
    untick() {
      ticked.clear();
      for (const row of rows.values()) row.tick.checked = false;
      limit();
      onTick([]);
    },
    ticked: () => [...ticked],
    focus: (id) => rows.get(id)?.button.focus(),
  };
}
