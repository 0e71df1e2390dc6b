// What a person has chosen to see, kept in the browser. `layers` is the number of layers of the model of `layer`.

const KINDS = { layer: "number", kind: "number", single: "boolean", scope: "string", layers: "number" };

export function readChoices(of, storage = localStorage) {
  const kept = parsed(storage.getItem(keyOf(of)));
  return Object.fromEntries(Object.entries(KINDS).filter(([name, kind]) => typeof kept[name] === kind)
    .map(([name]) => [name, kept[name]]));
}

export function keepChoices(of, settings, storage = localStorage) {
  const kept = Object.fromEntries(Object.keys(KINDS).map((name) => [name, settings[name]]));
  try {
    storage.setItem(keyOf(of), JSON.stringify(kept));
  } catch (error) {
    console.info("The storage of the browser is full, so the view is kept until the page is closed:", error);
  }
}

function keyOf(of) {
  return `jetmoe-studio-routing-${of}`;
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {}; // not written by this page
  }
}
