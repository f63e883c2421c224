"""All numbers of an evaluation against a scorer of plain numpy loops, on one process and on real gloo ranks."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from clip_benchmark.metrics.zeroshot_retrieval import batchify
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k as clip_benchmark_recall_at_k
from gloo_ranks import results_of_ranks
from torchmetrics.functional.retrieval import retrieval_hit_rate

from ccr_lightning import distributed
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.evaluate import evaluate
from ccr_lightning.evaluation.protocol import EvaluationProtocol
from ccr_lightning.functional.galleries import Embeddings, Share, ranks_between_languages, ranks_by_direction
from ccr_lightning.metrics import RetrievalEmbeddings

NAMES = ["de", "en", "ja", "tr"]  # nothing is in Turkish
DIRECTIONS = ("image_to_text", "text_to_image")
CUTOFFS = (1, 5, 10)
IMAGES, FOLDS, RESAMPLES, WIDTH = 36, 3, 50, 5
PROTOCOL = EvaluationProtocol(mrv_languages=["en", "ja"], folds=FOLDS, text_to_text=True, resamples=RESAMPLES)


def ragged(seed=0):
    """Image vectors, and (image, language, number) to caption vectors: ties, duplicates, several or no captions."""
    generator = np.random.default_rng(seed)

    def grid(rows):
        return generator.integers(-2, 3, (rows, WIDTH)) / 4  # exact in any precision, and ties are everywhere

    images = grid(IMAGES)
    images[7] = images[3]
    keys = [
        (image, language, number)
        for image in range(1, IMAGES)  # the first image has no caption
        for language in range(3)
        for number in range(generator.integers(0, 4) if image % FOLDS else 1)
    ]
    vectors = grid(len(keys))
    vectors[5] = vectors[9]
    near = generator.random(len(keys)) < 0.5
    for place, (image, _, _) in enumerate(keys):
        if near[place]:
            vectors[place] = images[image]
    return images, dict(zip(keys, vectors, strict=True))


def search(query, own, gallery):
    """Rank of a query's best positive, number of ties with it, and the image of the first result (-1 for a tie)."""
    similarity = [(image, float(sum(query * item))) for image, item in gallery]
    best = max(value for image, value in similarity if image == own)
    ahead = sum(value > best for image, value in similarity if image != own)
    tied = sum(value == best for image, value in similarity if image != own)
    first = {image for image, value in similarity if value == max(value for _, value in similarity)}
    return 1 + ahead + tied, tied, first.pop() if len(first) == 1 else -1


def found_of(images, captions, direction, language, only):
    """Image of each query to its queries' (rank, ties, first), and the size of the gallery."""
    texts = [(image, vector) for (image, k, _), vector in captions.items() if k == language and image in only]
    shown = sorted({image for image, _ in texts})
    pictures = [(image, images[image]) for image in shown]
    queries, gallery = (pictures, texts) if direction == "image_to_text" else (texts, pictures)
    of = {}
    for image, query in queries:
        of.setdefault(image, []).append(search(query, image, gallery))
    return of, len(gallery)


def recalls_of(of, weights=None):
    """Recall at each cut-off; images count as often as they were drawn."""
    times = {image: 1 if weights is None else int(weights[image]) for image in of}
    queries = sum(times[image] * len(of[image]) for image in of)
    return [sum(times[image] * sum(rank <= k for rank, *_ in of[image]) for image in of) / queries for k in CUTOFFS]


def agreement(lists):
    draws = list(itertools.product(*lists))
    return sum(draw[0] >= 0 and len(set(draw)) == 1 for draw in draws) / len(draws)


def consistency_of(found, chosen, direction, weights=None):
    """MRV, MRSD, agreement, and the images that count."""
    common = sorted(set.intersection(*(set(found[direction, k]) for k in chosen)))
    values = []
    for image in common:
        means = [np.mean([rank for rank, *_ in found[direction, k][image]]) for k in chosen]
        variance = np.mean((np.array(means) - np.mean(means)) ** 2)
        same = agreement([[first for *_, first in found[direction, k][image]] for k in chosen])
        values.append([variance, np.sqrt(variance), same])
    times = np.array([1 if weights is None else weights[image] for image in common])
    return (np.array(values) * times[:, None]).sum(0) / times.sum(), common


def numpy_scores(images, captions):
    """Everything that ``evaluate`` should find."""
    languages, everyone = sorted({k for _, k, _ in captions}), set(range(len(images)))
    names = [NAMES[k] for k in languages]
    both = {(d, k): found_of(images, captions, d, k, everyone) for d in DIRECTIONS for k in languages}
    found = {key: of for key, (of, _) in both.items()}
    described = sorted({image for image, _, _ in captions})
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        weights = np.zeros(len(images))
        for place in generator.integers(0, len(described), len(described)):
            weights[described[place]] += 1
        draws.append(weights)

    def table(weights=None):
        return np.array([[recalls_of(found[d, k], weights) for k in languages] for d in DIRECTIONS])

    def interval(values):
        return np.percentile(values, [2.5, 97.5]).tolist()

    def per_cutoff(values):
        return {f"recall@{k}": value for k, value in zip(CUTOFFS, values, strict=True)}

    recalls, samples = table(), np.array([table(weights) for weights in draws])
    english, chosen = names.index("en"), [1, 2]
    result = {
        "languages": {
            name: {
                d: {
                    **per_cutoff(recalls[place, number].tolist()),
                    "intervals": per_cutoff(interval(samples[:, place, number, i]) for i in range(3)),
                    "queries": sum(map(len, found[d, k].values())),
                    "gallery": both[d, k][1],
                    "tied_queries": sum(tied > 0 for of in found[d, k].values() for _, tied, _ in of),
                }
                for place, d in enumerate(DIRECTIONS)
            }
            for number, (k, name) in enumerate(zip(languages, names, strict=True))
        },
        "language_means": {
            name: {"mean_recall": recalls[:, n].mean(), "interval": interval(samples[:, :, n].mean((1, 2)))}
            for n, name in enumerate(names)
        },
        "mean_recalls": {
            d: {
                **per_cutoff(recalls[place].mean(0).tolist()),
                "intervals": per_cutoff(interval(samples[:, place, :, i].mean(1)) for i in range(3)),
            }
            for place, d in enumerate(DIRECTIONS)
        },
        "mean_recall": recalls.mean(),
        "mean_recall_interval": interval(samples.mean((1, 2, 3))),
        "gap_to_english": {
            name: {
                "value": recalls[:, english].mean() - recalls[:, n].mean(),
                "interval": interval(samples[:, :, english].mean((1, 2)) - samples[:, :, n].mean((1, 2))),
            }
            for n, name in enumerate(names)
            if n != english
        },
    }
    of_language = recalls.mean((0, 2))
    result["worst_language"] = {
        "mean_recall": {
            "language": names[int(np.argmin(of_language))],
            "value": of_language.min(),
            "interval": interval(samples.mean((1, 3)).min(1)),
        },
        **{
            d: {
                f"recall@{k}": {
                    "language": names[int(np.argmin(recalls[place, :, i]))],
                    "value": recalls[place, :, i].min(),
                }
                for i, k in enumerate(CUTOFFS)
            }
            for place, d in enumerate(DIRECTIONS)
        },
    }
    for place, statistic in enumerate(("mrv", "mrsd", "rank1_agreement")):
        values = [consistency_of(found, chosen, d)[0][place] for d in DIRECTIONS]
        drawn = [np.mean([consistency_of(found, chosen, d, w)[0][place] for d in DIRECTIONS]) for w in draws]
        common = consistency_of(found, chosen, "image_to_text")[1]
        all_of_them = {image for k in chosen for image in found["image_to_text", k]}
        result[statistic] = {
            **dict(zip(DIRECTIONS, values, strict=True)),
            "mean": np.mean(values),
            "interval": interval(drawn),
            "languages": ["en", "ja"],
            "instances": len(common),
            "left_out": len(all_of_them) - len(common),
        }
    result["mrv"]["pairs"] = {"en": {"ja": result["mrv"]["mean"]}}  # there are two languages only
    parts = np.split(np.arange(len(images)), FOLDS)
    of_folds = np.mean(
        [
            [[recalls_of(found_of(images, captions, d, k, set(part))[0]) for k in languages] for d in DIRECTIONS]
            for part in parts
        ],
        axis=0,
    )
    result["folds"] = {
        "count": FOLDS,
        "languages": {
            name: {d: per_cutoff(of_folds[place, n].tolist()) for place, d in enumerate(DIRECTIONS)}
            for n, name in enumerate(names)
        },
        "language_means": {name: of_folds[:, n].mean() for n, name in enumerate(names)},
        "mean_recalls": {d: per_cutoff(of_folds[place].mean(0).tolist()) for place, d in enumerate(DIRECTIONS)},
        "mean_recall": of_folds.mean(),
    }
    result["text_to_text"] = between_languages(captions, languages)
    return result


def between_languages(captions, languages):
    pairs, everything = {}, []
    for asked, searched in itertools.permutations(languages, 2):
        common = {i for i, k, _ in captions if k == asked} & {i for i, k, _ in captions if k == searched}
        gallery = [(i, v) for (i, k, _), v in captions.items() if k == searched and i in common]
        queries = [(i, v) for (i, k, _), v in captions.items() if k == asked and i in common]
        found = [search(vector, image, gallery) for image, vector in queries]
        recalls = [sum(rank <= k for rank, *_ in found) / len(found) for k in CUTOFFS]
        everything.append(recalls)
        pairs.setdefault(NAMES[asked], {})[NAMES[searched]] = {
            **{f"recall@{k}": recall for k, recall in zip(CUTOFFS, recalls, strict=True)},
            "queries": len(found),
            "gallery": len(gallery),
            "tied_queries": sum(tied > 0 for _, tied, _ in found),
        }
    mean = {f"recall@{k}": value for k, value in zip(CUTOFFS, np.mean(everything, 0).tolist(), strict=True)}
    return {"languages": pairs, "mean": mean}


def flat(tree, place=()):
    """Leaves by their place."""
    if isinstance(tree, dict):
        return {k: v for name, of in tree.items() for k, v in flat(of, (*place, name)).items()}
    if isinstance(tree, list) and tree and not isinstance(tree[0], str):
        return {k: v for number, of in enumerate(tree) for k, v in flat(of, (*place, number)).items()}
    return {place: tree}


def assert_same(found, expected):
    found, expected = flat(found), flat(expected)
    assert list(map(str, sorted(map(str, found)))) == list(map(str, sorted(map(str, expected))))
    for place, value in expected.items():
        if isinstance(value, float):
            assert found[place] == pytest.approx(value, rel=1e-12, abs=1e-12), place
        else:
            assert found[place] == value, place


def embeddings_of(metric, images, captions, own):
    """The metric after it has seen the images and captions whose numbers are in ``own``, some at a time."""
    keys, dtype = list(captions), torch.float32
    pictures = torch.tensor(images, dtype=dtype)
    for rows in filter(len, np.array_split([i for i in range(len(images)) if own(i)], 3)):
        metric.update(pictures[torch.tensor(rows)], None, torch.tensor(rows))
    for rows in filter(len, np.array_split([n for n in range(len(keys)) if own(n)], 4)):
        image, language, number = (torch.tensor(column) for column in zip(*(keys[n] for n in rows), strict=True))
        vectors = torch.tensor(np.array([captions[keys[n]] for n in rows]), dtype=dtype)
        metric.update(None, vectors, image, languages=language, caption_index=number)
    return metric


def evaluated(own):
    embeddings = embeddings_of(RetrievalEmbeddings(), *ragged(), own).compute()
    share = Share(distributed.rank(), distributed.world_size(), distributed.total)
    results, ranks = evaluate(embeddings, NAMES, protocol=PROTOCOL, share=share)
    return results, [[array if isinstance(array, str | None) else array.tolist() for array in of] for of in ranks]


def evaluated_on_rank(rank, world_size):
    """Uneven shares: rank 0 sees most of everything, with repeats of what the others see, but not all."""
    return evaluated(lambda number: number % world_size == rank or (rank == 0 and number % 7 < 4))


def test_every_number_is_that_of_the_loops():
    images, captions = ragged()
    expected = numpy_scores(images, captions)
    assert expected["mrv"]["left_out"] > 0
    assert 0 < expected["rank1_agreement"]["mean"] < 1
    assert 0 < expected["mean_recall"] < 1
    assert any(of[d]["tied_queries"] for of in expected["languages"].values() for d in DIRECTIONS)
    found, ranks = evaluated(lambda number: True)
    assert json.loads(json.dumps(found)) == found  # Python numbers throughout
    assert_same(found, expected)
    everyone = set(range(len(images)))
    keys = [(direction, k) for direction in DIRECTIONS for k in sorted({k for _, k, _ in captions})]
    assert [(direction, NAMES.index(language)) for direction, language, *_ in ranks] == keys
    for (direction, k), (_, _, of_images, numbers, places) in zip(keys, ranks, strict=True):
        of, _ = found_of(images, captions, direction, k, everyone)
        assert list(zip(of_images, places, strict=True)) == [(i, rank) for i in sorted(of) for rank, *_ in of[i]]
        described = sorted(of_images if direction == "image_to_text" else ((i, n) for i, at, n in captions if at == k))
        queries = of_images if numbers is None else list(zip(of_images, numbers, strict=True))
        assert queries == described


@pytest.mark.ddp
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_devices_find_what_one_process_finds_to_the_last_bit(world_size, tmp_path):
    alone = evaluated(lambda number: True)
    for found in results_of_ranks(evaluated_on_rank, world_size, tmp_path):
        assert found == alone


def without_ties(seed):
    """30 images with three captions each, in one language, and what is found of them."""
    generator = torch.Generator().manual_seed(seed)
    image_embeds, text_embeds = (
        torch.nn.functional.normalize(torch.randn(rows, 16, generator=generator), dim=1) for rows in (30, 90)
    )
    ids, text_ids = torch.arange(30), torch.arange(30).repeat_interleave(3)
    zeros = torch.zeros(90, dtype=torch.int64)
    embeddings = Embeddings(image_embeds, ids, text_embeds, text_ids, zeros, torch.arange(3).repeat(30))
    of = evaluate(embeddings, ["en"], protocol=EvaluationProtocol(resamples=0)).results["languages"]["en"]
    return image_embeds, ids, text_embeds, text_ids, of


@pytest.mark.parametrize("k", CUTOFFS)
def test_recall_is_the_hit_rate_of_torchmetrics(k):
    image_embeds, ids, text_embeds, text_ids, of = without_ties(seed=k)
    similarity = image_embeds @ text_embeds.T + 2  # its positives must score above zero
    for direction, rows, target in (
        ("image_to_text", similarity, ids[:, None] == text_ids),
        ("text_to_image", similarity.T, text_ids[:, None] == ids),
    ):
        hits = [retrieval_hit_rate(row, of_row, top_k=k) for row, of_row in zip(rows, target, strict=True)]
        assert of[direction][f"recall@{k}"] == pytest.approx(torch.stack(hits).mean().item(), abs=1e-7)
        assert of[direction]["tied_queries"] == 0


@pytest.mark.parametrize("k", CUTOFFS)
def test_recall_is_that_of_clip_benchmark_where_nothing_ties(k):
    image_embeds, ids, text_embeds, text_ids, of = without_ties(seed=10 + k)
    scores, positive = text_embeds @ image_embeds.T, text_ids[:, None] == ids
    for direction, rows, pairs in (("text_to_image", scores, positive), ("image_to_text", scores.T, positive.T)):
        hits = batchify(clip_benchmark_recall_at_k, rows, pairs, 7, "cpu", k=k) > 0
        assert of[direction][f"recall@{k}"] == pytest.approx(hits.double().mean().item(), abs=1e-15)


def test_ties_count_for_the_model_in_clip_benchmark():
    """What docs/evaluation.md says of it: where all embeddings are alike, some positives come first all the same."""
    hits = clip_benchmark_recall_at_k(torch.ones(12, 12), torch.eye(12) > 0, k=5) > 0
    assert hits.any()


def test_a_collapsed_model_gets_nothing_for_its_consistency():
    """All embeddings alike: every rank is the last in every language, and no first result is anybody's."""
    ids = torch.arange(12)
    embeddings = Embeddings(
        torch.ones(12, 4), ids, torch.ones(24, 4), ids.repeat(2), ids.new_zeros(24).index_fill(0, ids + 12, 1),
        ids.new_zeros(24),
    )  # fmt: skip
    results = evaluate(embeddings, ["en", "de"]).results
    assert results["mean_recall"] == 0
    assert results["rank1_agreement"]["mean"] == 0
    assert results["mrv"]["mean"] == 0  # which is why MRV never stands alone
    assert results["languages"]["en"]["text_to_image"]["tied_queries"] == 12


def test_without_english_and_without_resamples():
    images, captions = ragged()
    metric = embeddings_of(RetrievalEmbeddings(), images, captions, lambda number: True)
    protocol = EvaluationProtocol(resamples=0)
    results = evaluate(metric.compute(), ["de", "fr", "ja"], protocol=protocol, parallel=False).results
    languages_of = {image: {k for of, k, _ in captions if of == image} for image, _, _ in captions}
    lacking = sum(len(languages) < 3 for languages in languages_of.values())
    assert results["gap_to_english"] is results["mean_recall_interval"] is results["folds"] is None
    assert results["text_to_text"] is None
    for statistic in ("mrv", "mrsd", "rank1_agreement"):
        assert results[statistic]["mean"] is None
        assert results[statistic]["reason"] == "the captions of the languages are not translations of each other"
        assert (results[statistic]["instances"], results[statistic]["left_out"]) == (0, lacking)


@pytest.mark.parametrize(
    ("images", "folds", "says"),
    [
        (1, 1, "there is one image only, and nothing to rank it against"),
        (10, 3, "10 images cannot be split into 3 equal folds"),
        (10, 5, "of 5 folds, some have no caption in some language"),
    ],
)
def test_what_cannot_be_evaluated(images, folds, says):
    ids = torch.arange(images)
    languages = (ids == 0).long()
    order = languages.argsort()
    embeds = torch.randn(images, 4)
    embeddings = Embeddings(embeds, ids, embeds[order], ids[order], languages[order], torch.zeros_like(ids))
    with pytest.raises(CCRError, match=says):
        evaluate(embeddings, ["en", "de"], protocol=EvaluationProtocol(folds=folds))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"folds": 0}, "folds is 0"),
        ({"mrv_languages": []}, "mrv_languages is empty: name two or more languages"),
        ({"rerank_depth": -1}, "rerank_depth is -1"),
        ({"rerank_by": "luck"}, "re-ranking by 'luck' is unknown: choose matching or matching_and_similarity"),
        ({"resamples": -1}, "resamples is -1"),
    ],
)
def test_protocols_that_make_no_sense(settings, says):
    with pytest.raises(CCRError, match=says):
        EvaluationProtocol(**settings)


def test_identical_texts_find_each_other_in_every_language():
    embeds = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    ids = torch.arange(20)
    languages = torch.arange(2).repeat_interleave(20)
    embeddings = Embeddings(embeds, ids, embeds.repeat(2, 1), ids.repeat(2), languages, torch.zeros_like(languages))
    for of in ranks_between_languages(embeddings).values():
        assert (of.ranks == 1).all()
    firsts = ranks_by_direction(embeddings, with_first=True)["text_to_image"]
    assert firsts[0].first.equal(ids)
