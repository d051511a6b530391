"""pytest puts this folder on the path, so that the tests of several packages share the helpers beside this file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_cgrpo.launch.cluster import ray_cluster

WHOLE_RUNS = "trainer"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of whole runs first: one that a worker began last, the others would wait for."""
    items.sort(key=lambda item: WHOLE_RUNS not in item.path.parts)


# By module, so that no Ray is left in the process when tests of another folder start their own.
@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)  # a cluster of its own, whatever else there is on this machine
        with ray_cluster(4):
            yield
