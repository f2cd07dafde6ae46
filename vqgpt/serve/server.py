"""The server: binds its place, answers until a signal comes, finishes what has begun, and leaves."""

import socket
import threading

import uvicorn

from vqgpt.data.decoding import no_decoder_warnings
from vqgpt.errors import UsageError, VQGPTError
from vqgpt.progress import Notice, Report
from vqgpt.runtime import process
from vqgpt.runtime.process import stop_on_signals
from vqgpt.serve.app import application
from vqgpt.serve.guards import LOOPBACK
from vqgpt.serve.pair import Pair

SECONDS_TO_DRAIN = 60
SECONDS_BETWEEN_LOOKS = 0.2
MOST_CONNECTIONS = 512
BACKLOG = 128


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one. Raises UsageError if it cannot.

    It is one of TCP by its protocol number too, or asyncio would leave Nagle's algorithm on: 40 ms for each answer.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the server cannot listen at {host}:{port} ({reason})", "give another --port or --host"
        ) from None


def address_of(listener: socket.socket, token: str | None) -> str:
    """What to open in a browser."""
    host, port = listener.getsockname()[:2]
    host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def serve(
    pair: Pair, listener: socket.socket, most_images: int, most_waiting: int, token: str | None, report: Report
) -> None:
    """Answer requests until SIGINT, SIGTERM or SIGHUP, then what has begun; a second signal does not wait for it.

    Raises VQGPTError if the server does not start.
    """
    app, studio = application(pair, most_images, most_waiting, token)
    config = uvicorn.Config(
        app,
        log_config=None,
        http="h11",  # which takes 64 KiB of headers, and no more
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=SECONDS_TO_DRAIN,
        limit_concurrency=MOST_CONNECTIONS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
    with no_decoder_warnings(), stop_on_signals() as request:
        thread.start()
        report(Notice(text=f"open {address_of(listener, token)} in a browser; Ctrl-C ends it"))
        while thread.is_alive() and not request:
            thread.join(SECONDS_BETWEEN_LOOKS)
        server.should_exit = True
        if request:
            report(Notice(text="finishing what has begun"))
        try:
            while thread.is_alive():
                thread.join(SECONDS_BETWEEN_LOOKS)
        except KeyboardInterrupt:
            server.force_exit = process.leaves_threads = True
            raise
    studio.batcher.close()
    if not server.started:
        raise VQGPTError("the server did not start", "its terminal says why; report it as a bug")


def needs_token(host: str) -> bool:
    """Whether others than this machine can reach a server there."""
    return host not in LOOPBACK
