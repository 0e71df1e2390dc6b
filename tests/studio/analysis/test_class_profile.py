"""Expert profiles against intervals worked out one by one, and on routing that has nothing to tell."""

import numpy as np
import pytest
from scipy import stats

from studio.analysis.class_profile import ClassProfile

LABELS = ("ham", "spam")


def counts_of(rng, texts: int, weights) -> np.ndarray:
    """Assignments `[T, 1, 2, E]` of texts of ten tokens, with so much of each expert in the first router."""
    first = rng.multinomial(20, weights, size=texts)
    second = rng.multinomial(20, np.full(len(weights), 1 / len(weights)), size=texts)
    return np.stack([first, second], axis=1)[:, None]


@pytest.fixture
def texts() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    counts = np.concatenate([counts_of(rng, 40, [0.25] * 4), counts_of(rng, 30, [0.55, 0.15, 0.15, 0.15])])
    return counts, np.array([0] * 40 + [1] * 30)


def test_the_interval_is_welchs_corrected_for_all_comparisons(texts):
    counts, classes = texts
    profile = ClassProfile(LABELS)
    for part in (slice(0, 25), slice(25, None)):  # in any number of parts
        profile.add(counts[part], classes[part])
    (entry,) = [each for each in profile.entries() if each.label == "spam"]
    assert (entry.layer, entry.kind, entry.expert) == (0, 0, 0) and profile.comparisons == 2 * 2 * 4
    shares = counts[:, 0, 0, 0] / 20
    spam, ham = shares[classes == 1], shares[classes == 0]
    level = 1 - 0.05 / profile.comparisons
    expected = stats.ttest_ind(spam, ham, equal_var=False).confidence_interval(level)
    assert (entry.low, entry.high) == pytest.approx(tuple(expected))
    assert entry.difference == pytest.approx(spam.mean() - ham.mean())
    assert entry.count == counts[classes == 1][:, 0, 0, 0].sum()


@pytest.mark.parametrize(("E", "K"), [(8, 1), (16, 2), (64, 8), (256, 8)])
def test_one_kind_of_router_against_welch_for_each_expert(E, K):
    rng, classes = np.random.default_rng(2), np.repeat([0, 1], 30)
    weights = np.ones((2, E))
    weights[1, -1] = E  # about half of the assignments
    counts = np.stack([rng.multinomial(20 * K, weights[i] / weights[i].sum(), size=(2, 1)) for i in classes])
    profile = ClassProfile(LABELS)
    profile.add(counts, classes)
    assert profile.comparisons == 2 * 2 * E
    found = {(each.label, each.layer, each.kind, each.expert) for each in profile.entries(most=4 * E)}
    expected = set()
    for layer, expert in np.ndindex(2, E):
        ham, spam = (counts[classes == i, layer, 0, expert] / (20 * K) for i in (0, 1))
        if ham.var() + spam.var() == 0:
            continue
        for label, own, other in (("ham", ham, spam), ("spam", spam, ham)):
            level = 1 - 0.05 / profile.comparisons
            if stats.ttest_ind(own, other, equal_var=False).confidence_interval(level).low > 0:
                expected.add((label, layer, 0, expert))
    assert found == expected and ("spam", 1, 0, E - 1) in found


def test_what_fires_more_for_one_class_fires_less_for_the_other(texts):
    profile = ClassProfile(LABELS)
    profile.add(*texts)
    assert {(each.kind, each.expert) for each in profile.entries() if each.label == "ham"} <= {(0, 1), (0, 2), (0, 3)}


def test_equal_routing_shows_nothing():
    rng = np.random.default_rng(1)
    profile = ClassProfile(LABELS)
    profile.add(counts_of(rng, 60, [0.4, 0.3, 0.2, 0.1]), np.arange(60) % 2)
    assert profile.entries() == []


def test_a_class_of_few_texts_is_not_compared(texts):
    counts, classes = texts
    profile = ClassProfile((*LABELS, "rare"))
    profile.add(counts, classes)
    profile.add(counts[:3], np.full(3, 2))
    assert profile.comparisons == 2 * 8 and {each.label for each in profile.entries()} <= set(LABELS)
    alone = ClassProfile(LABELS)
    alone.add(counts[:40], classes[:40])
    assert alone.entries() == [] and alone.comparisons == 0


def test_a_router_that_never_varies_is_no_finding():
    counts = np.zeros((40, 1, 2, 4), int)
    counts[:20, ..., 0] = counts[20:, ..., 1] = 20
    profile = ClassProfile(LABELS)
    profile.add(counts, np.repeat([0, 1], 20))
    assert profile.entries() == []
