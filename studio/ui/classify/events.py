"""Event listeners of the Classify tab, from component values to component updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.backend.classification.label_prompt import TEMPLATES
from studio.errors import StudioError
from studio.ui.classify import view
from studio.ui.classify.form import EXAMPLES, NAMES, NO_COLUMN, PRESETS, Form, read_form, template_name
from studio.ui.classify.handlers import ClassifyHandlers, FileShown, Shown, Taken
from studio.ui.common import browser
from studio.ui.common.picked_adapter import NONE, keep_listed
from studio.ui.common.shown_errors import shows_errors

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine


LEARNED = '<p class="hint">The labels of this classifier were set when it was trained.</p>'


class ClassifyEvents:
    """Event listeners of the Classify tab; each uses the owner and session of its request."""

    def __init__(self, engine: Engine) -> None:
        self.handlers = ClassifyHandlers(engine)

    def learned(self, request: gr.Request, by: str) -> str:
        """Return HTML that stands in place of the labels and template for a trained classifier, else ""."""
        return LEARNED if self.handlers.of(request).is_trained(by) else ""

    @shows_errors
    def start_from(self, number: Any) -> tuple[Any, ...]:
        if type(number) is not int or not 0 <= number < len(PRESETS):
            return gr.skip(), gr.skip()
        return PRESETS[number].labels, TEMPLATES[PRESETS[number].template]

    @shows_errors
    def choose_template(self, name: str) -> Any:
        return TEMPLATES.get(name, gr.skip())

    @shows_errors
    def arrange(self, request: gr.Request, by: str) -> tuple[Any, ...]:
        return self.learned(request, by), self.handlers.of(request).quality(by)

    @shows_errors
    def open_list(self, request: gr.Request, listed: list[tuple[str, str]]) -> Any:
        choices = keep_listed(self.handlers.of(request).choices(), listed)
        return (gr.skip(), gr.skip()) if choices == listed else (gr.update(choices=choices), choices)

    @shows_errors
    def take(self, request: gr.Request, file: str) -> list[Any]:
        return [*_file_controls(self.handlers.of(request).take(Path(file))), view.waiting(view.READY)]

    @shows_errors
    def open_page(self, request: gr.Request, stored: Any, result: Any) -> list[Any]:
        try:
            form = read_form(stored)
        except StudioError:
            form = Form()
        handlers = self.handlers.of(request)
        if asked := request.query_params.get("classifier"):
            form = replace(form, by=asked)
        choices = keep_listed(handlers.choices(), [])
        by = form.by if form.by in [identity for _, identity in choices] else NONE.id
        taken = handlers.taken(form)
        file = _file_controls(taken) if taken else ["", "", *[gr.skip()] * 5]
        earlier, hint = handlers.earlier(result), view.waiting(view.READY if taken else view.FILE_HINT)
        return [
            form.labels, form.template, template_name(form.template), form.calibrate, form.one_a_line,
            gr.update(choices=choices, value=by), choices, self.learned(request, by), handlers.quality(by), *file,
            earlier or hint,
        ]  # fmt: skip

    @shows_errors
    def classify(self, request: gr.Request, text: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        for now in self.handlers.of(request).classify(text, _form(values), browser.session(request)):
            yield _texts(now)

    @shows_errors
    def fill(self, request: gr.Request, number: Any) -> tuple[Any, ...]:
        """Fill in an example, which is then classified instead of what is being classified now."""
        self.handlers.of(request).stop(browser.session(request), discard=True)
        if type(number) is not int or not 0 <= number < len(EXAMPLES):
            raise StudioError("There is no such example. Reload the page.")
        example = EXAMPLES[number]
        return example.text, example.labels, TEMPLATES[example.template], False

    @shows_errors
    def stop(self, request: gr.Request) -> None:
        self.handlers.of(request).stop(browser.session(request))

    @shows_errors
    def idle(self, request: gr.Request) -> Any:
        return gr.update(interactive=self.handlers.of(request).is_busy(browser.session(request)))

    @shows_errors
    def classify_file(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        for now in self.handlers.of(request).classify_file(_form(values), browser.session(request)):
            yield _file(now)

    @shows_errors
    def cancel(self, request: gr.Request) -> None:
        self.handlers.of(request).stop_file(browser.session(request))

    @shows_errors
    def choose_column(self, request: gr.Request, *values: Any) -> Any:
        """Update the label columns, which exclude the text column. Keep any other choice, which may be newer."""
        form = _form(values)
        taken = self.handlers.of(request).taken(form)
        if taken is None:
            return gr.skip()
        choices = [NO_COLUMN, *taken.label_columns]
        return gr.update(choices=choices, value="") if form.true_column == form.column else gr.update(choices=choices)

    @shows_errors
    def choose_encoding(self, request: gr.Request, *values: Any) -> list[Any]:
        """Update the columns, whose names depend on the encoding."""
        form = _form(values)
        return _file_controls(self.handlers.of(request).decoded(form)) if form.upload else [gr.skip()] * 7

    @shows_errors
    def train(self, *values: Any) -> Any:
        return _form(values).training_data()


def _form(values: tuple[Any, ...]) -> Form:
    return read_form(dict(zip(NAMES, values, strict=True)))


def _file_controls(taken: Taken) -> list[Any]:
    """Return updates for the upload's id and name, its button, both columns, the encoding and the train button."""
    label = f"Text column of {taken.name}"
    column = gr.update(choices=taken.columns, value=taken.column, visible=True, label=label)
    button = gr.update(label="Upload another file")
    true_column = gr.update(choices=[NO_COLUMN, *taken.label_columns], value=taken.true_column, visible=True)
    encoding = gr.update(value=taken.encoding, visible=True)
    return [taken.upload, taken.name, button, column, true_column, encoding, gr.update(visible=True)]


def _texts(now: Shown) -> tuple[Any, ...]:
    return now.result, gr.skip() if now.routing is None else now.routing, gr.update(interactive=True)


def _file(now: FileShown) -> tuple[Any, ...]:
    told = (gr.skip() if each is None else each for each in (now.result, now.quality))
    return now.html, *told, gr.update(interactive=True)
