import pytest

from megatron_cgrpo.rollout.weight_names import IncompleteWeights, check_complete

EXPECTED = {"model.norm.weight", "model.embed_tokens.weight"}


def test_a_complete_update_passes_with_or_without_the_tied_head() -> None:
    check_complete(EXPECTED, set(EXPECTED))
    check_complete(EXPECTED, EXPECTED | {"lm_head.weight"})


def test_an_untied_head_is_needed() -> None:
    with pytest.raises(IncompleteWeights, match=r"missing lm_head\.weight"):
        check_complete(EXPECTED | {"lm_head.weight"}, EXPECTED)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(IncompleteWeights, match=r"missing model\.norm\.weight; unknown model\.typo\.weight"):
        check_complete(EXPECTED, {"model.embed_tokens.weight", "model.typo.weight"})
