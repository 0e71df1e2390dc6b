"""An OLMoE on the whole way of a model: trained in 4 bits, chatted with, classified with, merged and loaded again."""

import numpy as np
import pytest

from studio.backend.chat.engine import Engine, Sampling
from studio.backend.classification import evaluation
from studio.backend.classification.zero_shot import LabelTask, ZeroShot
from studio.backend.export.export import export
from studio.backend.models import placement
from studio.backend.runs.run import Run
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder
from tests.builders.toy_labels import classifier_settings
from tests.builders.training import losses, started, training_settings, values

QUESTION = [{"role": "user", "content": "Say 1"}]
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("olmoe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder / "home"))
        yield folder


@pytest.fixture(scope="module")
def model(home) -> str:
    return str(toy_folder(home / "olmoe", family="olmoe", **EXPERTS))


@pytest.fixture(scope="module")
def tuned(home, model) -> Run:
    settings = training_settings(home) | {"model": model, "precision": "nf4", "max_steps": 12, "probe_text": "one two"}
    return started(settings, preset="all", eval_steps=6, save_steps=6)


@pytest.fixture(scope="module")
def engine(model) -> Engine:
    engine = Engine()
    engine.load(model, precision="fp32")
    return engine


def answer(engine, adapter=None):
    events = list(engine.generate(QUESTION, Sampling(max_new_tokens=8, temperature=0.0), adapter=adapter))
    return "".join(event.text for event in events if event.kind == "token"), events


def test_it_learns_in_4_bits_and_its_routing_is_told(tuned):
    assert tuned.state == "done" and losses(tuned)[-1] < losses(tuned)[0] and not values(tuned, "warning")
    audited = values(tuned, "audit")
    parts = {row["part"]: row for row in audited[0]["rows"]}
    assert parts["MLP experts"]["four_bit"] == parts["attention projections"]["four_bit"] == 1
    assert {name: counts["without_gradient"] for name, counts in audited[1]["gradients"].items()} == {
        "MLP experts": 0,
        "attention projections": 0,
    }
    last = values(tuned, "routing")[-1]
    assert np.asarray(last["load"]).shape == (2, 1, 16) and last["js"] > 0


@pytest.mark.parametrize("preset", ["hot", "router", "attention"])
def test_other_presets_train(home, model, preset):
    run = started(training_settings(home) | {"model": model, "preset": preset, "max_steps": 2})
    assert run.state == "done"


def test_a_preset_of_another_family_is_refused_before_the_weights_are_read(home, model, monkeypatch):
    monkeypatch.setattr(placement, "load_model", lambda *args, **kwargs: pytest.fail("weights were read"))
    with pytest.raises(StudioError, match=r"OLMoE has no preset moa; choose from attention, .*\(preset"):
        started(training_settings(home) | {"model": model, "preset": "moa"})


def test_it_answers_with_and_without_its_adapter(engine, tuned):
    base, events = answer(engine)
    traces = [event.trace for event in events if event.trace is not None]
    assert traces and {trace.kinds for trace in traces} == {("MoE",)} and traces[0].experts.shape[::3] == (2, 4)
    adapted, _ = answer(engine, tuned.id)
    assert adapted != base and answer(engine)[0] == base


def test_it_classifies_untrained_and_trained(home, model, engine):
    predictions = list(ZeroShot(engine).predict(["tea", "win cash"], LabelTask(("ham", "spam"))))
    assert [sum(each.scores.values()) for each in predictions] == pytest.approx([1, 1])
    run = started(classifier_settings(home) | {"model": model, "max_steps": 24, "eval_steps": 12, "save_steps": 12})
    assert values(run, "eval")[-1]["eval_accuracy"] > 0.9
    entries = evaluation.of_run(run)["profile"]["entries"]
    assert {entry["kind"] for entry in entries} <= {"MoE"}


@pytest.mark.parametrize("four_bit", [False, True])
def test_merged_it_answers_as_its_adapter(home, tuned, four_bit):
    made = export(tuned.id, home / f"merged {four_bit}", merge=True, four_bit=four_bit)
    assert made.proof["error"] < (0.05 if not four_bit else 1.0)
    merged = Engine()
    merged.load(str(made.folder))
    assert answer(merged)[0]
