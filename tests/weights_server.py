"""A stand-in for the Hub and for GitHub: serves published weights on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread


class WeightsServer(ThreadingHTTPServer):
    """Serves `files` (path → content) on 127.0.0.1, and records the `requests`.

    Of the paths in `cut_off` only the first half is sent; the paths in `silent` are never answered.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cut_off: set[str] = set()
        self.silent: set[str] = set()
        self.requests: list[str] = []
        self.stopped = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        """Answers with the headers only."""
        self.answer()

    def do_GET(self):
        """Answers with the content."""
        self.answer()

    def answer(self):
        """Records the request and answers it as configured."""
        self.server.requests.append(f"{self.command} {self.path}")
        if self.path in self.server.silent:
            self.server.stopped.wait(60)
            return
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if self.path in self.server.cut_off else content)

    def log_message(self, *args):
        """Keeps requests off standard error."""


@contextmanager
def serve_weights() -> Iterator[WeightsServer]:
    """Yields a server that runs until the end of the block."""
    with WeightsServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()
