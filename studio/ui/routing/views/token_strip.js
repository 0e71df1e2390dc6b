views.push({
  name: "token_strip",
  title: "Tokens",
  build(root, panel) {
    const { trace, settings } = panel;
    const OPEN_UP_TO = panel.of === "prompt" ? 2000 : 40; // longer prompts start collapsed
    const prompt = section("prompt", el("details", { class: "rp-prompt" }, el("summary")));
    const answer = section("answer", el("div", { class: "rp-answer-tokens" }, el("p", { class: "rp-part" })));
    root.append(prompt.box, answer.box);
    prompt.box.addEventListener("toggle", update);
    let marked = [];

    function section(scope, box) {
      const list = el("div", { class: "rp-tokens", role: "listbox", "aria-label": `Tokens of the ${scope}` });
      box.append(list);
      listen(list);
      return { scope, box, list, tokens: [], first: 0 };
    }

    function reset() {
      for (const part of [prompt, answer]) {
        part.list.replaceChildren();
        part.tokens = [];
      }
      prompt.box.open = trace.prompt <= OPEN_UP_TO;
    }

    function update() {
      [prompt.first] = trace.scope("prompt");
      [answer.first] = trace.scope("answer");
      prompt.box.querySelector("summary").textContent = `Prompt · ${Math.min(trace.prompt, trace.count)} tokens`;
      prompt.box.hidden = !trace.prompt;
      if (prompt.box.open) grow(prompt);
      answer.box.firstChild.textContent = `Answer · ${trace.count - answer.first} tokens`;
      grow(answer);
    }

    function grow(part) {
      const [, end] = trace.scope(part.scope);
      const start = part.first + part.tokens.length;
      if (start >= end) return;
      const atEnd = part.list.scrollHeight - part.list.scrollTop - part.list.clientHeight < 40;
      const fresh = document.createDocumentFragment();
      for (let t = start; t < end; t++) fresh.append(...token(part, t));
      part.list.append(fresh);
      if (part.tokens.length && !part.list.querySelector('[tabindex="0"]')) part.tokens[0].tabIndex = 0;
      if (atEnd) part.list.scrollTop = part.list.scrollHeight;
    }

    function token(part, t) {
      const node = el("span", { role: "option", tabindex: "-1" }, el("span", { class: "rp-text" }), el("span", { class: "rp-num" }));
      node.firstChild.append(...tokenText(trace.texts[t]));
      node.token = t;
      part.tokens.push(node);
      paint(node);
      return trace.texts[t].includes("\n") ? [node, el("br")] : [node];
    }

    function paint(node) {
      const unit = unitOf(node.token);
      const base = baseOf(node.token);
      node.className = `rp-tok rp-u${unit % 8}${node.classList.contains("rp-on") ? " rp-on" : ""}${base === null ? "" : " rp-flip"}`;
      node.lastChild.textContent = unit;
      if (base !== null) node.title = `base: ${base}, adapter: ${unit}`;
      else if (node.title) node.removeAttribute("title");
    }

    const unitOf = (t) => trace.strongest(t, settings.layer, settings.kind, panel.single());
    const baseOf = (t) => trace.baseUnit(t, settings.layer, settings.kind, panel.single());

    function recolour() {
      for (const part of [prompt, answer]) part.tokens.forEach(paint);
    }

    function select() {
      for (const node of marked) {
        node.classList.remove("rp-on");
        node.setAttribute("aria-selected", "false");
      }
      marked = [panel.pinned, panel.focused].filter((t) => t !== null).map(nodeOf).filter(Boolean);
      for (const node of marked) node.classList.add("rp-on");
      if (panel.pinned !== null) nodeOf(panel.pinned)?.setAttribute("aria-selected", "true");
    }

    function nodeOf(t) {
      const part = trace.isPrompt(t) ? prompt : answer;
      return part.tokens[t - part.first];
    }

    function listen(list) {
      list.addEventListener("pointerover", (event) => hover(event.target.closest(".rp-tok")));
      list.addEventListener("pointerleave", () => panel.focus(null));
      list.addEventListener("focusin", (event) => describe(event.target.closest(".rp-tok")));
      list.addEventListener("focusout", () => panel.focus(null));
      list.addEventListener("click", (event) => pin(event.target.closest(".rp-tok")));
      list.addEventListener("keydown", (event) => key(event, list));
    }

    function hover(node) {
      if (node) panel.focus(node.token);
    }

    function pin(node) {
      if (node) panel.pin(node.token);
    }

    // A token gets its label when it gets the focus, because most of two thousand labels would never be read.
    function describe(node) {
      if (!node) return;
      const base = baseOf(node.token) === null ? "" : `, in the base model ${baseOf(node.token)}`;
      node.setAttribute("aria-label", `${JSON.stringify(trace.texts[node.token])}, ${panel.unitName()} ${unitOf(node.token)}${base}`);
      panel.focus(node.token);
    }

    function key(event, list) {
      const part = list === prompt.list ? prompt : answer;
      const at = part.tokens.indexOf(event.target);
      const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - 10, ArrowDown: at + 10, Home: 0, End: part.tokens.length - 1 };
      if (event.key === "Enter" || event.key === " ") pin(event.target);
      else if (event.key in moves) {
        const next = part.tokens[Math.max(0, Math.min(part.tokens.length - 1, moves[event.key]))];
        event.target.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      } else return;
      event.preventDefault();
    }

    return { reset, update, recolour, select };
  },
});
