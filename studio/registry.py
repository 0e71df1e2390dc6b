"""Discover features in folders: a new file adds a tab, a routing view or a data format, without a list to maintain.

from studio.registry import discover
for tab in discover("studio.ui", "TAB", module="tab"):
    tab.build(engine, jobs, tab.keep())
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any


def discover(package: str, name: str, module: str | None = None) -> list[Any]:
    """Return what the modules of `package` register under `name`, sorted by their `order`.

    Args:
        module: look into this module of each subpackage that has it, instead of the modules of `package`.

    Raises:
        AttributeError: a module does not define `name`.
    """
    folder = importlib.import_module(package)
    modules = [f"{package}.{found.name}" for found in pkgutil.iter_modules(folder.__path__)]
    if module:
        modules = [f"{each}.{module}" for each in modules if importlib.util.find_spec(f"{each}.{module}")]
    return sorted((getattr(importlib.import_module(each), name) for each in modules), key=lambda each: each.order)
