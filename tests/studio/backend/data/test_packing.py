"""Packed examples answer as if each were alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio.backend.data.packing import Collator, pack
from tests.builders.toy_model import toy_model


@given(st.lists(st.integers(0, 20), max_size=60))
def test_every_index_once_and_no_row_too_long(lengths):
    packs = pack(lengths, 20)
    assert sorted(i for each in packs for i in each) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in each) <= 20 for each in packs)
    # Two rows that are at most half full would have been one.
    assert sum(sum(lengths[i] for i in each) <= 10 for each in packs) <= 1
    assert packs == pack(lengths, 20)


def test_an_example_longer_than_a_row_is_a_bug():
    with pytest.raises(ValueError, match="21 tokens"):
        pack([3, 21], 20)


def test_the_fullest_row_with_room_comes_first():
    assert pack([5, 9, 4, 1, 6], 10) == [[1, 3], [4, 2], [0]]


def test_a_batch():
    batch = Collator(pad_id=7)([[([1, 2, 3], [True, True, False]), ([4, 5], [True, True])], [([6], [True])]])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 7, 7, 7]]
    assert batch["labels"].tolist() == [[-100, 2, -100, -100, 5], [-100] * 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]
    assert batch["token_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert set(batch) == {"input_ids", "labels", "position_ids", "token_mask"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_example_sees_another(attention):
    model = toy_model(attn_implementation=attention)
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randint(1, 99, (n,), generator=generator).tolist() for n in (7, 1, 1, 12, 5, 3)]
    packs = pack([len(each) for each in examples], 16)
    batch = Collator(pad_id=0)([[(examples[i], [True] * len(examples[i])) for i in each] for each in packs])
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for row, indices in enumerate(packs):
            begin = 0
            for i in indices:
                alone = model(input_ids=torch.tensor([examples[i]]), use_cache=False).logits[0]
                torch.testing.assert_close(packed[row, begin : begin + len(examples[i])], alone, rtol=0, atol=1e-5)
                begin += len(examples[i])
    assert packed.isfinite().all()


def test_the_loss_of_a_packed_batch_is_that_of_its_examples():
    model = toy_model()
    examples = [([5, 6, 7, 8], [False, True, True, True]), ([9, 10, 11], [True, False, True])]
    collator = Collator(pad_id=0)

    def loss(*features):
        batch = collator(features)
        return model(**batch, use_cache=False).loss * (batch["labels"] != -100).sum()

    torch.testing.assert_close(loss(examples), loss(examples[:1]) + loss(examples[1:]))
    torch.testing.assert_close(loss(examples), loss(*([each] for each in examples)))


def test_padding_is_not_in_the_balance_loss():
    """Counted by hand from the routing of the tokens that are not padding: `E * sum_e f_e * P_e` of each router."""
    model = toy_model()
    batch = Collator(pad_id=0)([[([5, 6, 7, 8, 9, 10, 11], [True] * 7)], [([12, 13], [True] * 2)]])
    with torch.no_grad():
        output = model(**batch, use_cache=False, output_router_logits=True)
        plain = model(**batch, use_cache=False)
    real = [0, 1, 2, 3, 4, 5, 6, 7, 8]  # of 2 * 7 places, row by row
    losses = []
    for logits in output.router_logits:
        picked, probs = [0.0] * 4, [0.0] * 4
        for token in real:
            for e in logits[token].topk(2).indices.tolist():
                picked[e] += 1 / len(real)
            for e, p in enumerate(logits[token].softmax(0).tolist()):
                probs[e] += p / len(real)
        losses.append(4 * sum(f * p for f, p in zip(picked, probs, strict=True)))
    assert float(output.aux_loss) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    torch.testing.assert_close(output.loss, plain.loss + model.config.aux_loss_coef * output.aux_loss)
