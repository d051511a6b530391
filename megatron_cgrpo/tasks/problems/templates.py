"""The texts that ask for an answer, a critique and a refinement: Jinja2 templates, ours or a recipe's."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import NoReturn

from jinja2 import FunctionLoader, StrictUndefined, TemplateNotFound, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import Domain, TemplatesConfig

VARIABLES = {
    "answer": ("question",),
    "critique": ("question", "response", "sees", "answer", "solution"),
    "refinement": ("question", "response", "critique"),
}
"""What each template may use. ``answer`` and ``solution`` are there only where ``sees`` names them."""

_SHOWN = {
    "answer": ("question",),
    "critique": ("question", "response"),
    "refinement": ("question", "response", "critique"),
}
_OURS = Path(__file__).parents[1] / "prompts"


class Templates:
    """One template a purpose: the recipe's where it names a file, else the domain's.

    They run sandboxed, and a name that they are not given is an error, not an empty text. Files of a recipe may extend
    ours. Raises ``ConfigError`` naming file and line for a template that cannot be read, is not valid, or uses a
    variable that it does not get, or that never shows what its prompt is about.
    """

    def __init__(self, domain: Domain, files: TemplatesConfig) -> None:
        named = {"answer": files.answer, "critique": files.critique, "refinement": files.refinement}
        self._paths = {purpose: _OURS / domain / f"{purpose}.jinja" for purpose in VARIABLES}
        self._paths |= {purpose: path.absolute() for purpose, path in named.items() if path is not None}
        self._environment = ImmutableSandboxedEnvironment(
            loader=FunctionLoader(_load),
            undefined=StrictUndefined,
        )
        for purpose in VARIABLES:
            self._check(purpose)

    def render(self, purpose: str, **values: str) -> str:
        """The text, less the white space around it. Raises ``ConfigError`` naming file and line."""
        path = self._paths[purpose]
        try:
            return self._environment.get_template(str(path)).render(values).strip()
        except Exception as error:  # a template can divide by zero as well as name what is not there
            _refuse(purpose, path, _line(error, path), str(error), error)

    def _check(self, purpose: str) -> None:
        """Looks for unknown names on every branch, taken or not, and for what the prompt is about in its text."""
        path = self._paths[purpose]
        tree = self._parsed(purpose, path)
        unknown = meta.find_undeclared_variables(tree) - {*VARIABLES[purpose], *self._environment.globals}
        for name in tree.find_all(nodes.Name):
            if name.name in unknown:
                known = ", ".join(VARIABLES[purpose])
                _refuse(purpose, path, name.lineno, f"{name.name!r} is unknown; it can use {known}", None)
        marks = {name: f"[[{number}]]" for number, name in enumerate(VARIABLES[purpose])}
        text = self.render(purpose, **marks)
        for shown in _SHOWN[purpose]:
            if marks[shown] not in text:
                _refuse(purpose, path, None, f"never shows the {shown}: write {{{{ {shown} }}}} where it goes", None)

    def _parsed(self, purpose: str, path: Path) -> nodes.Template:
        try:
            self._environment.get_template(str(path))
            return self._environment.parse(path.read_text(encoding="utf-8"))
        except TemplateSyntaxError as error:
            _refuse(purpose, Path(error.filename or path), error.lineno, str(error.message), error)
        except TemplateNotFound as error:
            _refuse(purpose, path, None, "there is no such file: name a Jinja2 template", error)
        except (OSError, UnicodeDecodeError) as error:
            _refuse(purpose, path, None, f"cannot be read as UTF-8 text ({error})", error)


def _load(name: str) -> tuple[str, str, None]:
    """By absolute path, or of ours by its name: what a template extends or includes."""
    path = _OURS / name
    if not path.is_file():
        raise TemplateNotFound(name)
    return path.read_text(encoding="utf-8"), str(path), None


def _refuse(purpose: str, path: Path, line: int | None, problem: str, cause: Exception | None) -> NoReturn:
    where = f"{path}" if line is None else f"{path}, line {line}"
    raise ConfigError(f"task.templates.{purpose}: {where}: {problem}") from cause


def _line(error: Exception, path: Path) -> int | None:
    """Jinja2 maps the frames of a template's code to the lines of its file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
