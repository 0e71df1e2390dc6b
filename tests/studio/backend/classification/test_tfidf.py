"""TF-IDF for every kind of label: what it learns, its files, and its mean with a head."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from studio.backend.classification.tfidf import OPTIONS, VOCABULARY, WEIGHTS, Tfidf
from studio.backend.data.labelled import Truth
from studio.errors import StudioError

TEXTS = [f"{word} {i}" for i in range(10) for word in ("good", "bad", "fair")]


def truth(problem, names, targets, texts=TEXTS):
    return Truth(problem, names, texts, targets)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.fixture
def fitted():
    return Tfidf.fit(truth("single_label", ("a", "b", "c"), [0, 1, 2] * 10))


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_those_of_scikit_learn(classes):
    targets = [i % classes for i in range(30)]
    found = softmax(Tfidf.fit(truth("single_label", ("a", "b", "c")[:classes], targets)).logits(["so good", "bad 3"]))
    words = TfidfVectorizer(**OPTIONS)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(words.fit_transform(TEXTS), targets)
    np.testing.assert_allclose(found, model.predict_proba(words.transform(["so good", "bad 3"])), atol=1e-4)


def test_a_label_without_training_rows_is_never_found():
    found = softmax(Tfidf.fit(truth("single_label", ("a", "none", "b"), [0, 2, 2] * 10)).logits(["good", "bad"]))
    assert found.argmax(axis=-1).tolist() == [0, 2] and (found[:, 1] < 1e-3).all()


def test_several_labels_are_independent():
    targets = [(0, 2), (1, 2), (2,)] * 10
    found = Tfidf.fit(truth("multi_label", ("a", "b", "all", "none"), targets)).logits(["good", "bad"]) > 0
    assert found.tolist() == [[True, False, True, False], [False, True, True, False]]


def test_numbers_are_estimated():
    found = Tfidf.fit(truth("regression", ("stars",), [5.0, 1.0, 3.0] * 10)).logits(["good", "bad", "fair"])
    assert found.shape == (3, 1) and found[0, 0] > found[2, 0] > found[1, 0]


def test_balanced_weights_find_the_rare_label():
    rows = truth(
        "single_label", ("often", "rare"), [0] * 27 + [1] * 3, ["xx yy", "xx zz", "yy zz"] * 9 + ["xx yy zz"] * 3
    )
    plain, balanced = (softmax(Tfidf.fit(rows, weights).logits(["xx yy zz"]))[0, 1] for weights in (False, True))
    assert balanced > plain


@pytest.mark.parametrize(("texts", "targets", "words"), [
    (["...", "!"], [0, 1], "hold no words"),
    (["x1", "y1"], [0, 0], "All training rows have the label 'a'"),
])  # fmt: skip
def test_what_cannot_be_learned_is_said(texts, targets, words):
    with pytest.raises(StudioError, match=words):
        Tfidf.fit(truth("single_label", ("a", "b"), targets, texts))


def test_the_sum_is_a_weighted_mean_of_log_probabilities(fitted):
    head = np.random.default_rng(0).normal(size=(2, 3))
    texts = ["good 1", "bad"]
    mean = 0.3 * np.log(softmax(head)) + 0.7 * np.log(softmax(fitted.logits(texts)))
    found = fitted.weighted(0.3, 0.7).with_head(torch.tensor(head), texts).softmax(-1)
    np.testing.assert_allclose(found, softmax(mean), rtol=1e-5)


# --- files


def test_files_give_the_same_logits(fitted, tmp_path):
    fitted = fitted.weighted(0.3, 0.7)
    fitted.save(tmp_path)
    texts = ["good 1", "a fair, bad one", "nothing known"]
    again = Tfidf.load(tmp_path, 3)
    np.testing.assert_allclose(again.logits(texts), fitted.logits(texts), rtol=1e-5)
    assert again.head_weight == pytest.approx(0.3)
    assert sorted(file.name for file in tmp_path.iterdir()) == [VOCABULARY, WEIGHTS]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / WEIGHTS).write_bytes(b"half"),
        lambda folder: (folder / VOCABULARY).write_text("{"),
        lambda folder: (folder / VOCABULARY).write_text("3"),
        lambda folder: (folder / VOCABULARY).write_text(json.dumps(["a", "a"])),
        lambda folder: (folder / VOCABULARY).write_text(json.dumps(["a", "b"])),
        lambda folder: save_file({"coef": np.zeros((3, 2))}, folder / WEIGHTS),
    ],
)
def test_damaged_files_are_refused(fitted, damage, tmp_path):
    fitted.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(StudioError, match=r"can't be read|another classifier"):
        Tfidf.load(tmp_path, 3)


def test_files_of_another_classifier_are_refused(fitted, tmp_path):
    fitted.save(tmp_path)
    with pytest.raises(StudioError, match="belongs to another classifier"):
        Tfidf.load(tmp_path, 4)
