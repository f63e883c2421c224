"""What every request goes through: it must be meant for this server, and its answer says what a browser may do."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Refuses what another web site asks for, or has a browser ask for under a name of its own (DNS rebinding).

    Args:
        app: What answers the others.
        hosts: Names of this server, besides localhost and addresses.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")  # what was searched is not kept
            await send(message)

        asked, app = Headers(scope=scope), self._app
        if not names_server(asked.get("host", ""), self._hosts):
            says = "the request names a host that this server is not: open the address that ccr serve printed."
            app = JSONResponse({"error": says}, 421)
        elif _is_of_another_site(asked) and scope["path"] != "/":
            app = JSONResponse({"error": "another web site may not use this server: open its own page."}, 403)
        await app(scope, receive, send_guarded)


def _is_of_another_site(asked: Headers) -> bool:
    """Whether a page of another address made the request, as far as a browser says so."""
    origin = asked.get("origin")
    by_other = origin is not None and urlsplit(origin).netloc.lower() != asked.get("host", "").lower()
    return by_other or asked.get("sec-fetch-site") in ("cross-site", "same-site")


def names_server(host: str, hosts: Collection[str]) -> bool:
    """Return whether the header Host is one of some names, or an address, which no web site can take for itself.

    Example:
        >>> names_server("localhost:8000", {"localhost"}), names_server("[::1]:8000", {}), names_server("evil.com", {})
        (True, True, False)
    """
    try:
        asked = urlsplit(f"//{host}")
        name, _ = asked.hostname or "", asked.port  # of which a wrong one raises
    except ValueError:
        return False
    try:
        ip_address(name)
    except ValueError:
        return name in hosts
    return True
