views.push({
  name: "token_detail",
  title: "One token across layers",
  build(root, panel) {
    const { trace, settings } = panel;
    const name = el("p", { class: "rp-which" });
    const grids = el("div", { class: "rp-grids" });
    const line = el("p", { class: "rp-line" });
    root.append(name, grids, line);
    let cells = []; // [N][L]
    let hovered = null;

    function reset() {
      hovered = null;
      cells = trace.kinds.map((_, n) => Array.from({ length: trace.L }, (_, l) => cell(l, n)));
      grids.replaceChildren(...trace.kinds.map((kind, n) =>
        el("div", { class: "rp-kind" }, el("span", { class: "rp-kind-name" }, kind), el("div", { class: "rp-cells" }, ...cells[n]))));
    }

    function cell(l, n) {
      const node = el("span", { class: "rp-cell" }, el("small", {}, String(l)), el("b"), el("i"));
      node.addEventListener("pointerenter", () => show([l, n]));
      node.addEventListener("pointerleave", () => show(null));
      node.addEventListener("click", () => panel.setLayer(l));
      return node;
    }

    function show(at) {
      hovered = at;
      spell();
    }

    function update() {
      const t = panel.current();
      if (t < 0 || t >= trace.count) return;
      const part = trace.isPrompt(t) ? `token ${t + 1} of the prompt` : `token ${t + 1 - trace.prompt} of the answer`;
      const state = panel.focused !== null ? "" : panel.pinned !== null ? " · pinned, click again to unpin" : " · latest";
      name.replaceChildren(el("code", { class: "rp-token-name" }, ...tokenText(trace.texts[t])), ` ${part}${state}`);
      cells.forEach((row, n) => row.forEach((node, l) => paint(node, t, l, n)));
      spell();
    }

    function paint(node, t, l, n) {
      const sums = trace.massOf(t, l, n, panel.single());
      let unit = 0;
      sums.forEach((sum, index) => (unit = sum > sums[unit] ? index : unit));
      const base = trace.baseUnit(t, l, n, panel.single());
      node.className = `rp-cell rp-u${unit % 8}${l === settings.layer && n === settings.kind ? " rp-on" : ""}${base === null ? "" : " rp-flip"}`;
      node.children[1].textContent = base === null ? unit : `${base}→${unit}`;
      node.children[2].style.setProperty("--gate", sums[unit] / 65535);
      node.title = sentence(t, l, n);
    }

    function spell() {
      const t = panel.current();
      if (t < 0 || t >= trace.count) return;
      const [l, n] = hovered ?? [settings.layer, settings.kind];
      line.textContent = sentence(t, l, n);
    }

    function sentence(t, l, n) {
      const parts = [];
      for (let k = 0, at = trace.at(t, l, n); k < trace.K; k++, at++)
        parts.push(`${trace.experts[at]} (${(trace.gates[at] / 65535).toFixed(2)})`);
      const group = trace.tied ? ` · copy ${trace.strongest(t, l, n, false)}` : "";
      const entropy = `entropy ${Math.round(100 * trace.entropy(t, l, n))} % of the maximum`;
      return `Layer ${l}, ${trace.kinds[n]}: experts ${parts.join(", ")}${group} · ${entropy}${difference(t, l, n)}`;
    }

    function difference(t, l, n) {
      const base = trace.baseUnit(t, l, n, panel.single());
      return base === null ? "" : ` · strongest ${panel.unitName()} in the base model: ${base}, with the adapter: ${trace.strongest(t, l, n, panel.single())}`;
    }

    return { reset, update, recolour: update, select: update };
  },
});
