// Answers to the sample prompts before training and at an evaluation, side by side.
function createSamples() {
  const WORDS = 400;
  const steps = segments("Evaluation", [], (step) => {
    follows = step === String(sampled.at(-1));
    fill();
  });
  const body = el("tbody"), before = el("th", { scope: "col" }), after = el("th", { scope: "col" });
  const root = el("section", { class: "rn-samples", "aria-label": "Answers" },
    el("div", { class: "rn-tools" }, el("span", {}, "At step"), steps.root),
    table("Answers to the sample prompts", [...columns(["Prompt"]), before, after], body),
    hint("Words that are not in the answer before training are marked."));
  const empty = hint("The sample prompts are answered before training and at every evaluation.");
  let samples = new Map(), sampled = [], follows = true, drawn = "";

  function show(data) {
    const isOther = data.samples !== samples;
    samples = data.samples;
    sampled = data.sampled;
    root.hidden = !sampled.length;
    empty.hidden = Boolean(sampled.length);
    if (isOther) follows = true;
    const now = `${sampled} ${[...samples.values()].map((each) => each.size)}`;
    if (now === drawn && !isOther) return;
    drawn = now;
    if (follows || !sampled.includes(Number(steps.value()))) steps.choose(String(sampled.at(-1)));
    steps.fill(sampled.map((step) => [String(step), step ? figure(step) : "0, before"]));
    fill();
  }

  function fill() {
    const first = sampled[0], step = Number(steps.value());
    setText(before, first ? `At step ${figure(first)}` : "Before training");
    setText(after, step === first ? "" : `At step ${figure(step)}`);
    after.hidden = step === first;
    body.replaceChildren(...[...samples].map(([prompt, answers]) => {
      const base = answers.get(first), now = answers.get(step);
      const cells = [el("th", { scope: "row", "data-label": "Prompt" }, prompt), answer(before.textContent, base, null)];
      return el("tr", {}, ...cells, ...(step === first ? [] : [answer(after.textContent, now, base)]));
    }));
  }

  function answer(label, text, base) {
    const cell = el("td", { "data-label": label });
    if (text === undefined) cell.append(el("span", { class: "rn-hint" }, "not answered"));
    else if (text.trim() === "") cell.append(el("span", { class: "rn-hint" }, "empty answer"));
    else cell.append(...(typeof base === "string" ? marked(base, text) : [text]));
    return cell;
  }

  // Marks the words of `text` outside its longest common subsequence with `base`.
  function marked(base, text) {
    const old = base.split(/\s+/).filter(Boolean), parts = text.split(/(\s+)/), words = parts.filter((part) => part.trim());
    if (old.length > WORDS || words.length > WORDS) return [text];
    const lengths = Array.from({ length: old.length + 1 }, () => new Uint16Array(words.length + 1));
    for (let i = old.length - 1; i >= 0; i--)
      for (let j = words.length - 1; j >= 0; j--)
        lengths[i][j] = old[i] === words[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    const isNew = [];
    for (let i = 0, j = 0; j < words.length; ) {
      if (i < old.length && old[i] === words[j]) (isNew.push(false), i++, j++);
      else if (i < old.length && lengths[i + 1][j] >= lengths[i][j + 1]) i++;
      else (isNew.push(true), j++);
    }
    let word = 0;
    return parts.map((part) => (part.trim() && isNew[word++] ? el("mark", {}, part) : part));
  }

  return { root: el("div", {}, root, empty), show };
}
