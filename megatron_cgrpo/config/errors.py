"""What a refused configuration raises, and what a run raises that cannot go on."""

from collections.abc import Sequence


class ConfigError(Exception):
    """A recipe, override or path that cannot run. ``problems`` has one sentence each: field, value, remedy."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class RunError(RuntimeError):
    """Something outside the program ended the run; the message says what, and what to do."""


class CheckpointNotWritten(RunError):
    """The disk did not take a checkpoint. Training can go on without."""
