"""Times the start of one engine of a recipe, until it answers; imports and Ray's own start are not in it.

python -m benchmark.rollouts.engine_start RECIPE OUT
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.launch.cluster import ray_cluster
from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.engine_spec import engine_spec
from megatron_cgrpo.rollout.ray_engine import start_engines


def main() -> None:
    recipe, out = load_recipe(Path(sys.argv[1]), []), Path(sys.argv[2])
    assert recipe.model.path is not None  # a setting's recipe names its model
    spec = engine_spec(recipe, recipe.model.path, cuda=False)
    places = anywhere(1, spec.tensor_parallel, gpu=False)
    with ray_cluster(1):
        started = time.perf_counter()
        pool = start_engines(spec, places)
        seconds = time.perf_counter() - started
        asyncio.run(pool.shutdown())
    out.write_text(f"{seconds}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
