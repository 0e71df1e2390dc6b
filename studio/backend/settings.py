"""Settings as pydantic dataclasses: strict types and ranges, and one message with everything that is wrong.

@settings
class Sampling(Settings):
    top_k: int = Field(default=50, ge=0, le=100_000, description="Sample from this many of the most likely tokens.")

Sampling(top_k=-1)      # StudioError: Change these settings: top_k is -1: set a whole number from 0 to 100000, ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast, dataclass_transform, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs

from studio.errors import StudioError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def settings(cls: type[T]) -> type[T]:
    """Make a frozen pydantic dataclass that converts no types."""
    return cast(type[T], dataclass(frozen=True, config=STRICT)(cls))


def _storable(text: str) -> str:
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("a file can't hold NUL or lone surrogates")
    return text


Text = Annotated[str, AfterValidator(_storable)]
"""Text that a file can hold: without NUL and lone surrogates."""


NAMED = 10
"""Unknown settings that a message names; the search for similar names takes time."""


@settings
class Settings:
    """Base class of settings.

    Raises:
        StudioError: unknown settings, values of the wrong type or out of range, or conflicts; the message lists all.
    """

    @classmethod
    def conflicts(cls, values: Mapping[str, Any], wrong: set[str]) -> list[str]:
        """Return the remedies for values that are valid alone but conflict; `wrong` are the names of invalid ones."""
        return []

    @model_validator(mode="wrap")
    @classmethod
    def _collect(cls, data: ArgsKwargs, handler: Callable[[Any], Any]) -> Any:
        given = dict(zip(_fields(cls), data.args, strict=False)) | (data.kwargs or {})
        unknown = [name for name in given if name not in _fields(cls)]
        problems = [_unknown(cls, name) for name in unknown[:NAMED]]
        if len(unknown) > NAMED:
            problems.append(f"{len(unknown) - NAMED:,} more settings are unknown")
        wrong: dict[str, str] = {}
        made = None
        try:
            made = handler(ArgsKwargs((), {name: value for name, value in given.items() if name in _fields(cls)}))
        except ValidationError as error:
            for each in error.errors(include_url=False, include_context=False, include_input=False):
                name = str(each["loc"][0])
                wrong[name] = f"{name} is {_shown(given[name])}: set {_expected(_fields(cls)[name])}"
        problems += [wrong[name] for name in given if name in wrong]
        problems += cls.conflicts(defaults(cls) | given, set(wrong))
        if problems:
            raise StudioError("Change these settings: " + "; ".join(problems) + ".")
        return made


class Range(NamedTuple):
    """Numbers from `low` to `high`; `above` and `below` exclude the bound itself."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        if not (self.above or self.below):
            return f"from {self.low:g} to {self.high:.10g}"
        return (
            f"{'above' if self.above else 'from'} {self.low:g} and {'below' if self.below else 'at most'} {self.high:g}"
        )


def defaults(kind: type[Settings]) -> dict[str, Any]:
    return {name: field.get_default(call_default_factory=True) for name, field in _fields(kind).items()}


def field_help(kind: type[Settings]) -> dict[str, str]:
    return {name: field.description or "" for name, field in _fields(kind).items()}


def choices(kind: type[Settings]) -> dict[str, tuple[str, ...]]:
    """Return the values of each setting that has a fixed list of them."""
    return {
        name: get_args(field.annotation)
        for name, field in _fields(kind).items()
        if get_origin(field.annotation) is Literal
    }


def ranges(kind: type[Settings]) -> dict[str, Range]:
    """Return the range of each number."""
    found = {name: _range(field) for name, field in _fields(kind).items()}
    return {name: each for name, each in found.items() if each is not None}


def _fields(kind: type[Settings]) -> dict[str, FieldInfo]:
    return kind.__pydantic_fields__  # type: ignore[attr-defined]


def _range(field: FieldInfo) -> Range | None:
    bounds: dict[type, Any] = {type(each): each for each in field.metadata if isinstance(each, Ge | Gt | Le | Lt)}
    if not bounds:
        return None
    low = bounds[Gt].gt if Gt in bounds else bounds[Ge].ge
    high = bounds[Lt].lt if Lt in bounds else bounds[Le].le
    return Range(low, high, above=Gt in bounds, below=Lt in bounds)


def _expected(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "expected" in extra:
        return str(extra["expected"])
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(field.annotation)))
    if field.annotation is bool:
        return "true or false"
    if (found := _range(field)) is not None:
        kinds = {field.annotation, *get_args(field.annotation)}
        whole = "" if float in kinds else "whole "
        return f"a {whole}number {found}" + ("" if NoneType in kinds else f", such as {field.default:.10g}")
    longest = next((each.max_length for each in field.metadata if isinstance(each, MaxLen)), None)
    return "a text" if longest is None else f"a text of up to {longest} characters"


def _unknown(kind: type[Settings], name: object) -> str:
    close = get_close_matches(str(name)[:100], _fields(kind), n=1)
    return f"there is no setting {_shown(name)}" + (f", did you mean {close[0]}?" if close else "")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to format integers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
