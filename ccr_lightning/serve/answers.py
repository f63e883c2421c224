"""What the server answers: these classes are the schema of its JSON, at ``/openapi.json``."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Picture(BaseModel):
    """A picture of the index."""

    number: int = Field(description="of the picture in the index, from 0")
    name: str = Field(description="of a file without its folders; of a record SOURCE/SPLIT/ID")
    captions: dict[str, list[str]] = Field(description="by language; empty where pictures have none")
    thumbnail_url: str = Field(description="a JPEG of at most 320 pixels, on this server")
    picture_url: str = Field(description="a JPEG of at most 1600 pixels, on this server")


class FoundCaption(BaseModel):
    """A caption that was found."""

    language: str
    text: str


class Hit(Picture):
    """A picture that was found for a query, or one of its captions."""

    place: int = Field(description="for this query, from 1")
    similarity: float = Field(description="cosine, from -1 to 1")
    ranks: list[int] | None = Field(
        description="exact rank of the picture for each query of the request, where it has several"
    )
    caption: FoundCaption | None = Field(description="what was found, with find=captions")


class Results(BaseModel):
    """What was found for a query."""

    text: str | None = Field(description="the query; null if it is a picture")
    language: str | None = Field(description="as the request told it; null if it did not")
    hits: list[Hit] = Field(description="best first")


class RankedPicture(Picture):
    """A picture whose ranks were asked for."""

    ranks: list[int] = Field(description="exact rank among all pictures for each query of the request, from 1")


class SearchAnswer(BaseModel):
    """What was found."""

    results: list[Results] = Field(description="one for each query, in their order")
    picture: RankedPicture | None = Field(description="the picture that the request names with picture=N")


class Limits(BaseModel):
    """What a request may have."""

    queries: int
    characters: int = Field(description="of each query")
    k: int = Field(description="how many are found for each query")
    upload_bytes: int


class IndexAnswer(BaseModel):
    """What can be searched."""

    model: str = Field(description="its name; of a path on the disk only the end")
    pictures: int
    captions: int
    languages: list[str] = Field(description="of the captions, as far as a sample of 1,000 pictures has them")
    known_languages: list[str] = Field(description="codes that a query may be told to be in; others may be, too")
    limits: Limits
    examples: list[Picture] = Field(description="pictures to start with, from all over the index")


class Refusal(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="one sentence")
