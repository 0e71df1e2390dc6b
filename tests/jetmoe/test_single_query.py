"""Attention of one position: the C file against plain sums, for buffers that are empty, part full and full."""

import pytest
import torch

from jetmoe import single_query
from jetmoe.single_query import KVView, attend, sums

pytestmark = pytest.mark.usefixtures("two_threads")


def known(batch, heads, size, channels, length):
    parts = [torch.randn(batch, heads, n, channels).bfloat16() for n in (size, size, 1, 1)]
    return KVView(parts[0], parts[1], torch.tensor(length), parts[2], parts[3])


@pytest.mark.parametrize("length", [0, 1, 39, 40])
@pytest.mark.parametrize(("batch", "slots", "heads", "channels"), [(1, 2, 4, 128), (2, 3, 3, 64), (3, 1, 5, 24)])
def test_it_is_the_sums(batch, slots, heads, channels, length):
    torch.manual_seed(0)
    query = torch.randn(batch, 1, slots, heads, channels).bfloat16()
    seen = known(batch, heads, 40, channels, length)
    for mask in (None, torch.rand(1, 1, 1, 40) < 0.5, torch.rand(batch, 1, 1, 40) < 0.5):
        result = attend(query, seen, mask, channels**-0.5)
        expected = sums(query, seen, mask, channels**-0.5)
        assert result.shape == query.shape and result.dtype == torch.bfloat16
        torch.testing.assert_close(result, expected, rtol=2**-7, atol=2**-8)


def test_what_is_not_there_is_not_read():
    query, seen = torch.randn(1, 1, 2, 2, 8).bfloat16(), known(1, 2, 16, 8, 5)
    expected = attend(query, seen, None, 1.0)
    seen.keys[:, :, 5:], seen.values[:, :, 5:] = torch.nan, torch.nan
    assert torch.equal(attend(query, seen, None, 1.0), expected)


def test_large_scores_stay_finite():
    query, seen = torch.full((1, 1, 2, 2, 8), 300.0).bfloat16(), known(1, 2, 16, 8, 16)
    assert attend(query, seen, None, 1.0).isfinite().all()


def test_without_the_c_file(monkeypatch):
    query, seen = torch.randn(1, 1, 2, 2, 8).bfloat16(), known(1, 2, 16, 8, 5)
    expected = sums(query, seen, None, 1.0)
    monkeypatch.setattr(single_query, "_kernel", lambda: (None, "No C compiler was found."))
    assert torch.equal(attend(query, seen, None, 1.0), expected)
    assert "No C compiler" in single_query.problem()


def test_in_fp32_it_is_the_sums_themselves():
    query, seen = torch.randn(1, 1, 2, 2, 8), KVView(*(part.float() for part in known(1, 2, 16, 8, 5)))
    seen = seen._replace(length=torch.tensor(5))
    assert torch.equal(attend(query, seen, None, 1.0), sums(query, seen, None, 1.0))
