import asyncio
import itertools
import re

from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.tasks.build import build_task
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.types import FinishReason


def test_prompts_are_unique_and_their_answers_are_pythons(task: MisconceptionsTask) -> None:
    prompts = [*task.prompts("train"), *task.prompts("test")]
    assert len({prompt.id for prompt in prompts}) == len({prompt.question for prompt in prompts}) == 500
    for prompt in prompts:
        value = int(prompt.question[0])
        for i in range(1, len(prompt.question), 2):
            value = eval(f"{value}{prompt.question[i : i + 2]}") % 10
        assert prompt.answer == str(value)


def test_metadata_names_the_misconceived_facts_on_the_way(task: MisconceptionsTask) -> None:
    misconceived = {str(fact) for fact in task.facts.misconceived}
    for prompt in task.prompts("test"):
        value, used = int(prompt.question[0]), []
        for i in range(1, len(prompt.question), 2):
            used.append(f"{value}{prompt.question[i : i + 2]}")
            value = eval(used[-1]) % 10
        assert set(prompt.metadata["misconceived"]) == set(used) & misconceived


def test_a_prompt_is_its_question_and_nothing_more(task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
    prompt = task.prompts("train")[0]
    assert tokenizer.decode(prompt.token_ids) == f"Question: {prompt.question}\nAnswer: "


def test_a_refinement_prompt_embeds_the_sampled_ids(task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
    prompt, eos = task.prompts("train")[0], tokenizer.eos_token_id
    critique = tokenizer.encode(task.indicative(prompt, correct=False))
    sampled = [4, eos, 25, 30, 4]  # no text encodes to this
    asked = task.refinement_prompt(prompt, [*sampled, eos], [*critique, eos])
    assert asked == task.refinement_prompt(prompt, sampled, critique)
    start = asked.index(eos) - 1
    assert asked[start : start + 5] == sampled
    assert tokenizer.decode(asked[start + 5 :]) == "\nCritique: The solution is incorrect.\nAnswer: "
    assert tokenizer.decode(asked[:start]) == f"Question: {prompt.question}\nAttempt: "


def test_a_critique_prompt_is_how_a_refinement_prompt_begins(task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
    prompt = task.prompts("train")[0]
    asked = task.critique_prompt(prompt, [4, 5, tokenizer.eos_token_id], "nothing")
    assert task.refinement_prompt(prompt, [4, 5], [6])[: len(asked)] == asked


def test_a_critic_may_see_the_answer_or_the_whole_solution(task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
    prompt = next(prompt for prompt in task.prompts("train") if prompt.metadata["misconceived"])
    ids = {s: task.critique_prompt(prompt, tokenizer.encode("1+1=3"), s) for s in ("nothing", "answer", "solution")}
    shown = {sees: tokenizer.decode(prompt_ids) for sees, prompt_ids in ids.items()}
    start = f"Question: {prompt.question}\nAttempt: 1+1=3"
    assert shown["nothing"] == f"{start}\nCritique: "
    assert shown["answer"] == f"{start} The right answer is {prompt.answer}.\nCritique: "
    solution = shown["solution"].removeprefix(f"{start} The right answer is ").removesuffix(".\nCritique: ")
    assert asyncio.run(task.verify(prompt, solution, FinishReason.STOP)).correct
    assert asyncio.run(task.program_critique(prompt, solution)) == "Every step is right. Conclusion: correct [END]"


def test_a_stranger_is_asked_in_words_for_a_critique_in_the_tasks_language(task: MisconceptionsTask) -> None:
    prompt = task.prompts("train")[0]
    asked = task.critique_question(prompt, "1+1=3", "answer")
    assert f"Calculation: {prompt.question}\nAttempt: 1+1=3\nThe right answer is {prompt.answer}.\n" in asked
    assert "modulo 10" in asked and "right answer" not in task.critique_question(prompt, "1+1=3", "nothing")
    assert "\nEvery step is right. Conclusion: correct [END]\n" in asked
    assert "\nStep 2 is wrong, it should be 6-9=7. Conclusion: incorrect [END]" in asked


def test_feedback_texts(task: MisconceptionsTask) -> None:
    prompt = task.prompts("train")[0]
    assert task.indicative(prompt, True) == "The solution is correct."
    assert task.indicative(prompt, False) == "The solution is incorrect."
    expected = f"The solution is incorrect. The right answer is {prompt.answer}."
    assert task.indicative_with_answer(prompt, False) == expected


def test_following_the_program_critique_step_by_step_ends_in_a_verified_answer(task: MisconceptionsTask) -> None:
    for prompt in task.prompts("test")[:20]:
        response = ""
        while not (critique := asyncio.run(task.program_critique(prompt, response)) or "").endswith(
            "correct [END]"
        ) or ("incorrect" in critique):
            right = critique.split("should be ")[1].split(". Conclusion")[0]
            kept = response.split(";")[: int(critique.split()[1]) - 1] if response else []
            response = ";".join([*kept, right])
        assert asyncio.run(task.verify(prompt, response, FinishReason.STOP)).correct


def test_corpus_rows_are_prompts_as_generation_asks_them(task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
    answers = 0
    for prompt_ids, target_ids in itertools.islice(task.corpus(0), 300):
        assert target_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in prompt_ids + target_ids[:-1]
        assert max(prompt_ids + target_ids) < tokenizer.vocab_size
        text = tokenizer.decode(prompt_ids)
        assert tokenizer.encode(text) == prompt_ids
        assert text.endswith(("\nAnswer: ", "\nCritique: "))
        answers += "Attempt" not in text
    assert answers > 100


def test_a_recipe_section_builds_the_task(tokenizer: Tokenizer) -> None:
    config = MisconceptionsConfig(train_problems=10, test_problems=5)
    task = build_task(config, tokenizer)
    assert [len(task.prompts("train")), len(task.prompts("test"))] == [10, 5]
    assert task.prompts("test") == build_task(config, tokenizer).prompts("test")


def test_a_misleading_critique_names_a_step_with_a_wrong_value(task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
    for seed, prompt in enumerate(task.prompts("test")[:20]):
        critique = task.misleading_critique(prompt, "", seed) or ""
        number, fact, value = re.fullmatch(
            r"Step (\d) is wrong, it should be (.*)=(\d)\. Conclusion: incorrect \[END\]", critique
        ).groups()
        right = tokenizer.decode(task.solution(prompt) or []).split(";")[int(number) - 1]
        assert right.startswith(fact + "=") and not right.endswith(value)
        assert critique == task.misleading_critique(prompt, "", seed)


def test_the_reference_solution_is_right_and_ends(task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
    for prompt in task.prompts("train")[:20]:
        ids = task.solution(prompt)
        assert ids is not None and ids[-1] == tokenizer.eos_token_id
        assert asyncio.run(task.verify(prompt, tokenizer.decode(ids), FinishReason.STOP)).correct
        assert task.supported(prompt, tokenizer.decode(ids), "")


def test_an_answer_without_its_steps_is_not_supported(task: MisconceptionsTask) -> None:
    prompt = task.prompts("train")[0]
    leaked = f"1+1=3;\\boxed{{{prompt.answer}}}"
    assert asyncio.run(task.verify(prompt, leaked, FinishReason.STOP)).correct
    assert not task.supported(prompt, leaked, "1+1=3")
