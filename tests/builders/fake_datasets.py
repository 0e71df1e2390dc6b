"""A hub of data sets on this machine: what `datasets` and `huggingface_hub` ask of the real one, and nothing more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest

from studio.backend.data import hub_dataset
from tests.builders import fake_repos
from tests.builders.fake_repos import COMMIT, FakeRepos


class FakeDatasets(FakeRepos):
    kind = "datasets"

    def add(self, repo: str, splits: dict[str, list[dict]], commit: str = COMMIT) -> None:
        """A data set of one JSONL file for each split."""
        configs = "".join(f"  - split: {name}\n    path: data/{name}.jsonl\n" for name in splits)
        files = {f"data/{name}.jsonl": "\n".join(map(json.dumps, rows)).encode() for name, rows in splits.items()}
        card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{configs}---\n"
        self.repos[repo], self.commits[repo] = {"README.md": card.encode(), **files}, commit


@contextmanager
def serving(hub: FakeDatasets) -> Iterator[FakeDatasets]:
    with fake_repos.serving(hub):
        yield hub


def use(hub: FakeDatasets, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Point the libraries of this process at an empty hub, with their caches in that folder."""
    fake_repos.use(hub, patch, folder)
    patch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    patch.setattr(datasets.config, "HUB_DATASETS_URL", hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}")
    hub_dataset._ask_hub.cache_clear()
