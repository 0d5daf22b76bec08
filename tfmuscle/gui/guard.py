"""Who may ask the server: one who knows the token, from a page of its own, with a request of bearable size.

The server listens on 127.0.0.1, where every program and every web page of every user of the machine can reach it.

* A *token*, made anew at each start, is in the address that is printed. The first visit turns it into a cookie that
  scripts cannot read and other sites cannot send (HttpOnly, SameSite=Strict), so that it is in no address any more.
  Cookies know no ports: the cookie's name holds the port, so that two servers do not take each other's.
* The *Host* header must be this server's: a foreign name that is made to lead to 127.0.0.1 (DNS rebinding) is refused.
* Whatever changes something must carry this server's *Origin*.
* A request's size is checked when it is announced, and counted when it is not.

Written as bare ASGI around the whole application, so that no address can be forgotten.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_HEADER = "x-tfmuscle-token"  # noqa: S105 - the name of a header
MAX_UPLOAD_BYTES = 4 << 30
MAX_BODY_BYTES = 1 << 20
UPLOADS = ("/api/uploads", "/api/edits")
"""Addresses that take files."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class BodyTooLarge(Exception):
    """A request went on beyond its limit; the application answers with 413."""


class Guard:
    """Lets through what has token, Host and Origin of this server, and adds headers that keep the page to itself.

    Args:
        app: the application inside.
        port: of the server.
        token: what callers must know.
    """

    def __init__(self, app: Asgi, *, port: int, token: str) -> None:
        self._app, self._token, self._port = app, token, port
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self._cookie = f"tfmuscle_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or refuses one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(_safe(send), *refusal)
        elif self._is_first_visit(scope):
            cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
            more = {"location": "/", "set-cookie": cookie, "cache-control": "no-store"}
            await _answer(_safe(send), 303, "", more)
        elif not self._knows_token(headers):
            what = "no or an old token; open the address that tfmuscle gui printed when it started"
            await _answer(_safe(send), 401, what)
        else:
            await self._counted(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        if headers.get("host", "").lower() not in self._hosts:
            return 421, f"Host is {headers.get('host', '')!r}; this server is {self._hosts[0]} only"
        origin = headers.get("origin")
        foreign = origin is not None and origin.lower() not in {f"http://{host}" for host in self._hosts}
        if foreign or (origin is None and scope["method"] not in ("GET", "HEAD")):
            return 403, f"Origin is {origin!r}; only the page of this server may ask"
        length, limit = headers.get("content-length", "0"), _limit(scope)
        if not (length.isascii() and length.isdigit()):
            return 400, "Content-Length is no number"
        if int(length) > limit:
            return 413, f"{int(length):,} bytes are announced; at most {limit:,} are taken here"
        return None

    def _is_first_visit(self, scope: Scope) -> bool:
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return self._is_token(given)

    def _knows_token(self, headers: dict[str, str]) -> bool:
        if TOKEN_HEADER in headers:
            return self._is_token(headers[TOKEN_HEADER])
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and self._is_token(cookie.value)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token.encode())

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the application answer, and stops a body that never ends."""
        taken, limit = 0, _limit(scope)

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise BodyTooLarge(f"more than {limit:,} bytes; so many are not taken here")
            return message

        await self._app(scope, counted, _safe(send))


def _limit(scope: Scope) -> int:
    return MAX_UPLOAD_BYTES if scope["path"] in UPLOADS else MAX_BODY_BYTES


def _safe(send: Send) -> Send:
    """Adds the headers that keep the page to itself."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return with_headers


async def _answer(send: Send, status: int, error: str, headers: dict[str, str] | None = None) -> None:
    """Answers without the application; the connection of a refused body is closed."""
    body = json.dumps({"error": error}).encode() if error else b""
    fields = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
    if status == 413:
        fields["connection"] = "close"
    raw = [(key.encode(), value.encode()) for key, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
