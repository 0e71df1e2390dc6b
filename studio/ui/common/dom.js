// Panels build everything with these functions: text becomes text nodes, so it can't be markup or code.

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  setAttributes(node, attributes);
  node.append(...children);
  return node;
}

export function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

// Writes only changes, so that screen readers, selections and the keyboard focus are not disturbed.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Calls back when the page changes between light and dark.
export function watchTheme(callback) {
  new MutationObserver(callback).observe(document.body, { attributeFilter: ["class"] });
}

export function isDark() {
  return document.body.classList.contains("dark");
}
