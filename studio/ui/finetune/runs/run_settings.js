// All settings of a run, by section, and its recipe as a file.

import { el } from "../../common/dom.js";
import { saveText } from "../../common/save_file.js";
import { scrollTable, tableRow } from "../../common/tables.js";
import { button, hint } from "./pieces.js";
import { fetchRuns } from "./poll.js";

export class RunSettings {
  constructor() {
    this.id = ""; // of the run whose settings are shown
    this.yaml = "";
    const changed = el("input", { type: "checkbox" });
    changed.addEventListener("change", () => this.root.toggleAttribute("data-changed", changed.checked));
    const save = button("Save as YAML");
    save.addEventListener("click", () => saveText(this.yaml, `recipe-${this.id.slice(0, 8)}.yaml`, "application/yaml"));
    this.tables = el("div", { class: "rn-tables" });
    this.root = el("section", { class: "rn-settings", "aria-label": "Settings" },
      el("h4", {}, "Settings"),
      el("div", { class: "ch-tools" },
        el("label", { class: "ch-check" }, changed, "Only those that differ from the defaults"), save),
      this.tables);
  }

  // Settings never change, so they are fetched once.
  async fetch(id) {
    if (this.id === id) return;
    const answer = await fetchRuns(`runs/${id}/settings`);
    this.id = id;
    this.yaml = answer.yaml ?? "";
    this.tables.replaceChildren(...(answer.error ? [hint(answer.error)] : answer.sections.map(sectionTable)));
  }
}

function sectionTable({ title, settings }) {
  const rows = settings.map(({ label, name, value, default: isDefault }) => {
    const row = tableRow(label, [settingText(value), isDefault ? "default" : "changed"]);
    row.title = name;
    row.classList.toggle("rn-default", isDefault);
    return row;
  });
  const heads = [title, "Value", ""].map((text) => el("th", { scope: "col" }, text));
  return scrollTable(`Settings: ${title}`, heads, el("tbody", {}, ...rows));
}

// Returns a value as a person writes it.
export function settingText(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "on" : "off";
  if (Array.isArray(value)) return value.join("\n") || "none";
  if (typeof value === "object")
    return Object.entries(value).map(([field, column]) => `${field}: ${column}`).join("\n") || "none";
  return String(value) || "none";
}
