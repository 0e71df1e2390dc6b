// The trained parts, the forecast and the data of a run.
function createAudit() {
  const root = el("section", { class: "rn-audit", "aria-label": "Setup" });
  let drawn = null;

  function show({ audit, gradients }) {
    if (drawn && drawn[0] === audit && drawn[1] === gradients) return;
    drawn = [audit, gradients];
    if (!audit) return root.replaceChildren(hint("The trained parts are counted before the first step."));
    const data = audit.data ?? {};
    root.replaceChildren(parts(audit, gradients), facts("Forecast", forecast(audit)), facts("Data", report(data)),
      lengths(data), example(audit.example ?? []));
  }

  function parts(audit, gradients) {
    const names = ["Part", "Parameters", "Trained", "Share", "Rank", "Dtype", "4-bit", "Gradient"];
    const total = audit.rows.reduce((sum, row) => sum + row.parameters, 0);
    return el("div", {}, el("h4", {}, "Parts"),
      table("Model parts", columns(names), el("tbody", {}, ...audit.rows.map((row) => part(row, gradients)))),
      hint(`${figure(audit.trained)} trained parameters, for a model with ${figure(total)}.`));
  }

  function part(row, gradients) {
    const isTrained = row.trained > 0;
    const node = tableRow(row.part, [
      figure(row.parameters), isTrained ? figure(row.trained) : "frozen", isTrained ? percent(row.share, 1) : "",
      row.rank ? String(row.rank) : "", row.dtype, row.four_bit ? percent(row.four_bit) : "", gradient(row, gradients),
    ]);
    node.classList.toggle("rn-frozen", !isTrained);
    return node;
  }

  // Returns which tensors of a part got a gradient in the first steps.
  function gradient(row, gradients) {
    const counts = gradients?.[row.part];
    if (!counts) return row.trained ? (gradients ? "none" : "not measured yet") : "";
    const [without, all] = [counts.without_gradient, counts.tensors].map(figure);
    return counts.without_gradient ? `${without} of ${all} without` : `all ${all}`;
  }

  function forecast({ forecast = {}, precision }) {
    return [
      ["Precision", precision],
      ["Memory", `about ${figure(forecast.memory_gib)} GiB, ${figure(forecast.free_gib)} GiB free`],
      ["Steps", figure(forecast.steps)],
      ["Time", `about ${timeSpan(forecast.seconds)}, ${figure(forecast.step_s)} s per step`],
      ["Speed", `${figure(forecast.tok_s)} tokens/s`],
    ];
  }

  function report(data) {
    return [
      ["File", data.file],
      ["Format", data.format],
      ["Examples", figure(data.examples)],
      ["Skipped", data.bad_rows ? `${figure(data.bad_rows)} bad rows` : "none"],
      ["Duplicates", figure(data.duplicates)],
      ["Rows", `${figure(data.train_rows)} for training, ${figure(data.held_out_rows)} held out`],
      ["Tokens", `${figure(data.tokens)}, ${figure(data.trained_tokens)} trained`],
      ["Truncated", `${figure(data.cut)} examples`],
    ];
  }

  function facts(title, pairs) {
    return el("div", {}, el("h4", {}, title), el("dl", { class: "rn-facts" }, ...pairs.map(([name, text]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, text === undefined || text === null ? "–" : String(text))))));
  }

  function lengths({ edges, counts }) {
    if (!Array.isArray(edges) || !Array.isArray(counts)) return "";
    const most = Math.max(1, ...counts);
    const rows = counts.map((count, i) => [count, `${figure(edges[i])} to ${figure(edges[i + 1] - 1)}`]);
    const shown = rows.filter(([count]) => count).map(([count, name]) => {
      const bar = el("i", { "aria-hidden": "true", style: `width: ${(100 * count) / most}%` });
      return tableRow(name, [bar, figure(count)]);
    });
    const caption = el("caption", { class: "rn-unseen" }, "Number of examples by length");
    return el("div", {}, el("h4", {}, "Tokens per example"),
      el("table", { class: "rn-lengths" }, caption, el("tbody", {}, ...shown)));
  }

  function example(spans) {
    if (!Array.isArray(spans) || !spans.length) return "";
    return el("div", {}, el("h4", {}, "First row, trained text marked"),
      el("pre", { class: "rn-example" }, ...spans.map(([text, isTrained]) => (isTrained ? el("mark", {}, String(text)) : String(text)))));
  }

  return { root, show };
}
