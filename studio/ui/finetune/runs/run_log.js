// The log of a run: its last lines, new ones as they are written, a filter, and the whole log as a file.

import { el, setText } from "../../common/dom.js";
import { hint } from "./pieces.js";
import { fetchRuns } from "./poll.js";

const MOST_LINES = 5000; // that are kept
const FOLLOW_PX = 40;

export class RunLog {
  constructor() {
    this.filter = el("input", {
      type: "search", placeholder: "Filter lines", autocomplete: "off", maxlength: "100", "aria-label": "Filter lines",
    });
    this.filter.addEventListener("input", () => this.draw());
    this.download = el("a", { class: "rn-button", download: "" }, "Download log");
    this.count = hint("");
    this.text = el("pre", { class: "rn-log", tabindex: "0", role: "log", "aria-label": "Log" });
    this.root = el("section", { "aria-label": "Log of the run" },
      el("div", { class: "ch-tools rn-log-tools" }, this.filter, this.download, this.count), this.text);
    this.clear("");
  }

  clear(id) {
    Object.assign(this, { id, lines: [], next: -1, isCut: false });
    this.download.href = `watch/runs/${id}/log.txt`;
    this.text.replaceChildren();
    setText(this.count, "");
  }

  // Fetches what has been written since the last time.
  async fetch(id) {
    if (this.id !== id) this.clear(id);
    for (let hasMore = true; hasMore && this.id === id; ) {
      const part = await fetchRuns(`runs/${id}/log`, [["after", this.next]]);
      if (this.id !== id) return;
      if (part.error) {
        setText(this.count, part.error);
        return;
      }
      if (part.start < this.next) this.lines = []; // the file was written anew
      if (this.next < 0) this.isCut = part.start > 0;
      hasMore = part.next < part.size && part.next > this.next;
      this.next = part.next;
      if (part.text || !this.lines.length) this.add(linesOf(part.text));
    }
  }

  add(lines) {
    this.lines.push(...lines);
    if (this.lines.length > MOST_LINES) {
      this.lines = this.lines.slice(-MOST_LINES);
      this.isCut = true;
    }
    this.draw();
  }

  draw() {
    const { text } = this, isAtEnd = text.scrollHeight - text.scrollTop - text.clientHeight < FOLLOW_PX;
    const shown = matching(this.lines, this.filter.value);
    setText(text, shown.join("\n"));
    setText(this.count, countText(shown.length, this.lines.length, this.isCut));
    if (isAtEnd) text.scrollTop = text.scrollHeight;
  }
}

// Returns the lines of a text; a carriage return, as progress bars write it, also ends a line.
export function linesOf(text) {
  return text.split(/\r\n|\n|\r/).filter((line) => line.trim());
}

// Returns the lines that contain all words of the filter, in any case.
export function matching(lines, filter) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  return words.length ? lines.filter((line) => words.every((word) => line.toLowerCase().includes(word))) : lines;
}

function countText(shown, all, isCut) {
  if (!all) return "The log is empty.";
  const earlier = isCut ? " Earlier lines are in the downloaded log." : "";
  return `${shown === all ? "" : `${shown.toLocaleString("en")} of `}${all.toLocaleString("en")} lines.${earlier}`;
}
