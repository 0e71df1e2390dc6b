"""Trained heads at work: the same answers as in training, as of stock PEFT and transformers, alone and in batches."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jetmoe import JetMoeForSequenceClassification
from jetmoe.adapters.files import read_config
from jetmoe.adapters.switching import Adapters
from jetmoe.lora import AdapterError
from studio.backend.adapters.find import choices, find
from studio.backend.adapters.uploads import import_adapter
from studio.backend.chat.engine import Engine, Sampling
from studio.backend.classification import trained
from studio.backend.classification.trained import TrainedClassifier
from studio.backend.data.text_prompt import encode
from studio.backend.export.export import export
from studio.backend.export.merge import TOLERANCE
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.training import run as train
from studio.backend.training.prepare import prepare
from studio.backend.training.trainer import load_adapter
from studio.errors import StudioError
from tests.builders.stock import run_stock
from tests.builders.toy_folder import toy_folder, toy_tokenizer
from tests.builders.toy_labels import classifier_settings, sentence
from tests.builders.training import started

TEXTS = ["tea walk", "buy cash win buy", "book", "win 42"]

# Runs without `jetmoe`: the folder of an export, its base where it is an adapter; logits of texts, each alone.
STOCK = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
folder, base, out, texts = *sys.argv[1:4], json.loads(sys.argv[4])
config = AutoConfig.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(base or folder, config=config, dtype=torch.float32)
if base:
    import peft
    model = peft.PeftModel.from_pretrained(model, folder)
tokenizer = AutoTokenizer.from_pretrained(base or folder)
assert "jetmoe" not in sys.modules and model.config.id2label == {0: "ham", 1: "spam"}, model.config.id2label
with torch.no_grad():
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    save_file({"logits": model.eval()(**batch).logits}, out)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder / "home"))
        yield folder


@pytest.fixture(scope="module")
def settings(home) -> dict:
    return classifier_settings(home)


@pytest.fixture(scope="module")
def run(settings) -> Run:
    return train.start(Recipe.from_settings({**settings, "max_steps": 32, "eval_steps": 8, "save_steps": 8}))


# --- what others make of it


def stock_logits(tmp_path: Path, folder: Path, base: Path | str = "", texts: Sequence[str] = TEXTS) -> torch.Tensor:
    out = tmp_path / "stock.safetensors"
    arguments = [str(folder), str(base), str(out), json.dumps(texts)]
    run_stock(STOCK, *arguments)
    return load_file(out)["logits"]


@torch.no_grad()
def our_logits(run: Run) -> torch.Tensor:
    """In the model that was trained, each text alone."""
    ready = prepare(run.recipe())
    load_adapter(ready.model, run.adapter)
    ids = [encode(ready.tokenizer, text, 64)[0] for text in TEXTS]
    return torch.cat([ready.model.eval()(input_ids=torch.tensor([each])).logits for each in ids])


def test_stock_peft_and_the_studio_say_what_training_said(run, settings, tmp_path):
    expected = our_logits(run)
    folder = export(run.id, tmp_path / "out").folder
    assert {file.name for file in folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "config.json",
        "README.md",
    }
    torch.testing.assert_close(stock_logits(tmp_path, folder, settings["model"]), expected, rtol=0, atol=1e-4)
    for source in (run.id[:8], folder):
        classifier = TrainedClassifier.load(source, model=settings["model"], precision="fp32")
        answer = classifier.predict(TEXTS)
        assert answer.names == ("ham", "spam") and not answer.cut
        np.testing.assert_allclose(answer.probabilities, expected.softmax(-1), atol=1e-4)
    assert {0, 1} == {*answer.probabilities.argmax(-1).tolist()}
    assert str(tmp_path).encode() not in b"".join(file.read_bytes() for file in folder.iterdir())


def test_stock_peft_gives_the_scores_of_a_probe_for_the_filled_prompt(settings, tmp_path, monkeypatch):
    """In a process of its own, which takes seconds: a head without LoRA is another kind of adapter."""
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    run = started({**settings, "method": "probe", "prompt": "Mail: {text}\nKind:"})
    folder = export(run.id, tmp_path / "out").folder
    assert "Mail: A text\\nKind:" in (folder / "README.md").read_text()
    prompted = [f"Mail: {text}\nKind:" for text in TEXTS]
    expected = stock_logits(tmp_path, folder, settings["model"], prompted).softmax(-1)
    found = TrainedClassifier.load(folder, model=settings["model"], precision="fp32").predict(TEXTS).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_merged_model_has_the_head_and_its_proof(run, tmp_path):
    exported = export(run.id, tmp_path / "out", merge=True)
    proof = exported.proof
    assert proof["error"] <= 0.25 and proof["from_base"] > 0.75 and proof["tokens"] == 512
    assert proof["same_label"] > 0.8 and proof == json.loads((exported.folder / "merge_proof.json").read_text())
    stock = stock_logits(tmp_path, exported.folder)
    answer = TrainedClassifier.load(exported.folder, precision="fp32").predict(TEXTS)
    np.testing.assert_allclose(answer.probabilities, stock.softmax(-1), atol=1e-4)
    assert (stock - our_logits(run)).norm() < 0.1 * stock.norm()
    card = (exported.folder / "README.md").read_text()
    for words in ("pipeline_tag: text-classification", "| ham | 24 |", "held\\-out macro\\-F1", 'pipeline("text-class'):
        assert words in card


def test_a_head_is_merged_into_four_bits(run, tmp_path, monkeypatch):
    """Of so small a model the rounding is a large part of the change."""
    monkeypatch.setitem(TOLERANCE, "nf4", 1.0)
    exported = export(run.id, tmp_path / "out", merge=True, four_bit=True)
    assert exported.proof["precision"] == "nf4" and exported.proof["rounding_loss"]["MLP experts"] > 0.01
    assert TrainedClassifier.load(exported.folder).predict(TEXTS).probabilities.shape == (4, 2)


def test_a_classifier_is_no_adapter_for_chat(run, settings, tmp_path):
    assert choices(settings["model"]) == []
    assert run.id in [choice.id for choice in choices(settings["model"], "classify")]
    engine = Engine()
    engine.load(settings["model"], precision="fp32")
    with pytest.raises(StudioError, match="is a classifier and can't chat"):
        list(engine.generate([{"role": "user", "content": "Hi"}], Sampling(max_new_tokens=2), adapter=run.id))
    with pytest.raises(AdapterError, match="has a classification head"):
        read_config(run.adapter)
    files = [run.adapter / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    with pytest.raises(StudioError, match="has a classification head"):
        import_adapter(files, "x", settings["model"])
    assert find(run.id).folder == run.adapter


def test_the_engines_model_is_shared_where_it_is_the_base(run, settings, monkeypatch):
    engine = Engine()
    engine.load(settings["model"], precision="fp32")
    own = TrainedClassifier.load(run.id, precision="fp32").predict(TEXTS)
    before = list(engine.generate([{"role": "user", "content": "Hi"}], Sampling(max_new_tokens=4, temperature=0)))
    monkeypatch.setattr("studio.backend.classification.trained._model", lambda *args: pytest.fail("a model was loaded"))
    classifier = TrainedClassifier.load(run.id, engine)
    assert classifier.notice == ""
    np.testing.assert_allclose(classifier.predict(TEXTS).probabilities, own.probabilities, atol=1e-6)
    after = list(engine.generate([{"role": "user", "content": "Hi"}], Sampling(max_new_tokens=4, temperature=0)))
    assert [event.token_id for event in after] == [event.token_id for event in before]


def test_an_engine_with_another_model_is_left_alone(run, settings, tmp_path):
    engine = Engine()
    engine.load(str(toy_folder(tmp_path / "other", seed=3)), precision="fp32")
    classifier = TrainedClassifier.load(run.id, engine, precision="fp32")
    assert "loaded separately" in classifier.notice
    np.testing.assert_allclose(classifier.predict(TEXTS).probabilities, our_logits(run).softmax(-1), atol=1e-4)


@pytest.mark.parametrize(("row", "batch"), [(128, 1024), (16, 64), (1, 1)])
def test_no_text_sees_another_however_they_go_together(run, monkeypatch, row, batch):
    """Short texts share rows; longer ones have their own."""
    monkeypatch.setattr(trained, "ROW_TOKENS", row)
    monkeypatch.setattr(trained, "BATCH_TOKENS", batch)
    classifier = TrainedClassifier.load(run.id, precision="fp32")
    rng = random.Random(1)
    texts = [sentence(rng, rng.choice(["ham", "spam"])) for _ in range(20)] + ["tea " * 40]
    many, backwards = classifier.predict(texts), classifier.predict(texts[::-1])
    one = np.concatenate([classifier.predict([text]).probabilities for text in texts])
    np.testing.assert_allclose(one, many.probabilities, atol=1e-4)
    np.testing.assert_allclose(one, backwards.probabilities[::-1], atol=1e-4)
    assert many.cut == (20,) and backwards.cut == (0,)
    assert classifier.predict(texts, cancelled=lambda: True) is None
    assert classifier.predict([]).probabilities.shape == (0, 2)
    with pytest.raises(StudioError, match="Text 2 is empty"):
        classifier.predict(["a", " "])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [256, 258])
def test_padding_changes_no_answer(settings, side, pad):
    """Also where padding is a token that ends a text."""
    torch.manual_seed(0)
    model = JetMoeForSequenceClassification.from_pretrained(settings["model"], dtype=torch.float32).eval()
    model.config.pad_token_id = pad
    texts = [[*toy_tokenizer()(text)["input_ids"], 258] for text in TEXTS]
    size = max(map(len, texts))
    blanks = [[pad] * (size - len(text)) for text in texts]
    ids = [blank + text if side == "left" else text + blank for text, blank in zip(texts, blanks, strict=True)]
    mask = [[0] * len(blank) + [1] * len(text) for text, blank in zip(texts, blanks, strict=True)]
    mask = mask if side == "left" else [each[::-1] for each in mask]
    together = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
    alone = torch.cat([model.score(model.model(torch.tensor([text])).last_hidden_state[:, -1]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_what_can_not_be_loaded_is_said(run, settings, tmp_path):
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    answering = started({**settings, "task": "chat", "data": str(chat)}, sample_tokens=4)
    with pytest.raises(StudioError, match="no classification head"):
        TrainedClassifier.load(answering.id)
    nameless = shutil.copytree(run.adapter, tmp_path / "nameless")
    (nameless / "config.json").unlink()
    for work in (TrainedClassifier.load, lambda folder, model: export(folder, tmp_path / "out", model=model)):
        with pytest.raises(StudioError, match=r"config\.json"):
            work(nameless, model=settings["model"])
    with pytest.raises(StudioError, match="There is no run"):
        TrainedClassifier.load("0000")


def test_adapters_of_both_kinds_share_a_model(run, settings):
    model = JetMoeForSequenceClassification.from_pretrained(settings["model"])
    adapters = Adapters(model)
    adapters.load(run.adapter, "mail")
    assert adapters.classifiers == {"mail"}
    adapters.remove("mail")
    assert not adapters.classifiers and not adapters.names
