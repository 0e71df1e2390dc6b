"""Runs that go on in slices, here without a GPU and with slices of one step."""

from __future__ import annotations

import gradio as gr
import pytest
import torch
from safetensors.torch import load_file

from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.training import run as train
from studio.backend.training import zero_gpu_slices
from studio.backend.training.queue import Jobs
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder, toy_rows


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Recipe:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(zero_gpu_slices, "SLICE_S", 0.0)
    monkeypatch.setattr(zero_gpu_slices, "POLL_S", 0.01)
    settings = {"precision": "fp32", "max_length": 64, "r": 4, "learning_rate": 1e-2, "max_steps": 4, "eval_steps": 2,
                "save_steps": 2, "sample_tokens": 2, "batch_size": 2}  # fmt: skip
    model, data = toy_folder(tmp_path / "toy"), toy_rows(tmp_path / "rows.jsonl")
    return Recipe.from_settings({"model": str(model), "data": str(data), **settings})


@pytest.fixture
def jobs(recipe) -> Jobs:
    return Jobs(begins=False)


def events(run: Run, kind: str) -> list[dict]:
    return [event.values for event in run.events.read() if event.kind == kind]


def test_slices_add_up_to_the_same_run(jobs, recipe):
    whole = train.start(recipe)
    run = jobs.start(recipe)
    told = list(zero_gpu_slices.slices(jobs, run.id))
    assert len(told) == 4 and told[0].endswith("1 steps")
    run = jobs.store.get(run.id)
    assert (run.state, run.step, run.message) == ("done", 4, jobs.store.get(whole.id).message)
    assert [each["loss"] for each in events(run, "log")] == [each["loss"] for each in events(whole, "log")]
    assert len(events(run, "resumed")) == 3
    ours, theirs = (load_file(each.adapter / "adapter_model.safetensors") for each in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_who_leaves_has_a_run_that_can_be_resumed(jobs, recipe):
    run = jobs.start(recipe)
    going = zero_gpu_slices.slices(jobs, run.id)
    next(going)
    going.close()
    left = jobs.store.get(run.id)
    assert (left.state, left.message) == ("interrupted", zero_gpu_slices.LEFT)
    jobs.resume(run.id)
    list(zero_gpu_slices.slices(jobs, run.id))
    assert jobs.store.get(run.id).state == "done"


def test_a_quota_that_is_used_up_interrupts_the_run(jobs, recipe, monkeypatch):
    run = jobs.start(recipe)
    going = zero_gpu_slices.slices(jobs, run.id)
    next(going)

    def refused(run_id: str, seconds: float) -> str:
        raise gr.Error("You have exceeded your ZeroGPU quota (60s requested vs. 3s left).")

    with monkeypatch.context() as patch, pytest.raises(gr.Error):
        patch.setattr(zero_gpu_slices, "_slice", refused)
        next(going)
    left = jobs.store.get(run.id)
    assert (left.state, left.step) == ("interrupted", 1)
    assert left.message.endswith("(60s requested vs. 3s left). The run can be resumed.")
    jobs.resume(run.id)
    assert len(list(zero_gpu_slices.slices(jobs, run.id))) == 3


def test_two_visitors_take_turns(jobs, recipe):
    first, second = jobs.start(recipe, "first"), jobs.start(recipe, "second")
    one, other = zero_gpu_slices.slices(jobs, first.id), zero_gpu_slices.slices(jobs, second.id)
    assert [next(one), next(one)] == ["“first” waits for 1 other runs"] * 2
    assert "1 steps" not in next(one) and jobs.place(second.id) == 1
    next(other)
    next(one)
    assert [jobs.store.get(run.id).step for run in (first, second)] == [2, 1]


def test_a_run_that_is_cancelled_or_fails_goes_on_no_more(jobs, recipe):
    run = jobs.start(recipe)
    going = zero_gpu_slices.slices(jobs, run.id)
    next(going)
    jobs.cancel(run.id)
    assert list(going) == [] and jobs.store.get(run.id).state == "cancelled"
    run = jobs.start(recipe)
    (run.folder / "recipe.yaml").write_text("model: nowhere\n")
    with pytest.raises(StudioError, match="nowhere"):
        list(zero_gpu_slices.slices(jobs, run.id))
    assert jobs.store.get(run.id).state == "failed"


def test_a_cancel_in_the_last_moment_of_a_slice_counts(jobs, recipe):
    run = jobs.start(recipe)
    jobs.store.mark_running(run.id)
    jobs.cancel(run.id)
    assert jobs.store.requeue(run.id).state == "cancelled"


def test_the_supervisor_leaves_such_runs_alone(jobs, recipe):
    run = jobs.start(recipe)
    jobs._tick()
    assert jobs.store.get(run.id).state == "queued"
    jobs.close()
