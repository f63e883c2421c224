"""The addresses of the server, and what each answers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import StringConstraints
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ccr_lightning._version import __version__
from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.images import open_image
from ccr_lightning.errors import CCRError
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.pages import LANGUAGE_NAMES, STYLE
from ccr_lightning.search.index import Index
from ccr_lightning.serve.answers import IndexAnswer, Picture, Refusal, SearchAnswer
from ccr_lightning.serve.guard import Guard
from ccr_lightning.serve.limits import (
    MAX_CHARACTERS,
    MAX_K,
    MAX_QUERIES,
    AnswerToTooMuch,
    Gate,
    TokenBucket,
    Uploads,
)
from ccr_lightning.serve.pictures import Pictures, version
from ccr_lightning.serve.searching import Find, Searching

_PAGE = Path(__file__).parent / "page"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

_Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
_Texts = Annotated[list[_Text], Query(max_length=MAX_QUERIES, description="captions to search with")]
_Languages = Annotated[
    list[Annotated[str, StringConstraints(max_length=35)]],
    Query(max_length=MAX_QUERIES, description="of each caption, or none at all; may be empty"),
]
_Like = Annotated[int | None, Query(ge=0, description="instead of captions: a picture of the index to search with")]
_K = Annotated[int, Query(ge=1, le=MAX_K, description="how many are found for each query")]
_Find = Annotated[Find, Query(description="captions only where the index has some")]
_Ranked = Annotated[int | None, Query(ge=0, description="a picture whose rank is told for each caption, found or not")]


def make_app(
    index: Index,
    model: DualEncoder,
    hosts: Collection[str] = (),
    searches: TokenBucket | None = None,
    pictures: TokenBucket | None = None,
) -> ASGIApp:
    """Make the server of an index, for uvicorn or another server of ASGI applications.

    Args:
        index: With pictures.
        model: The one that made it.
        hosts: Names that browsers call the server by, besides localhost and addresses.
        searches: The rate of searches: 10 a second, and 40 at once, by default.
        pictures: The rate of pictures: 200 a second, and 1,000 at once, by default.
    """
    app = FastAPI(
        title="ccr serve",
        version=__version__,
        description="Searches pictures of an index in any language.",
        docs_url=None,  # they load scripts of another host
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": Refusal}},
    )
    _add_refusals(app)
    _add_search(app, Searching(index, model), bool(index.captions), searches or TokenBucket(10, 40))
    _add_pictures(app, index, pictures or TokenBucket(200, 1000))
    _add_page(app)
    return Guard(app, hosts)


def _add_search(app: FastAPI, searching: Searching, has_captions: bool, rate: TokenBucket) -> None:
    gate, uploads, limited = Gate(1, waiting=16), Uploads(4), [Depends(rate)]
    described = searching.describe(tuple(LANGUAGE_NAMES))

    def check(find: Find) -> None:
        if find == "captions" and not has_captions:
            raise HTTPException(422, "find: the pictures of this index have no captions; leave it out.")

    def search_texts(texts: list[str], languages: list[str], k: int, find: Find, ranked: int | None) -> SearchAnswer:
        try:
            embeds = searching.embed(texts, languages)
        except CCRError as error:
            raise HTTPException(
                422, "q: the model cannot read this in this language; leave the language out."
            ) from error
        return searching.by_texts(texts, languages, embeds, k, find, ranked)

    def search_like(number: int, k: int, find: Find) -> SearchAnswer:
        try:
            return searching.by_number(number, k, find)
        except (CCRError, OSError) as error:
            raise _no_picture() from error

    @app.get("/api/index", response_model=IndexAnswer)
    async def describe() -> IndexAnswer:
        """What can be searched."""
        return described

    @app.get("/api/search", response_model=SearchAnswer, dependencies=limited)
    async def search(
        q: _Texts = [],  # noqa: B006
        language: _Languages = [],  # noqa: B006
        like: _Like = None,
        k: _K = 20,
        find: _Find = "pictures",
        picture: _Ranked = None,
    ) -> SearchAnswer:
        """Find pictures or captions with captions in any language, or with a picture of the index."""
        check(find)
        for number in (like, picture):
            if number is not None and number >= described.pictures:
                raise _no_picture()
        if like is not None:
            if q:
                raise HTTPException(422, "q and like: search with captions or with a picture, not with both.")
            return await gate.run(search_like, like, k, find)
        if not q:
            raise HTTPException(422, "q: there is no query; give a caption.")
        if not all(text.strip() for text in q):
            raise HTTPException(422, "q: a query is empty; give it some words.")
        if language and len(language) != len(q):
            raise HTTPException(422, f"language: there are {len(q)} queries and {len(language)} languages; name each.")
        return await gate.run(search_texts, q, language or [""] * len(q), k, find, picture)

    @app.get("/api/picture/{number}", response_model=Picture)
    async def describe_picture(number: int) -> Picture:
        """A picture of the index, and its captions."""
        if not 0 <= number < described.pictures:
            raise _no_picture()
        return searching.picture(number)

    body = {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}, "required": True}

    @app.post("/api/search", response_model=SearchAnswer, dependencies=limited, openapi_extra={"requestBody": body})
    async def search_with_upload(request: Request, k: _K = 20, find: _Find = "pictures") -> SearchAnswer:
        """Find pictures or captions with the picture that is the body of the request."""
        check(find)
        data = await uploads.read(request)

        def decode_and_search() -> SearchAnswer:
            try:
                return searching.by_picture(open_image(data, "the upload"), k, find)
            except RecordFault as fault:
                raise HTTPException(422, str(fault)) from fault

        return await gate.run(decode_and_search)


def _no_picture() -> HTTPException:
    return HTTPException(404, "there is no such picture, or its file is not as it was when it was embedded.")


def _add_pictures(app: FastAPI, index: Index, rate: TokenBucket) -> None:
    gate, pictures, limited = Gate(2, waiting=400), Pictures(index), [Depends(rate)]

    async def answer(number: int, v: str, request: Request, read: Callable[[int], bytes]) -> Response:
        try:
            its = version(index.picture(number))
            tag = f'"{its}"'
            lasting = "private, max-age=31536000, immutable" if v == its else "private, no-cache"
            headers = {"ETag": tag, "Cache-Control": lasting}
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
            data = await gate.run(read, number)
        except (CCRError, OSError) as error:
            raise _no_picture() from error
        return Response(data, media_type="image/jpeg", headers=headers)

    jpeg: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}

    @app.get("/thumbnail/{number}", response_class=Response, responses=jpeg, dependencies=limited)
    async def thumbnail(number: int, request: Request, v: str = "") -> Response:
        """A picture of the index, of at most 320 pixels."""
        return await answer(number, v, request, pictures.thumbnail)

    @app.get("/picture/{number}", response_class=Response, responses=jpeg, dependencies=limited)
    async def picture(number: int, request: Request, v: str = "") -> Response:
        """A picture of the index, of at most 1600 pixels."""
        return await answer(number, v, request, pictures.picture)


def _add_page(app: FastAPI) -> None:
    files = {path.name: (path.read_bytes(), _KINDS[path.suffix]) for path in _PAGE.iterdir() if path.suffix in _KINDS}
    files["shared.css"] = (STYLE.encode(), _KINDS[".css"])

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return page_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    def page_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is nothing at this address.")
        data, kind = files[name]
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})


def _add_refusals(app: FastAPI) -> None:
    """Answers whatever goes wrong with one sentence."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        known = {404: "there is nothing at this address.", 405: "this address does not take such a request."}
        sentence = known[error.status_code] if error.detail in ("Not Found", "Method Not Allowed") else error.detail
        kind = AnswerToTooMuch if error.status_code == 413 else JSONResponse
        return kind({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place, *where = first["loc"]
        if place == "path":
            return await refused(request, _no_picture())
        sentence = f"{where[0]}: {first['msg'][0].lower()}{first['msg'][1:]}; /openapi.json says what may be asked."
        return JSONResponse({"error": sentence}, 422)

    @app.exception_handler(CCRError)
    async def unreadable(request: Request, error: CCRError) -> Response:
        return JSONResponse({"error": "the index cannot be read any more: start ccr serve again."}, 500)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "something is wrong with the server: its terminal says what."}, 500)
