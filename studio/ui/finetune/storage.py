"""The list of everything that a visitor has stored, with its size and a button that deletes."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend.training import storage
from studio.errors import StudioError
from studio.ui.common.listeners import QUIET
from studio.ui.common.shown_errors import shows_errors
from studio.ui.server.identity import owner_of

if TYPE_CHECKING:
    from studio.backend.training.queue import Jobs

TITLES = {"run": "Run", "file": "File", "adapter": "Adapter"}
HELP = (
    "Runs with their checkpoints and exports, uploaded and classified files, and uploaded adapters. A file that no run "
    "uses is deleted a day after its last use."
)
CONFIRM = """(selected) =>
  [selected, selected.length && confirm("Delete what is selected? It can't be restored.") ? "yes" : ""]"""


def build(jobs: Jobs, tab: gr.Tab) -> None:
    """Add the list to the page; it is read when the tab is opened."""
    events = StorageEvents(jobs)
    gr.Markdown(HELP, elem_classes="hint")
    listed = gr.CheckboxGroup([], label="Stored", elem_id="stored", info="Select what to delete.")
    confirmed = gr.Textbox(visible="hidden")
    button = gr.Button("Delete selected", size="sm", elem_id="delete-stored")
    tab.select(events.listed, None, listed, **QUIET)
    # Without Gradio's check, which knows only the choices of the page's start.
    button.click(events.delete, [listed, confirmed], listed, js=CONFIRM, preprocess=False, **QUIET)


class StorageEvents:
    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    @shows_errors
    def listed(self, request: gr.Request) -> Any:
        return self._shown(owner_of(request))

    @shows_errors
    def delete(self, request: gr.Request, selected: Any, confirmed: Any) -> Any:
        """Delete what is selected and report each; an item that is in use does not keep the others."""
        if confirmed != "yes":
            return gr.skip()
        owner = owner_of(request)
        for key in selected if isinstance(selected, list) else ():
            try:
                gr.Info(escape(storage.delete(self.jobs, key, owner)))
            except StudioError as error:
                gr.Warning(escape(str(error)))
        return self._shown(owner)

    def _shown(self, owner: str) -> Any:
        items = storage.stored(self.jobs.store, owner)
        total = sum(each.bytes for each in items)
        choices = [(f"{TITLES[each.kind]} “{each.name}”, {_mib(each.bytes)}", each.key) for each in items]
        return gr.update(choices=choices, value=[], label=f"Stored: {_mib(total)}" if items else "Nothing is stored")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
