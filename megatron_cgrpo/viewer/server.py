"""The page and its data over HTTP, for browsers of this machine."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from megatron_cgrpo.observe.trace_files import compressed_timeline
from megatron_cgrpo.viewer.groups import Wanted
from megatron_cgrpo.viewer.run_view import NotThere, RunView

logger = logging.getLogger(__name__)
_HOST = "127.0.0.1"
_PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript")
        for name in ("app", "dom", "steps", "groups", "group", "timeline", "keys")
    },
}
_HEADERS = {
    # Nothing but the page's own files: what a response contains is text, whatever it looks like.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PAGE_LIMIT = 200
Query = dict[str, str]


class Viewer:
    """Serves one run on a port of the loopback device."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.url = f"http://{_HOST}:{server.server_address[1]}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.server_close()

    def serve(self) -> None:
        """Answers requests until SIGINT or ``stop``; each in a thread of its own."""
        try:
            self._server.serve_forever()
        except KeyboardInterrupt:
            logger.debug("ended by SIGINT")

    def stop(self) -> None:
        """From another thread."""
        self._server.shutdown()


def open_viewer(run: Path, port: int) -> Viewer:
    """Port 0 is any that is free. Raises OSError where the port is taken."""
    return Viewer(_Server((_HOST, port), partial(_Handler, RunView(run))))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that did not wait for its answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    def __init__(self, run: RunView, *arguments: Any) -> None:
        self._run = run
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if not self._for_this_server():
            self._send(HTTPStatus.FORBIDDEN, b"this server answers to its own address only", "text/plain")
            return
        address = urlsplit(self.path)
        if address.path in _PAGE:
            name, kind = _PAGE[address.path]
            self._send(HTTPStatus.OK, files("megatron_cgrpo.viewer").joinpath("page", name).read_bytes(), kind)
            return
        try:
            content, kind, headers = self._answer(address.path, dict(parse_qsl(address.query)))
        except NotThere as error:
            self._complain(HTTPStatus.NOT_FOUND, str(error))
        except (ValueError, KeyError, OSError) as error:
            self._complain(HTTPStatus.BAD_REQUEST, f"{type(error).__name__}: {error}")
        else:
            self._send(HTTPStatus.OK, content, kind, headers)

    def _for_this_server(self) -> bool:
        """A name of another site that leads here is a foreign page that wants to read the run."""
        host = self.headers.get("Host", "").partition(":")[0]
        return host in (_HOST, "localhost")

    def _answer(self, path: str, query: Query) -> tuple[bytes, str, dict[str, str]]:
        """Content, its kind, and headers of its own."""
        if path == "/timeline.json.gz":
            step = _number(query, "step")
            content = compressed_timeline(self._run.timeline_of(step))
            name = f"attachment; filename=step_{step:06d}.json.gz"
            return content, "application/gzip", {"Content-Disposition": name}
        if path not in _ANSWERS:
            raise NotThere(f"{path}: there is no such page")
        return _json(_ANSWERS[path](self._run, query)), "application/json", {}

    def _complain(self, status: HTTPStatus, sentence: str) -> None:
        self._send(status, _json({"error": sentence}), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        about = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        for name, value in (about | _HEADERS | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _json(content: Any) -> bytes:
    """A number that is not finite becomes null: JSON has none, though Python writes and reads it."""
    try:
        return json.dumps(content, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(content)).encode()


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _number(query: Query, name: str, default: int | None = None) -> int:
    """Raises ValueError where it is missing or no natural number."""
    text = query.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ValueError(f"{name}={text}: is no natural number")
    return int(text)


def _page(query: Query) -> tuple[int, int]:
    return _number(query, "offset", 0), min(_number(query, "limit", 50), PAGE_LIMIT)


_ANSWERS: dict[str, Callable[[RunView, Query], Any]] = {
    "/api/steps": lambda run, query: run.steps(*_page(query)),
    "/api/step": lambda run, query: run.step(_number(query, "step"), Wanted.of(query), *_page(query)),
    "/api/group": lambda run, query: run.group(_number(query, "step"), _number(query, "line"), Wanted.of(query)),
    "/api/diff": lambda run, query: run.diff(
        _number(query, "step"), _number(query, "line"), _number(query, "refinement")
    ),
    "/api/timeline": lambda run, query: run.timeline(_number(query, "step")),
}
