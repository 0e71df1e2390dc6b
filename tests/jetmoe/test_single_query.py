"""Attention of one position against torch's, for buffers that are empty, part full and full."""

import pytest
import torch
import torch.nn.functional as F

from jetmoe.single_query import KVView, attend


@pytest.mark.parametrize("length", [0, 1, 39, 40])
@pytest.mark.parametrize(("batch", "slots", "heads", "channels"), [(1, 2, 4, 128), (2, 3, 3, 64), (3, 1, 5, 24)])
def test_it_is_attention_over_the_filled_part(batch, slots, heads, channels, length):
    torch.manual_seed(0)
    query = torch.randn(batch, 1, slots, heads, channels)
    keys, values, key, value = (torch.randn(batch, heads, n, channels) for n in (40, 40, 1, 1))
    known = KVView(keys, values, torch.tensor(length), key, value)
    all_keys, all_values = (torch.cat([a[:, :, :length], b], 2) for a, b in ((keys, key), (values, value)))
    for mask in (None, torch.rand(1, 1, 1, 40) < 0.5, torch.rand(batch, 1, 1, 40) < 0.5):
        visible = None if mask is None else F.pad(mask[..., :length], (0, 1), value=True)
        expected = F.scaled_dot_product_attention(
            query.squeeze(1).transpose(1, 2), all_keys, all_values, visible, scale=0.3
        )  # [B, H, K, C]
        result = attend(query, known, mask, 0.3)
        torch.testing.assert_close(result.squeeze(1).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_large_scores_stay_finite():
    query, keys, key = (torch.full(shape, 300.0) for shape in ((1, 1, 2, 2, 8), (1, 2, 16, 8), (1, 2, 1, 8)))
    assert attend(query, KVView(keys, keys, torch.tensor(16), key, key), None, 1.0).isfinite().all()
