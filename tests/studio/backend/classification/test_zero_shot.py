"""Zero-shot classification on a toy: the shared pass against one label at a time, calibration, cutting, the line."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from jetmoe.lora import lora_config
from studio.backend.chat.engine import Engine, Sampling
from studio.backend.classification import zero_shot as classify
from studio.backend.classification.label_prompt import (
    MOST_LABELS,
    TEMPLATES,
    LabelPrompts,
    parse_labels,
    resolve_template,
)
from studio.backend.classification.zero_shot import CONTENT_FREE, LabelTask, ZeroShot
from studio.backend.data.prompt import encode_chat, encode_plain
from studio.errors import StudioError
from tests.builders.toy_folder import toy_folder

LABELS = ("sport", "science", "arts", "politics of the world")
CALIBRATED, PLAIN = LabelTask(LABELS, "topic"), LabelTask(LABELS, "topic", calibrate=False)
TEXT = "The match ended in a draw, says the coach."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    engine = Engine()
    engine.load(str(folder), precision="fp32")
    return engine


@pytest.fixture
def classifier(engine) -> ZeroShot:
    return ZeroShot(engine)


def prompts_of(engine, labels=LABELS, template="topic", cut="middle") -> LabelPrompts:
    with engine.turn() as turn:
        size = turn.decoder.context_size
        return LabelPrompts(turn.tokenizer, resolve_template(template), labels, size, cut)


@torch.no_grad()
def one_by_one(engine, labels=LABELS, text=TEXT, template="topic", adapter=None, mean=False) -> np.ndarray:
    """Scores by their definition: each label after the whole prompt in a pass of its own, without a cache.

    Args:
        mean: of the tokens of a label, instead of its whole log-probability.
    """
    filled = TEMPLATES[template].replace("{labels}", f"{', '.join(labels[:-1])} or {labels[-1]}")
    messages = [{"role": "user", "content": filled.replace("{text}", text)}]
    with engine.turn(adapter) as turn:
        prompt = encode_chat(turn.tokenizer, messages)
        scores = []
        for label in labels:
            ids = encode_plain(turn.tokenizer, label)
            log_probs = turn.decoder.model(torch.tensor([prompt + ids])).logits[0].float().log_softmax(-1)
            found = log_probs[len(prompt) - 1 : -1].gather(-1, torch.tensor(ids)[:, None])
            scores.append(float(found.mean() if mean else found.sum()))
    return np.array(scores)


def scores_of(prediction) -> np.ndarray:
    return np.array(list(prediction.scores.values()))


def softmax(scores) -> np.ndarray:
    return np.exp(scores) / np.exp(scores).sum()


def count_tokens(engine, work) -> int:
    """How many tokens the model reads while `work` runs."""
    counts = []
    model = engine._decoder.model.model
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        work()
    finally:
        hook.remove()
    return sum(counts)


def test_scores_equal_those_of_each_label_alone(engine, classifier):
    (prediction,) = classifier.predict([TEXT], PLAIN)
    expected = one_by_one(engine, mean=True)
    assert np.allclose(scores_of(prediction), softmax(expected), atol=1e-5)
    assert prediction.label == LABELS[int(expected.argmax())]
    assert prediction.confidence == max(prediction.scores.values())
    assert sum(prediction.scores.values()) == pytest.approx(1)


def test_log_probabilities_equal_within_1e_4(engine):
    from studio.backend.classification.label_scores import LabelScorer

    prompts = prompts_of(engine)
    scored = LabelScorer(engine._decoder.model, prompts.shared_ids).score([prompts.of(TEXT)])
    assert np.abs(scored - one_by_one(engine)).max() < 1e-4


def test_texts_of_many_lengths_are_scored_together(engine):
    from studio.backend.classification.label_scores import LabelScorer, like_lengths

    texts = ["Tea", TEXT, TEXT * 3, "The match", TEXT * 2]
    prompts = prompts_of(engine)
    together = LabelScorer(engine._decoder.model, prompts.shared_ids).score([prompts.of(text) for text in texts])
    assert np.abs(together - [one_by_one(engine, text=text) for text in texts]).max() < 1e-4
    batches = like_lengths([prompts.of(text) for text in texts * 8])
    assert sorted(i for batch in batches for i in batch) == list(range(40)) and 1 < len(batches) < 20


def test_a_long_prompt_and_many_labels_are_read_in_pieces(engine, monkeypatch):
    from studio.backend.classification import label_scores

    monkeypatch.setattr(label_scores, "PREFILL_TOKENS", 16)
    monkeypatch.setattr(label_scores, "MOST_POSITIONS", 30)
    prompts = prompts_of(engine)
    scored = label_scores.LabelScorer(engine._decoder.model, prompts.shared_ids).score(
        [prompts.of(TEXT * 3), prompts.of(TEXT)]
    )
    expected = [one_by_one(engine, text=TEXT * 3), one_by_one(engine)]
    assert np.abs(scored - expected).max() < 1e-4


def test_labels_of_one_token_need_no_second_pass(engine, classifier):
    labels = ("a", "b", "c")
    (prediction,) = classifier.predict([TEXT], LabelTask(labels, "topic", calibrate=False))
    assert np.allclose(scores_of(prediction), softmax(one_by_one(engine, labels)), atol=1e-5)


def test_the_prompt_is_read_once_for_all_labels(engine, classifier):
    shared = count_tokens(engine, lambda: list(classifier.predict([TEXT] * 4, PLAIN)))
    alone = count_tokens(engine, lambda: [one_by_one(engine) for _ in range(4)])
    assert shared * 4 < alone


def test_a_text_has_the_same_scores_whatever_comes_with_it(classifier):
    texts = ["The match began.", "Tea", TEXT * 3, TEXT, "The matter"]
    together = list(classifier.predict(texts, PLAIN))
    alone = [next(classifier.predict([text], PLAIN)) for text in texts]
    assert [prediction.text for prediction in together] == texts
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(scores_of(one), scores_of(other), atol=1e-5)


def test_calibration_divides_by_the_prior(engine, classifier):
    prior = np.mean([softmax(one_by_one(engine, text=text)) for text in CONTENT_FREE], axis=0)
    (prediction,) = classifier.predict([TEXT], CALIBRATED)
    assert np.allclose(scores_of(prediction), softmax(one_by_one(engine) - np.log(prior)), atol=1e-5)


def test_the_prior_is_measured_once_for_labels_template_and_adapter(engine, classifier):
    task = CALIBRATED
    first = count_tokens(engine, lambda: list(classifier.predict([TEXT], task)))
    again = count_tokens(engine, lambda: list(classifier.predict([TEXT], task)))
    plain = count_tokens(engine, lambda: list(classifier.predict([TEXT], PLAIN)))
    other = count_tokens(engine, lambda: list(classifier.predict([TEXT], LabelTask(LABELS[::-1], "topic"))))
    assert again == plain < first and other == first


def test_an_adapter_answers_and_has_a_prior_of_its_own(engine, classifier, tmp_path):
    task = CALIBRATED
    before = next(classifier.predict([TEXT], task)).scores
    for seed in (1, 2):
        engine.load_adapter(adapter_folder(tmp_path / str(seed), engine, seed), "tuned")
        tuned = next(classifier.predict([TEXT], task, adapter="tuned"))
        prior = np.mean([softmax(one_by_one(engine, text=text, adapter="tuned")) for text in CONTENT_FREE], axis=0)
        expected = softmax(one_by_one(engine, adapter="tuned") - np.log(prior))
        assert np.allclose(scores_of(tuned), expected, atol=1e-5)
    assert not np.allclose(scores_of(tuned), list(before.values()), atol=1e-3)
    assert next(classifier.predict([TEXT], task)).scores == before


def adapter_folder(folder, engine, seed):
    from peft import get_peft_model

    from jetmoe import JetMoeForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(JetMoeForCausalLM(engine._decoder.model.config), lora_config("attention", r=4))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def test_the_trace_is_of_the_texts_tokens(engine, classifier):
    (prediction,) = classifier.predict([TEXT], PLAIN, with_trace=True)
    trace = prediction.trace
    assert "".join(trace.texts) == TEXT
    with engine.turn() as turn:
        prompt = prompts_of_turn(turn).of(TEXT)
    whole = engine.replay(prompt.token_ids, len(prompt.token_ids))[prompt.text]
    assert np.array_equal(whole.token_ids, trace.token_ids)
    assert np.array_equal(whole.experts, trace.experts) and np.allclose(whole.gates, trace.gates, atol=1e-2)


def prompts_of_turn(turn) -> LabelPrompts:
    return LabelPrompts(turn.tokenizer, resolve_template("topic"), LABELS, turn.decoder.context_size)


@pytest.mark.parametrize(("cut", "where"), [("middle", "in its middle"), ("end", "at its end")])
def test_only_the_text_is_cut(engine, classifier, cut, where):
    text = "".join(f"{i:04}" for i in range(250))
    prompt = prompts_of(engine, cut=cut).of(text)
    with engine.turn() as turn:
        whole = turn.tokenizer.decode(prompt.token_ids)
        kept = turn.tokenizer.decode(prompt.token_ids[prompt.text])
    assert all(label in whole for label in LABELS) and whole.endswith("assistant\n")
    longest = max(map(len, prompt.labels))
    assert 512 - longest - 12 <= len(prompt.token_ids) <= 512 - longest
    assert kept.startswith("0000") and kept.endswith("0249") == (cut == "middle")
    assert where in prompt.cut
    (prediction,) = classifier.predict([text], LabelTask(LABELS, "topic", cut=cut))
    assert prediction.notices == (prompt.cut,) and prediction.cut == prompt.cut


def test_what_a_text_holds_is_neither_a_slot_nor_a_control_token(engine):
    with engine.turn() as turn:
        prompts = prompts_of_turn(turn)
        ids = prompts.of("{labels} {text} <|im_end|>").token_ids
        assert "{labels} {text} <|im_end|>" in turn.tokenizer.decode(ids)
        assert sum(i >= 256 for i in ids) == sum(i >= 256 for i in prompts.of("x").token_ids)


def test_without_a_chat_template_the_text_goes_on_with_a_label(tmp_path):
    folder = toy_folder(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    engine = Engine()
    engine.load(str(folder), precision="fp32")
    prompt = prompts_of(engine, template="continuation").of("Hi")
    with engine.turn() as turn:
        asked = "Labels: sport, science, arts or politics of the world\nText: Hi\nLabel:"
        assert turn.tokenizer.decode(prompt.token_ids) == asked
        assert [turn.tokenizer.decode(ids) for ids in prompt.labels] == [f" {label}" for label in LABELS]
    (prediction,) = ZeroShot(engine).predict(["Hi"], LabelTask(LABELS, "continuation"))
    assert "no chat template" in prediction.notices[0]


def test_chat_gets_its_turn_between_batches(engine, classifier, monkeypatch):
    monkeypatch.setattr(classify, "TURN_TOKENS", 1)
    order = []

    def chat() -> None:
        list(engine.generate([{"role": "user", "content": "Hi"}], Sampling(max_new_tokens=1)))
        order.append("chat")

    for i, _ in enumerate(classifier.predict([TEXT] * 3, PLAIN)):
        if i == 1:
            asked = threading.Thread(target=chat)
            asked.start()
            asked.join(60)
        order.append(i)
    assert order == [0, "chat", 1, 2]


def test_cancel_ends_it_and_frees_the_model(classifier, monkeypatch):
    monkeypatch.setattr(classify, "TURN_TOKENS", 1)
    cancel = threading.Event()
    done = []
    for prediction in classifier.predict([TEXT] * 5, CALIBRATED, cancel=cancel):
        done.append(prediction)
        if len(done) == 2:
            cancel.set()
    assert len(done) == 2
    assert len(list(classifier.predict([TEXT], PLAIN))) == 1


def test_another_model_ends_it(folder, monkeypatch):
    monkeypatch.setattr(classify, "TURN_TOKENS", 1)
    engine = Engine()
    engine.load(str(folder), precision="fp32")
    predictions = ZeroShot(engine).predict([TEXT] * 3, PLAIN)
    next(predictions)
    engine.load(str(folder), precision="fp32")
    with pytest.raises(StudioError, match="Another model was loaded"):
        next(predictions)


@pytest.mark.parametrize(
    ("counts", "is_said"),
    [
        ({"net": 46, "mail": 18}, True),
        ({"net": 40, "mail": 24}, False),
        ({"net": 15}, False),
        ({}, False),
    ],
)
def test_a_label_that_takes_nearly_all_texts_is_said(counts, is_said):
    notices = classify.one_sided(counts, ["net", "mail", "games", "text", "admin", "sound", "science", "graphics"])
    assert ["46 of 64 texts got the label 'net'" in notice for notice in notices] == [True] * is_said


def test_one_of_two_labels_may_have_most_texts():
    assert classify.one_sided({"spam": 20, "ham": 80}, ["spam", "ham"]) == []
    assert classify.one_sided({"spam": 10, "ham": 90}, ["spam", "ham"])


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "no labels"),
        ("  \n ", "no labels"),
        ("spam", "'spam' is the only label"),
        ("spam,,ham", "Label 2 is empty"),
        ("spam, ham,", "Label 3 is empty"),
        ("Spam, ham, sPAM", "'Spam' and 'sPAM' are the same"),
        ("Straße, STRASSE", "are the same"),
        (",".join(map(str, range(500))), "500 labels"),
        ("a," + "b" * 101, "101 characters"),
        ("a,b\u202ec", "can't be shown"),
    ],
)
def test_labels_that_can_not_be_used_are_named(typed, words):
    with pytest.raises(StudioError, match=words):
        parse_labels(typed)


def test_labels_are_tidied():
    assert parse_labels(" very  good ,bad\nso so") == ("very good", "bad", "so so")
    assert len(LabelTask(tuple(map(str, range(MOST_LABELS)))).labels) == MOST_LABELS
    for wrong in (("a", 7), "ab", None, {"a": "b"}):
        with pytest.raises(StudioError, match="Labels are a list of texts"):
            LabelTask(wrong)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("Which of {labels}?", r"no \{text\}"),
        ("{text} and {text}", "2 times"),
        ("{text}" + "x" * 4000, "4,006 characters"),
        (None, "is a text"),
        ([], "is a text"),
        ("{text} \ud800", "is a text"),
    ],
)
def test_templates_that_can_not_be_used_are_refused(template, words):
    with pytest.raises(StudioError, match=words):
        LabelTask(LABELS, template)


def test_every_named_template_can_be_used(engine, classifier):
    for name in TEMPLATES:
        assert len(list(classifier.predict([TEXT], LabelTask(LABELS, name)))) == 1


def test_what_does_not_fit_the_model_is_said(engine, classifier):
    with pytest.raises(StudioError, match="leaves no room for a text"):
        list(classifier.predict([TEXT], LabelTask(LABELS, "{text}" + "x" * 480)))
    with pytest.raises(StudioError, match="Text 2 is empty"):
        list(classifier.predict([TEXT, " "], PLAIN))
    with pytest.raises(StudioError, match="half of a surrogate pair"):
        list(classifier.predict(["a\ud800"], PLAIN))
    with pytest.raises(StudioError, match="not loaded"):
        list(classifier.predict([TEXT], PLAIN, adapter="/etc"))
    with pytest.raises(StudioError, match="in the middle or at the end"):
        LabelTask(LABELS, cut="start")
    with pytest.raises(StudioError, match="isn't ready"):
        list(ZeroShot(Engine()).predict([TEXT], PLAIN))
