"""The viewer over HTTP: who may ask, what is answered, and what is refused."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
from run_with_rollouts import write_metrics, write_run
from typer.testing import CliRunner

from megatron_cgrpo.cli import app
from megatron_cgrpo.viewer.server import open_viewer

PAGE = Path(__file__).parents[2] / "megatron_cgrpo/viewer/page"


@contextmanager
def served(run: Path) -> Iterator[str]:
    with open_viewer(run, 0) as viewer:
        thread = Thread(target=viewer.serve)
        thread.start()
        try:
            yield viewer.url
        finally:
            viewer.stop()
            thread.join()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(write_run(tmp_path_factory.mktemp("run"))) as address:
        yield address


def get(url: str, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def test_every_file_of_the_page_is_served_and_may_load_nothing_else(url: str) -> None:
    for path in ["", *(path.name for path in PAGE.iterdir() if path.name != "index.html")]:
        response, content = get(url, f"/{path}")
        assert response.status == 200 and content == (PAGE / (path or "index.html")).read_bytes()
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_answers_are_json(url: str) -> None:
    response, content = get(url, "/api/step?step=2&show=failed&q=sum+is")
    assert (response.status, response.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert [group["id"] for group in json.loads(content)["groups"]] == ["hard-2"]
    assert json.loads(get(url, "/api/group?step=2&line=1")[1])["group"]["id"] == "hard-2"
    assert json.loads(get(url, "/api/diff?step=2&line=1&refinement=0")[1])[0] == ["same", "So 2 + 2 = "]
    assert json.loads(get(url, "/api/steps")[1])["total"] == 3
    assert json.loads(get(url, "/api/timeline?step=2")[1])["length"] == 10_000_000


def test_the_timeline_can_be_taken_along(url: str) -> None:
    response, content = get(url, "/timeline.json.gz?step=2")
    assert "step_000002.json.gz" in response.headers["Content-Disposition"]
    assert json.loads(gzip.decompress(content))["otherData"]["end"] == 10_000_000


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/step?step=99", 404, "step 99 has no rollouts"),
        ("/api/group?step=2&line=7", 404, "none on line 7"),
        ("/api/timeline?step=99", 404, "observe.trace=true"),
        ("/api/step?step=-1", 400, "step=-1: is no natural number"),
        ("/api/step", 400, "step=: is no natural number"),
        ("/api/step?step=2&show=x", 400, "show=x"),
        ("/api/step?step=%00", 400, "is no natural number"),
        ("/../server.py", 404, "there is no such page"),
        ("/api/../../etc/passwd", 404, "there is no such page"),
        ("/page/%2e%2e/server.py", 404, "there is no such page"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(url: str, path: str, status: int, said: str) -> None:
    response, content = get(url, path)
    assert response.status == status and said in json.loads(content)["error"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:1", ""])
def test_other_sites_that_lead_here_are_refused(url: str, host: str) -> None:
    response, content = get(url, "/api/step?step=2", Host=host)
    assert response.status == 403 and b"hard-2" not in content


def test_it_listens_to_this_machine_only(url: str) -> None:
    port = urlsplit(url).port
    assert port is not None and urlsplit(url).hostname == "127.0.0.1"
    # A server on every device would take this address too.
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


def test_a_damaged_timeline_is_said_and_the_server_goes_on(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "trace" / "step_000002.json.gz").write_bytes(b"half")
    (run / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with served(run) as url:
        response, content = get(url, "/api/timeline?step=2")
        assert response.status == 400 and "step_000002.json.gz" in json.loads(content)["error"]
        response, content = get(url, "/api/steps")
        assert response.status == 400 and "line 1" in json.loads(content)["error"]
        assert get(url, "/api/step?step=2")[0].status == 200


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    write_metrics(tmp_path, 1, 0.5)
    write_metrics(tmp_path, 2, math.nan)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    with served(tmp_path) as url:
        answer = json.loads(get(url, "/api/steps")[1], parse_constant=refuse)
    assert [row["metrics"]["reward.initial"] for row in answer["steps"]] == [None, 0.5]
    assert answer["curves"]["reward.initial"] == [[1, 0.5]]


def test_a_browser_that_goes_away_disturbs_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(write_run(tmp_path)) as url:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as impatient:
                impatient.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets
                impatient.sendall(b"GET /api/step?step=2 HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert get(url, "/api/step?step=2")[0].status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_the_command_refuses_what_is_no_run_and_a_port_that_is_taken(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["view", str(tmp_path / "nowhere")])
    assert result.exit_code == 2 and "no such directory" in result.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["view", str(tmp_path), "--port", str(port), "--no-browser"])
    assert result.exit_code == 2 and f"--port {port}" in result.stderr and "name another" in result.stderr


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megatron_cgrpo", "view", str(write_run(tmp_path)), "--no-browser"]
    environment = os.environ | {"PYTHONPATH": str(PAGE.parents[2])}
    # Whoever runs the tests in the background may ignore Ctrl-C, and hands that on.
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=listens) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = next(word for word in line.split() if word.startswith("http"))
            assert get(address, "/api/steps")[0].status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
