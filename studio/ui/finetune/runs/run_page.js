// The page of one run: its head, and its curves, routing, answers, setup and log, one of which is shown.

import { el } from "../../common/dom.js";
import { Segments } from "../../common/segments.js";
import { Audit } from "./audit.js";
import { RunCurves } from "./run_curves.js";
import { RunHead } from "./run_head.js";
import { RunLog } from "./run_log.js";
import { RunSettings } from "./run_settings.js";
import { RoutingLoad } from "./routing_load.js";
import { hint } from "./pieces.js";
import { Samples } from "./samples.js";

const PARTS = [
  ["curves", "Curves"], ["routing", "Routing"], ["answers", "Answers"], ["audit", "Setup"], ["log", "Log"],
];
const DRIFT_HINT = "For a fixed text, compared with the model before training: share of tokens with a different " +
  "strongest expert, divergence of the router probabilities, and change of the load.";

export class RunPage {
  // `onAction(action, id, values)` is called for the buttons, and `onTurn()` when another part is shown.
  constructor(onAction, onClose, onTurn) {
    this.opened = "";
    this.head = new RunHead(onAction, onClose);
    this.curves = new RunCurves();
    this.load = new RoutingLoad();
    this.samples = new Samples();
    this.audit = new Audit();
    this.settings = new RunSettings();
    this.log = new RunLog();
    this.noRouting = hint("Routing is measured before training and at every evaluation.");
    this.driftHint = hint(DRIFT_HINT);
    this.driftHint.classList.add("rn-drift-hint");
    this.parts = {
      curves: this.curves.root,
      routing: el("div", {}, this.noRouting, this.curves.routing, this.driftHint, this.load.root),
      answers: el("div", {}, this.samples.root),
      audit: el("div", { class: "rn-audit" }, this.audit.root, this.settings.root),
      log: this.log.root,
    };
    const tabs = new Segments("Run details", PARTS, (part) => {
      this.turnTo(part);
      onTurn();
    });
    this.root = el("section", { class: "rn-run", "aria-label": "Open run" },
      this.head.root, tabs.root, ...Object.values(this.parts), this.head.deletion.root);
    this.turnTo("curves");
  }

  // Fetches what the shown part needs besides the events.
  async fetch({ id, row }) {
    const { tab } = this.root.dataset;
    if (tab === "audit") await this.settings.fetch(id);
    if (tab === "log" && row?.mine !== false) await this.log.fetch(id);
  }

  turnTo(part) {
    for (const [name, node] of Object.entries(this.parts)) node.hidden = name !== part;
    this.root.dataset.tab = part;
    this.curves.board.schedule();
    this.load.draw();
  }

  // `data` is a RunData with its row.
  show(data) {
    if (this.opened !== data.id) {
      this.opened = data.id;
      this.curves.board.reset();
    }
    this.head.show(data);
    this.curves.show(data);
    this.noRouting.hidden = data.routings.length > 0;
    this.driftHint.hidden = !data.routings.length;
    this.load.show(data.routings);
    this.samples.show(data);
    this.audit.show(data);
  }

  // On small screens the run replaces the list, so the back button gets the focus that the list had.
  focus() {
    this.head.focus();
  }
}
