"""The commands of docs/hosting.md that make a Space, against a hub on this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from tests.builders.fake_hub import serving_hub
from tests.e2e.space.surroundings import ID, ROOT, exported


def test_the_documented_upload_brings_every_file(tmp_path: Path):
    documented = re.search(r"^hf (upload me/studio .*)$", (ROOT / "docs" / "hosting.md").read_text(), re.MULTILINE)
    assert documented
    files = exported(tmp_path / "studio-space")
    command = shlex.split(documented[1].replace("../studio-space", str(files)))
    with serving_hub(ID, "spaces") as hub:
        hub.visibility[ID] = "public"
        there = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_mine",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path),
        }
        run = subprocess.run(
            [sys.executable, "-m", "huggingface_hub.cli.hf", *command],
            env=os.environ | there, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        names = {file.relative_to(files).as_posix() for file in files.rglob("*") if file.is_file()}
        assert hub.files.keys() == names and not any(name.startswith("tests/") for name in names)
        assert all(hub.files[name] == (files / name).read_bytes() for name in names)
    front = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
    assert front["app_file"] in names and {"requirements.txt", "pre-requirements.txt"} <= names
    assert {f"docs/{name}.png" for name in ("chat", "classify", "finetune")} <= names
