"""Several LoRA adapters on one model, at most one of them active."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import peft
from safetensors.torch import load_file

from jetmoe.adapters.files import HEAD, WEIGHTS, check_weights, factor_names, quiet_peft, read_config, widened_config
from jetmoe.adapters.wrappers import unwrap, wrappers
from jetmoe.low_rank import AdapterError, pack, unpack


class Adapters:
    """The adapters of one model. At most one is active, and switching loads no files."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._adapted: peft.PeftModel | None = None
        # PEFT uses adapter names as module names. These generated names are always valid there.
        self._modules: dict[str, str] = {}
        self._fresh = (f"adapter_{i}" for i in count())
        self.used: str | None = None
        self.classifiers: set[str] = set()
        """Names of the adapters with a classification head."""

    @property
    def names(self) -> list[str]:
        return list(self._modules)

    def load(self, folder: Path | str, name: str) -> None:
        """Load an adapter without activating it; replace one of the same name.

        A classification head is not loaded; use `read_head` for it.

        Raises:
            AdapterError: the files are not an adapter of this model, or a setting is not supported.
        """
        config = read_config(folder, with_head=True)
        factors = check_weights(folder, config, self._model)  # before tensors of the stored sizes are created
        stored, module = load_file(Path(folder) / WEIGHTS), next(self._fresh)
        wide = widened_config(config, self._model.config.family)
        with quiet_peft():
            if self._adapted is None:
                self._adapted = peft.PeftModel(self._model, wide, adapter_name=module)
            else:
                self._adapted.add_adapter(module, wide)
        names = factor_names(self._adapted)
        weights = {names[factor]: stored[name] for factor, name in factors.items()}
        peft.set_peft_model_state_dict(self._adapted, weights, adapter_name=module)
        if name in self.names:
            self.remove(name)
        self._modules[name] = module
        if HEAD in stored:
            self.classifiers.add(name)
        self.use(self.used)

    def use(self, name: str | None) -> None:
        """Activate an adapter; None activates the base model alone.

        Raises:
            AdapterError: the adapter is not loaded.
        """
        module = None if name is None else self._module(name)
        for _, wrapper in wrappers(self._model):
            wrapper.set_adapter([] if module is None else module)
        self._model.requires_grad_(False)
        unpack(self._model)
        if module is not None:
            pack(self._model, module)
        self.used = name

    def remove(self, name: str) -> None:
        """Remove an adapter and free its memory.

        Raises:
            AdapterError: the adapter is not loaded.
        """
        module = self._module(name)
        self.used = None if self.used == name else self.used
        del self._modules[name]
        self.classifiers.discard(name)
        self._delete(module)

    def _module(self, name: str) -> str:
        if name not in self.names:
            raise AdapterError(f"The adapter {name!r} is not loaded; load it first.")
        return self._modules[name]

    def _delete(self, module: str) -> None:
        assert self._adapted is not None
        self.use(self.used)  # PEFT activates another adapter when the active one is deleted
        if len(self._adapted.peft_config) > 1:
            self._adapted.delete_adapter(module)
        else:
            unwrap(self._model)
            self._adapted = None
