"""What the fine-tune tab does: values in, values out. The components are in `tab.py`.

    handlers = FinetuneHandlers(engine, jobs)
    seen = handlers.look(draft)                       # the data, as HTML, with the columns to choose from
    run = handlers.start(draft, ticket)               # queued; the page may go

The server keeps runs and uploads; all that is being typed is in the browser (`run_draft.py`).
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from studio.backend.data import uploads
from studio.backend.data.dataset import formats
from studio.backend.data.preview import Preview, fields_of, preview
from studio.backend.export import hub, kept
from studio.backend.hosting import demo
from studio.backend.models import catalog
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.system.process import run_json
from studio.backend.training.queue import name_for
from studio.errors import StudioError
from studio.ui.common import card
from studio.ui.common.offered_models import offered
from studio.ui.finetune import audit_view, data_preview, export_view, pushing
from studio.ui.finetune.pushing import Account
from studio.ui.finetune.run_draft import OF_DATA, OWN_FILE, Draft
from studio.ui.server import sign_in
from studio.ui.server.identity import Owned

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

FORMATS = ["auto", *(each.name for each in formats())]
FIELDS = list(dict.fromkeys(name for each in formats() for name in fields_of(each.name)))
"""Of all formats; a dropdown for each is on the page, and those of one format are shown."""
STAY = "Here it takes your ZeroGPU time, so it goes on while this page stays open; Resume goes on from where it was."
TICKETS = 1000
TICK_S = 0.5


class Column(NamedTuple):
    """One dropdown of the mapping."""

    shown: bool
    needed: bool
    choices: list[str]
    value: str | None


class Seen(NamedTuple):
    html: str
    columns: dict[str, Column]
    """By field, every one of `FIELDS`."""


class PushForm(NamedTuple):
    offered: bool
    html: str
    """Where it goes, or what to do instead."""
    repo: str
    """A name to begin with."""


class FinetuneHandlers(Owned):
    def __init__(self, engine: Engine, jobs: Jobs) -> None:
        self.engine, self.jobs = engine, jobs
        self._started: OrderedDict[tuple[str, str], str] = OrderedDict()
        """By owner and ticket."""
        self._starting = threading.Lock()

    def models(self) -> list[tuple[str, str]]:
        """(title, id) of what may be trained."""
        return [(entry.title, model_id) for model_id, entry in offered(self.engine).items()]

    # --- a new run

    def fresh(self) -> Draft:
        """A new draft, of the model that this server has loaded."""
        model, draft = self.engine.status().model_id, Draft()
        return replace(draft, settings=draft.settings | {"model": model}) if model in self._model_ids() else draft

    def upload(self, draft: Draft, file: Path) -> Draft:
        """The draft with a file that was just uploaded."""
        upload = uploads.keep(file, self.owner)
        return replace(draft, source=OWN_FILE, upload=upload, file=file.name[:80], format="auto", columns={})

    def look(self, draft: Draft) -> Seen:
        """The data as it would be trained on."""
        if draft.source == OWN_FILE and not draft.upload:
            return Seen(data_preview.waiting(), _mapping(draft, None))
        seen = preview(draft.recipe(self._model_ids(), OF_DATA, self.owner))
        return Seen(data_preview.shown(seen), _mapping(draft, seen))

    def command(self, draft: Draft) -> str:
        """What does the same in a terminal; a sentence after # where the settings can't be used."""
        try:
            recipe = draft.shared(self._recipe(draft))
        except StudioError as error:
            return f"# {error}"
        return f"python -m studio train recipe.yaml data={recipe.data}"

    def saved(self, draft: Draft) -> str:
        """The recipe as a YAML file, without columns that are found by their names."""
        recipe = self._recipe(draft)
        if preview(replace(recipe, columns={})).columns == recipe.columns:
            recipe = replace(recipe, columns={})
        return draft.shared(recipe).to_yaml()

    def load(self, draft: Draft, file: Path | str) -> tuple[Draft, str]:
        """The draft with the settings of a recipe's file or a bundled recipe, and what could not be taken over."""
        try:
            recipe = Recipe.load(file)
        except StudioError as error:
            raise StudioError(str(error).replace(str(file), Path(file).name)) from error
        notice = ""
        if recipe.model not in self._model_ids():
            notice = f"The recipe's model {recipe.model[:80]!r} is not in the list; the starter is chosen instead."
            recipe = replace(recipe, model=catalog.STARTER.id)
        return draft.loaded(recipe), notice

    def check(self, draft: Draft) -> Iterator[str]:
        """What would train, and what it would take, found in a process of its own; closing the iterator ends that."""
        recipe = self._usable(draft)
        training = self.jobs.training()
        whose = "" if training is None else name_for(self.owner, training)
        note = f"{whose} is being trained: the time is measured beside it." if whose else ""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recipe.yaml"
            file.write_text(recipe.to_yaml(), encoding="utf-8")
            command = ["-m", "studio", "train", str(file), "--dry-run", "--json"]
            text = "Loading the model and trying three steps"
            try:
                for seconds, report in _beside(lambda cancel: run_json(command, cancel)):
                    waiting = card.waiting(audit_view.NAME, f"{text}: {seconds} s …", busy=True)
                    yield waiting if report is None else audit_view.shown(report, note)
            except StudioError as error:
                yield card.card(audit_view.NAME, card.problem(str(error)))

    def start(self, draft: Draft, ticket: str) -> Run:
        """Queues the run. The same ticket, as from a button that was pressed twice, gives the same run."""
        # The rows are read before the lock is taken: a large file of one person holds up nobody else.
        key = self.owner, ticket
        recipe = None if key in self._started else self._usable(draft)
        with self._starting:
            if recipe is None or key in self._started:
                return self.jobs.store.get(self._started[key])
            run = self.jobs.start(recipe, draft.name, self.owner)
            self._started[key] = run.id
            while len(self._started) > TICKETS:
                self._started.popitem(last=False)
            return run

    def queued(self, run: Run) -> str:
        """What to say of a run that was just started."""
        goes_on = "It goes on whether you watch or not." if self.jobs.begins else STAY
        return f"“{run.name}” is in the queue. {goes_on}"

    def accompany(self, run_id: str) -> Iterator[str]:
        """Carries a queued run out where that takes the GPU time of whoever watches; nothing anywhere else."""
        if self.jobs.begins:
            return
        from studio.backend.training.zero_gpu_slices import (
            slices,  # and with it all of training, which no other page needs
        )

        yield from slices(self.jobs, self._run(run_id).id)

    def ticket(self) -> str:
        return uuid.uuid4().hex

    def _recipe(self, draft: Draft) -> Recipe:
        return draft.recipe(self._model_ids(), owner=self.owner)

    def _model_ids(self) -> list[str]:
        return list(offered(self.engine))

    def _usable(self, draft: Draft) -> Recipe:
        """Raises StudioError also where the rows can't be used, so that no run is made that is bound to fail, or where
        a demo has no room for it."""
        recipe = self._recipe(draft)
        seen = preview(recipe)
        if seen.problem:
            raise StudioError(seen.problem)
        if limits := demo.limits():
            limits.check_recipe(recipe)
            limits.check_rows(seen.rows)
        return recipe

    # --- a run that is there

    def act(self, action: str, run_id: str) -> str:
        """Cancels, resumes, deletes, shares or shares no more; returns what to say of it."""
        run = self._run(run_id)
        match action:
            case "cancel":
                now = self.jobs.cancel(run.id)
                how = "is out of the queue" if now.state == "cancelled" else "stops after the step it is at"
                return f"“{run.name}” {how}."
            case "resume":
                self.jobs.resume(run.id)
                stay = "" if self.jobs.begins else f" {STAY}"
                return f"“{run.name}” goes on from its last checkpoint, as soon as its turn comes.{stay}"
            case "delete":
                self.jobs.delete(run.id)
                return f"“{run.name}” and its files are deleted."
            case "share":
                self.jobs.store.share(run.id)
                return (
                    f"Whoever has this page's address can look at “{run.name}” now: its curves, its answers, and what "
                    "it trains on, with one row as an example. Chat and export stay yours."
                )
            case "unshare":
                self.jobs.store.share(run.id, False)
                return f"“{run.name}” is yours alone again."
        raise StudioError("A page can cancel, resume, delete and share a run. Reload the page.")

    def export(self, run_id: str, kind: str) -> Iterator[str]:
        """How far it is, and at last the download, the proof and the model card, as HTML."""
        run = self._run(run_id)
        text = "Copying the adapter" if kind == "adapter" else "Merging, reading back and comparing"
        try:
            for seconds, folder in _beside(lambda cancel: kept.make(self.jobs.store, run.id, kind, cancel)):
                waiting = card.waiting(export_view.NAME, f"{text}: {seconds} s …", busy=True)
                yield waiting if folder is None else export_view.shown(run, kind, folder)
        except StudioError as error:
            yield card.card(export_view.NAME, card.problem(str(error)))

    def pushable(self, run: Run | None) -> PushForm:
        """What the page offers of pushing a run's adapter, or what to do instead."""
        try:
            return PushForm(True, card.note(pushing.goes_to(self.owner)), hub.safe_name(run.name if run else ""))
        except StudioError as error:
            return PushForm(False, card.note(str(error)), "")

    def arriving(self, run_id: str, repo: str) -> str:
        """What a push would bring to a repository of this name, as HTML; empty where nothing can be pushed."""
        folder = self._adapter(run_id)
        if not self.pushable(None).offered:
            return ""
        if folder is None:
            return card.waiting(pushing.NAME, pushing.EXPORT_FIRST)
        own = self.owner.removeprefix(sign_in.OWNER) or "YOUR-NAME"  # nobody asks the hub while a person types
        repo_id = repo.strip() if "/" in repo else f"{own}/{repo.strip()}"
        try:
            hub.check_repo_id(repo_id)
        except StudioError as error:
            return pushing.failed(str(error))
        return pushing.preview(folder, repo_id)

    def push(self, run_id: str, repo: str, public: bool, account: Account) -> Iterator[str]:
        """How far it is, and at last the repository's address, as HTML. It goes on when the person leaves."""
        folder, told = self._adapter(run_id), ["Asking the Hub …"]
        if folder is None:
            raise StudioError(pushing.EXPORT_FIRST)

        def work(_: threading.Event) -> str:
            return hub.push(
                folder, account.repository(repo), account.token, not public,
                lambda fraction, text: told.append(text), bool(account.name),
            )  # fmt: skip

        try:
            for seconds, address in _beside(work):
                waiting = card.waiting(pushing.NAME, f"{told[-1]} {seconds} s", busy=True)
                yield waiting if address is None else pushing.done(address, public)
        except StudioError as error:
            yield pushing.failed(str(error))

    def _adapter(self, run_id: str) -> Path | None:
        return kept.exported(self.jobs.store, self._run(run_id).id, "adapter", self.owner)

    def _run(self, run_id: str) -> Run:
        """By its whole id."""
        if not re.fullmatch(r"[0-9a-f-]{36}", run_id):
            raise StudioError("There is no such run. Reload the page.")
        return self.jobs.store.get(run_id, self.owner)

    def exportable(self, run_id: str) -> Run | None:
        """The run, where it has an adapter to export."""
        try:
            run = self._run(run_id)
        except StudioError:
            return None
        return run if (run.adapter / "adapter_config.json").is_file() else None


def _mapping(draft: Draft, seen: Preview | None) -> dict[str, Column]:
    names = seen.names if seen else []
    chosen = (seen.columns if seen else {}) or draft.columns
    fields = fields_of((seen.format if seen else "") or draft.format)
    return {
        name: Column(
            shown=name in fields and bool(names),
            needed=fields.get(name, False),
            choices=names,
            value=chosen.get(name) if name in fields and chosen.get(name) in names else None,
        )
        for name in FIELDS
    }


def _beside(work: Callable[[threading.Event], Any]) -> Iterator[tuple[int, Any]]:
    """(seconds so far, None) while the work goes on in another thread, then (seconds, its result). Closing the iterator
    cancels the work, as when the person has left."""
    cancel, begun, pool = threading.Event(), time.monotonic(), ThreadPoolExecutor(1)
    future = pool.submit(work, cancel)
    # Nobody waits for its end: Gradio closes iterators in the loop that serves everybody.
    pool.shutdown(wait=False)
    try:
        while not future.done():
            yield int(time.monotonic() - begun), None
            time.sleep(TICK_S)
        yield int(time.monotonic() - begun), future.result()
    finally:
        cancel.set()
