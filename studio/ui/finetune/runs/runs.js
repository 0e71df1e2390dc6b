// The panel of training runs: the list, the open run, the comparison, and the polling that updates them.

import { el, setText } from "../../common/dom.js";
import { addressOf, comparedOf, runOf, setAddress } from "./address.js";
import { Comparison } from "./comparison.js";
import { emptyChart } from "./pieces.js";
import { fetchRuns, Poll } from "./poll.js";
import { RunData } from "./run_data.js";
import { mergedRuns, RunList } from "./run_list.js";
import { RunPage } from "./run_page.js";
import { isActive, STATES } from "./run_state.js";

const FAST_MS = 1000, SLOW_MS = 5000;
const MOST_KEPT = 12; // runs whose data is kept
const WIDE_PX = 860, MIDDLE_PX = 560;

export function mount({ element, props, trigger, watch }) {
  const panel = new RunsPanel(element, trigger);
  // Python opens a run through the component's value, which may be set before this module arrives.
  const openByValue = () => props.value && panel.openSoon(JSON.parse(props.value).open);
  watch("value", openByValue);
  openByValue();
  if (!panel.opened) panel.openAddress(location.href);
  panel.show();
}

class RunsPanel {
  constructor(element, trigger) {
    this.trigger = trigger;
    this.opened = ""; // ids of runs
    this.deleted = "";
    this.awaited = ""; // id of the opened run, until it has an adapter to export
    this.answered = new Set(); // runs that the server was asked about
    this.rows = new Map(); // all runs by id, from the list, latest first
    this.version = ""; // of the list
    this.data = new Map(); // RunData of opened and compared runs by id
    this.listedAt = this.fastUntil = 0;
    this.root = element.querySelector(".rn-root");
    [this.trouble, this.notice, this.spoken] = ["trouble", "notice", "said"].map((name) =>
      element.querySelector(`.rn-${name}`));
    this.build(element.querySelector(".rn-panes"));
    this.poll = new Poll(element, () => this.fetch(), (sentence) => showSentence(this.trouble, sentence));
    new ResizeObserver(() => this.fitWidth()).observe(this.root);
  }

  build(panes) {
    this.list = new RunList((id) => this.openFromList(id), () => this.select());
    this.page = new RunPage((...action) => this.act(...action), () => this.close(), () => this.poll.now());
    this.comparison = new Comparison(() => this.list.clearSelection());
    this.nothing = el("div", { class: "rn-nothing" }, emptyChart(),
      el("p", {}, "Open a run to see its curves, routing and answers."));
    const sentence = "There is no such run. It may have been deleted.";
    this.gone = el("p", { class: "rn-message rn-failed", hidden: "" }, sentence);
    panes.append(this.list.root,
      el("div", { class: "rn-detail" }, this.gone, this.nothing, this.page.root, this.comparison.root));
  }

  fitWidth() {
    const width = this.root.clientWidth;
    this.root.dataset.size = width >= WIDE_PX ? "wide" : width >= MIDDLE_PX ? "middle" : "small";
  }

  // --- what is shown

  show() {
    const data = this.opened && this.dataOf(this.opened), shown = this.shownPart(data);
    if (shown === "gone" && this.opened === this.deleted) {
      this.close();
      return;
    }
    this.root.dataset.shown = shown;
    this.nothing.hidden = shown !== "list" || !this.rows.size;
    this.page.root.hidden = shown !== "run";
    this.comparison.root.hidden = shown !== "comparison";
    this.gone.hidden = shown !== "gone" || !this.answered.has(this.opened) || this.isFast;
    if (shown === "run") this.page.show(data);
    if (shown === "run") this.offerExport(data.row);
    if (shown === "comparison") this.comparison.show(this.compared);
  }

  shownPart(data) {
    if (this.isComparing) return "comparison";
    if (!data) return "list";
    return data.row ? "run" : "gone";
  }

  get isComparing() {
    return this.list.selected.length > 1;
  }

  get compared() {
    return this.list.selected.map((id) => this.dataOf(id));
  }

  dataOf(id) {
    if (!this.data.has(id)) this.data.set(id, new RunData(id));
    const data = this.data.get(id);
    data.row ??= this.rows.get(id) ?? null;
    return data;
  }

  showRows(runs) {
    const changed = runs.filter((run) => this.rows.has(run.id) && this.rows.get(run.id).state !== run.state);
    if (changed.length) this.spoken.textContent = changed.map((run) => `${run.name}: ${STATES[run.state]}`).join(". ");
    this.rows = new Map(runs.map((run) => [run.id, run]));
    this.list.show(runs);
  }

  refresh() {
    this.show();
    this.poll.now();
  }

  // --- the server

  // Fetches what has changed, and returns the milliseconds until the next time.
  async fetch() {
    const isListDue = Date.now() - this.listedAt >= SLOW_MS;
    if (!this.opened || this.isComparing || this.isFast || isListDue) await this.fetchList();
    for (const id of this.wanted) await this.fetchEvents(id);
    // The row of the open run arrives with its events, so the list of all runs is fetched less often.
    const row = this.data.get(this.opened)?.row;
    if (row) this.showRows([...this.rows.values()].map((each) => (each.id === row.id ? row : each)));
    if (this.isComparing) await this.comparison.fetch(this.compared);
    else if (row) await this.page.fetch(this.data.get(this.opened));
    this.show();
    return this.isFast || [...this.rows.values()].some(isActive) ? FAST_MS : SLOW_MS;
  }

  async fetchList() {
    const answer = await fetchRuns("runs", [["since", this.version]]);
    this.listedAt = Date.now();
    this.version = answer.version;
    showSentence(this.notice, answer.notice);
    this.showRows(mergedRuns([...this.rows.values()], answer));
    this.root.toggleAttribute("data-empty", !this.rows.size);
  }

  async fetchEvents(id) {
    const data = this.dataOf(id);
    for (let hasMore = true; hasMore && this.data.get(id) === data; ) {
      const answer = await fetchRuns(`runs/${id}`, [["after", data.lastSeq]]);
      data.row = answer.run;
      data.now = answer.now;
      data.add(answer.events);
      hasMore = answer.more && answer.events.length > 0;
      if (hasMore) this.show();
    }
    this.answered.add(id);
    for (const each of this.data.keys())
      if (this.data.size > MOST_KEPT && !this.wanted.includes(each)) this.data.delete(each);
  }

  get wanted() {
    if (this.isComparing) return this.list.selected;
    return this.opened ? [this.opened] : [];
  }

  // The server reads the list once a second, so changes show with a delay; poll faster for a while.
  pollFaster() {
    this.fastUntil = Date.now() + SLOW_MS;
  }

  get isFast() {
    return Date.now() < this.fastUntil;
  }

  // --- actions

  // Opens what an address names: a run, or a comparison of several.
  openAddress(href) {
    const compared = comparedOf(href);
    if (compared.length > 1) this.list.choose(compared);
    else this.open(runOf(href));
  }

  // Another selection of runs to compare.
  select() {
    if (this.isComparing) setAddress("compare", this.list.selected.join("."));
    else setAddress("run", this.opened);
    this.refresh();
  }

  open(id) {
    if (this.isComparing) this.list.clearSelection();
    if (this.opened === id) return;
    this.opened = id;
    this.list.markOpen(id);
    setAddress("run", id);
    this.trigger("open", { id });
    this.refresh();
  }

  // For a run that Python has just made.
  openSoon(id) {
    this.pollFaster();
    this.open(id);
  }

  openFromList(id) {
    this.open(id);
    this.page.focus();
  }

  close() {
    const { opened } = this;
    this.opened = "";
    this.list.markOpen("");
    setAddress("run", "");
    this.trigger("open", { id: "" });
    this.show();
    this.list.focus(opened);
  }

  // Chat, Classify and Export are other parts of the page; Python handles the other actions.
  act(action, id, values = {}) {
    if (action === "chat") location.assign(addressOf(location.href, "adapter", id));
    else if (action === "classify") location.assign(addressOf(location.href, "classifier", id));
    else if (action === "export") this.showExport(id);
    else if (action === "again") this.trigger("again", { id });
    else {
      this.trigger("act", { action, id, ...values });
      if (action === "delete") this.deleted = id;
      this.pollFaster();
      this.poll.now();
    }
  }

  // "open" again makes Python show the export box of a run that had no adapter when it was opened.
  offerExport({ id, has_adapter: hasAdapter, state }) {
    const isReady = hasAdapter && !isActive({ state });
    if (isReady && this.awaited === id) this.trigger("open", { id });
    this.awaited = isReady ? "" : id;
  }

  async showExport(id) {
    this.trigger("open", { id });
    const box = () => document.getElementById("export-box");
    for (let tries = 0; tries < 20 && !box()?.offsetParent; tries++) await new Promise((done) => setTimeout(done, 100));
    box()?.scrollIntoView();
  }
}

function showSentence(node, sentence) {
  node.hidden = !sentence;
  setText(node, sentence);
}
