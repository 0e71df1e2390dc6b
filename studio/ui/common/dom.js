// The panels build everything with these two functions: text becomes text nodes, so tokens can't be markup or code.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Returns a token's text with visible whitespace.
function tokenText(text) {
  if (text === "") return [el("span", { class: "rp-ws", title: "part of a character" }, "⋯")];
  const marks = { " ": "·", "\n": "↵", "\t": "⇥", "\r": "␍" };
  const shown = /^\p{M}/u.test(text) ? "◌" + text : text;
  return shown.split(/([ \n\t\r]+)/).filter(Boolean).map((part) =>
    part.trim() ? part : el("span", { class: "rp-ws" }, [...part].map((sign) => marks[sign] ?? "·").join("")));
}
