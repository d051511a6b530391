"""A recipe's own templates, and what is refused of them."""

from pathlib import Path

import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import Domain, TemplatesConfig
from megatron_cgrpo.tasks.problems.templates import Templates


def own(tmp_path: Path, purpose: str, text: str) -> Templates:
    file = tmp_path / f"{purpose}.txt"
    file.write_text(text)
    return Templates("math", TemplatesConfig.model_validate({purpose: file}))


@pytest.mark.parametrize("domain", ["math", "choice", "exact", "code"])
def test_every_domain_has_its_three(domain: Domain) -> None:
    templates = Templates(domain, TemplatesConfig())
    assert templates.render("answer", question="Q?").startswith("Q?\nPlease ")
    refinement = templates.render("refinement", question="Q?", response="R", critique="C")
    assert refinement.startswith("Q?\n\nAn earlier solution:\nR\n\nFeedback on it:\nC\n\nSolve the problem again") or (
        domain == "choice" and "C\n\nAnswer the question again" in refinement
    )
    critique = templates.render("critique", question="Q?", response="R", sees="nothing")
    assert "A proposed solution:\nR\n\n" in critique
    assert all(f"`Conclusion: {verdict} [END]`" in critique for verdict in ("correct", "incorrect"))
    assert templates.render("critique", question="Q", response="R", sees="answer", answer="4") != critique


def test_a_file_replaces_one_and_may_extend_ours(tmp_path: Path) -> None:
    templates = own(tmp_path, "answer", "\nSolve {{ question | upper }}!\n")
    assert templates.render("answer", question="Q [[question]]") == "Solve Q [[QUESTION]]!"
    extended = '{% extends "base_refinement.jinja" %}{% block task %}Once more.{% endblock %}'
    refinement = own(tmp_path, "refinement", extended).render("refinement", question="Q", response="R", critique="C")
    assert refinement == "Q\n\nAn earlier solution:\nR\n\nFeedback on it:\nC\n\nOnce more."


@pytest.mark.parametrize(
    ("purpose", "text", "message"),
    [
        ("answer", "one\n{{ question }}\n{{ critique }}", r"answer.txt, line 3: 'critique' is unknown; .* question$"),
        ("answer", "{{ question }}\n{% if false %}{{ respnse }}{% endif %}", "line 2: 'respnse' is unknown"),
        ("answer", "one\n{% if %}", "answer.txt, line 2: Expected an expression"),
        ("answer", "one\ntwo {{ question | nothing }}", "line 2: No filter named 'nothing'"),
        ("answer", "Solve it.", r"never shows the question: write \{\{ question \}\}"),
        ("critique", "{{ question }}", "never shows the response"),
        ("refinement", "{{ question }} {{ response }}", "never shows the critique"),
        ("answer", "one\n{{ question.__class__.__mro__ }}{{ question }}", "line 2: access to attribute '__class__'"),
        ("answer", "{{ question }}\n{{ 1 / 0 }}", "line 2: division by zero"),
        ("refinement", '{% extends "none.jinja" %}', "none.jinja"),
    ],
)
def test_what_is_wrong_is_refused_by_file_and_line(tmp_path: Path, purpose: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        own(tmp_path, purpose, text)
    assert f"task.templates.{purpose}: {tmp_path / purpose}.txt" in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task.templates.critique: .*none.jinja: there is no such file"):
        Templates("math", TemplatesConfig(critique=tmp_path / "none.jinja"))


def test_what_a_critic_may_not_see_cannot_be_used(tmp_path: Path) -> None:
    templates = own(tmp_path, "critique", "{{ question }}\n{{ response }}\n{{ answer }}")
    assert templates.render("critique", question="Q", response="R", sees="answer", answer="4") == "Q\nR\n4"
    with pytest.raises(ConfigError, match="critique.txt, line 3: 'answer' is undefined"):
        templates.render("critique", question="Q", response="R", sees="nothing")
