"""Where the studio keeps models, downloads and runs: `$STUDIO_HOME`, else the platform's user data folder."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path


def home() -> Path:
    configured = os.environ.get("STUDIO_HOME")
    return Path(configured).expanduser() if configured else user_data_path("jetmoe-studio", appauthor=False)
