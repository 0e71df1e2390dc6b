"""The one error that people see."""


class StudioError(Exception):
    """Its message is shown to the person: one sentence that says what is wrong and what to do. All else is a bug."""
