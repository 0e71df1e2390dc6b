"""A new file in a folder is a new feature: tabs, routing views, data formats and recipes are found, never listed.

from studio.registry import discover
for tab in discover("studio.ui.tabs", "TAB"):
    tab.build(engine, jobs, tab.keep())
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def discover(package: str, name: str) -> list[Any]:
    """What every module of `package` registers under `name`, by its `order`.

    Raises:
        AttributeError: a module of the package does not define `name`.
    """
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    found = [getattr(importlib.import_module(f"{package}.{module.name}"), name) for module in modules]
    return sorted(found, key=lambda feature: feature.order)
