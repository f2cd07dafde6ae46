"""What a request must pass before it is read: where it comes from, who sends it, how large it is.

    ASGI application  ->  the same behind the guards

A page of another site must not reach a server on loopback: `Host` must name this machine (DNS rebinding), `Origin` and
`Sec-Fetch-Site` must be this server's; FastAPI takes no body but JSON, which no form can send. Off loopback a token is
needed, in the header `Authorization: Bearer TOKEN` or in the cookie that `/?token=TOKEN` sets. Knows no network.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.responses import JSONResponse, RedirectResponse, Response

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MOST_BODY_BYTES = 4 * 2**20
SECONDS_FOR_A_BODY = 30.0
LONGEST_LENGTH = 20  # digits of a body's length that are read
OWN_FILES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": OWN_FILES,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Guards:
    """An application behind its guards; `token` is None where none is needed."""

    app: App
    token: str | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is refused, and hand on the rest."""
        if scope["type"] != "http":  # there are no others: uvicorn is told so
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        send = with_headers(send)
        answer = self.refusal(scope, headers)
        if answer is not None:
            await answer(scope, receive, send)
            return
        read, awaited = 0, True

        async def receive_some() -> Message:
            nonlocal read, awaited
            try:  # what comes after the body is that the client leaves, whenever that is
                async with asyncio.timeout(SECONDS_FOR_A_BODY if awaited else None):
                    message = await receive()
            except TimeoutError:
                return {"type": "http.disconnect"}
            read, awaited = read + len(message.get("body", b"")), awaited and message.get("more_body", False)
            return message if read <= MOST_BODY_BYTES else {"type": "http.disconnect"}

        async def send_some(message: Message) -> None:
            if read <= MOST_BODY_BYTES:
                await send(message)

        await self.app(scope, receive_some, send_some)
        if read > MOST_BODY_BYTES:  # the application was told that the client left, and its answer was dropped
            await too_large()(scope, receive, send)

    def refusal(self, scope: Scope, headers: dict[str, str]) -> Response | None:
        """The answer to a request that is not let in, None for one that is."""
        host = headers.get("host", "")
        if self.token is None and host_name(host) not in LOOPBACK:
            return problem(
                403, f"the address says {host or 'no host'}, and this server is on loopback", "open http://127.0.0.1"
            )
        elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if elsewhere and headers.get("sec-fetch-mode") != "navigate":
            return problem(403, "a page of another site must not use this server", "open the page of the server itself")
        origin = headers.get("origin")
        if origin is not None and authority_of(origin) != host:
            return problem(403, f"a page of {origin} must not use this server", "open the page of the server itself")
        if self.token is not None and (answer := self._without_token(scope, headers, self.token)):
            return answer
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:LONGEST_LENGTH]) > MOST_BODY_BYTES:
            return too_large()
        return None

    def _without_token(self, scope: Scope, headers: dict[str, str], token: str) -> Response | None:
        name = f"vqgpt-{(scope.get('server') or ('', ''))[1]}"  # browsers send the cookies of one port to all
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if given and scope["path"] == "/" and equal(given, token):
            page = RedirectResponse("/", status_code=303)
            page.set_cookie(name, token, httponly=True, samesite="lax")
            return page
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        cookies = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
        known = [value for cookie, _, value in cookies if cookie == name]
        if any(equal(each, token) for each in (*known, *([bearer] if kind.lower() == "bearer" else []))):
            return None
        return problem(401, "this server needs its token", "send Authorization: Bearer TOKEN, or open /?token=TOKEN")


def equal(given: str, token: str) -> bool:
    """Whether it is the token, in a time that tells nothing."""
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())


def host_name(host: str) -> str:
    """The name in a `Host` header, without its port: `[::1]:8000` is ::1."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def authority_of(origin: str) -> str | None:
    """The host and port of an origin; None of one that has none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def with_headers(send: Send) -> Send:
    """A `send` that adds `HEADERS`, but for those that an answer has of its own."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            more = ((name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own)
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return send_with_headers


def problem(status: int, error: str, hint: str, headers: Iterable[tuple[str, str]] = ()) -> JSONResponse:
    """An error as all errors are sent."""
    return JSONResponse({"error": error, "hint": hint}, status_code=status, headers=dict(headers))


def too_large() -> JSONResponse:
    """The answer to a body of too many bytes."""
    return problem(413, "the body is too large", f"send at most {MOST_BODY_BYTES:,} bytes")
