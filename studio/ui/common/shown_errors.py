"""Conversion of exceptions to the messages that users see."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.ui.server import request_ids

logger = logging.getLogger(__name__)


def shows_errors(handler: Callable[..., Any], written: Callable[[str], str] = escape) -> Callable[..., Any]:
    """Wrap a handler to show the text of a StudioError, and to log any other exception and show its error number.

    Args:
        written: what the text becomes where it is shown; the page inserts it as HTML.
    """

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _translated(written):
            return handler(*args, **kwargs)

    @functools.wraps(handler)
    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with _translated(written):
            yield from handler(*args, **kwargs)

    return stream if inspect.isgeneratorfunction(handler) else call


@contextmanager
def _translated(written: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except StudioError as error:
        logger.info("request %s was refused: %.300r", request_ids.current(), str(error))
        raise gr.Error(written(str(error)), title="Error", print_exception=False, duration=20) from error
    except gr.Error:
        raise
    except Exception as error:
        number = request_ids.current()
        logger.exception("request %s failed in a handler", number)
        raise gr.Error(request_ids.sentence(number), title="Internal error", print_exception=False) from error
