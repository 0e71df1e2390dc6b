"""Counts of experts in batches against each text alone."""

import numpy as np
import pytest
import torch

from jetmoe import RoutingRecorder
from studio.analysis.load import assignments
from studio.backend.classification import text_routing
from studio.backend.classification.text_routing import expert_counts
from tests.builders.toy_model import toy_model

TEXTS = [[1, 7, 9], [4], [5, 6, 7, 8, 9, 10, 11], [3, 3]]


@pytest.mark.parametrize(
    ("changes", "K"), [({}, 2), ({"family": "olmoe", "num_experts": 64, "num_experts_per_tok": 8}, 8)]
)
def test_padding_and_batches_change_no_count(monkeypatch, changes, K):
    model = toy_model(**changes)
    expected = []
    for token_ids in TEXTS:
        recorder = RoutingRecorder(model, len(token_ids))
        with torch.no_grad():
            model.model(input_ids=torch.tensor([token_ids]), use_cache=False, recorder=recorder)
        expected.append(assignments(recorder.trace(token_ids, [""] * len(token_ids), True), "expert"))
    for most in (2048, 8):  # all at once, and in several batches
        monkeypatch.setattr(text_routing, "BATCH_TOKENS", most)
        counts = expert_counts(model, TEXTS, pad_id=0)
        assert np.array_equal(counts, np.stack(expected))
    assert counts.sum(axis=-1)[:, 0, 0].tolist() == [K * len(each) for each in TEXTS]
