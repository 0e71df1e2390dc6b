"""The command for GPUs on a machine without one: a sentence, and no tests or tables begun."""

import pytest
import torch

from tests.benchmarks import gpu_check


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda *args, **kwargs: pytest.fail("tests were begun"))
    assert gpu_check.main() == 2
    assert "needs a CUDA device" in capsys.readouterr().err
