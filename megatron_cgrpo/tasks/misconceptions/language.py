"""The texts around problems and solutions. Each phrase is one token, so that sequences stay short."""

from __future__ import annotations

from megatron_cgrpo.tasks.misconceptions import critic

QUESTION = "Question: "
ATTEMPT = "\nAttempt: "
CRITIQUE = "\nCritique: "
ANSWER = "\nAnswer: "

RIGHT = "The solution is correct."
WRONG = "The solution is incorrect."
RIGHT_ANSWER = " The right answer is "
PERIOD = "."

PHRASES = (
    "\\boxed{",
    QUESTION,
    ATTEMPT,
    CRITIQUE,
    ANSWER,
    RIGHT,
    WRONG,
    RIGHT_ANSWER,
    critic.STEP,
    critic.SHOULD_BE,
    critic.INCORRECT,
    critic.CORRECT,
)


def indicative(correct: bool) -> str:
    return RIGHT if correct else WRONG


def indicative_with_answer(correct: bool, answer: str) -> str:
    return indicative(correct) + right_answer(answer)


def right_answer(answer: str) -> str:
    """``answer`` is the final one, or a whole solution."""
    return RIGHT_ANSWER + answer + PERIOD
