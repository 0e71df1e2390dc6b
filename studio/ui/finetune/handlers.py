"""Handlers of the Fine-tune tab: plain values in, plain values out. The components are in `tab.py`.

    handlers = FinetuneHandlers(engine, jobs)
    seen = handlers.look(draft)                       # the data as HTML, and the columns to choose from
    run = handlers.start(draft, ticket)               # queued; the page may be closed

The server stores runs and uploads; the browser stores the form (`run_draft.py`).
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
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from studio.backend.data import uploads
from studio.backend.data.dataset import formats
from studio.backend.data.preview import Preview, fields_of, preview
from studio.backend.export import hub, kept
from studio.backend.hosting import demo
from studio.backend.models import catalog
from studio.backend.models.needs import require_step_memory
from studio.backend.recipe import Recipe
from studio.backend.recipe_file import recipes
from studio.backend.runs.room import require_room
from studio.backend.runs.run import Run
from studio.backend.system.process import run_json
from studio.backend.training.queue import name_for
from studio.errors import StudioError
from studio.ui.common import card
from studio.ui.common.offered_models import offered
from studio.ui.finetune import audit_view, data_preview, export_view, pushing
from studio.ui.finetune.pushing import Account
from studio.ui.finetune.run_draft import HUB, OF_DATA, OWN_FILE, Draft, bundled_recipe
from studio.ui.server import sign_in
from studio.ui.server.identity import Owned

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

FORMATS = ["auto", *(each.name for each in formats())]
FIELDS = list(dict.fromkeys(name for each in formats() for name in fields_of(each.name)))
"""Fields of all formats. The page has a dropdown for each, and shows those of the selected format."""
STAY = "It uses your ZeroGPU time, so it only runs while this page stays open. “Resume” continues it later."
TICKETS = 1000
TICK_S = 0.5


class Column(NamedTuple):
    """State of one column dropdown."""

    shown: bool
    needed: bool
    choices: list[str]
    value: str | None


class Seen(NamedTuple):
    html: str
    columns: dict[str, Column]
    """By field, for all `FIELDS`."""


class PushForm(NamedTuple):
    offered: bool
    html: str
    """The destination, or what to do instead."""
    repo: str
    """Suggested name."""


class FinetuneHandlers(Owned):
    def __init__(self, engine: Engine, jobs: Jobs) -> None:
        self.engine, self.jobs = engine, jobs
        self._started: OrderedDict[tuple[str, str], str] = OrderedDict()
        """Run ids by owner and ticket."""
        self._checked: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
        """What checks have measured, by owner and recipe as YAML."""
        self._starting = threading.Lock()

    def models(self) -> list[tuple[str, str]]:
        """Return (title, id) of the models that can be trained."""
        return [(entry.title, model_id) for model_id, entry in offered(self.engine).items()]

    # --- a new run

    def fresh(self) -> Draft:
        """Return a new draft with the loaded model."""
        model, draft = self.engine.status().model_id, Draft()
        return replace(draft, settings=draft.settings | {"model": model}) if model in self._model_ids() else draft

    def upload(self, draft: Draft, file: Path) -> Draft:
        """Return the draft with a newly uploaded file."""
        upload = uploads.keep(file, self.owner)
        return replace(
            draft, source=OWN_FILE, upload=upload, file=file.name[:80], format="auto", columns={}, encoding="auto"
        )

    def look(self, draft: Draft) -> Seen:
        """Return a preview of the training data."""
        if (draft.source == OWN_FILE and not draft.upload) or (draft.source == HUB and not draft.hub.strip()):
            return Seen(data_preview.waiting(), _mapping(draft, None))
        seen = preview(draft.recipe(self._model_ids(), OF_DATA, self.owner))
        return Seen(data_preview.shown(seen), _mapping(draft, seen))

    def command(self, draft: Draft) -> str:
        """Return the equivalent command; a comment with the problem if the settings are invalid."""
        try:
            recipe = draft.shared(self._recipe(draft))
        except StudioError as error:
            return f"# {error}"
        return f"python -m studio train recipe.yaml data={recipe.data}"

    def saved(self, draft: Draft) -> str:
        """Return the recipe as YAML, without columns that are recognised by their names."""
        recipe = self._recipe(draft)
        recognised = preview(replace(recipe, columns={}))
        if recognised.columns == recipe.columns and not recognised.raw:  # a guess is only made on the page
            recipe = replace(recipe, columns={})
        return draft.shared(recipe).to_yaml()

    def load(self, draft: Draft, file: Path | str) -> tuple[Draft, str]:
        """Return the draft with the settings of a recipe file or bundled recipe, and a notice if one was changed."""
        try:
            recipe = bundled_recipe(str(file)) if file in recipes() else Recipe.load(file)
        except StudioError as error:
            raise StudioError(str(error).replace(str(file), Path(file).name)) from error
        recipe, notice = self._offered(recipe)
        return draft.loaded(recipe, str(file) if file in recipes() else ""), notice

    def again(self, run_id: str) -> tuple[Draft, str]:
        """Return a draft with the settings and the data of a run, and a notice if some of them are not available."""
        run = self._run(run_id)
        recipe, notice = self._offered(run.recipe())
        draft, has_data = Draft(name=run.name).loaded(recipe).with_data_of(recipe, self.owner)
        lost = "" if has_data else f"The file {run.data_name} is no longer stored here. Upload it again."
        return draft, f"{notice} {lost}".strip()

    def _offered(self, recipe: Recipe) -> tuple[Recipe, str]:
        """Return the recipe, with the starter if its model is not offered, and a notice about that."""
        if recipe.model in self._model_ids():
            return recipe, ""
        notice = f"The recipe's model {recipe.model[:80]!r} is not in the list; the starter is used instead."
        return replace(recipe, model=catalog.STARTER.id), notice

    def check(self, draft: Draft) -> Iterator[str]:
        """Yield the progress and result of a dry run in a separate process; closing the iterator ends the process."""
        recipe = self._usable(draft)
        if not self.jobs.begins:  # a process of its own has no GPU
            yield audit_view.lent(preview(recipe), recipe)
            return
        with self.jobs.paused() if demo.limits() else nullcontext():
            yield from self._trial(recipe)

    def _trial(self, recipe: Recipe) -> Iterator[str]:
        training = self.jobs.training()
        whose = "" if training is None else name_for(self.owner, training)
        note = f"{whose} is training at the same time, which slows down the measured steps." if whose else ""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recipe.yaml"
            file.write_text(recipe.to_yaml(), encoding="utf-8")
            command = ["-m", "studio", "train", str(file), "--dry-run", "--json"]
            text = "Loading the model and running three steps"
            try:
                for seconds, report in _beside(lambda cancel: run_json(command, cancel)):
                    waiting = card.waiting(audit_view.NAME, f"{text}: {seconds} s …", busy=True)
                    if report is not None and not note:  # another run at the same time slows down what is measured
                        self._keep_checked(recipe, report)
                    yield waiting if report is None else audit_view.shown(report, note)
            except StudioError as error:
                yield card.card(audit_view.NAME, card.problem(str(error)))

    def start(self, draft: Draft, ticket: str) -> Run:
        """Queue the run. The same ticket, as from a double click, returns the same run."""
        # Read the rows before taking the lock, so that one user's large file does not block the others.
        key = self.owner, ticket
        recipe = None if key in self._started else self._usable(draft)
        with self._starting:
            if recipe is None or key in self._started:
                return self.jobs.store.get(self._started[key])
            checked = self._checked.get((self.owner, recipe.to_yaml()))
            run = self.jobs.start(recipe, draft.name, self.owner, self.address, checked)
            self._started[key] = run.id
            while len(self._started) > TICKETS:
                self._started.popitem(last=False)
            return run

    def _keep_checked(self, recipe: Recipe, report: dict[str, Any]) -> None:
        """Keep what a check has measured, so that a run with the same settings does not measure it again."""
        checked = {"fingerprint": report["data"]["fingerprint"], "forecast": report["forecast"]}
        self._checked[self.owner, recipe.to_yaml()] = checked
        while len(self._checked) > TICKETS:
            self._checked.popitem(last=False)

    def queued(self, run: Run) -> str:
        """Return the message for a run that was just started."""
        goes_on = "You can close this page." if self.jobs.begins else STAY
        return f"“{run.name}” is in the queue. {goes_on}"

    def follow(self, run_id: str) -> Iterator[str]:
        """Execute a queued run where training uses the viewer's GPU time; no-op elsewhere."""
        if self.jobs.begins:
            return
        from studio.backend.training.zero_gpu_slices import (
            slices,  # imported late, because it imports all of training
        )

        yield from slices(self.jobs, self._run(run_id).id)

    def ticket(self) -> str:
        return uuid.uuid4().hex

    def _recipe(self, draft: Draft) -> Recipe:
        return draft.recipe(self._model_ids(), owner=self.owner)

    def _model_ids(self) -> list[str]:
        return list(offered(self.engine))

    def _usable(self, draft: Draft) -> Recipe:
        """Return the recipe. Raise StudioError if the rows can't be used or the run exceeds a demo's limits."""
        recipe = self._recipe(draft)
        seen = preview(recipe)
        if seen.problem:
            raise StudioError(seen.problem)
        if limits := demo.limits():
            limits.check_recipe(recipe, self._model_ids())
            limits.check_rows(seen.rows)
            if self.jobs.training() is None:  # which needs memory itself, and ends first
                require_step_memory(recipe, seen.longest(recipe))
        return recipe

    # --- existing runs

    def describe(self, run_id: str, name: str, notes: str) -> str:
        """Store the name of a run and the notes on it, and return a message about it."""
        run = self.jobs.store.describe(self._run(run_id).id, name, notes)
        return f"The name and the notes of “{run.name}” are saved."

    def act(self, action: str, run_id: str) -> str:
        """Cancel, resume, delete, share or unshare a run, and return a message about it."""
        run = self._run(run_id)
        match action:
            case "cancel":
                now = self.jobs.cancel(run.id)
                how = "was removed from the queue" if now.state == "cancelled" else "stops after the current step"
                return f"“{run.name}” {how}."
            case "resume":
                if limits := demo.limits():  # the run may be from before, or from another model's days
                    limits.check_recipe(run.recipe(), self._model_ids())
                step = self.jobs.resume(run.id, self.address).step
                stay = "" if self.jobs.begins else f" {STAY}"
                return f"“{run.name}” is in the queue and resumes from {f'step {step}' if step else 'its start'}.{stay}"
            case "delete":
                self.jobs.delete(run.id)
                return f"“{run.name}” and its files were deleted."
            case "share":
                self.jobs.store.share(run.id)
                return (
                    f"Anyone with the address of this page can now see “{run.name}”: its curves, its answers and its "
                    "data, including one example row. Only you can chat with it and export it."
                )
            case "unshare":
                self.jobs.store.share(run.id, False)
                return f"“{run.name}” is private again."
        raise StudioError("This action does not exist. Reload the page.")

    def export(self, run_id: str, kind: str) -> Iterator[str]:
        """Yield the progress, and finally the download, the merge proof and the model card, as HTML.

        Raises:
            StudioError: there is no such run, or there is no room for the export.
        """
        run = self._run(run_id)
        if kind != "adapter":  # which is small, and needed before its run is deleted
            require_room(self.jobs.store, self.owner)
        text = "Copying the adapter" if kind == "adapter" else "Merging and verifying the model"
        try:
            for seconds, folder in _beside(lambda cancel: kept.make(self.jobs.store, run.id, kind, cancel)):
                waiting = card.waiting(export_view.NAME, f"{text}: {seconds} s …", busy=True)
                yield waiting if folder is None else export_view.shown(run, kind, folder)
        except StudioError as error:
            yield card.card(export_view.NAME, card.problem(str(error)))

    def pushable(self, run: Run | None) -> PushForm:
        """Return the form for pushing a run's adapter, or what to do instead."""
        try:
            return PushForm(True, card.note(pushing.destination(self.owner)), hub.safe_name(run.name if run else ""))
        except StudioError as error:
            return PushForm(False, card.note(str(error)), "")

    def push_preview(self, run_id: str, repo: str) -> str:
        """Return a preview of a push to this repository as HTML; empty if pushing is not available."""
        folder = self._adapter(run_id)
        if not self.pushable(None).offered:
            return ""
        if folder is None:
            return card.waiting(pushing.NAME, pushing.EXPORT_FIRST)
        own = self.owner.removeprefix(sign_in.OWNER) or "YOUR-NAME"  # no request to the Hub while the user types
        repo_id = repo.strip() if "/" in repo else f"{own}/{repo.strip()}"
        try:
            hub.check_repo_id(repo_id)
        except StudioError as error:
            return pushing.failed(str(error))
        return pushing.preview(folder, repo_id)

    def push(self, run_id: str, repo: str, public: bool, account: Account) -> Iterator[str]:
        """Yield the progress, and finally the repository's address, as HTML. The push continues if the user leaves."""
        folder, told = self._adapter(run_id), ["Contacting the Hub …"]
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
        """Return the run with this full id."""
        if not re.fullmatch(r"[0-9a-f-]{36}", run_id):
            raise StudioError("There is no such run. Reload the page.")
        return self.jobs.store.get(run_id, self.owner)

    def exportable(self, run_id: str) -> Run | None:
        """Return the run if it has an adapter to export."""
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
    """Yield (seconds, None) while the work runs in another thread, then (seconds, result).

    Closing the iterator cancels the work, as when the user leaves.
    """
    cancel, begun, pool = threading.Event(), time.monotonic(), ThreadPoolExecutor(1)
    future = pool.submit(work, cancel)
    # Don't wait for the thread: Gradio closes iterators in its event loop, which would block for everyone.
    pool.shutdown(wait=False)
    try:
        while not future.done():
            yield int(time.monotonic() - begun), None
            time.sleep(TICK_S)
        yield int(time.monotonic() - begun), future.result()
    finally:
        cancel.set()
