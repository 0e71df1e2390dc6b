// Addresses of the page that open a run, an adapter or a classifier.

const PARAMETERS = ["run", "adapter", "classifier"];

// Returns the address with one of the parameters set, or none if `id` is "". Other query parameters are kept.
export function addressOf(href, name, id) {
  const url = new URL(href);
  for (const other of PARAMETERS) url.searchParams.delete(other);
  if (id) url.searchParams.set(name, id);
  return url.href;
}

// Returns the id of the run that an address opens, or "".
export function runOf(href) {
  const id = new URL(href).searchParams.get("run") ?? "";
  return /^[0-9a-f-]{36}$/.test(id) ? id : "";
}
