from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.rollout.seeds import SEED_BITS, request_seed


def test_seeds_are_the_same_in_every_process_and_version() -> None:
    """Frozen values: a change would make old runs irreproducible."""
    assert request_seed(0, 1, "train-7", "generate") == 122757948264529
    assert request_seed(0, 1, "train-7", "refine", 3) == 129433740489340


@given(st.integers(0), st.integers(0), st.text(), st.sampled_from(["generate", "refine"]), st.integers(0))
def test_seeds_leave_room_for_n_continuations(run_seed, step, prompt_id, stage, index) -> None:
    assert 0 <= request_seed(run_seed, step, prompt_id, stage, index) < 2**SEED_BITS


def test_every_part_of_the_key_counts() -> None:
    keys = [(0, 0, "1", "generate", 0), (1, 0, "1", "generate", 0), (0, 1, "1", "generate", 0)]
    keys += [(0, 0, "11", "generate", 0), (0, 0, "1", "refine", 0), (0, 0, "1", "refine", 1), (0, 11, "", "refine", 1)]
    assert len({request_seed(*key) for key in keys}) == len(keys)
