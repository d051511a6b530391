"""pytest puts this folder on the path, so that the tests of several packages share the helpers beside this file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

WHOLE_RUNS = "trainer"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of whole runs first: one that a worker began last, the others would wait for."""
    items.sort(key=lambda item: WHOLE_RUNS not in item.path.parts)


# By module, so that no Ray is left in the process when tests of another folder start their own.
@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # A cluster of its own, also where somebody else has left one on this machine.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
