"""The answer domains by name. Each module is loaded when its domain is first asked for."""

from __future__ import annotations

from typing import get_args

from megatron_cgrpo.config.errors import ConfigError, RunError
from megatron_cgrpo.config.task import Domain
from megatron_cgrpo.rewards.verifier import Verifier


def make_verifier(domain: str, *, workers: int = 2, allow_weak_sandbox: bool = False) -> Verifier:
    """The domain's verifier; close it when done. ``workers`` is how many answers or programs are checked at once.

    Raises ``ConfigError`` for an unknown domain, ``ImportError`` where math-verify is missing, and
    ``RunError`` where code cannot be confined and ``allow_weak_sandbox`` is off.
    """
    if domain == "math":
        from megatron_cgrpo.rewards.math_answer import MathVerifier

        return MathVerifier(workers)
    if domain == "choice":
        from megatron_cgrpo.rewards.choice import ChoiceVerifier

        return ChoiceVerifier()
    if domain == "exact":
        from megatron_cgrpo.rewards.exact import ExactVerifier

        return ExactVerifier()
    if domain == "code":
        from megatron_cgrpo.rewards.program import CodeVerifier
        from megatron_cgrpo.rewards.sandbox import SandboxUnavailable

        try:
            return CodeVerifier(workers, allow_weak=allow_weak_sandbox)
        except SandboxUnavailable as error:
            raise RunError(str(error)) from error
    raise ConfigError(f"domain={domain} is unknown: use one of {', '.join(get_args(Domain))}")
