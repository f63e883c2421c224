"""Both directions of exact ranks against a float64 oracle: duplicates, several positives, any tiling, any quality."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.functional import ranks
from ccr_lightning.functional.galleries import Share
from ccr_lightning.functional.ranks import mutual_rank_counts, rank_counts


def oracle(query_embeds, gallery_embeds, query_ids, gallery_ids):
    """(ahead, tied) of the definition; dot products of these embeddings are exact in float64, in any order."""
    ahead, tied = [], []
    for query, query_id in zip(query_embeds, query_ids, strict=True):
        similarity = gallery_embeds @ query
        rivals, best = similarity[gallery_ids != query_id], similarity[gallery_ids == query_id].max()
        ahead.append(int((rivals > best).sum()))
        tied.append(int((rivals == best).sum()))
    return ahead, tied


def data(seed, images, noise, *, repeated=0.1, width=24):
    """Images with one to three captions, a tenth of which are another's; components are multiples of 2**-12."""
    generator = np.random.default_rng(seed)
    ids = generator.permutation(3 * images)[:images]
    image_embeds = generator.standard_normal((images, width))
    owner = generator.permutation(np.repeat(np.arange(images), generator.integers(1, 4, images)))
    text_embeds = image_embeds[owner] + noise * generator.standard_normal((len(owner), width))
    for embeds in (image_embeds, text_embeds):
        copies = generator.random(len(embeds)) < repeated
        embeds[copies] = embeds[generator.integers(0, len(embeds), copies.sum())]
    return *(np.round(embeds * 2**12) / 2**12 for embeds in (image_embeds, text_embeds)), ids, ids[owner]


MEMORY = """
import torch
from benchmarks.measure import peak_mebibytes
from ccr_lightning.functional.ranks import mutual_rank_counts

torch.set_num_threads(1)
embeds, ids = torch.randn(100_000, 256, generator=torch.Generator().manual_seed(0)), torch.arange(100_000)
print(peak_mebibytes(lambda: mutual_rank_counts(embeds, embeds, ids, ids, images=slice(512))))
"""


def test_memory_of_many_embeddings_is_a_part_of_their_own():
    """In a new process, whose memory has no holes to fill."""
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60  # the embeddings are 98 MiB; tiles and libraries take 25


@pytest.mark.parametrize("tile", [(512, 1024), (7, 5), (1, 1000), (1000, 1), (64, 33)], ids=str)
@pytest.mark.parametrize("noise", [0.2, 1.0, 100.0])
def test_both_directions_are_those_of_the_oracle(noise, tile, monkeypatch):
    """Noise 100 is an untrained model, of which most queries have something ahead in every tile."""
    monkeypatch.setattr(ranks, "_TILE", tile)
    images, texts, image_ids, text_ids = data(int(noise), 200, noise)
    tensors = [torch.tensor(of, dtype=torch.float32) for of in (images, texts)] + [
        torch.tensor(of) for of in (image_ids, text_ids)
    ]
    to_text, to_image = mutual_rank_counts(*tensors)
    for found, expected in (
        (to_text, oracle(images, texts, image_ids, text_ids)),
        (to_image, oracle(texts, images, text_ids, image_ids)),
    ):
        assert found.ahead.dtype == found.tied.dtype == torch.int64
        assert (found.ahead.tolist(), found.tied.tolist()) == expected
        assert 0 < sum(tied > 0 for tied in expected[1]) < len(expected[1])
    alone = rank_counts(tensors[1], tensors[0], tensors[3], tensors[2])
    assert alone.ahead.equal(to_image.ahead)
    assert alone.tied.equal(to_image.tied)


def test_counts_of_the_parts_add_up(monkeypatch):
    """As processes share the work: 1, 2, 3 and 4 of them, and more than there are images."""
    monkeypatch.setattr(ranks, "_TILE", (16, 64))
    images, texts, image_ids, text_ids = data(3, 90, 1.0)
    tensors = [torch.tensor(of) for of in (images, texts, image_ids, text_ids)]
    expected = (*oracle(images, texts, image_ids, text_ids), *oracle(texts, images, text_ids, image_ids))
    for parts in (1, 2, 3, 4, 100):
        sums = None
        for rank in range(parts):
            counts = mutual_rank_counts(*tensors, images=Share(rank, parts).of(90))
            flat = [*counts[0], *counts[1]]
            sums = flat if sums is None else [one + other for one, other in zip(sums, flat, strict=True)]
        assert tuple(of.tolist() for of in sums) == expected


@pytest.mark.parametrize("limit", ["_UNDECIDED", "_NOTES"])
def test_few_pairs_are_decided_at_a_time(limit, monkeypatch):
    monkeypatch.setattr(ranks, limit, 3)
    monkeypatch.setattr(ranks, "_TILE", (16, 16))
    decide, held = ranks._Direction.decide, []

    def watched(direction, *sides):
        held.append(len(direction._pairs))
        decide(direction, *sides)

    monkeypatch.setattr(ranks._Direction, "decide", watched)
    images, texts, image_ids, text_ids = data(5, 150, 1.0)
    tensors = [torch.tensor(of) for of in (images, texts, image_ids, text_ids)]
    to_text, _ = mutual_rank_counts(*tensors)
    assert (to_text.ahead.tolist(), to_text.tied.tolist()) == oracle(images, texts, image_ids, text_ids)
    assert len(held) > 10
    assert max(held) <= 3


def test_each_side_has_a_positive_on_the_other():
    embeds, ids = torch.eye(3), torch.arange(3)
    with pytest.raises(CCRError, match=r"1 of 2 items of the gallery have no positive among the queries, first id 2"):
        mutual_rank_counts(embeds[:2], embeds[1:], torch.tensor([1, 1]), ids[1:])
    with pytest.raises(CCRError, match=r"1 of 2 queries have no positive in the gallery, first id 0"):
        mutual_rank_counts(embeds[:2], embeds[1:], ids[:2], ids[1:])
