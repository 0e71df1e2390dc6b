"""Training runs on a toy JetMoE: events, checkpoints, resume, guards, several processes; the audit and its forecast."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import IntervalStrategy, Trainer
from typer.testing import CliRunner

from jetmoe import JetMoeForCausalLM
from studio.backend.data.packing import Collator
from studio.backend.recipe import Recipe
from studio.backend.runs.events import figures
from studio.backend.runs.run import DATA, Run
from studio.backend.runs.store import RunStore
from studio.backend.training import audit
from studio.backend.training import run as train
from studio.backend.training import trainer as train_trainer
from studio.backend.training.checkpoint import WHOLE, last_checkpoint, last_step
from studio.backend.training.prepare import prepare
from studio.backend.training.queue import Jobs
from studio.backend.training.trainer import Patience
from studio.cli.main import app
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder
from tests.builders.training import losses, recipe_file, started, training_settings, values
from tests.builders.waiting import until

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch) -> dict:
    """Of a run that takes a second."""
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return training_settings(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Run:
    """A finished run of the settings as they are, for tests that only read it."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder / "home"))
        return started(training_settings(folder))


# --- a run from start to end


def test_a_run_learns_and_tells_about_it(settings):
    run = started(settings, max_steps=30, eval_steps=10, save_steps=10)
    assert run.state == "done" and run.step == 30
    evaluations = [each["eval_loss"] for each in values(run, "eval")]
    assert len(evaluations) == 4 and evaluations[-1] < 0.9 * evaluations[0]
    assert run.best_eval_loss == min(evaluations[1:])
    assert [event.seq for event in run.events.read()] == list(range(1, len(list(run.events.read())) + 1))
    log = values(run, "log")[-1]
    assert {"loss", "grad_norm", "learning_rate", "tok_s", "memory_gib", "left_s", "progress"} <= log.keys()
    assert log["progress"] == 1 and log["left_s"] == 0
    assert [event.kind for event in run.events.read()][-1] == "done"


def test_the_adapter_is_the_best_one_and_stock_peft_loads_it(settings):
    run = started(settings, max_steps=20, eval_steps=5, save_steps=5)
    model = JetMoeForCausalLM.from_pretrained(settings["model"])
    adapted = peft.PeftModel.from_pretrained(model, str(run.adapter)).eval()
    assert adapted.peft_config["default"].base_model_name_or_path == settings["model"]
    ready = prepare(run.recipe())
    weights = load_file(run.adapter / "adapter_model.safetensors")
    peft.set_peft_model_state_dict(ready.model, weights)
    batch = Collator(0)(ready.data.held_out)
    with torch.no_grad():
        loss = adapted(**batch, use_cache=False).loss
    assert float(loss) == pytest.approx(run.best_eval_loss, rel=1e-4)


def test_samples_and_routing_are_told_before_during_and_after(settings):
    run = started(settings, sample_prompts=["Say 1"], probe_text="one two three")
    samples, routing = values(run, "sample"), values(run, "routing")
    assert len(samples) == len(routing) == 4
    assert {each["prompt"] for each in samples} == {"Say 1"} and all("answer" in each for each in samples)
    first, last = routing[0], routing[-1]
    assert first["flip_rate"] == first["js"] == first["load_shift"] == 0 and first["overlap"] == 1
    assert last["js"] > 0 and last["tokens"] == 13
    assert np.asarray(last["load"]).shape == (2, 2, 4) and np.allclose(np.sum(last["load"], -1), 1, atol=1e-4)
    assert np.asarray(last["by_layer"]["entropy"]).shape == (2, 2)


def test_every_trained_tensor_gets_a_gradient_and_the_audit_says_so(plain):
    audits = values(plain, "audit")
    assert {part: counts["without_gradient"] for part, counts in audits[1]["gradients"].items()} == {
        "attention experts": 0,
        "MLP experts": 0,
        "kv_proj": 0,
    }
    tensors = sum(counts["tensors"] for counts in audits[1]["gradients"].values())
    assert tensors == len(load_file(plain.adapter / "adapter_model.safetensors"))
    assert not values(plain, "warning")


def test_a_tensor_without_gradient_is_named(settings, monkeypatch):
    """An expert projection that no token reaches, as where a wrapper is bypassed."""
    from jetmoe.experts import experts

    real = experts.split_adapters

    def blind(module, dtype):
        layer, low_ranks = real(module, dtype)
        return layer, {} if getattr(layer, "weight", torch.empty(0)).shape == (4, 128, 64) else low_ranks

    monkeypatch.setattr(experts, "split_adapters", blind)
    run = started(settings, preset="experts")
    assert "4 of 8 trained tensors of the MLP experts had no gradient" in values(run, "warning")[0]["message"]


@pytest.mark.parametrize("changes", [{"packing": False}, {"gradient_checkpointing": True}, {"precision": "nf4"}])
def test_variants_learn_too(settings, changes):
    run = started(settings, max_steps=30, eval_steps=15, save_steps=15, **changes)
    evaluations = [each["eval_loss"] for each in values(run, "eval")]
    assert run.best_eval_loss < 0.9 * evaluations[0]


def test_checkpointing_and_accumulation_change_nothing(settings, plain):
    once = {**settings, "eval_steps": 6, "save_steps": 6}
    assert losses(started(once, gradient_checkpointing=True)) == pytest.approx(losses(plain), rel=1e-5)
    accumulated = started(once, batch_size=1, gradient_accumulation=2)
    assert losses(accumulated) == pytest.approx(losses(plain), rel=1e-4)


def test_the_same_seed_gives_the_same_run(settings, plain):
    assert losses(started(settings)) == losses(plain)
    assert losses(started(settings, seed=1)) != losses(plain)


def test_balance_loss_enters_the_loss(settings, plain):
    balanced = losses(started(settings, balance_loss=0.1))[0]
    # Two experts a token: an even load reads 2, a collapsed one up to 4.
    assert 0.2 - 1e-3 <= balanced - losses(plain)[0] <= 0.4
    halves = losses(started(settings, balance_loss=0.1, batch_size=1, gradient_accumulation=2))[0]
    assert halves == pytest.approx(balanced, abs=0.02)


def test_the_loss_of_the_base_is_not_the_best_of_the_run(settings, monkeypatch):
    real = train.RunCallback.on_evaluate

    def worse(self, args, state, control, metrics=None, **kwargs):
        return real(self, args, state, control, {"eval_loss": 1.0 + state.global_step}, **kwargs)

    monkeypatch.setattr(train.RunCallback, "on_evaluate", worse)
    run = started(settings)
    assert [each["eval_loss"] for each in values(run, "eval")] == [1, 3, 5, 7]
    assert run.best_eval_loss == figures(run.events.read())["best_eval_loss"] == 3


def test_early_stopping(settings):
    run = started(settings, max_steps=40, learning_rate=1e-9, early_stopping=2)
    assert run.state == "done" and run.step < 40


def test_hot_experts_alone_change(settings):
    run = started(settings, preset="hot", hot_share=0.3)
    (warning,) = values(run, "audit")[0]["warnings"]
    assert warning.startswith("Only ") and "of 16 experts are trained" in warning
    weights = load_file(run.adapter / "adapter_model.safetensors")
    factors = [tensor for name, tensor in weights.items() if "mlp" in name and "lora_B" in name]
    changed = [factor.view(len(factor), -1, 4).ne(0).any(0).any(0) for factor in factors]  # [E] each
    assert all(0 < one.sum() < 4 for one in changed)


def test_routers_of_a_tied_model_are_refused_unless_insisted_on(settings, tmp_path):
    tied = str(toy_folder(tmp_path / "tied", expert_groups=[0, 0, 1, 1]))
    with pytest.raises(StudioError, match=r"ties its router rows.*insist_on_router"):
        started(settings, model=tied, preset="all+router")
    run = started(settings, model=tied, preset="all+router", insist_on_router=True)
    assert all("broken_slot_sets" in each for each in values(run, "routing"))
    assert any("routers are trained" in each for each in values(run, "audit")[0]["warnings"])


# --- checkpoints and resume


def child(run_id: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "studio.backend.training.run", run_id], cwd=ROOT)


@pytest.mark.processes
def test_a_killed_run_goes_on_exactly(settings):
    """Killed without a word in mid-run: the rest of the losses, and the adapter, are those of an undisturbed run."""
    undisturbed = started(settings, max_steps=16)
    store = RunStore()
    run = store.create(Recipe.from_settings({**settings, "max_steps": 16}))
    process = child(run.id)
    until(lambda: last_checkpoint(run) or process.poll() is not None)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [each.id for each in store.reconcile()] == [run.id] and store.get(run.id).state == "interrupted"
    resumed = train.resume(run.id)
    assert resumed.state == "done"
    by_step = {event.step: event.values["loss"] for event in run.events.read() if event.kind == "log"}
    assert [by_step[step] for step in sorted(by_step)] == losses(undisturbed)
    assert resumed.best_eval_loss == undisturbed.best_eval_loss
    name = "adapter_model.safetensors"
    ours, theirs = load_file(resumed.adapter / name), load_file(undisturbed.adapter / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_checkpoint_that_was_not_finished_is_passed_over(settings):
    run = started(settings)
    newest = last_checkpoint(run)
    (newest / WHOLE).unlink()
    assert last_checkpoint(run) != newest


def test_a_damaged_checkpoint_is_reported_and_the_run_resumes_from_the_one_before(settings, plain):
    run = started(settings, keep_checkpoints=3)
    (last_checkpoint(run) / "optimizer.pt").unlink()
    (last_checkpoint(run) / "scheduler.pt").write_bytes(b"")
    with closing(sqlite3.connect(RunStore().path)) as db, db:
        db.execute("UPDATE runs SET state = 'interrupted'")
    messages: list[str] = []
    again = train.resume(run.id, show=lambda event: messages.append(RunStore().get(run.id).message))
    assert "Resumed from checkpoint-2." in messages and again.state == "done"
    assert [each["message"] for each in values(run, "warning")] == [
        "checkpoint-6 is damaged: optimizer.pt is missing. The run resumes from checkpoint-2.",
        "checkpoint-4 is damaged: scheduler.pt is empty. The run resumes from checkpoint-2.",
    ]
    by_step = {event.step: event.values["loss"] for event in run.events.read() if event.kind == "log"}
    assert [by_step[step] for step in sorted(by_step)] == losses(plain)
    assert last_checkpoint(run).name == "checkpoint-6"


def test_checkpoints_rotate_only_once_the_next_one_is_complete(settings, monkeypatch):
    real, seen = train_trainer.complete, []

    def complete(folder, names):
        seen.append(sorted(each.parent.name for each in folder.parent.glob(f"*/{WHOLE}")))
        real(folder, names)

    monkeypatch.setattr(train_trainer, "complete", complete)
    run = started(settings, keep_checkpoints=1, eval_share=0)
    assert seen == [[], ["checkpoint-2"], ["checkpoint-4"]]
    assert [folder.name for folder in run.checkpoints.iterdir()] == ["checkpoint-6"]


def test_a_closed_terminal_does_not_end_the_run(settings):
    def closed(event) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert train.start(Recipe.from_settings(settings), show=closed).state == "done"


def test_data_that_changes_while_the_run_is_queued_is_refused(settings):
    run = RunStore().create(Recipe.from_settings(settings))
    with Path(settings["data"]).open("a") as file:
        file.write('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(StudioError, match=r"rows.jsonl has changed since this run was created"):
        train.carry_out(run.id)


def test_a_full_disk_at_a_checkpoint_keeps_the_last_good_one(settings, monkeypatch):
    real = Trainer._save_checkpoint

    def full(self, model, trial):
        real(self, model, trial)
        if self.state.global_step >= 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "_save_checkpoint", full)
    run = started(settings)
    assert run.state == "done"
    assert [each["message"][:28] for each in values(run, "warning")] == [
        "The checkpoint at step 4 can",
        "The checkpoint at step 6 can",
    ]
    assert last_checkpoint(run).name == "checkpoint-2"


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file of this process grows above what events and tokenizers need: an optimizer's state is larger."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)


def test_files_may_not_grow_any_more(settings, small_files_only, monkeypatch, capsys):
    """What really happens where nothing can be written: the run says so and what was good stays."""
    run = RunStore().create(Recipe.from_settings({**settings, "r": 64, "max_steps": 4}))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["train", run.id])
        patch.setattr(signal, "signal", lambda *arguments: None)  # this process keeps its handlers
        assert train.main() == 2
    assert "can't be written" in capsys.readouterr().err
    assert RunStore().get(run.id).state == "failed"
    assert any("can't be written" in each["message"] for each in values(run, "warning"))


def test_resuming_asks_for_the_same_data(settings):
    run = cancelled_run(settings)
    Path(settings["data"]).write_text('{"prompt": "a", "completion": "b"}\n' * 5)
    with pytest.raises(StudioError, match=r"rows.jsonl has changed since this run was created"):
        train.resume(run.id)
    Path(settings["data"]).unlink()
    RunStore().resume(run.id)
    with pytest.raises(StudioError, match="There is no file"):
        train.carry_out(run.id)


def cancelled_run(settings: dict) -> Run:
    """One that was cancelled at its first step."""
    store = RunStore()
    run = store.create(Recipe.from_settings({**settings, "max_steps": 500, "eval_steps": 50, "save_steps": 50}))

    def ask(event) -> None:
        if event.kind == "log" and event.step == 1:
            store.request_cancel(run.id)

    return train.carry_out(run.id, show=ask)


def test_cancelling_keeps_a_checkpoint(settings, monkeypatch):
    monkeypatch.setattr("studio.backend.training.callback.CANCEL_POLL_S", 0.0)
    run = cancelled_run(settings)
    assert run.state == "cancelled" and run.step < 10
    assert last_checkpoint(run) is not None
    assert RunStore().resume(run.id).state == "queued"


def test_a_signal_within_a_step_keeps_the_steps_before_it(settings):
    """The supervisor repeats SIGTERM, so only the first one may interrupt: saving takes a moment."""
    store = RunStore()
    run = store.create(Recipe.from_settings({**settings, "eval_steps": 50, "save_steps": 50}))
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(event) -> None:
        if event.step == 3:
            signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, train._interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            train.carry_out(run.id, show=interrupt)
    finally:
        signal.signal(signal.SIGTERM, before)
    stopped = store.get(run.id)
    assert stopped.message == "Stopped by Ctrl+C or a signal. It can be resumed from step 3."
    assert stopped.state == "interrupted" and stopped.step == last_step(run) == 3
    assert train.resume(run.id).state == "done" and len(losses(run)) == 6


def test_cancel_is_seen_between_the_batches_of_a_step(settings, monkeypatch):
    """Without an accumulated step, so there is only the state before the first one."""
    monkeypatch.setattr("studio.backend.training.callback.CANCEL_POLL_S", 0.0)
    store = RunStore()
    run = store.create(Recipe.from_settings({**settings, "gradient_accumulation": 2}))

    def ask(event) -> None:
        if event.kind == "routing":
            store.request_cancel(run.id)

    cancelled = train.carry_out(run.id, show=ask)
    assert cancelled.state == "cancelled" and not losses(run) and last_step(run) == 0
    assert train.resume(run.id).state == "done" and len(losses(run)) == 6


def test_what_is_shown_starts_again_where_the_run_does(settings):
    store = RunStore()
    run = store.create(Recipe.from_settings(settings), begin=True)
    store.update(run.id, step=5)
    store.finish(run.id, "interrupted")
    assert Jobs(store).resume(run.id).step == 0


def test_a_run_whose_end_alone_is_missing_is_only_ended(settings):
    """Killed while it saved its adapter: no step more, and the same adapter."""
    run = started(settings, max_steps=5, eval_steps=5, save_steps=5, epochs=9)  # ends in the middle of an epoch
    name = "adapter_model.safetensors"
    before = load_file(run.adapter / name)
    with closing(sqlite3.connect(RunStore().path)) as db, db:
        db.execute("UPDATE runs SET state = 'interrupted'")
    (run.adapter / name).unlink()
    again = train.resume(run.id)
    assert again.state == "done" and again.message == run.message
    assert all(torch.equal(tensor, before[key]) for key, tensor in load_file(again.adapter / name).items())


def test_patience_is_counted_on_after_a_resume(settings):
    state = SimpleNamespace(stateful_callbacks={"Patience": {"attributes": {"early_stopping_patience_counter": 2}}})
    arguments = SimpleNamespace(
        metric_for_best_model="eval_loss", eval_strategy=IntervalStrategy.STEPS, load_best_model_at_end=True
    )
    patience = Patience(3)
    patience.on_train_begin(arguments, state, None)
    assert patience.early_stopping_patience_counter == 2


def test_resuming_asks_for_the_same_number_of_processes(settings, monkeypatch):
    monkeypatch.setattr("studio.backend.training.callback.CANCEL_POLL_S", 0.0)
    run = cancelled_run(settings)
    file = run.folder / DATA
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processes": 2}))
    with pytest.raises(StudioError, match=r"started on 2 processes .* --num_processes 2"):
        train.resume(run.id)


def test_early_stopping_without_held_out_rows_is_left_out(settings):
    Path(settings["data"]).write_text('{"prompt": "a", "completion": "b"}\n' * 5)
    assert started(settings, early_stopping=2).state == "done"


def test_other_errors_are_not_called_a_lack_of_memory(settings, monkeypatch):
    def broken(self, *args):
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(Trainer, "training_step", broken)
    with pytest.raises(NotImplementedError):
        started(settings)
    message = RunStore().list()[0].message
    assert message.startswith("An internal error (NotImplementedError) ended the run.") and "kernel" not in message


# --- what goes wrong


def test_a_loss_that_is_not_a_number_ends_the_run(settings, monkeypatch):
    real = Trainer.training_step

    def broken(self, *args):
        return real(self, *args) * (float("nan") if self.state.global_step == 3 else 1)

    monkeypatch.setattr(Trainer, "training_step", broken)
    with pytest.raises(StudioError, match=r"not finite at step 4: lower learning_rate"):
        started(settings)
    (run,) = RunStore().list()
    assert run.state == "failed" and "learning_rate" in run.message
    assert values(run, "failed")[0]["message"] == run.message
    assert last_checkpoint(run).name == "checkpoint-2"


def test_a_loss_that_explodes_ends_the_run(settings):
    with pytest.raises(StudioError, match="lower learning_rate"):
        started(settings, learning_rate=0.1, max_grad_norm=0, lr_scheduler="constant", max_steps=400, eval_steps=0,
                warmup_share=0, lora_alpha=4096)  # fmt: skip
    assert RunStore().list()[0].state == "failed"


def test_running_out_of_memory_ends_the_run_with_what_to_lower(settings, monkeypatch):
    def full(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "training_step", full)
    with pytest.raises(StudioError, match="ran out of memory while training: lower batch_size"):
        started(settings)
    assert RunStore().list()[0].state == "failed"


def test_rows_that_are_all_too_long_are_refused_before_a_model_is_loaded(settings, monkeypatch):
    monkeypatch.setattr(
        "studio.backend.models.placement.load_model", lambda *args, **kwargs: pytest.fail("a model was loaded")
    )
    with pytest.raises(StudioError, match="raise max_length"):
        started(settings, max_length=16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "nowhere.csv"}, "There is no file 'nowhere.csv'"),
        ({"data": "recipes"}, "A folder can't be read: 'recipes'"),
        ({"data": ""}, "No data is given. Give the path of a file, or a sample: devils-dictionary, identity"),
        ({"model": "nothing"}, "There is no model"),
        ({"format": "odd"}, "format must be one of"),
    ],
)
def test_what_is_not_there_makes_no_run(settings, change, said):
    with pytest.raises(StudioError, match=said):
        started(settings, **change)
    assert not RunStore().list()


def test_bad_rows_are_told(settings, tmp_path):
    with Path(settings["data"]).open("a") as file:
        file.write('\n{"prompt": "x", "completion": ""}\n')
    run = started(settings)
    assert "1 bad rows were left out" in values(run, "audit")[0]["warnings"][0]


# --- the audit


def test_the_audit_counts_what_trains(settings):
    report = audit.audit_report(prepare(Recipe.from_settings({**settings, "preset": "attention"})))
    rows = {row["part"]: row for row in report["rows"]}
    assert rows["MLP experts"]["trained"] == 0 and rows["kv_proj"]["rank"] == 4
    assert report["trained"] == sum(row["trained"] for row in report["rows"])
    assert sum(row["share"] for row in report["rows"]) == pytest.approx(1)
    assert report["warnings"] == ["The MLP experts are frozen: the preset 'attention' trains none of them."]
    table = audit.table(report)
    assert "MLP experts" in table and "Memory: about" in table
    assert sum(report["data"]["counts"]) == 40 and "Tokens per example: " in table
    asked = "".join(span.text for span in report["example"] if not span.trained)
    answer = "".join(span.text for span in report["example"] if span.trained)
    assert asked.startswith("<|im_start|>user\nSay ") and answer.endswith("<|im_end|>") and f"⟦{answer}⟧" in table


def test_a_run_uses_what_a_check_has_measured(settings):
    recipe = Recipe.from_settings(settings)
    report = audit.audit_report(prepare(recipe))
    forecast = report["forecast"] | {"step_s": 12.5}
    for fingerprint, is_used in ((report["data"]["fingerprint"], True), ("other rows", False)):
        run = RunStore().create(recipe, checked={"fingerprint": fingerprint, "forecast": forecast})
        train.carry_out(run.id)
        assert (values(run, "audit")[0]["forecast"]["step_s"] == 12.5) == is_used
        parts = {each["part"]: each["note"] for each in values(run, "preparing")}
        assert parts == {"files": "", "data": "", "model": "", "trial": "measured by Check" * is_used, "baseline": ""}


def test_the_trial_trains_nothing(settings):
    ready = prepare(Recipe.from_settings(settings))
    before = {name: parameter.clone() for name, parameter in ready.model.named_parameters()}
    audit.audit_report(ready)
    assert all(torch.equal(before[name], parameter) for name, parameter in ready.model.named_parameters())
    assert all(parameter.grad is None for parameter in ready.model.parameters())


def test_steps_are_foreseen(settings):
    recipe = {**settings, "max_steps": 0, "epochs": 2.5, "batch_size": 2, "gradient_accumulation": 2}
    recipe |= {"eval_steps": 100, "save_steps": 100}
    ready = prepare(Recipe.from_settings(recipe))
    assert audit.total_steps(ready) == started(recipe).step


# --- the command line


def test_command_line(settings, tmp_path):
    file = recipe_file(settings, tmp_path)
    dry = CliRunner().invoke(app, ["train", str(file), "--dry-run", "--json"])
    assert dry.exit_code == 0 and json.loads(dry.stdout)["trained"] > 0 and not RunStore().list()
    shown = CliRunner().invoke(app, ["train", str(file), "max_steps=2", "--name", "words"])
    assert shown.exit_code == 0
    (run,) = RunStore().list()
    assert run.name == "words" and f"--adapter {run.id[:8]}" in shown.stdout and "held-out loss" in shown.stderr
    with pytest.raises(StudioError, match="only runs that ended early can be resumed"):
        CliRunner().invoke(app, ["runs", "resume", run.id[:8]], catch_exceptions=False)
