"""A web server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

WEIGHTS = {'a.weight': torch.arange(6.0).view(2, 3), 'a.bias': torch.ones(2)}


class Server:
    """Files of a folder on the loopback address.

    Attributes:
        url: Address of the folder, with a slash at the end.
        folder: The folder.
        requests: Paths asked for, in order.
        cut: Send only this share of each file, then close the connection.
        delay: Seconds between the two halves of a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.cut = 1.0
        self.delay = 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.send_head()

            def send_head(self) -> bytes | None:
                """Send the headers, with those of Hugging Face's hub."""
                file = outer.folder / self.path.lstrip('/').split('?')[0]
                if not file.is_file():
                    self.send_error(404)
                    return None
                content = file.read_bytes()
                self.send_response(200)
                self.send_header('Content-Length', str(len(content)))
                self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header('X-Repo-Commit', '0' * 40)
                self.end_headers()
                return content

            def do_GET(self) -> None:
                outer.requests.append(self.path)
                content = self.send_head()
                if content is None:
                    return
                half = len(content) // 2
                self.wfile.write(content[:half])
                self.wfile.flush()
                time.sleep(outer.delay)
                self.wfile.write(content[half : int(outer.cut * len(content))])

        self.httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.httpd.handle_error = lambda *_: None  # a client that was killed
        self.url = f'http://127.0.0.1:{self.httpd.server_port}/'

    def save(self, name: str, weights: dict = WEIGHTS) -> str:
        """Serve weights under a name and return their address."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (save_file if path.suffix == '.safetensors' else torch.save)(weights, path)
        return self.url + name


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server; downloads go to `tmp_path/home/checkpoints`."""
    monkeypatch.setenv('MMVIT_HOME', str(tmp_path / 'home'))
    served = tmp_path / 'served'
    served.mkdir()
    running = Server(served)
    thread = threading.Thread(target=running.httpd.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.httpd.shutdown()
    thread.join()
    running.httpd.server_close()
