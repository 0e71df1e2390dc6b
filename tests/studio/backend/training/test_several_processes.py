"""Training in several processes: each has the whole model, or parts of it; the curve is that of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import peft
import pytest
import torch
from safetensors.torch import load_file

from jetmoe import JetMoeForCausalLM
from studio.backend.data.packing import Collator
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.backend.training import run as train
from studio.backend.training.checkpoint import last_checkpoint
from studio.backend.training.prepare import prepare
from tests.builders.toy_folder import toy_folder
from tests.builders.toy_labels import classifier_settings
from tests.builders.training import (
    ROOT,
    held_out_losses,
    launched,
    losses,
    recipe_file,
    started,
    training_settings,
    values,
)

pytestmark = pytest.mark.processes
NAME = "adapter_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder / "home"))
        yield folder


class Pair(NamedTuple):
    one: Run
    """In one process."""
    two: Run
    """In two."""


def test_two_processes_give_the_curve_of_one(home):
    """In 4 bits, whose weights can't be sent from one process to the other."""
    # 5 held-out rows, which don't fill two batches for each process.
    settings = training_settings(home / "copies") | {"eval_share": 0.125, "packing": False, "precision": "nf4"}
    one = started(settings, batch_size=4)
    command = ["studio", "train", str(recipe_file(settings, home / "copies")), "batch_size=2", "--json"]
    said = launched("recipes/accelerate/cpu_2proc.yaml", *command)
    two = RunStore().get(json.loads(said.splitlines()[-1])["id"])
    # Computed in bf16.
    assert losses(two) == pytest.approx(losses(one), rel=2e-2)
    assert held_out_losses(two) == pytest.approx(held_out_losses(one), rel=2e-2)


@pytest.fixture(scope="module")
def in_parts(home) -> dict[str, Pair]:
    """A language model and a classifier, of which each process has a part; both are cancelled and resumed on the way.

    A head of its own and factors of which a process has no part are the hard cases, and held-out rows that don't fill
    the batches of two processes.
    """
    chat = training_settings(home / "chat") | {"r": 1, "eval_share": 0.125, "packing": False}
    chat["model"] = str(toy_folder(home / "untied", tie_word_embeddings=False))
    classify = classifier_settings(home / "classify") | {"eval_share": 0.2}
    with pytest.MonkeyPatch.context() as patch:  # several processes don't fit the head before training
        patch.setattr(train._Training, "_fit_head", lambda training: True)
        ones = {"chat": started(chat, batch_size=4), "classify": started(classify)}
    config = home / "fsdp.yaml"
    config.write_text((ROOT / "recipes/accelerate/fsdp.yaml").read_text() + "use_cpu: true\n")
    recipes = [
        recipe_file({**chat, "gradient_checkpointing": True}, home / "chat"),
        recipe_file({**classify, "batch_size": 2}, home / "classify"),
    ]
    known = {run.id for run in RunStore().list()}
    launched(str(config), "tests.studio.backend.training.fsdp_runs", *map(str, recipes))
    twos = {run.recipe().task: run for run in RunStore().list() if run.id not in known}
    return {task: Pair(one, twos[task]) for task, one in ones.items()}


def test_a_model_in_parts_gives_the_curve_of_a_whole_one(in_parts):
    one, two = in_parts["chat"]
    assert two.state == "done" and [event.step for event in two.events.read() if event.kind == "cancelled"] == [3]
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert held_out_losses(two) == pytest.approx(held_out_losses(one), rel=1e-5)
    norms = [[each["grad_norm"] for each in values(run, "log")] for run in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert [each["js"] for each in values(two, "routing")] == [each["js"] for each in values(one, "routing")]
    assert [each["rows"] for each in values(two, "audit") if "rows" in each] == [values(one, "audit")[0]["rows"]]
    (warning,) = values(two, "warning")
    assert warning["message"].startswith("The sample prompts are not answered") and not values(two, "sample")


def test_the_adapter_of_a_model_in_parts_is_a_whole_one(in_parts):
    one, two = in_parts["chat"]
    ours, theirs = load_file(two.adapter / NAME), load_file(one.adapter / NAME)
    assert ours.keys() == theirs.keys() and load_file(last_checkpoint(two) / NAME).keys() == ours.keys()
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in theirs)
    adapted = peft.PeftModel.from_pretrained(JetMoeForCausalLM.from_pretrained(two.model), str(two.adapter))
    with torch.no_grad():
        loss = adapted.eval()(**Collator(0)(prepare(two.recipe()).data.held_out), use_cache=False).loss
    assert float(loss) == pytest.approx(two.best_eval_loss, rel=1e-4)


def test_a_model_in_parts_gives_the_head_of_a_whole_one(in_parts):
    one, two = in_parts["classify"]
    assert two.state == "done" and losses(two) == pytest.approx(losses(one), rel=1e-4)
    for figures, others in zip(values(two, "eval"), values(one, "eval"), strict=True):
        assert figures == pytest.approx(others, rel=1e-4)
    ours, theirs = load_file(two.adapter / NAME), load_file(one.adapter / NAME)
    assert ours.keys() == theirs.keys() and all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in theirs)
