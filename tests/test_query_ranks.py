"""``ranks.csv``: what is written is read again, by this package and by csv alone, whatever the names of the images."""

from __future__ import annotations

import csv
import hashlib

import numpy as np
import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.query_ranks import (
    COLUMNS,
    QueryRanks,
    query_ranks,
    read_query_ranks,
    write_query_ranks,
)
from ccr_lightning.functional.galleries import Embeddings, ranks_by_direction

NAMES = ["plain", 'a,"b"', "line\nbreak", "=1+1", "\u202eright to left", "return\rhere"]


def ranked():
    """The second image has no caption, others have up to two, in the order of ``Embeddings``."""
    keys = [(0, 0, 0), (0, 2, 0), (0, 2, 1), (0, 3, 0), (1, 0, 0), (1, 2, 0), (1, 4, 0), (1, 5, 0), (1, 5, 1)]
    languages, ids, numbers = torch.tensor(keys).T
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(6, 3, generator=generator), torch.randn(len(keys), 3, generator=generator)
    embeddings = Embeddings(images, torch.arange(6), texts, ids, languages, numbers)
    return embeddings, keys


def expected_lines():
    embeddings, keys = ranked()
    similarity = (embeddings.text_embeds.double() @ embeddings.image_embeds.double().T).numpy()
    lines = []
    for direction in ("image_to_text", "text_to_image"):
        for k, language in enumerate(("de", "en")):
            rows = [row for row, (of, *_) in enumerate(keys) if of == k]
            shown = sorted({keys[row][1] for row in rows})
            for row in rows if direction == "text_to_image" else ():
                _, image, number = keys[row]
                rank = sum(similarity[row, other] >= similarity[row, image] for other in shown)
                lines.append([direction, language, NAMES[image], str(number), str(rank)])
            for image in shown if direction == "image_to_text" else ():
                best = max(similarity[row, image] for row in rows if keys[row][1] == image)
                rank = 1 + sum(similarity[row, image] >= best for row in rows if keys[row][1] != image)
                lines.append([direction, language, NAMES[image], "", str(rank)])
    return lines


def test_what_is_written_is_what_plain_loops_find(tmp_path):
    embeddings, _ = ranked()
    queries = query_ranks(ranks_by_direction(embeddings), embeddings, ["de", "en"])
    sha256 = write_query_ranks(tmp_path / "new" / "ranks.csv", queries, NAMES)
    content = (tmp_path / "new" / "ranks.csv").read_bytes()
    assert sha256 == hashlib.sha256(content).hexdigest()
    with (tmp_path / "new" / "ranks.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == list(COLUMNS)
    assert lines == expected_lines()
    assert len({line[4] for line in lines}) > 2


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "ranks.csv"
    embeddings, _ = ranked()
    write_query_ranks(path, query_ranks(ranks_by_direction(embeddings), embeddings, ["de", "en"]), NAMES)
    names, queries = read_query_ranks(path)
    assert names == [NAMES[image] for image in (0, 2, 3, 4, 5)]
    found = [
        [of.direction, of.language, names[image], "" if of.captions is None else str(of.captions[place]), str(rank)]
        for of in queries
        for place, (image, rank) in enumerate(zip(of.images.tolist(), of.ranks.tolist(), strict=True))
    ]
    assert found == expected_lines()


def test_what_cannot_be_written_or_read(tmp_path):
    queries = [QueryRanks("image_to_text", "en", np.array([0]), None, np.array([1]))]
    (tmp_path / "taken").mkdir()
    with pytest.raises(CCRError, match="the ranks could not be written"):
        write_query_ranks(tmp_path / "taken", queries, ["a"])
    header = ",".join(COLUMNS)
    for content in ("", "a,b\n", f"{header}\nx,en,a,,1\n", f"{header}\nimage_to_text,en,a\n", f"{header}\n,,,,x\n"):
        (tmp_path / "ranks.csv").write_text(content)
        with pytest.raises(CCRError, match=r"ranks\.csv: cannot be read as ranks \(.*\); run ccr test again"):
            read_query_ranks(tmp_path / "ranks.csv")
    with pytest.raises(CCRError, match="No such file"):
        read_query_ranks(tmp_path / "nowhere.csv")
