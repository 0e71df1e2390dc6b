// The page of one run: its state, actions, curves, routing, answers and setup.
function createRunPage(act, onClose) {
  const back = button("‹ All runs", "rn-back");
  const title = el("h3"), state = el("span", { class: "rn-state" }), about = el("p", { class: "rn-about" });
  const message = el("p", { class: "rn-message" }), figures = el("dl", { class: "rn-figures" });
  const bar = progressBar({ role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": "Progress" });
  const buttons = el("div", { class: "rn-actions" }), warnings = el("ul", { class: "rn-warnings", "aria-label": "Warnings" });
  const parts = { curves: el("div"), routing: el("div"), answers: el("div"), audit: el("div") };
  const titles = [["curves", "Curves"], ["routing", "Routing"], ["answers", "Answers"], ["audit", "Setup"]];
  const tabs = segments("Run details", titles, turn);
  const board = createBoard(), heat = createHeatMap(), samples = createSamples(), audit = createAudit();
  const none = hint(""), noRouting = hint("Routing is measured before training and at every evaluation.");
  const driftHint = hint("For a fixed text, compared with the model before training: share of tokens with a different " +
    "strongest expert, divergence of the router probabilities, and change of the load.");
  driftHint.classList.add("rn-drift-hint");
  const routingBoard = el("div", { class: "rn-board" });
  // Name, options and curves: [series, label, colour, whether points are marked].
  const shown = [
    ["loss", { title: "Loss", isLoss: true }, [["loss", "training", 0], ["eval_loss", "held-out", 5, true]]],
    ["learning_rate", { title: "Learning rate", zero: true }, [["learning_rate", "learning rate", 0]]],
    ["grad_norm", { title: "Gradient norm", zero: true }, [["grad_norm", "gradient norm", 0]]],
    ["tok_s", { title: "Speed", unit: "tokens/s", zero: true }, [["tok_s", "tokens/s", 0]]],
    ["memory_gib", { title: "Memory", unit: "GiB", zero: true }, [["memory_gib", "GiB", 0]]],
    ["drift", { title: "Routing drift", zero: true },
      [["flip_rate", "flips", 0, true], ["js", "divergence", 3, true], ["load_shift", "load shift", 2, true]]],
    ["entropy", { title: "Router entropy", unit: "nats" }, [["entropy", "entropy", 0, true]]],
  ].map(([name, options, curves]) => ({ chart: board.add({ name, ...options }), curves }));
  routingBoard.append(...shown.slice(5).map(({ chart }) => chart.root));
  parts.curves.append(none, board.tools, board.root);
  parts.routing.append(noRouting, routingBoard, driftHint, heat.root);
  parts.answers.append(samples.root);
  parts.audit.append(audit.root);
  const head = el("div", { class: "rn-run-head" }, back,
    el("div", { class: "rn-head" }, el("div", { class: "rn-name" }, title, state), buttons),
    about, message, bar.root, figures, warnings);
  const root = el("section", { class: "rn-run", "aria-label": "Open run" }, head, tabs.root, ...Object.values(parts));
  const ask = createDeletion((id) => act("delete", id));
  root.append(ask.root);
  let opened = "";
  back.addEventListener("click", onClose);
  turn("curves");

  function turn(name) {
    for (const [part, node] of Object.entries(parts)) node.hidden = part !== name;
    root.dataset.tab = name;
    board.schedule();
    heat.draw();
  }

  function show(data) {
    const run = data.row;
    if (opened !== data.id) {
      opened = data.id;
      board.forget();
    }
    setText(title, run.name);
    showState(state, run);
    setText(about, [run.model, run.data, `created ${moment(run.created)}`].join(" · "));
    showMessage(run);
    bar.show(run, data.logged?.progress);
    showFigures(run, data);
    showActions(run);
    showWarnings(data);
    showParts(data);
  }

  function showWarnings(data) {
    const now = `${data.id} ${data.warnings.length}`;
    if (warnings.dataset.now === now) return;
    warnings.dataset.now = now;
    warnings.replaceChildren(...data.warnings.map((text) => el("li", {}, text)));
  }

  function sentenceOf(run) {
    if (run.state === "queued") return `Waiting: ${inQueue(run)}.`;
    if (run.state === "running" && run.cancel_requested) return "Stopping at the next step …";
    if (run.state !== "running" || run.message) return run.message;
    return run.step ? "" : "Preparing: loading and measuring the model before the first step.";
  }

  function showMessage(run) {
    const text = sentenceOf(run);
    setText(message, run.folder_exists ? text : `${text} The files of this run are missing.`.trim());
    message.hidden = !message.textContent;
    message.className = run.state === "failed" || !run.folder_exists ? "rn-message rn-failed" : "rn-message";
  }

  function showFigures(run, data) {
    const last = data.logged ?? {}, end = run.ended ?? (data.now || Date.now() / 1000);
    const steps = run.steps ? `${figure(run.step)} / ${figure(run.steps)}` : figure(run.step);
    const pairs = [["Step", steps], ["Elapsed", run.started === null ? "–" : timeSpan(end - run.started)]];
    if (run.state === "running") pairs.push(["Remaining", timeSpan(last.left_s)]);
    const memory = last.memory_gib === undefined ? "–" : `${figure(last.memory_gib)} GiB`;
    pairs.push(["Tokens/s", figure(last.tok_s)], ["Memory", memory], ["Best held-out loss", figure(run.best_eval_loss)]);
    if (figures.childElementCount !== pairs.length) figures.replaceChildren(...pairs.map(() => el("div", {}, el("dt"), el("dd"))));
    pairs.forEach(([name, text], i) => {
      setText(figures.children[i].firstChild, name);
      setText(figures.children[i].lastChild, text);
    });
    figures.hidden = run.state === "queued" && !run.step;
  }

  function showActions(run) {
    const hasEnded = !isAlive(run);
    // Runs shared by others are read-only.
    const wanted = run.mine === false ? [] : [
      ["chat", "Chat with it", hasEnded && run.has_adapter && !run.classifies, "rn-main"],
      ["classify", "Classify with it", hasEnded && run.has_adapter && run.classifies, "rn-main"],
      ["export", "Export", hasEnded && run.has_adapter],
      ["resume", "Resume", ["failed", "cancelled", "interrupted"].includes(run.state) && run.folder_exists],
      ["cancel", "Cancel", isAlive(run) && !run.cancel_requested],
      ["share", "Share", run.has_owner && !run.shared],
      ["unshare", "Stop sharing", run.has_owner && run.shared],
      ["delete", "Delete", run.state !== "running", "rn-risky"],
    ].filter(([, , applies]) => applies);
    const now = run.id + wanted.map(([action]) => action);
    if (buttons.dataset.now === now) return;
    buttons.dataset.now = now;
    buttons.replaceChildren(...wanted.map(([action, text, , look = ""]) => {
      const made = button(text, look, { "data-action": action });
      made.addEventListener("click", () => (action === "delete" ? ask.open(run) : act(action, run.id)));
      return made;
    }));
  }

  function showParts(data) {
    for (const { chart, curves } of shown) {
      const begun = curves.filter(([name]) => data.series[name].x.length);
      const series = begun.map(([name, label, colour, isMarked = false]) =>
        ({ name: label, colour: `var(--u${colour})`, points: data.series[name], isMarked }));
      chart.show(series, `${data.id} ${data.version}`);
    }
    const hasCurves = data.series.loss.x.length + data.series.eval_loss.x.length > 0;
    none.hidden = hasCurves;
    board.tools.hidden = !hasCurves;
    setText(none, isAlive(data.row) ? "The curves begin with the first logged step." : "Nothing was logged.");
    noRouting.hidden = data.routings.length > 0;
    driftHint.hidden = !data.routings.length;
    heat.show(data.routings);
    samples.show(data);
    audit.show(data);
  }

  // On small screens the run replaces the list, so the back button gets the focus that the list had.
  return { root, show, focus: () => back.offsetParent && back.focus() };
}

function createDeletion(onDelete) {
  const text = el("p"), no = button("Keep it"), yes = button("Delete", "rn-risky");
  const root = el("dialog", { class: "rn-dialog", "aria-label": "Delete run" }, text, el("div", { class: "rn-actions" }, no, yes));
  let id = "";
  no.addEventListener("click", () => root.close());
  yes.addEventListener("click", () => {
    root.close();
    onDelete(id);
  });
  return {
    root,
    open(run) {
      id = run.id;
      text.textContent = `Delete “${run.name}”? Its checkpoints, adapter and curves can't be restored.`;
      root.showModal();
      no.focus();
    },
  };
}
