// The panel of training runs: the open run, the comparison, and the polling that updates both.
const FAST = 1000, SLOW = 5000, KEPT = 12;
const root = element.querySelector(".rn-root");
const [trouble, notice, said] = ["trouble", "notice", "said"].map((name) => element.querySelector(`.rn-${name}`));
const known = new Map(); // the data of opened and compared runs
const nothing = el("div", { class: "rn-nothing" }, ghost(), el("p", {}, "Open a run to see its curves, routing and answers."));
const gone = el("p", { class: "rn-message rn-failed", hidden: "" }, "There is no such run. It may have been deleted.");
const list = createList((id) => {
  open(id);
  page.focus();
}, tick);
const page = createRunPage(act, close);
const comparison = createComparison(() => list.untick());
const detail = el("div", { class: "rn-detail" }, gone, nothing, page.root, comparison.root);
element.querySelector(".rn-panes").append(list.root, detail);
let opened = "", rows = new Map(), listedAt = 0, answeredFor = new Set(), deleted = "", hurriedUntil = 0;

const poll = createPoll(ask, (text) => {
  trouble.hidden = !text;
  setText(trouble, text);
});

async function ask() {
  if (!opened || isComparing() || isHurried() || Date.now() - listedAt >= SLOW) await askList();
  for (const id of wanted()) await fetchEvents(id);
  const row = known.get(opened)?.row;
  if (row) showRows([...rows.values()].map((each) => (each.id === row.id ? row : each)));
  if (isComparing()) await comparison.ask(compared());
  show();
  return [...rows.values()].some(isAlive) || isHurried() ? FAST : SLOW;
}

// The row of the open run arrives with its events, so the list of all runs is fetched less often.
async function askList() {
  const listed = await askServer("runs");
  listedAt = Date.now();
  notice.hidden = !listed.notice;
  setText(notice, listed.notice);
  root.toggleAttribute("data-empty", !listed.runs.length);
  showRows(listed.runs);
}

// The server reads the list once a second, so changes show with a delay; poll faster for a while.
const hurry = () => (hurriedUntil = Date.now() + SLOW);
const isHurried = () => Date.now() < hurriedUntil;

const isComparing = () => list.ticked().length > 1;
const wanted = () => (isComparing() ? list.ticked() : opened ? [opened] : []);
const compared = () => list.ticked().map(dataOf);

function dataOf(id) {
  if (!known.has(id)) known.set(id, createRunData(id));
  const data = known.get(id);
  data.row ??= rows.get(id) ?? null;
  return data;
}

async function fetchEvents(id) {
  const data = dataOf(id);
  for (let more = true; more && known.get(id) === data; ) {
    const answer = await askServer(`runs/${id}`, [["after", data.last]]);
    data.row = answer.run;
    data.now = answer.now;
    data.add(answer.events);
    more = answer.more && answer.events.length > 0;
    if (more) show();
  }
  answeredFor.add(id);
  for (const each of known.keys()) if (known.size > KEPT && !wanted().includes(each)) known.delete(each);
}

function show() {
  const data = opened && dataOf(opened);
  const shown = isComparing() ? "comparison" : !opened ? "list" : data.row ? "run" : "gone";
  if (shown === "gone" && opened === deleted) return close();
  root.dataset.shown = shown;
  nothing.hidden = shown !== "list" || !rows.size;
  page.root.hidden = shown !== "run";
  comparison.root.hidden = shown !== "comparison";
  gone.hidden = shown !== "gone" || !answeredFor.has(opened) || isHurried();
  if (shown === "run") page.show(data);
  if (shown === "comparison") comparison.show(compared());
}

function tick() {
  show();
  poll();
}

function open(id) {
  if (isComparing()) list.untick();
  if (opened === id) return;
  opened = id;
  list.open(id);
  address(id);
  trigger("open", { id });
  tick();
}

// Chat, Classify and Export are other parts of the page; Python handles the other actions.
function act(action, id) {
  if (action === "chat") location.assign(addressOf("adapter", id));
  else if (action === "classify") location.assign(addressOf("classifier", id));
  else if (action === "export") showExport(id);
  else {
    trigger("act", { action, id });
    if (action === "delete") deleted = id;
    hurry();
    poll();
  }
}

// "open" again makes Python show the export box, because the run may not have had an adapter when it was opened.
async function showExport(id) {
  trigger("open", { id });
  const box = () => document.getElementById("export-box");
  for (let tries = 0; tries < 20 && !box()?.offsetParent; tries++) await new Promise((done) => setTimeout(done, 100));
  box()?.scrollIntoView();
}

function close() {
  const before = opened;
  opened = "";
  list.open("");
  address("");
  trigger("open", { id: "" });
  show();
  list.focus(before);
}

// Query parameters of other parts of the page are kept.
function address(id) {
  history.replaceState(history.state, "", addressOf("run", id));
}

function addressOf(name, id) {
  const url = new URL(location.href);
  for (const other of ["run", "adapter", "classifier"]) url.searchParams.delete(other);
  if (id) url.searchParams.set(name, id);
  return url;
}

function showRows(runs) {
  announce(runs);
  list.show(runs);
  rows = new Map(runs.map((run) => [run.id, run]));
}

function announce(runs) {
  const changed = runs.filter((run) => rows.has(run.id) && rows.get(run.id).state !== run.state);
  if (changed.length) said.textContent = changed.map((run) => `${run.name}: ${STATES[run.state]}`).join(". ");
}

new ResizeObserver(() => {
  const width = root.clientWidth;
  root.dataset.size = width >= 860 ? "wide" : width >= 560 ? "middle" : "small";
}).observe(root);

// Python opens a run through the component's value, which may be set before this script runs.
function told() {
  if (!props.value) return;
  hurry();
  open(JSON.parse(props.value).open);
}
watch("value", told);

told();
const first = new URL(location.href).searchParams.get("run") ?? "";
if (!opened && /^[0-9a-f-]{36}$/.test(first)) open(first);
show();
