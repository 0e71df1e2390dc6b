"""Fixtures that several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def starter_path() -> Path:
    """The real starter model, built once in the studio's home."""
    from studio.backend import starter

    return starter.build()


@pytest.fixture(scope="session")
def dense_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model that the starter is made of."""
    from studio.backend import starter

    return starter.dense_gguf(tmp_path_factory.mktemp("dense"), lambda fraction, text: None)
