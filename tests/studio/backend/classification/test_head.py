"""Batches, losses and measures of a head, against plain torch and by hand."""

import pytest
import torch
import torch.nn.functional as F

from studio.analysis.measures import measure_sets
from studio.backend.classification.head import (
    LabelledCollator,
    LengthGrouped,
    configure,
    head_loss,
    labels_of,
    measure,
    probabilities,
)
from studio.backend.data.labelled import Labels
from tests.builders.toy_model import toy_model

ONE = Labels("single_label", ("a", "b", "c"), (6, 3, 1), rows=10)
SEVERAL = Labels("multi_label", ("a", "b", "c"), (5, 2, 0), rows=10)
NUMBER = Labels("regression", ("score",), (10,), rows=10)
LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_batches():
    batch = LabelledCollator(9, ONE)([([1, 2, 3], 2), ([4], 0)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]] and batch["labels"].tolist() == [2, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert LabelledCollator(9, SEVERAL)([([1], (0, 2)), ([4], ())])["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
    assert LabelledCollator(9, NUMBER)([([1], 0.5), ([4], -100.0)])["labels"].tolist() == [0.5, -100.0]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_rows_of_about_one_length_go_together(count):
    lengths = torch.randint(1, 100, (count,), generator=torch.Generator().manual_seed(count)).tolist()
    sampler = LengthGrouped(lengths, 8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(count)) == list(range(len(sampler))) and list(sampler) == order
    sampler.set_epoch(1)
    assert count < 9 or list(sampler) != order
    assert list(sampler) == list(_other(lengths, 1))
    assert lengths[order[0]] == max(lengths)
    if count == 1000:
        spreads = [max(lengths[i] for i in order[j : j + 8]) - lengths[order[j + 7]] for j in range(0, 1000, 8)]
        assert sum(spreads) / len(spreads) < 10  # at random it is some 70


def _other(lengths, epoch):
    sampler = LengthGrouped(lengths, 8, seed=3)
    sampler.set_epoch(epoch)
    return sampler


def test_losses_are_those_of_torch():
    targets = torch.tensor([0, 2, 1, 0])
    torch.testing.assert_close(head_loss(ONE, LOGITS, targets), F.cross_entropy(LOGITS, targets))
    hot = F.one_hot(targets, 3).float()
    torch.testing.assert_close(head_loss(SEVERAL, LOGITS, hot), F.binary_cross_entropy_with_logits(LOGITS, hot))
    numbers, wanted = LOGITS[:, :1], torch.tensor([1.0, 2.0, -100.0, 0.0])
    torch.testing.assert_close(head_loss(NUMBER, numbers, wanted), F.mse_loss(numbers[:, 0], wanted))
    parts = [head_loss(ONE, LOGITS[i : i + 2], targets[i : i + 2], count=4) for i in (0, 2)]
    torch.testing.assert_close(sum(parts), F.cross_entropy(LOGITS, targets))


def test_balanced_weights_make_all_labels_count_the_same():
    balanced = Labels(*[*vars(ONE).values()][:3], weights="balanced", rows=10)
    targets = torch.tensor([0] * 6 + [1] * 3 + [2])
    each = F.cross_entropy(torch.zeros(10, 3), targets, reduction="none")
    torch.testing.assert_close(head_loss(balanced, torch.zeros(10, 3), targets), each.mean())
    logits = torch.zeros(10, 3, requires_grad=True)
    head_loss(balanced, logits, targets).backward()
    by_label = [logits.grad[targets == label, label].sum() for label in range(3)]
    torch.testing.assert_close(torch.stack(by_label), by_label[0].repeat(3))
    several = Labels(*[*vars(SEVERAL).values()][:3], weights="balanced", rows=10)
    hot, logits = torch.zeros(10, 3), torch.zeros(10, 3, requires_grad=True)
    hot[:5, 0] = hot[:2, 1] = 1
    head_loss(several, logits, hot).backward()
    torch.testing.assert_close(logits.grad[:, :2].sum(0), torch.zeros(2))  # as much for as against


def test_measures():
    found, targets = torch.tensor([[2.0, 0, 0], [0, 1, 0], [3, 0, 0], [0, 1, 0]]), torch.tensor([0, 1, 1, 1])
    figures = measure(ONE, found, targets)
    # a: precision 1/2, recall 1; b: precision 1, recall 2/3; c neither is nor is found.
    assert figures["accuracy"] == 0.75 and figures["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    several = measure(SEVERAL, torch.tensor([[1.0, 1, -1], [1, -1, -1]]), torch.tensor([[1.0, 1, 0], [1, 1, 0]]))
    assert several["accuracy"] == 0.5 and several["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    numbers = measure(NUMBER, torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
    assert numbers == {"mean_absolute_error": 1.0, "r2": pytest.approx(1 - 2 / 2.25)}
    assert measure(NUMBER, torch.ones(2, 1), torch.ones(2))["r2"] == 0
    assert macro_f1(torch.zeros(2, 2).bool(), torch.zeros(2, 2).bool()) == 0
    assert macro_f1(F.one_hot(found.argmax(-1), 3).bool(), F.one_hot(targets, 3).bool()) == figures["macro_f1"]


def macro_f1(found, true) -> float:
    return measure_sets(true.numpy(), found.numpy(), [str(i) for i in range(true.shape[1])]).macro_f1


def test_probabilities():
    torch.testing.assert_close(probabilities("single_label", LOGITS), LOGITS.softmax(-1))
    torch.testing.assert_close(probabilities("single_label", LOGITS, 2.0), (LOGITS / 2).softmax(-1))
    assert torch.equal(probabilities("multi_label", LOGITS), LOGITS.sigmoid())
    assert torch.equal(probabilities("regression", LOGITS), LOGITS)


@pytest.mark.parametrize("labels", [ONE, SEVERAL, NUMBER])
def test_a_configuration_keeps_the_labels(labels, tmp_path):
    config = toy_model().config
    configure(config, labels, 5)
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert again.pad_token_id == 5 and again.label2id == {name: i for i, name in enumerate(labels.names)}
    assert labels_of(again) == Labels(labels.problem, labels.names)
