views.push({
  name: "tables",
  title: "Tables",
  build(root, panel) {
    const { trace, settings } = panel;
    const load = table("rp-load");
    const tokens = table("rp-token-table");
    root.append(load.details, tokens.details);
    let listed = 0;
    let refreshed = 0;

    function table(name) {
      const summary = el("summary");
      const head = el("thead"), rows = el("tbody"), caption = el("caption");
      const details = el("details", { class: `rp-table ${name}` }, summary, el("div", { class: "rp-scroll", tabindex: "0" }, el("table", {}, caption, head, rows)));
      details.addEventListener("toggle", () => refresh(true));
      return { details, summary, caption, head, rows };
    }

    function reset() {
      listed = 0;
      tokens.rows.replaceChildren();
      refresh(true);
    }

    function refresh(now) {
      const scope = settings.scope === "prompt" ? "prompt" : "answer";
      load.summary.textContent = `Load by layer and ${panel.unitName()}, ${scope}`;
      tokens.summary.textContent = `Tokens in layer ${settings.layer}`;
      if (!trace.id || (!now && performance.now() - refreshed < 1000)) return;
      refreshed = performance.now();
      if (load.details.open) fillLoad(scope);
      if (tokens.details.open) fillTokens();
    }

    function fillLoad(scope) {
      const units = Array.from({ length: panel.units() }, (_, unit) => unit);
      const [start, end] = trace.scope(scope);
      load.caption.textContent = `Share of assignments in ${end - start} tokens of the ${scope}; chance is ${(1 / units.length).toFixed(4)}.`;
      const columns = trace.kinds.flatMap((kind) => units.map((unit) => el("th", { scope: "col" }, `${kind} ${unit}`)));
      load.head.replaceChildren(el("tr", {}, el("th", { scope: "col" }, "Layer"), ...columns));
      load.rows.replaceChildren(...Array.from({ length: trace.L }, (_, l) => {
        const shares = trace.kinds.flatMap((_, n) => Array.from(trace.load(scope, l, n, panel.single())));
        return el("tr", {}, el("th", { scope: "row" }, String(l)), ...shares.map((share) => el("td", {}, share.toFixed(4))));
      }));
    }

    function fillTokens() {
      const l = settings.layer;
      tokens.caption.textContent = `Experts and gates in layer ${l}.`;
      tokens.head.replaceChildren(el("tr", {}, ...["#", "Part", "Token", ...trace.kinds].map((name) => el("th", { scope: "col" }, name))));
      const fresh = document.createDocumentFragment();
      for (; listed < trace.count; listed++) fresh.append(row(listed, l));
      tokens.rows.append(fresh);
    }

    function row(t, l) {
      const experts = trace.kinds.map((_, n) => {
        const parts = [];
        for (let k = 0, at = trace.at(t, l, n); k < trace.K; k++, at++) parts.push(`${trace.experts[at]} (${(trace.gates[at] / 65535).toFixed(2)})`);
        const base = trace.baseUnit(t, l, n, panel.single());
        return el("td", {}, parts.join(", ") + (base === null ? "" : ` · ${panel.unitName()} in the base model: ${base}`));
      });
      const part = trace.isPrompt(t) ? "prompt" : "answer";
      return el("tr", {}, el("th", { scope: "row" }, String(t + 1)), el("td", {}, part), el("td", {}, ...tokenText(trace.texts[t])), ...experts);
    }

    function update() {
      const late = trace.count >= trace.total;
      refresh(late);
    }

    function recolour() {
      listed = 0;
      tokens.rows.replaceChildren();
      refresh(true);
    }

    return { reset, update, recolour };
  },
});
