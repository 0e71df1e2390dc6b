// What trains, what it was forecast to take, and what is in the data.
function createAudit() {
  const root = el("section", { class: "rn-audit", "aria-label": "What trains" });
  let drawn = null;

  function show({ audit, gradients }) {
    if (drawn && drawn[0] === audit && drawn[1] === gradients) return;
    drawn = [audit, gradients];
    if (!audit) return root.replaceChildren(el("p", { class: "rn-hint" }, "The parts that train are counted before the first step."));
    root.replaceChildren(parts(audit, gradients), facts("Forecast", forecast(audit)), facts("Data", report(audit.data ?? {})), lengths(audit.data ?? {}), example(audit.example ?? []));
  }

  function parts(audit, gradients) {
    const names = ["Part", "Parameters", "Trained", "Share", "Rank", "Loaded as", "In 4 bits", "Gradient"];
    const rows = audit.rows.map((row) => el("tr", { class: row.trained ? "" : "rn-frozen" }, el("th", { scope: "row" }, row.part),
      ...[figure(row.parameters), row.trained ? figure(row.trained) : "frozen", row.trained ? percent(row.share, 1) : "", row.rank ? String(row.rank) : "", row.dtype, row.four_bit ? percent(row.four_bit) : "", gradient(row, gradients)]
        .map((text) => el("td", {}, text))));
    const table = el("table", {}, el("caption", { class: "rn-unseen" }, "Parts of the model"),
      el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, ...rows));
    const total = audit.rows.reduce((sum, row) => sum + row.parameters, 0);
    return el("div", {}, el("h4", {}, "Parts"),
      el("div", { class: "rn-scroll", tabindex: "0", role: "region", "aria-label": "Parts of the model" }, table),
      el("p", { class: "rn-hint" }, `${figure(audit.trained)} numbers are trained, beside a model of ${figure(total)}.`));
  }

  // What the backward pass of the first steps really reached.
  function gradient(row, gradients) {
    const counts = gradients?.[row.part];
    if (!counts) return row.trained ? (gradients ? "none seen" : "not yet known") : "";
    return counts.without_gradient ? `${figure(counts.without_gradient)} of ${figure(counts.tensors)} without` : `in all ${figure(counts.tensors)}`;
  }

  function forecast({ forecast = {}, precision }) {
    return [["Precision", precision], ["Memory", `about ${figure(forecast.memory_gib)} GiB, ${figure(forecast.free_gib)} were free`],
      ["Steps", figure(forecast.steps)], ["Time", `about ${timeSpan(forecast.seconds)}, ${figure(forecast.step_s)} s a step`], ["Speed", `${figure(forecast.tok_s)} tokens/s`]];
  }

  function report(data) {
    return [["File", data.file], ["Format", data.format], ["Examples", figure(data.examples)], ["Left out", data.bad_rows ? `${figure(data.bad_rows)} bad rows` : "none"],
      ["Duplicates", figure(data.duplicates)], ["Rows", `${figure(data.train_rows)} to train on, ${figure(data.held_out_rows)} held out`],
      ["Tokens", `${figure(data.tokens)}, of which ${figure(data.trained_tokens)} are trained`], ["Cut", `${figure(data.cut)} examples`]];
  }

  function facts(title, pairs) {
    return el("div", {}, el("h4", {}, title), el("dl", { class: "rn-facts" }, ...pairs.map(([name, text]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, text === undefined || text === null ? "–" : String(text))))));
  }

  function lengths({ edges, counts }) {
    if (!Array.isArray(edges) || !Array.isArray(counts)) return "";
    const most = Math.max(1, ...counts);
    const rows = counts.map((count, i) => [count, `${figure(edges[i])} to ${figure(edges[i + 1] - 1)}`]).filter(([count]) => count);
    return el("div", {}, el("h4", {}, "Tokens of an example"), el("table", { class: "rn-lengths" }, el("caption", { class: "rn-unseen" }, "How many examples have so many tokens"),
      el("tbody", {}, ...rows.map(([count, name]) => el("tr", {}, el("th", { scope: "row" }, name),
        el("td", {}, el("i", { "aria-hidden": "true", style: `width: ${(100 * count) / most}%` })), el("td", {}, figure(count)))))));
  }

  function example(spans) {
    if (!Array.isArray(spans) || !spans.length) return "";
    return el("div", {}, el("h4", {}, "The first row, trained where marked"),
      el("pre", { class: "rn-example" }, ...spans.map(([text, isTrained]) => (isTrained ? el("mark", {}, String(text)) : String(text)))));
  }

  return { root, show };
}
