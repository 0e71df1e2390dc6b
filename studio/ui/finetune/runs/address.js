// Addresses of the page that open a run, a comparison of runs, an adapter or a classifier.

const PARAMETERS = ["run", "compare", "adapter", "classifier"];
const ID = /^[0-9a-f-]{36}$/;

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
  return ID.test(id) ? id : "";
}

// Returns the ids of the runs that an address compares.
export function comparedOf(href) {
  const ids = (new URL(href).searchParams.get("compare") ?? "").split(".");
  return [...new Set(ids.filter((id) => ID.test(id)))];
}

// Puts an address into the address bar, as `addressOf`.
export function setAddress(name, id) {
  history.replaceState(history.state, "", addressOf(location.href, name, id));
}
