"""Features of a toy: those of each text alone, and an interrupted reading that continues."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from studio.backend.classification import features
from studio.backend.classification.features import read_features
from studio.backend.recipe import Recipe
from studio.backend.training.prepare import prepare
from tests.builders.toy_labels import classifier_settings

TEXTS = [[7, 8, 9], [5] * 20, [1], [3, 4], [2] * 11]
PAD = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With an adapter that is not zero."""
    ready = prepare(Recipe.from_settings(classifier_settings(tmp_path_factory.mktemp("toy"))))
    for name, parameter in ready.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return ready


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(features, "BATCH_TOKENS", 24)


@torch.no_grad()
def test_features_are_those_of_the_base_model_for_each_text_alone(model, tmp_path):
    found = read_features(model.base, TEXTS, PAD, tmp_path / "features")
    with model.model.disable_adapter():
        alone = [model.base.model(torch.tensor([text])).last_hidden_state[0, -1] for text in TEXTS]
    torch.testing.assert_close(found, torch.stack(alone), rtol=0, atol=1e-4)


def test_an_interrupted_reading_continues_after_the_last_part(model, tmp_path):
    folder, told = tmp_path / "features", []
    assert read_features(model.base, TEXTS, PAD, folder, lambda done: told.append(done) or len(told) < 2) is None
    (folder / "000009.safetensors.0a1b.part").write_bytes(b"half a part")
    again = []
    found = read_features(model.base, TEXTS, PAD, folder, lambda done: again.append(done) or True)
    assert told == [1, 3] and again == [5], "no text is read twice"
    torch.testing.assert_close(found, read_features(model.base, TEXTS, PAD, tmp_path / "new"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-8]),
        lambda file: file.write_bytes(b""),
        lambda file: save_file({"rows": torch.tensor([99]), "features": torch.ones(1, 3)}, file),
    ],
)
def test_a_damaged_part_is_read_again(model, tmp_path, damage, monkeypatch):
    monkeypatch.setattr(features, "PART_S", 0.0)
    folder, told = tmp_path / "features", []
    found = read_features(model.base, TEXTS, PAD, folder)
    parts = sorted(folder.iterdir())
    assert len(parts) == 3
    damage(parts[0])
    again = read_features(model.base, TEXTS, PAD, folder, lambda done: told.append(done) or True)
    assert len(told) == 1 and told[0] == 5, "the other parts are kept"
    torch.testing.assert_close(again, found)
    told.clear()
    assert read_features(model.base, TEXTS, PAD, folder, lambda done: told.append(done) or True) is not None
    assert not told, "nothing is left to read"
