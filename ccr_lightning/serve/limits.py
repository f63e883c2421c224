"""What keeps one visitor from taking the whole machine: rates, work that waits, bytes of an upload."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

_P = ParamSpec("_P")
_T = TypeVar("_T")

MAX_QUERIES, MAX_CHARACTERS, MAX_K = 40, 2000, 200  # of a request; of each query; for each query
MAX_UPLOAD = 20_000_000  # bytes
_UPLOAD_SECONDS, _UNREAD_SECONDS = 60, 2


class TokenBucket:
    """So many requests a second on average, and a burst of some more.

    Args:
        per_second: Requests that are allowed.
        burst: Requests that are allowed at once.
        clock: Returns seconds.

    Example:
        >>> seconds = iter([0.0, 0.0, 0.0, 0.5])
        >>> bucket = TokenBucket(2, 2, lambda: next(seconds))
        >>> bucket.take(), bucket.take(), bucket.take(), bucket.take()
        (0.0, 0.0, 0.5, 0.0)
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._tokens, self._at = float(burst), float("-inf")

    def take(self) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_second
        self._tokens -= 1
        return 0.0

    async def __call__(self) -> None:  # or FastAPI would call it in threads
        """Take a token for a request.

        Raises:
            HTTPException: There is none.
        """
        if seconds := self.take():
            wait = {"Retry-After": str(1 + int(seconds))}
            raise HTTPException(429, "these are too many requests: wait a second, then go on.", wait)


class Gate:
    """Lets work into threads, a few at a time; few may wait.

    Args:
        at_a_time: How much work goes on at once.
        waiting: How much may wait.
    """

    def __init__(self, at_a_time: int, waiting: int) -> None:
        self._open = asyncio.Semaphore(at_a_time)
        self._most, self._inside = at_a_time + waiting, 0

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Does the work in a thread, when it is its turn.

        Raises:
            HTTPException: Too much is waiting.
        """
        if self._inside >= self._most:
            raise HTTPException(503, "the server is busy: try again in a second.", {"Retry-After": "1"})
        self._inside += 1
        try:
            async with self._open:
                return await asyncio.to_thread(work, *args, **kwargs)
        finally:
            self._inside -= 1


class Uploads:
    """Reads uploads, each bounded, and few at a time.

    Args:
        at_a_time: How many.
    """

    def __init__(self, at_a_time: int) -> None:
        self._free = at_a_time

    async def read(self, request: Request) -> bytes:
        """Return the body of a request.

        Raises:
            HTTPException: It is too large, whatever was said of its length, too slow, or one too many.
        """
        if int(request.headers.get("content-length", 0)) > MAX_UPLOAD:
            raise _too_large()
        if not self._free:
            raise HTTPException(503, "the server is busy: try again in a second.", {"Retry-After": "1"})
        self._free -= 1
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS):
                return await _read(request)
        except ClientDisconnect as error:
            raise HTTPException(400, "the upload ended too early: send it again.") from error
        except TimeoutError as error:
            raise HTTPException(408, "the upload took too long: make the picture smaller.") from error
        finally:
            self._free += 1


class AnswerToTooMuch(JSONResponse):
    """An answer to an upload that is not read to its end.

    Connections that are closed while something comes in lose what was answered, so a little more is read and dropped.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, and waits until the other side has ended, but not for long."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_UNREAD_SECONDS):
                await _drop(receive)
        await send({"type": "http.response.body"})


async def _drop(receive: Receive) -> None:
    dropped, message = 0, await receive()
    while message.get("more_body") and dropped < MAX_UPLOAD:
        dropped += len(message["body"])
        message = await receive()


async def _read(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_UPLOAD:
            raise _too_large()
    return bytes(data)


def _too_large() -> HTTPException:
    says = f"the picture has more than {MAX_UPLOAD // 10**6} MB: make it smaller."
    return HTTPException(413, says, {"Connection": "close"})
