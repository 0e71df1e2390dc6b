"""The store of training runs, shared by page and command line: each run has a row in sqlite3 and a folder.

    store = RunStore()
    run = store.create(Recipe.load("starter/lora_experts", ["data=rows.csv"]), name="dictionary")
    store.mark_running(run.id, os.getpid())
    run.events.append("log", step=1, values={"loss": 2.7})
    store.finish(run.id, "done")

<home>/runs.sqlite3 holds the list of runs. <home>/runs/<id>/ holds recipe.yaml, run.json, events.jsonl, log.txt,
checkpoints/ and adapter/, from which `repair` rebuilds the list. Any number of threads and processes may use one store.
If the home is mounted storage, the database is on the local disk and the home has a copy.

On a server with several users, every run has an owner, and a query for an owner returns only the runs of that owner.
Terminals and single-user studios use the empty owner, which sees all runs.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studio.backend.recipe import Recipe
from studio.backend.runs import recovery
from studio.backend.runs.database import BUSY_S, Database
from studio.backend.runs.folder import anchored, fingerprint_of, make_run_folder
from studio.backend.runs.run import (
    CANCELLED,
    Ending,
    Run,
    checked_name,
    checked_notes,
    in_queue,
    is_alive,
    last_sign,
    process_created,
    recorded_outcome,
)
from studio.backend.system.files import unwritable
from studio.backend.system.home import home
from studio.errors import StudioError

logger = logging.getLogger(__name__)
SILENT = "The process ended without a message: the machine went down, or memory ran out. The run can be resumed."
TO_THE_END = "UPDATE runs SET queued = (SELECT max(queued) + 1 FROM runs) WHERE id = ?"


class RunStore:
    """All runs of one home folder.

    Args:
        busy_s: seconds to wait for other writers; pages wait for a shorter time.

    Ids may be shortened to a unique prefix. Every method raises StudioError if the database is locked, damaged or can't
    be written. Repairs never delete anything.
    """

    def __init__(self, folder: Path | None = None, busy_s: float | None = None) -> None:
        self.home = folder or home()
        self.database = Database.of_home(self.home, BUSY_S if busy_s is None else busy_s)

    @property
    def path(self) -> Path:
        return self.database.path

    def create(
        self,
        recipe: Recipe,
        name: str = "",
        begin: bool = False,
        owner: str = "",
        checked: dict[str, Any] | None = None,
    ) -> Run:
        """Create a queued run with its folder; an empty name is replaced by the preset and the start of the id.

        Args:
            begin: mark the run as running in this process instead of queued.
            checked: what a check of this recipe has measured; see `audit.checked_forecast`.

        Raises:
            StudioError: the name is invalid, or there is no space for the folder.
        """
        run_id = str(uuid.uuid4())
        name = checked_name(name, "A run's") or f"{recipe.preset} {run_id[:8]}"
        recipe = anchored(recipe)
        fingerprint = fingerprint_of(recipe)  # before the list is locked, because it takes time
        with self._open() as db:
            row = (run_id, name, recipe.model, recipe.data, time.time(), owner)
            db.execute(
                "INSERT INTO runs (id, name, state, model, data, created, owner) VALUES (?, ?, 'queued', ?, ?, ?, ?)",
                row,
            )
            db.execute(TO_THE_END, (run_id,))
            if begin:
                _begin(db, run_id, os.getpid())
            # Before the commit, so that no list ever shows a run without a folder.
            make_run_folder(self.home / "runs" / run_id, recipe, fingerprint, checked)
        return self._recorded(run_id)

    def get(self, run_id: str, owner: str = "") -> Run:
        """Return the run with this id, or the only run whose id starts with it.

        Raises:
            StudioError: the id is malformed, or the owner has no such run, or several.
        """
        if not re.fullmatch("[0-9a-f-]{1,36}", run_id):
            raise StudioError(f"{run_id[:60]!r} is not a run id. List the ids with `python -m studio runs list`.")
        with self._open() as db:
            # The pattern above excludes the wildcards of LIKE.
            rows = db.execute(
                "SELECT * FROM runs WHERE id LIKE ? AND ? IN ('', owner) ORDER BY created LIMIT 9",
                (run_id + "%", owner),
            ).fetchall()
        if not rows:
            raise StudioError(f"There is no run {run_id}. List the runs with `python -m studio runs list`.")
        if len(rows) > 1:
            ids = ", ".join(row["id"][:13] for row in rows)
            raise StudioError(f"Several run ids start with {run_id}: {ids}. Give more characters.")
        return self._run(rows[0])

    def list(self, owner: str = "") -> Sequence[Run]:
        """Return all runs of an owner, latest first."""
        with self._open() as db:
            rows = db.execute("SELECT * FROM runs WHERE ? IN ('', owner) ORDER BY rowid DESC", (owner,)).fetchall()
        return [self._run(row) for row in rows]

    def queue(self) -> Sequence[Run]:
        """Return the queued runs in queue order."""
        return in_queue(self.list())

    def mark_running(self, run_id: str, pid: int | None = None) -> Run:
        """Mark a queued run as running in a process, by default this one; no-op if it runs in that process already.

        Raises:
            StudioError: the run is no longer queued, or the process is gone.
        """
        run_id, pid = self.get(run_id).id, os.getpid() if pid is None else pid
        with self._open() as db:
            changed = _begin(db, run_id, pid)
        run = self._recorded(run_id)
        if not changed and (run.state, run.pid) != ("running", pid):
            raise StudioError(f"Run {run_id[:8]} is {run.state}, not queued, so it can't be started.")
        return run

    def update(
        self,
        run_id: str,
        *,
        step: int | None = None,
        best_eval_loss: float | None = None,
        message: str | None = None,
    ) -> None:
        """Store the progress of a run; None leaves a value unchanged.

        Raises:
            StudioError: the run no longer exists.
        """
        run_id = self.get(run_id).id
        self._write(
            "UPDATE runs SET step = coalesce(?, step), best_eval_loss = coalesce(?, best_eval_loss), "
            "message = coalesce(?, message) WHERE id = ?",
            (step, best_eval_loss, message, run_id),
        )

    def finish(self, run_id: str, state: Ending, message: str = "") -> Run:
        """Store how a run ended. The first outcome stored wins; only "interrupted", which is a guess, is replaced.

        Raises:
            StudioError: the run no longer exists.
        """
        run_id = self.get(run_id).id
        self._write(
            "UPDATE runs SET state = ?, message = ?, ended = ? "
            "WHERE id = ? AND state IN ('queued', 'running', 'interrupted')",
            (state, message, time.time(), run_id),
        )
        return self._noted(run_id)

    def resume(self, run_id: str, begin: bool = False) -> Run:
        """Queue a run that ended early, to resume it from its last checkpoint; `begin` as for `create`.

        Raises:
            StudioError: the run is done, has not ended, or its folder is gone.
        """
        run = self.get(run_id)
        run_id = run.id
        run.recipe()
        if run.state == "running":  # perhaps its process was killed, and no server has noticed
            self.reconcile()
        with self._open() as db:
            changed = db.execute(
                "UPDATE runs SET state = 'queued', started = NULL, ended = NULL, message = '', cancel_requested = 0 "
                "WHERE id = ? AND state IN ('failed', 'cancelled', 'interrupted')",
                (run_id,),
            ).rowcount
            if changed:
                db.execute(TO_THE_END, (run_id,))
            if changed and begin:
                _begin(db, run_id, os.getpid())
        again = self._recorded(run_id)
        if not changed:
            raise StudioError(f"Run {run_id[:8]} is {again.state}: only runs that ended early can be resumed.")
        _tell_resumed(again, run)
        return again

    def requeue(self, run_id: str) -> Run:
        """Put a running run back into the queue, so that its process makes room for others.

        If a cancel was requested meanwhile, the run is cancelled instead.

        Raises:
            StudioError: the run no longer exists.
        """
        run = self.get(run_id)
        run_id = run.id
        with self._open() as db:
            changed = db.execute(
                "UPDATE runs SET state = 'queued', started = NULL "
                "WHERE id = ? AND state = 'running' AND NOT cancel_requested",
                (run_id,),
            ).rowcount
            db.execute(TO_THE_END, (run_id,))
        if not changed:
            return self.finish(run_id, "cancelled", CANCELLED)
        again = self._recorded(run_id)
        _tell_resumed(again, run)
        return again

    def reconcile(self, ours: Container[str] = ()) -> Sequence[Run]:
        """Store the outcome of runs that are marked as running but have no process, and return them.

        The outcome is the recorded one, else "interrupted". The run ended when it last wrote something.

        Args:
            ours: ids of runs whose process is a child of this one; they are skipped, because the parent gets the exit
                code.
        """
        dead = [run for run in self.list() if run.state == "running" and run.id not in ours and not is_alive(run)]
        for run in dead:
            state, message = recorded_outcome(run) or ("interrupted", SILENT)
            # The pid must match, because the run may have been resumed in a new process meanwhile.
            self._write(
                "UPDATE runs SET state = ?, message = ?, ended = ? "
                "WHERE id = ? AND state = 'running' AND pid IS ? AND pid_created IS ?",
                (state, message, last_sign(run), run.id, run.pid, run.pid_created),
            )
        return [self._noted(run.id) for run in dead]

    def request_cancel(self, run_id: str) -> Run:
        """Ask a running run to stop after its current step, or take a queued run out of the queue.

        Raises:
            StudioError: the run has ended.
        """
        run_id = self.get(run_id).id
        cancelled = self._write(
            "UPDATE runs SET state = 'cancelled', message = ?, ended = ? WHERE id = ? AND state = 'queued'",
            ("Cancelled before it started.", time.time(), run_id),
        )
        asked = self._write("UPDATE runs SET cancel_requested = 1 WHERE id = ? AND state = 'running'", (run_id,))
        run = self._noted(run_id)
        if not (cancelled or asked):
            raise StudioError(f"Run {run_id[:8]} is {run.state}: there is nothing left to cancel.")
        return run

    def cancel_requested(self, run_id: str) -> bool:
        return self.get(run_id).cancel_requested

    def share(self, run_id: str, shared: bool = True) -> Run:
        """Let others view a run, or stop sharing it.

        Raises:
            StudioError: the run no longer exists.
        """
        run_id = self.get(run_id).id
        self._write("UPDATE runs SET shared = ? WHERE id = ?", (shared, run_id))
        return self._recorded(run_id)

    def describe(self, run_id: str, name: str, notes: str) -> Run:
        """Store the name of a run and the notes on it.

        Raises:
            StudioError: the name is empty or invalid, the notes are too long, or the run no longer exists.
        """
        run_id, name, notes = self.get(run_id).id, checked_name(name, "A run's"), checked_notes(notes)
        if not name:
            raise StudioError("A run needs a name. Enter up to 80 characters.")
        self._write("UPDATE runs SET name = ?, notes = ? WHERE id = ?", (name, notes, run_id))
        return self._recorded(run_id)

    def transfer_owner(self, before: str, after: str) -> None:
        """Transfer all runs of one owner to another."""
        if self._write("UPDATE runs SET owner = ? WHERE owner = ?", (after, before)):
            for run in self.list(after):
                self._recorded(run.id)

    def delete(self, run_id: str) -> None:
        """Delete the row and the folder with checkpoints and adapter.

        Raises:
            StudioError: the run is running, or its files can't be deleted.
        """
        run = self.get(run_id)
        try:
            with self._open() as db:
                db.execute("BEGIN IMMEDIATE")  # it can't be started meanwhile
                if db.execute("SELECT 1 FROM runs WHERE id = ? AND state = 'running'", (run.id,)).fetchone():
                    raise StudioError(f"Run {run.id[:8]} is running. Cancel it first.")
                if run.folder_exists:
                    shutil.rmtree(run.folder)  # first, because on a full disk the list needs the space
                db.execute("DELETE FROM runs WHERE id = ?", (run.id,))
        except OSError as error:
            raise StudioError(f"{run.folder} can't be deleted ({error.strerror}). Delete it by hand.") from error

    def repair(self) -> str:
        """See `recovery.repair`."""
        return recovery.repair(self.database, self.home)

    def take_notice(self) -> str:
        """See `recovery.take_notice`."""
        return recovery.take_notice(self.database)

    def keep_copy(self) -> None:
        """See `Database.keep_copy`."""
        self.database.keep_copy()

    def _run(self, row: sqlite3.Row) -> Run:
        values = {**row, "cancel_requested": bool(row["cancel_requested"]), "shared": bool(row["shared"])}
        return Run(folder=self.home / "runs" / row["id"], **values)

    def _recorded(self, run_id: str) -> Run:
        """Return the run, after writing its row into its folder, from which `repair` restores it."""
        run = self.get(run_id)
        recovery.record(run)
        return run

    def _noted(self, run_id: str) -> Run:
        """Do the same, but only log an error: a cancel or an outcome counts even if the disk is full."""
        run = self.get(run_id)
        try:
            recovery.record(run)
        except StudioError as error:
            logger.warning("%s", error)
        return run

    def _write(self, statement: str, values: tuple[Any, ...]) -> int:
        """Execute a statement and return the number of changed rows."""
        with self._open() as db:
            return db.execute(statement, values).rowcount

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if not recovery.is_there(self.database):
            recovery.fetch(self.database, self.home)
        with self.database.open() as db:
            yield db


def _begin(db: sqlite3.Connection, run_id: str, pid: int) -> int:
    """Mark a queued run as running in the process, and return the number of changed rows.

    Raises:
        StudioError: the process is gone.
    """
    began = process_created(pid)
    if began is None:
        raise StudioError(f"Process {pid} of run {run_id[:8]} ended at once. See the run's log for the reason.")
    return db.execute(
        "UPDATE runs SET state = 'running', started = ?, ended = NULL, pid = ?, pid_created = ?, message = '' "
        "WHERE id = ? AND state = 'queued'",
        (time.time(), pid, began, run_id),
    ).rowcount


def _tell_resumed(run: Run, before: Run) -> None:
    """Log that the run is queued again, and how long it ran the last time: `before` is the run until then."""
    ran_s = 0.0 if before.started is None else (before.ended or time.time()) - before.started
    try:
        run.events.append("resumed", run.step, {"ran_s": round(ran_s, 1)})
    except OSError as error:
        raise unwritable(run.folder, error) from error
