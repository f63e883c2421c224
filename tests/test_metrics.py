"""The stateful metrics against loops over dictionaries, on one process and on real gloo ranks."""

from __future__ import annotations

import copy
import pickle
import statistics
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gloo_ranks import results_of_ranks
from torchmetrics import MetricCollection

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.galleries import LanguageRanks, ranks_by_direction
from ccr_lightning.metrics import MeanRankVariance, RecallAtK, RetrievalEmbeddings

DIRECTIONS = ("image_to_text", "text_to_image")
D = 6


class Data(NamedTuple):
    """Images, and captions of any number per image and language."""

    image_embeds: torch.Tensor
    image_ids: torch.Tensor
    text_embeds: torch.Tensor
    text_ids: torch.Tensor
    languages: torch.Tensor
    caption_index: torch.Tensor


def ragged(seed, images=25, languages=3):
    """0 to 3 captions per image and language, in random order; one image has none at all."""
    generator = np.random.default_rng(seed)
    ids = generator.permutation(images) + 2**40
    captions = [
        (image, language, number)
        for image in ids[1:].tolist()
        for language in range(languages)
        for number in range(generator.integers(0, 4))
    ]
    captions = [captions[i] for i in generator.permutation(len(captions))]
    columns = [torch.tensor(column) for column in zip(*captions, strict=True)]

    def grid(rows):
        return torch.tensor(generator.integers(-2, 3, (rows, D)) / 4, dtype=torch.float32)

    return Data(grid(images), torch.tensor(ids), grid(len(captions)), *columns)


def parallel(seed, images=20, languages=3):
    generator = torch.Generator().manual_seed(seed)
    image_embeds = torch.randint(-4, 5, (images, D), generator=generator) / 4
    text_embeds = torch.randint(-4, 5, (images, languages, D), generator=generator) / 4
    mask = torch.rand(images, languages, generator=generator) < 0.8
    return image_embeds, text_embeds, torch.randperm(images, generator=generator) + 2**40, mask


def as_captions(image_embeds, text_embeds, image_ids, mask):
    row, language = mask.nonzero(as_tuple=True)
    return Data(image_embeds, image_ids, text_embeds[row, language], image_ids[row], language, language * 0)


def loop_ranks(data):
    """Direction to language to a list of (image id, caption index, rank) by image and caption; dictionaries only."""
    images = {i: v.double().numpy() for i, v in zip(data.image_ids.tolist(), data.image_embeds, strict=True)}
    texts = {}
    for i, language, number, t in zip(
        data.text_ids.tolist(), data.languages.tolist(), data.caption_index.tolist(), data.text_embeds, strict=True
    ):
        texts[language, i, number] = t.double().numpy()
    result = {direction: {} for direction in DIRECTIONS}
    for language in sorted({key[0] for key in texts}):
        captions = {key[1:]: t for key, t in texts.items() if key[0] == language}
        gallery = sorted({i for i, _ in captions})
        to_text, to_image = [], []
        for i in gallery:
            best = max(sum(images[i] * t) for (j, _), t in captions.items() if j == i)
            to_text.append((i, 0, 1 + sum(sum(images[i] * t) >= best for (j, _), t in captions.items() if j != i)))
        for (i, number), t in sorted(captions.items()):
            own = sum(images[i] * t)
            to_image.append((i, number, 1 + sum(sum(images[j] * t) >= own for j in gallery if j != i)))
        result["image_to_text"][language] = to_text
        result["text_to_image"][language] = to_image
    return result


def loop_mrv(ranks, direction, deviation=False):
    """Value and number of images that count."""
    per_language = []
    for triples in ranks[direction].values():
        of = {}
        for i, _, rank in triples:
            of.setdefault(i, []).append(rank)
        per_language.append({i: sum(values) / len(values) for i, values in of.items()})
    common = set.intersection(*(set(of) for of in per_language))
    spread = statistics.pstdev if deviation else statistics.pvariance
    return sum(spread([of[i] for of in per_language]) for i in common) / len(common), len(common)


def plain(computed):
    """Ranks of ``compute`` as lists, without what the loop does not have."""
    return {
        direction: {
            language: (of.image_ids.tolist(), of.ranks.tolist(), of.gallery) for language, of in languages.items()
        }
        for direction, languages in ranks_by_direction(computed).items()
    }


def expected_plain(data):
    ranks = loop_ranks(data)
    result = {}
    for direction, languages in ranks.items():
        other = DIRECTIONS[1 - DIRECTIONS.index(direction)]
        result[direction] = {
            language: ([i for i, _, _ in triples], [rank for _, _, rank in triples], len(ranks[other][language]))
            for language, triples in languages.items()
        }
    return result


def add_ragged(metric, data, batch=7):
    for start in range(0, len(data.image_ids), batch):
        rows = slice(start, start + batch)
        metric.update(data.image_embeds[rows], None, data.image_ids[rows])
    for start in range(0, len(data.text_ids), batch):
        rows = slice(start, start + batch)
        metric.update(
            None,
            data.text_embeds[rows],
            data.text_ids[rows],
            languages=data.languages[rows],
            caption_index=data.caption_index[rows],
        )


@pytest.mark.parametrize("seed", range(3))
def test_ragged_data_is_ranked_as_by_the_loop(seed):
    data = ragged(seed)
    metric = RetrievalEmbeddings()
    add_ragged(metric, data)
    assert plain(metric.compute()) == expected_plain(data)
    found = ranks_by_direction(metric.compute())
    galleries = {of.gallery for of in found["text_to_image"].values()}
    assert max(galleries) < len(data.image_ids)  # each language has its own
    assert all(isinstance(of, LanguageRanks) for languages in found.values() for of in languages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_parallel_data_is_ranked_as_by_the_loop(dtype):
    image_embeds, text_embeds, ids, mask = parallel(0)
    image_embeds, text_embeds = image_embeds.to(dtype), text_embeds.to(dtype)
    data = as_captions(image_embeds, text_embeds, ids, mask)
    metric = RetrievalEmbeddings()
    nan = text_embeds.masked_fill(~mask[..., None], float("nan"))
    for rows in (slice(0, 9), slice(9, 18), slice(18, 20)):
        metric.update(image_embeds[rows], nan[rows], ids[rows], caption_mask=mask[rows])
    assert plain(metric.compute()) == expected_plain(data)

    metric.reset()
    metric.update(image_embeds, text_embeds, ids)
    assert plain(metric.compute()) == expected_plain(as_captions(image_embeds, text_embeds, ids, mask | True))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("k", [1, 5])
def test_recall(direction, k):
    data = ragged(3)
    loop = [sum(rank <= k for _, _, rank in triples) / len(triples) for triples in loop_ranks(data)[direction].values()]
    assert len(set(loop)) > 1
    for average, expected in (("macro", sum(loop) / len(loop)), ("none", loop)):
        metric = RecallAtK(k, direction, average)
        add_ragged(metric, data)
        assert metric.compute().tolist() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("statistic", ["variance", "std"])
def test_mean_rank_variance(direction, statistic):
    data = ragged(4, images=40)
    expected, instances = loop_mrv(loop_ranks(data), direction, deviation=statistic == "std")
    assert 1 < instances < 40
    metric = MeanRankVariance(direction, statistic)
    assert metric.left_out is None
    add_ragged(metric, data)
    assert metric.compute().item() == pytest.approx(expected, rel=1e-14)
    assert metric.left_out == 40 - instances


def test_mean_rank_variance_of_identical_texts_and_of_one_language():
    image_embeds, text_embeds, ids, _ = parallel(0)
    for texts in (text_embeds[:, :1].expand(-1, 4, -1), text_embeds[:, :1]):
        metric = MeanRankVariance()
        metric.update(image_embeds, texts, ids)
        assert metric.compute() == 0
        assert metric.left_out == 0
    metric = MeanRankVariance()
    metric.update(image_embeds, text_embeds, ids)
    assert metric.compute() > 0


def test_no_image_has_all_languages():
    metric = MeanRankVariance()
    metric.update(torch.eye(2), torch.eye(2)[:, None].expand(2, 2, 2), torch.arange(2), caption_mask=torch.eye(2) > 0)
    with pytest.raises(CCRError, match="at least one instance"):
        metric.compute()


def test_repeats_are_dropped():
    image_embeds, text_embeds, ids, mask = parallel(1)
    expected = expected_plain(as_captions(image_embeds, text_embeds, ids, mask))
    metric = RetrievalEmbeddings()
    padded = [*range(20), 0, 1, 2]
    metric.update(image_embeds[padded], text_embeds[padded], ids[padded], caption_mask=mask[padded])
    noise = 1 + 1e-3 * torch.randn(5, 1)  # as a batch of another size would give
    metric.update(image_embeds[5:10] * noise, text_embeds[5:10] * noise[..., None], ids[5:10], caption_mask=mask[5:10])
    assert plain(metric.compute()) == expected

    data = ragged(5)
    metric = RetrievalEmbeddings()
    add_ragged(metric, data)
    add_ragged(metric, Data(*(tensor[:13] for tensor in data)))
    assert plain(metric.compute()) == expected_plain(data)


def test_memory_that_is_used_again():
    metric, embeds, ids = RetrievalEmbeddings(), torch.eye(2), torch.tensor([0, 1])
    metric.update(embeds, embeds[:, None], ids)
    metric.update(None, embeds, ids, languages=torch.tensor([1, 1]))
    embeds.zero_()
    ids.zero_()
    seen = metric.compute()
    assert torch.equal(seen.image_embeds, torch.eye(2))
    assert seen.text_ids.tolist() == [0, 1, 0, 1]
    assert torch.equal(seen.text_embeds, torch.eye(2)[[0, 1, 0, 1]])


def test_an_id_of_two_things():
    image_embeds, text_embeds, ids, _ = parallel(0)
    batch_local = torch.arange(10)
    metric = RetrievalEmbeddings()
    for rows in (slice(0, 10), slice(10, 20)):
        metric.update(image_embeds[rows], text_embeds[rows], batch_local)
    with pytest.raises(CCRError, match=r"10 repeats have other embeddings .* first image 0:"):
        metric.compute()

    metric = RetrievalEmbeddings()
    metric.update(image_embeds, None, ids)
    for k in (0, 1):  # the second caption of each image, not numbered
        metric.update(None, text_embeds[:, k], ids, languages=torch.zeros(20, dtype=torch.int64))
    with pytest.raises(CCRError, match=f"20 repeats .* first language 0, image {ids[0]}, caption_index 0:"):
        metric.compute()


def test_one_image_keeps_its_axis():
    metric = RetrievalEmbeddings()
    metric.update(torch.ones(1, 4), torch.ones(1, 2, 4), torch.tensor([9]))
    for languages in ranks_by_direction(metric.compute(), with_first=True).values():
        for of in languages.values():
            assert of.image_ids.tolist() == [9]
            assert of.ranks.tolist() == [1]
            assert of.first.tolist() == [9]
            assert of.gallery == 1


def test_compute_then_more_then_reset():
    image_embeds, text_embeds, ids, _ = parallel(2)
    metric = MeanRankVariance()
    values = []
    for rows in (slice(0, 8), slice(8, 20)):
        metric.update(image_embeds[rows], text_embeds[rows], ids[rows])
        values.append(metric.compute().item())
    expected = [
        loop_mrv(loop_ranks(as_captions(*(x[:n] for x in (image_embeds, text_embeds, ids)), torch.ones(n, 3))), d)[0]
        for n in (8, 20)
        for d in ["text_to_image"]
    ]
    assert values == pytest.approx(expected, rel=1e-14)
    metric.reset()
    metric.update(image_embeds[:8], text_embeds[:8], ids[:8])
    assert metric.compute().item() == values[0]


def test_as_any_other_torchmetric():
    image_embeds, text_embeds, ids, _ = parallel(3)
    image_embeds.requires_grad_()
    collection = MetricCollection({"recall": RecallAtK(5), "mrv": MeanRankVariance()})
    for rows in (slice(0, 12), slice(12, 20)):
        collection.update(image_embeds[rows], text_embeds[rows], ids[rows])
    together = collection.compute()

    metric = RecallAtK(5)
    of_first_batch = metric(image_embeds[:12], text_embeds[:12], ids[:12])
    alone = RecallAtK(5)
    alone.update(image_embeds[:12], text_embeds[:12], ids[:12])
    assert of_first_batch == alone.compute()
    metric(image_embeds[12:], text_embeds[12:], ids[12:])
    assert metric.compute() == together["recall"]
    assert not any(tensor.requires_grad for tensor in metric.image_embeds)
    for copied in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        copied.update(image_embeds[:1], text_embeds[:1], ids[:1])
        assert copied.compute() == together["recall"]
    assert (RecallAtK.higher_is_better, MeanRankVariance.higher_is_better) == (True, False)
    assert RetrievalEmbeddings.is_differentiable is RetrievalEmbeddings.full_state_update is False


IMAGES, TEXTS, IDS = torch.ones(2, 4), torch.ones(2, 3, 4), torch.arange(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_embeds": None, "text_embeds": None}, "there is nothing to add"),
        ({"image_ids": torch.arange(3)}, r"image_embeds has shape \(2, 4\): pass \(3, D\)"),
        ({"image_ids": torch.ones(2)}, "image_ids is torch.float32"),
        ({"image_ids": torch.tensor(3)}, "image_ids is torch.int64 of shape"),
        ({"image_embeds": IMAGES.long()}, "image_embeds is torch.int64: pass floating point"),
        ({"text_embeds": TEXTS[:, 0]}, r"text_embeds has shape \(2, 4\): pass \(2, K, D\)"),
        ({"text_embeds": TEXTS[:1]}, r"text_embeds has shape \(1, 3, 4\)"),
        ({"text_embeds": TEXTS[:, :0]}, r"text_embeds has shape \(2, 0, 4\)"),
        ({"text_embeds": TEXTS[..., :3]}, "widths 3 and 4 cannot be compared"),
        ({"image_embeds": IMAGES[:, :3], "text_embeds": TEXTS[..., :3]}, "widths 3 and 4 cannot be compared"),
        ({"text_embeds": TEXTS[:, :2]}, "text_embeds had 2 languages in one update and 3 in another"),
        ({"caption_mask": torch.ones(2, 2) > 0}, r"caption_mask is torch.bool of shape \(2, 2\)"),
        ({"caption_mask": torch.ones(2, 3)}, "caption_mask is torch.float32"),
        ({"text_embeds": None, "caption_mask": torch.ones(2, 3) > 0}, "caption_mask goes with"),
        ({"languages": IDS}, "languages and caption_index describe captions"),
        ({"text_embeds": None, "caption_index": IDS}, "languages and caption_index describe captions"),
        ({"image_embeds": None, "languages": IDS}, r"text_embeds has shape \(2, 3, 4\): pass \(2, D\)"),
        ({"image_embeds": None, "text_embeds": IMAGES}, "captions without images need languages"),
        ({"image_embeds": None, "text_embeds": IMAGES, "languages": IDS[:1]}, "languages is torch.int64 of shape"),
        (
            {"image_embeds": None, "text_embeds": IMAGES, "languages": IDS - IDS.max() - 1},
            "languages has -[0-9]+: number",
        ),
        (
            {"image_embeds": None, "text_embeds": IMAGES, "languages": IDS, "caption_index": IDS.float()},
            "caption_index is torch.float32",
        ),
    ],
)
def test_updates_that_do_not_fit(arguments, message):
    metric = RetrievalEmbeddings()
    metric.update(IMAGES, TEXTS, IDS)
    before = metric.compute()
    with pytest.raises(CCRError, match=message):
        metric.update(**({"image_embeds": IMAGES, "text_embeds": TEXTS, "image_ids": IDS} | arguments))
    metric._computed = None
    assert plain(metric.compute()) == plain(before)  # nothing of the rejected update was kept


def test_incomplete_data():
    metric = RetrievalEmbeddings()
    metric.update(IMAGES, None, IDS)
    with pytest.raises(CCRError, match="no captions have been added"):
        metric.compute()
    metric.update(None, IMAGES[:0], IDS[:0], languages=IDS[:0])
    with pytest.raises(CCRError, match="no captions have been added"):
        metric.compute()
    metric.update(None, IMAGES, torch.tensor([1, 7]), languages=IDS)
    with pytest.raises(CCRError, match="1 captions describe images that have not been added, first image id 7"):
        metric.compute()
    metric.reset()
    metric.update(None, IMAGES, IDS, languages=IDS)
    with pytest.raises(CCRError, match="no images have been added"):
        metric.compute()
    metric.reset()
    metric.update(IMAGES * float("nan"), TEXTS, IDS)
    with pytest.raises(CCRError, match="query_embeds has NaN"):
        ranks_by_direction(metric.compute())


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (RecallAtK, {"k": 0}, "k is 0"),
        (RecallAtK, {"direction": "t2i"}, "direction is 't2i': choose one of image_to_text, text_to_image"),
        (RecallAtK, {"average": "micro"}, "average is 'micro'"),
        (MeanRankVariance, {"direction": "both"}, "direction is 'both'"),
        (MeanRankVariance, {"statistic": "mean"}, "statistic is 'mean'"),
    ],
)
def test_options_that_do_not_exist(metric, options, message):
    with pytest.raises(CCRError, match=message):
        metric(**options)


IMPORTS = """
import sys
import torchmetrics  # which loads whatever it finds installed
before = set(sys.modules)
from ccr_lightning import MeanRankVariance, RecallAtK, mean_rank_variance
import ccr_lightning.evaluation.results
document = ccr_lightning.evaluation.results.results_document(
    {}, dataset="d", split="test", protocol=ccr_lightning.evaluation.protocol.EvaluationProtocol(), checkpoint=None,
    seed=0, left_out={}, made_of={}, ranks=None
)
assert document["versions"]["lightning"] and document["versions"]["timm"], document
new = set(sys.modules) - before
ours = sorted(name for name in new if name.startswith("ccr_lightning"))
print(*ours)
print(*sorted({name.split(".")[0] for name in sys.modules} & {"lightning", "pytorch_lightning", "timm", "datasets"}))
print(*sorted({name.split(".")[0] for name in new} - {"ccr_lightning"} - set(sys.stdlib_module_names)))
"""


def test_metrics_load_no_models_data_or_training():
    run = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    ours, forbidden, others = run.stdout.split("\n")[:3]
    assert set(ours.split()) == {
        "ccr_lightning",
        "ccr_lightning._version",
        "ccr_lightning.errors",
        "ccr_lightning.evaluation",
        "ccr_lightning.evaluation.protocol",
        "ccr_lightning.evaluation.results",
        "ccr_lightning.files",
        "ccr_lightning.functional",
        "ccr_lightning.functional.consistency",
        "ccr_lightning.functional.galleries",
        "ccr_lightning.functional.ranks",
        "ccr_lightning.functional.retrieval",
        "ccr_lightning.functional.similarity",
        "ccr_lightning.metrics",
    }
    assert forbidden == ""
    assert others == ""


PADDED = [*range(20), 0]  # as a sampler pads the last shard


def share(rank, world_size):
    """Rows of the padded data that a rank sees, in two uneven updates; the last rank of three sees nothing."""
    seeing = min(world_size, 2)
    own = PADDED[rank::seeing] if rank < seeing else []
    return [rows for rows in (own[: 3 + 4 * rank], own[3 + 4 * rank :]) if rows]


def parallel_of_rank(metric, batches, dtype):
    image_embeds, text_embeds, ids, mask = parallel(6)
    for rows in batches:
        metric.update(image_embeds[rows].to(dtype), text_embeds[rows].to(dtype), ids[rows], caption_mask=mask[rows])
    return metric


def everything_of_rank(rank, world_size):
    batches, results = share(rank, world_size), {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        results[f"parallel {dtype}"] = parallel_of_rank(RetrievalEmbeddings(), batches, dtype).compute()
    results["recall"] = parallel_of_rank(RecallAtK(2, average="none"), batches, torch.float32).compute()
    for direction in DIRECTIONS:
        mrv = parallel_of_rank(MeanRankVariance(direction), batches, torch.float32)
        results[f"mrv {direction}"] = mrv.compute(), mrv.left_out

    data, metric = ragged(7), RetrievalEmbeddings()  # images and captions on different ranks
    if rank == 0:
        metric.update(data.image_embeds, None, data.image_ids)
    elif rank == 1:
        add_ragged(metric, data._replace(image_embeds=data.image_embeds[:0], image_ids=data.image_ids[:0]))
    results["separate"] = metric.compute()
    results["own share afterwards"] = sum(map(len, metric.image_ids)), sum(map(len, metric.text_ids))

    nothing, counts = RetrievalEmbeddings(), RetrievalEmbeddings()
    counts.update(torch.eye(2), torch.eye(2)[:, None].expand(2, 2 + rank, 2), 2 * rank + torch.arange(2))
    for name, faulty in (("nothing", nothing), ("counts", counts)):
        try:
            faulty.compute()
        except CCRError as error:
            results[name] = str(error)
    return results


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request, tmp_path_factory):
    """What each rank found, in rank order."""
    return results_of_ranks(everything_of_rank, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.ddp
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_ranks_of_devices_are_those_of_one_process(ranks, dtype):
    expected = plain(parallel_of_rank(RetrievalEmbeddings(), [PADDED], dtype).compute())
    assert expected == expected_plain(as_captions(*parallel(6)))
    for result in ranks:
        assert plain(result[f"parallel {dtype}"]) == expected


@pytest.mark.ddp
def test_values_of_devices_are_those_of_one_process_to_the_last_bit(ranks):
    recall = parallel_of_rank(RecallAtK(2, average="none"), [PADDED], torch.float32).compute()
    assert 0 < recall.mean() < 1
    for result in ranks:
        assert result["recall"].equal(recall)
    for direction in DIRECTIONS:
        mrv = parallel_of_rank(MeanRankVariance(direction), [PADDED], torch.float32)
        value = mrv.compute()
        assert value > 0
        assert mrv.left_out > 0
        for result in ranks:
            assert result[f"mrv {direction}"] == (value, mrv.left_out)


@pytest.mark.ddp
def test_images_and_captions_on_different_devices(ranks):
    data = ragged(7)
    for rank, result in enumerate(ranks):
        assert plain(result["separate"]) == expected_plain(data)
        own = [(len(data.image_ids), 0), (0, len(data.text_ids)), (0, 0)][rank]
        assert result["own share afterwards"] == own


@pytest.mark.ddp
def test_every_device_says_what_is_wrong(ranks):
    for result in ranks:
        assert "no images have been added" in result["nothing"]
        assert "text_embeds had 2 languages in one update and 3 in another" in result["counts"]


def planted(metric):
    """Ranks 1, 1, 1 in the first language and 1, 3, 3 in the second."""
    images = torch.eye(3)
    metric.update(images, torch.stack([images, images[[0, 2, 1]]], 1), torch.tensor([4, 5, 6]))
    return metric


@pytest.fixture
def axes():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def heights(axes):
    return [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "o"]


def test_recall_is_plotted_for_each_language(axes):
    figure, drawn = planted(RecallAtK(k=1, average="none")).plot(ax=axes)
    assert figure is None
    assert drawn is axes
    assert heights(axes) == [[1.0], [pytest.approx(1 / 3)]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Language 0", "Language 1"]
    assert axes.get_ylim()[0] <= 0 < 1 <= axes.get_ylim()[1]
    assert axes.get_ylabel() == "RecallAtK"


def test_rank_variance_is_plotted_as_it_is(axes):
    planted(MeanRankVariance()).plot(ax=axes)
    assert heights(axes) == [[pytest.approx(2 / 3)]]
    assert axes.get_ylim()[0] <= 0


def test_values_of_several_epochs_are_plotted_as_steps(axes):
    values = [torch.tensor(0.25), torch.tensor(0.5), torch.tensor(0.75)]
    RecallAtK().plot(values, ax=axes)
    assert heights(axes) == [[0.25, 0.5, 0.75]]
    assert axes.get_xlabel() == "Step"
