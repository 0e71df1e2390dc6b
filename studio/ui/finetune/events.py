"""Event listeners of the Fine-tune tab, from component values to component updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.ui.common import card
from studio.ui.common.shown_errors import shows_errors
from studio.ui.finetune import audit_view, data_preview
from studio.ui.finetune.handlers import FIELDS, Column, FinetuneHandlers
from studio.ui.finetune.pushing import account_of
from studio.ui.finetune.recipe_form import NAMES
from studio.ui.finetune.run_draft import HUB, Draft, from_handed, from_json
from studio.ui.finetune.runs.runs_panel import opened as show_run
from studio.ui.server.identity import owner_of

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

TEXTS = 8
"""Values of a draft before its columns and settings."""
HINT = "Click “Check” to see the trained parts, the memory and the time of the run here."


class FinetuneEvents:
    """Event listeners of the Fine-tune tab; each uses the owner of its request."""

    def __init__(self, engine: Engine, jobs: Jobs) -> None:
        self.handlers = FinetuneHandlers(engine, jobs)

    def looked(self, request: gr.Request, draft: Draft, sent: dict[str, str] | None = None) -> list[Any]:
        """Return the preview and the columns; a problem with the data is shown in place of the preview.

        Args:
            sent: columns that the page sent; the user may have selected others by now.
        """
        try:
            seen = self.handlers.of(request).look(draft)
        except StudioError as error:
            return [_problem_card(str(error)), *(gr.skip() for _ in FIELDS)]
        return [seen.html, *(_column(seen.columns[field], field, sent) for field in FIELDS)]

    def remembered(self, request: gr.Request, draft: Draft) -> list[Any]:
        """Return the values for browser storage, command, purpose and recipe, and clear the outdated check."""
        command = self.handlers.of(request).command(draft)
        return [draft.to_json(), command, draft.purpose, _bundled(draft), card.waiting(audit_view.NAME, HINT)]

    @shows_errors
    def remember(self, request: gr.Request, stored: str, *values: Any) -> Any:
        """Store the draft, unless nothing has changed: Gradio's `input` also fires when a list loses the focus."""
        draft = _draft(*values)
        return gr.skip() if draft.to_json() == stored else self.remembered(request, draft)

    @shows_errors
    def leave(self, request: gr.Request, *values: Any) -> list[Any]:
        return self.remembered(request, _draft(*values))[:2]

    @shows_errors
    def open_page(self, request: gr.Request, stored: str) -> list[Any]:
        draft, lost = self.handlers.of(request).fresh(), ""
        try:
            draft = from_json(stored) if stored else draft
        except StudioError as error:
            lost = _problem_card(f"{error} The form starts with default values.")
        model = gr.update(choices=self.handlers.of(request).models(), value=draft.settings["model"])
        values = _controls(replace(draft, settings=draft.settings | {"model": model}))
        # The runs panel itself opens the runs named in the URL.
        shows_runs = request.query_params.get("run") or request.query_params.get("compare")
        part = gr.Tabs(selected="runs") if shows_runs else gr.skip()
        seen, *columns = self.looked(request, draft)
        return [
            *values,
            *self.remembered(request, draft),
            lost + seen,
            *columns,
            self.handlers.of(request).ticket(),
            part,
        ]

    @shows_errors
    def look(self, request: gr.Request, *values: Any) -> list[Any]:
        draft = _draft(*values)
        return self.looked(request, draft, draft.columns)

    @shows_errors
    def look_again(self, request: gr.Request, stored: str, *values: Any) -> Any:
        """Preview the rows in another format or encoding, unless nothing has changed, as in `remember`."""
        draft = _draft(*values)
        if draft.to_json() == stored:
            return gr.skip()
        draft = replace(draft, columns={})
        return [*self.remembered(request, draft), *self.looked(request, draft)]

    @shows_errors
    def use_for(self, request: gr.Request, purpose: str, *values: Any) -> list[Any]:
        """Use the rows for another purpose, and select the recipe of its task."""
        draft = _draft(*values)
        used = draft.used_for(purpose)
        return [*_controls(used), *self.remembered(request, used), *self.looked(request, used)]

    @shows_errors
    def look_elsewhere(self, request: gr.Request, *values: Any) -> list[Any]:
        draft = replace(_draft(*values), columns={}, format="auto")
        return ["auto", *self.remembered(request, draft), *self.looked(request, draft)]

    @shows_errors
    def look_on_hub(self, request: gr.Request, *values: Any) -> list[Any]:
        draft = replace(_draft(*values), source=HUB, columns={}, format="auto")
        return [HUB, "auto", *self.remembered(request, draft), *self.looked(request, draft)]

    @shows_errors
    def take(self, request: gr.Request, file: str, *values: Any) -> list[Any]:
        draft = self.handlers.of(request).upload(_draft(*values), Path(file))
        return [*_controls(draft), *self.remembered(request, draft), *self.looked(request, draft)]

    @shows_errors
    def load(self, request: gr.Request, file: str, *values: Any) -> list[Any]:
        draft, notice = self.handlers.of(request).load(_draft(*values), file)
        if notice:
            gr.Warning(escape(notice))
        return [*_controls(draft), *self.remembered(request, draft), *self.looked(request, draft)]

    @shows_errors
    def load_bundled(self, request: gr.Request, name: str, *values: Any) -> Any:
        """As `load`, unless the recipe is the one that was loaded last, as in `remember`."""
        return gr.skip() if name == _draft(*values).bundled else self.load(request, name, *values)

    @shows_errors
    def open_handed(self, request: gr.Request, handed: Any) -> list[Any]:
        """Open training data from another tab, with the loaded model selected."""
        draft = from_handed(handed)
        draft = replace(draft, settings=draft.settings | {"model": self.handlers.of(request).fresh().settings["model"]})
        shown = [gr.Tabs(selected="finetune"), gr.Tabs(selected="new")]
        return [*_controls(draft), *self.remembered(request, draft), *self.looked(request, draft), *shown]

    @shows_errors
    def save(self, request: gr.Request, *values: Any) -> str:
        return self.handlers.of(request).saved(_draft(*values))

    @shows_errors
    def check(self, request: gr.Request, *values: Any) -> Iterator[str]:
        yield from self.handlers.of(request).check(_draft(*values))

    @shows_errors
    def start(self, request: gr.Request, ticket: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        handlers = self.handlers.of(request)
        run = handlers.start(_draft(*values), ticket)
        gr.Info(escape(handlers.queued(run)), title="Run queued")
        yield handlers.ticket(), gr.Tabs(selected="runs"), show_run(run.id)
        for _ in handlers.follow(run.id):
            yield gr.skip(), gr.skip(), gr.skip()

    @shows_errors
    def opened(self, request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        handlers = self.handlers.of(request)
        run = handlers.exportable(str(event._data.get("id", "")))
        title = f"<h3>Export “{escape(run.name)}”</h3>" if run else ""
        form = handlers.pushable(run)
        push_preview = handlers.push_preview(run.id, form.repo) if run else ""
        box = [run.id if run else "", gr.update(visible=run is not None), title, ""]
        return *box, form.html, gr.update(visible=form.offered), form.repo, False, push_preview, ""

    @shows_errors
    def act(self, request: gr.Request, event: gr.EventData) -> Iterator[None]:
        handlers, sent = self.handlers.of(request), event._data
        action, run_id = str(sent.get("action")), str(sent.get("id"))
        if action == "describe":
            message = handlers.describe(run_id, str(sent.get("name", "")), str(sent.get("notes", "")))
        else:
            message = handlers.act(action, run_id)
        gr.Info(escape(message))
        yield
        if action == "resume":
            for _ in handlers.follow(run_id):
                yield

    @shows_errors
    def again(self, request: gr.Request, event: gr.EventData) -> list[Any]:
        """Open a form with the settings of a run."""
        draft, notice = self.handlers.of(request).again(str(event._data.get("id", "")))
        if notice:
            gr.Warning(escape(notice))
        filled = [*_controls(draft), *self.remembered(request, draft), *self.looked(request, draft)]
        return [*filled, gr.Tabs(selected="new")]

    @shows_errors
    def export(self, request: gr.Request, run_id: str, kind: str) -> Iterator[str]:
        yield from self.handlers.of(request).export(run_id, kind)

    @shows_errors
    def preview_push(self, request: gr.Request, run_id: str, repo: str) -> str:
        return self.handlers.of(request).push_preview(run_id, repo or "") if run_id else ""

    @shows_errors
    def push(
        self, request: gr.Request, profile: gr.OAuthProfile | None, token: gr.OAuthToken | None,
        run_id: str, repo: str, public: bool,
    ) -> Iterator[str]:  # fmt: skip
        account = account_of(owner_of(request), profile, token)
        yield from self.handlers.of(request).push(run_id, repo or "", public is True, account)


def _column(column: Column, field: str, sent: dict[str, str] | None) -> Any:
    """Return the update of a column, without a value if it equals the one sent: the user may have changed it since."""
    needed = "required" if column.needed else "optional"
    choices = column.choices if column.needed else [("none", ""), *column.choices]
    is_same = sent is not None and sent.get(field, "") == (column.value or "")
    value = {} if is_same else {"value": column.value}
    return gr.update(visible=column.shown, choices=choices, label=f"Column for {field} ({needed})", **value)


def _bundled(draft: Draft) -> Any:
    """Return the update of the dropdown of recipes."""
    info = "Sets all settings below." if draft.bundled else "The settings below are from a file."
    edited = "Edited: settings below differ from this recipe."
    return gr.update(value=draft.bundled or None, info=edited if draft.is_edited else info)


def _draft(*values: Any) -> Draft:
    """Return the draft from the values of `_controls`, with the columns before the settings."""
    upload, file, source, format, name, hub, encoding, bundled = (value or "" for value in values[:TEXTS])
    columns = dict(zip(FIELDS, values[TEXTS:], strict=False))
    settings = dict(zip(NAMES, values[TEXTS + len(FIELDS) :], strict=True))
    chosen = {field: column for field, column in columns.items() if column}
    return Draft(source, upload, file, format or "auto", chosen, settings, name, hub, encoding or "auto", bundled)


def _controls(draft: Draft) -> list[Any]:
    """Return new values for the controls of a draft, except the columns, which come with the data."""
    texts = [draft.upload, draft.file, draft.source, draft.format, draft.name, draft.hub, draft.encoding, draft.bundled]
    return [*texts, *(draft.settings[name] for name in NAMES)]


def _problem_card(text: str) -> str:
    return card.card(data_preview.NAME, card.problem(text))
