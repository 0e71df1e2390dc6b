// A comparison of runs: their curves in one chart, the settings that differ, and their figures.
const RUN_COLOURS = ["var(--u0)", "var(--u5)", "var(--u2)", "var(--u3)", "var(--u7)", "var(--u1)"];

function createComparison(onClose) {
  const FIRST = ["step", "loss", "eval_loss", "best_eval_loss", "tok_s", "memory_gib", "learning_rate", "grad_norm"];
  const LEFT_OUT = ["progress", "left_s"];
  const board = createBoard();
  const loss = board.add({ name: "loss", title: "Loss", isLoss: true });
  const held = board.add({ name: "eval_loss", title: "Held-out loss", isLoss: true });
  const close = button("Close comparison"), title = el("h3"), error = el("p", { class: "rn-failed", hidden: "" });
  const tables = el("div", { class: "rn-tables" });
  const root = el("section", { class: "rn-comparison", "aria-label": "Comparison" },
    el("div", { class: "rn-head" }, title, close), error, board.tools, board.root, tables);
  let asked = "", drawn = "", ids = "", answer = null;
  close.addEventListener("click", onClose);

  function show(runs) {
    if (ids !== runs.map((data) => data.id).join()) {
      ids = runs.map((data) => data.id).join();
      asked = drawn = "";
      board.forget();
    }
    setText(title, `Comparison of ${runs.length} runs`);
    const names = distinct(runs.map((data) => data.row?.name ?? data.id.slice(0, 8)), runs);
    const version = runs.reduce((sum, data) => sum + data.version, 0);
    const curves = (series, isMarked) =>
      runs.map((data, i) => ({ name: names[i], colour: RUN_COLOURS[i], points: data.series[series], isMarked }));
    loss.show(curves("loss", false), version);
    held.show(curves("eval_loss", true), version);
    tabulate(runs, names);
  }

  // Asks the server only if a run has changed.
  async function ask(runs) {
    const now = runs.map((data) => `${data.id} ${data.last} ${data.row?.state}`).join();
    if (now === asked) return;
    answer = await askServer("comparison", runs.map((data) => ["id", data.id]));
    asked = now;
  }

  function tabulate(runs, names) {
    const isReady = answer && (answer.error || runs.every((data, i) => answer.runs[i]?.id === data.id));
    if (!isReady) return tables.replaceChildren();
    error.hidden = !answer.error;
    setText(error, answer.error ?? "");
    const text = JSON.stringify([answer, names]);
    if (text !== drawn) tables.replaceChildren(...(answer.error ? [] : [settings(answer, names), figures(answer, names)]));
    drawn = text;
  }

  function distinct(names, runs) {
    return names.map((name, i) => (names.indexOf(name) === names.lastIndexOf(name) ? name : `${name} (${runs[i].id.slice(0, 8)})`));
  }

  function settings(answer, names) {
    const rows = Object.entries(answer.settings);
    if (!rows.length) return el("div", {}, el("h4", {}, "Settings"), hint("All settings are the same."));
    const told = (value) => (value === null ? "–" : typeof value === "string" ? value || "empty" : JSON.stringify(value));
    return side("Different settings", answer, names, rows, told);
  }

  function figures(answer, names) {
    const rows = Object.entries(answer.figures).filter(([name]) => !LEFT_OUT.includes(name));
    const place = ([name]) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
    return side("Latest figures", answer, names, rows.sort((a, b) => place(a) - place(b)), figure);
  }

  function side(heading, answer, names, rows, told) {
    const heads = names.map((name, i) =>
      el("th", { scope: "col", style: `--c: ${RUN_COLOURS[i]}` }, el("i", { "aria-hidden": "true" }), name));
    const lines = rows.map(([name, values]) => tableRow(name, answer.runs.map((run) => told(values[run.id] ?? null))));
    const all = table(heading, [...columns(["Name"]), ...heads], el("tbody", {}, ...lines));
    return el("div", { class: "rn-side" }, el("h4", {}, heading), all);
  }

  return { root, show, ask };
}
