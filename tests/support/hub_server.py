"""A small server that speaks the routes of the hub, for adapters in a folder ``root/org/name``."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 39 + "1"


@contextmanager
def hub(
    root: Path, refused: Mapping[str, int] | None = None
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Serve the repositories below ``root``; give the endpoint and the (path, range) of each GET.

    ``refused`` are repositories that are answered with a status.
    """
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            seen.append((self.path.partition("?")[0], self.headers.get("range") or ""))
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/(tree|revision)/.*)?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            status = (refused or {}).get((listed or file or [path, path])[1])
            if status:
                self._send(status, b"{}", body, {})
            elif listed and (root / listed[1]).is_dir():
                files = [p for p in (root / listed[1]).rglob("*") if p.is_file()]
                names = sorted(str(p.relative_to(root / listed[1])) for p in files)
                entries = [{"rfilename": name} for name in names]
                told = {"id": listed[1], "sha": COMMIT, "siblings": entries}
                tree = [{"type": "file", "path": n, "oid": "0" * 40, "size": 1} for n in names]
                whole = listed[3] == "tree"
                self._send(200, json.dumps(tree if whole else told).encode(), body, {})
            elif file and (root / file[1] / file[2]).is_file():
                self._file((root / file[1] / file[2]).read_bytes(), body)
            else:
                code = "EntryNotFound" if file else "RepoNotFound"
                self._send(404, b"{}", body, {"X-Error-Code": code})

        def _file(self, data: bytes, body: bool) -> None:
            more = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}  # noqa: S324
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range") or "")
            part = data[int(wanted[1]) : int(wanted[2]) + 1] if wanted else data
            self._send(206 if wanted else 200, part, body, more)

        def _send(self, status: int, data: bytes, body: bool, more: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **more}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
