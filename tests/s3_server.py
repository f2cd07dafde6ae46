"""A server of the S3 protocol on the loopback, whose answers a test can spoil. Buckets are folders: look into them.

The server is the package localbucket; what is added here stands between it and the wire.
"""

import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

from localbucket import S3Error, S3Handler, etag_matches, object_etag

BODIES = {
    403: b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    500: b"<Error><Code>InternalError</Code></Error>",
    503: b"<Error><Code>SlowDown</Code></Error>",
    507: b"<Error><Code>XMinioStorageFull</Code></Error>",
}


@dataclass
class Fault:
    """Spoils the next `times` requests of a method whose path matches.

    `what` is a status; "drop" (hang up without an answer), "lose" (do it, then hang up), "cut" (half of the body),
    "deaf" (heed no condition), or a function that is called first, and may give one of these.
    """

    what: int | str | Callable[[], str | None]
    method: str = "GET|PUT|HEAD|DELETE"
    path: str = ""
    times: int = 10**9
    after: int = 0


class HalfOfTheBody(io.RawIOBase):
    """Passes on the headers, which http.server writes at once, and half of what follows."""

    def __init__(self, file) -> None:
        self.file, self.has_headers = file, False

    def write(self, data):
        self.file.write(data[: len(data) // 2] if self.has_headers else data)
        self.has_headers = True

    def flush(self):
        self.file.flush()


class Handler(S3Handler):
    """A request: first what the test's faults do to it, then localbucket's own work."""

    wbufsize = -1  # an answer in one packet: two wait for each other
    server: "Server"

    def log_message(self, format, *arguments):
        pass

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        fault = self.server.next_fault(self.command, self.path)
        if callable(fault):
            fault = fault()
        if fault == "deaf":
            del self.headers["If-None-Match"], self.headers["If-Match"]
        elif fault == "cut":
            self.close_connection, self.wfile = True, HalfOfTheBody(self.wfile)
        elif fault == "lose":
            self.close_connection, self.wfile = True, io.BytesIO()
        elif fault == "drop":
            self.close_connection = True
            return False
        elif isinstance(fault, int):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._send(fault, BODIES[fault])
            self.wfile.flush()
            return False
        return True

    def _write_object(self, bucket, key, write):
        """localbucket's own, and If-Match, of which it knows nothing."""
        expected, target = self.headers.get("If-Match"), self._object_path(bucket, key)
        if expected and not self.server.has_if_match:
            raise self._not_implemented_error()
        with self.server.writing:
            if expected and not target.exists():
                raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
            if expected and not etag_matches(expected, object_etag(target)):
                raise self._precondition_failed_error()
            return super()._write_object(bucket, key, write)

    def _delete_object(self, bucket, key):
        with self.server.writing:
            super()._delete_object(bucket, key)


class Server(ThreadingHTTPServer):
    """A server of the buckets in a folder; `requests` are the methods and paths that it was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), type("OfFolder", (Handler,), {"data_root": folder}))
        self.folder = folder
        self.has_if_match = True
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.mutex, self.writing = threading.Lock(), threading.Lock()

    def handle_error(self, request, client_address):
        """A client that hangs up is no news here."""

    @property
    def environment(self) -> dict[str, str]:
        """What obstore is to find in the environment."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}

    def next_fault(self, method: str, path: str):
        with self.mutex:
            self.requests.append((method, path))
            for fault in self.faults:
                if re.fullmatch(fault.method, method) and re.search(fault.path, path) and fault.times:
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault.what
        return None


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """A server in a thread of this process."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns once it is so; pytest's own limit ends it otherwise."""
    while not condition():
        time.sleep(0.005)
