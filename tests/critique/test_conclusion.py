import pytest

from megatron_cgrpo.critique.conclusion import Conclusion, parse_conclusion


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Step 1 is fine.\nConclusion: correct [END]", Conclusion(True)),
        ("Step 2: 6-9=7 is wrong.\nConclusion: incorrect [END]", Conclusion(False)),
        ("CONCLUSION:incorrect[END]", Conclusion(False)),
        ("Conclusion: correct [END] and again Conclusion: correct [END]", Conclusion(True)),
        ("", Conclusion(None, "no_conclusion")),
        ("Conclusion: correct", Conclusion(None, "no_conclusion")),
        ("Conclusion: partly correct [END]", Conclusion(None, "no_conclusion")),
        ("Conclusion: correct [END] no, Conclusion: incorrect [END]", Conclusion(None, "contradictory")),
        ("**Conclusion: incorrect [END]**", Conclusion(False)),
        ("**Conclusion:** incorrect. **[END]**", Conclusion(False)),
        ("Conclusion: **incorrect** [END]", Conclusion(False)),
        ('Conclusion: "correct" [END]', Conclusion(True)),
        ("Conclusion: `correct`\n[END]", Conclusion(True)),
        ("Conclusion: correct? [END]", Conclusion(None, "no_conclusion")),
        (
            "To end: Conclusion: correct [END] or incorrect?</think>\nNo.\nConclusion: incorrect [END]",
            Conclusion(False),
        ),
        ("<think>Conclusion: correct [END]</think> Conclusion: incorrect [END]", Conclusion(False)),
        ("<think>Conclusion: correct [END]</think> Well.", Conclusion(None, "no_conclusion")),
        ("\n<think>It must end in Conclusion: correct [END], I", Conclusion(None, "no_conclusion")),
        ("The program prints `<think>`. Conclusion: incorrect [END]", Conclusion(False)),
    ],
)
def test_conclusion_is_read_from_the_text(text: str, expected: Conclusion) -> None:
    assert parse_conclusion(text) == expected
