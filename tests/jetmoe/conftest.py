"""Fixtures of the model's tests."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other take longer than products of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
