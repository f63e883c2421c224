"""Re-ranking against a plain loop that scores one pair at a time."""

import itertools

import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation import rerank as rerank_module
from ccr_lightning.evaluation.rerank import rerank
from ccr_lightning.functional.galleries import ranks_by_direction
from ccr_lightning.metrics import RetrievalEmbeddings
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.types import CaptionBatch, ImageBatch

N_IMAGES, N_LANGUAGES = 7, 3
IMAGE_IDS = [10, 3, 7, 21, 5, 40, 1]
# (image, language): image 7 has no caption in language 1, image 3 has two in language 2; not in any order
DESCRIBED = [(i, k) for k in range(N_LANGUAGES) for i in IMAGE_IDS if (i, k) != (7, 1)] + [(3, 2)]


@pytest.fixture(scope="module")
def retriever():
    """Weights so large that the matching scores of different pairs are far apart."""
    torch.manual_seed(0)
    model = Retriever(
        ImageEncoder("test_convnext", image_size=32),
        TextEncoder(vocab_size=50, hidden_size=16, layers=1, heads=2, feed_forward_size=32, dropout=0.1),
        FusionEncoder(16, layers=3, heads=2, feed_forward_size=32, image_width=64, dropout=0.1),
        embed_dim=8,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def split():
    """Images (id, pixels) and captions (image id, language, token ids) of many lengths."""
    generator = torch.Generator().manual_seed(1)
    images = [(i, torch.randn(3, 32, 32, generator=generator)) for i in IMAGE_IDS]
    captions = []
    for image_id, language in DESCRIBED:
        length = int(torch.randint(2, 12, (), generator=generator))
        captions.append((image_id, language, torch.randint(3, 50, (length,), generator=generator)))
    return images, captions


def caption_batch(captions):
    longest = max(len(tokens) for _, _, tokens in captions)
    input_ids = torch.ones(len(captions), longest, dtype=torch.int64)
    for row, (_, _, tokens) in enumerate(captions):
        input_ids[row, : len(tokens)] = tokens
    return CaptionBatch(
        input_ids=input_ids,
        attention_mask=torch.arange(longest) < torch.tensor([[len(tokens)] for _, _, tokens in captions]),
        image_ids=torch.tensor([image_id for image_id, _, _ in captions]),
        languages=torch.tensor([language for _, language, _ in captions]),
        caption_index=torch.tensor([int(tokens[0]) for _, _, tokens in captions]),
    )


class Reader:
    """Gives the images and captions of the split once more."""

    def __init__(self, split):
        pixels, self.split_captions = split
        self.pixels = dict(pixels)
        self.read = []

    def images(self, batches):
        for ids in batches:
            self.read += ids
            yield ImageBatch(torch.stack([self.pixels[i] for i in ids]), torch.tensor(ids))

    def captions(self, batches):
        for rows in batches:
            yield caption_batch([self.split_captions[row] for row in rows])

    def caption_rows(self, languages, image_ids, caption_index):
        keys = [(k, i, int(tokens[0])) for i, k, tokens in self.split_captions]
        wanted = zip(languages.tolist(), image_ids.tolist(), caption_index.tolist(), strict=True)
        return torch.tensor([keys.index(key) for key in wanted])

    def caption_lengths(self):
        return torch.tensor([len(tokens) for _, _, tokens in self.split_captions])


@pytest.fixture
def reader(split):
    return Reader(split)


@pytest.fixture(scope="module")
def embeddings(retriever, split):
    """Of a metric that saw one image or caption at a time."""
    images, captions = split
    metric = RetrievalEmbeddings()
    with torch.no_grad():
        for image_id, pixels in images:
            metric.update(retriever.encode_image(pixels[None]).embeds, None, torch.tensor([image_id]))
        for caption in captions:
            batch = caption_batch([caption])
            embeds = retriever.encode_text(batch.input_ids, batch.attention_mask).embeds
            metric.update(None, embeds, batch.image_ids, languages=batch.languages, caption_index=batch.caption_index)
    return metric.compute()


@pytest.fixture(scope="module")
def pairs(retriever, split):
    """Similarity and matching score of every caption with every image, one pair at a time, without padding."""
    images, captions = split
    similarity, score = {}, {}
    with torch.no_grad():
        for i, pixels in images:
            image = retriever.encode_image(pixels[None])
            for n, (_, _, tokens) in enumerate(captions):
                mask = torch.ones(1, len(tokens), dtype=torch.bool)
                text = retriever.encode_text(tokens[None], mask)
                fused = retriever.fuse(text.states, mask, image.states)
                no, yes = retriever.match_logits(fused)[0].double().tolist()
                similarity[n, i] = sum(
                    a * b for a, b in zip(text.embeds[0].tolist(), image.embeds[0].tolist(), strict=True)
                )
                score[n, i] = yes - no
    return similarity, score


def closest(values):
    ordered = sorted(values)
    return min(b - a for a, b in itertools.pairwise(ordered))


def ranks_by_loops(split, pairs, language, direction, depth, only=None):
    """Rank and first result of each query, after the first ``depth`` are put in the order of their score."""
    images, captions = split
    images = [(i, pixels) for i, pixels in images if only is None or i in only]
    similarity, score = pairs
    texts = [n for n, (i, k, _) in enumerate(captions) if k == language and i in dict(images)]
    shown = [i for i, _ in images if any(captions[n][0] == i for n in texts)]
    found = []
    for query in sorted(shown) if direction == "image_to_text" else sorted(texts, key=lambda n: captions[n][0]):
        if direction == "image_to_text":
            items, key = texts, lambda n, query=query: (n, query)
            positive = {n for n in texts if captions[n][0] == query}
        else:
            items, key = shown, lambda i, query=query: (query, i)
            positive = {captions[query][0]}
        order = sorted(items, key=lambda item: -similarity[key(item)])
        head = sorted(order[:depth], key=lambda item: -score[key(item)])
        order = head + order[depth:]
        rank = 1 + min(place for place, item in enumerate(order) if item in positive)
        image_id = query if direction == "image_to_text" else captions[query][0]
        found.append((image_id, rank, captions[order[0]][0] if direction == "image_to_text" else order[0]))
    return sorted(found), len(items)


def test_the_loop_sees_clear_differences(split, pairs):
    similarity, score = pairs
    _, captions = split
    for n in range(len(captions)):
        assert closest([similarity[n, i] for i in IMAGE_IDS]) > 2e-6
        assert closest([score[n, i] for i in IMAGE_IDS]) > 2e-6
    for i in IMAGE_IDS:
        assert closest([similarity[n, i] for n in range(len(captions))]) > 2e-6
        assert closest([score[n, i] for n in range(len(captions))]) > 2e-6


@pytest.mark.parametrize("depth", [1, 3, 6])
@pytest.mark.parametrize(("at_once", "by"), [(1024, "matching"), (2, "matching"), (2, "matching_and_similarity")])
def test_ranks_are_those_of_the_loop(retriever, embeddings, reader, split, pairs, depth, at_once, by, monkeypatch):
    for name in ("IMAGES_AT_ONCE", "TEXTS_AT_ONCE", "PAIRS_AT_ONCE", "KEPT_BYTES"):
        monkeypatch.setattr(rerank_module, name, at_once)  # two images do not fit: chunks of one batch
    (found,) = rerank(retriever, embeddings, [embeddings], reader, depth, by)
    if by == "matching_and_similarity":
        similarity, score = pairs
        pairs = similarity, {pair: score[pair] + similarity[pair] / 0.07 for pair in score}
    for direction in ("image_to_text", "text_to_image"):
        assert sorted(found[direction]) == [0, 1, 2]
        for language in range(N_LANGUAGES):
            of = found[direction][language]
            expected, gallery = ranks_by_loops(split, pairs, language, direction, depth)
            columns = (of.image_ids.tolist(), of.ranks.tolist(), of.first.tolist())
            assert sorted(zip(*columns, strict=True)) == expected
            assert of.gallery == gallery
            assert of.tied_queries == 0
    assert sorted(reader.read) == sorted(IMAGE_IDS)  # each image once


def test_parts_are_galleries_of_their_own(retriever, embeddings, reader, split, pairs):
    folds = [[1, 3, 5], [10, 21, 40]]
    parts = [embeddings, *(embeddings.of_images(torch.tensor(ids)) for ids in folds)]
    for found, only in zip(rerank(retriever, embeddings, parts, reader, 2), [None, *folds], strict=True):
        for direction in ("image_to_text", "text_to_image"):
            for language in range(N_LANGUAGES):
                of = found[direction][language]
                expected, gallery = ranks_by_loops(split, pairs, language, direction, 2, only)
                columns = (of.image_ids.tolist(), of.ranks.tolist(), of.first.tolist())
                assert (sorted(zip(*columns, strict=True)), of.gallery) == (expected, gallery)


def test_the_matching_head_changes_ranks_only_within_the_depth(retriever, embeddings, reader):
    (after,) = rerank(retriever, embeddings, [embeddings], reader, 3)
    dual = ranks_by_direction(embeddings)
    moved = 0
    for direction in ("image_to_text", "text_to_image"):
        for language in range(N_LANGUAGES):
            before, ranks = dual[direction][language].ranks, after[direction][language].ranks
            assert torch.equal(before[before > 3], ranks[before > 3])
            assert ranks[before <= 3].max() <= 3
            moved += int((before != ranks).sum())
    assert moved > 0


def test_a_pair_is_scored_once(retriever, embeddings, reader, monkeypatch):
    sizes = []
    handle = retriever.matching_head.register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))
    rerank(retriever, embeddings, [embeddings, embeddings], reader, 6)
    handle.remove()
    every_pair = 7 * 7 + 6 * 6 + 8 * 7  # captions times images of each language
    assert sum(sizes) <= every_pair
    assert sum(sizes) > 3 * 6 * 6


def test_equal_scores_tie(retriever, embeddings, reader):
    """A matching head that says the same of every pair: each candidate that is no positive counts against the model."""
    weight = retriever.matching_head.output.weight.detach().clone()
    try:
        with torch.no_grad():
            retriever.matching_head.output.weight.zero_()
        (found,) = rerank(retriever, embeddings, [embeddings], reader, 6)
    finally:
        with torch.no_grad():
            retriever.matching_head.output.weight.copy_(weight)
    of = found["text_to_image"][0]
    dual = ranks_by_direction(embeddings)["text_to_image"][0]
    inside = dual.ranks <= 6
    assert inside.sum() > 0
    assert (of.ranks[inside] == 6).all()
    assert (of.ties[inside] == 5).all()
    assert (of.first == -1).all()


def test_what_cannot_be_re_ranked(retriever, embeddings, reader):
    plain = Retriever(
        ImageEncoder("test_convnext", image_size=32),
        TextEncoder(vocab_size=50, hidden_size=16, layers=1, heads=2, feed_forward_size=32),
        embed_dim=8,
    )
    with pytest.raises(CCRError, match="no fusion encoder, which re-ranking needs"):
        rerank(plain, embeddings, [embeddings], reader, 1)
    with pytest.raises(CCRError, match="rerank_depth is 7, but a gallery has 6 items: give at most 6"):
        rerank(retriever, embeddings, [embeddings], reader, 7)
    retriever.train()
    try:
        with pytest.raises(CCRError, match=r"in training mode, in which dropout changes scores: call eval\(\) first"):
            rerank(retriever, embeddings, [embeddings], reader, 1)
    finally:
        retriever.eval()


def test_images_without_a_caption_are_not_read(retriever, embeddings, reader, monkeypatch):
    """Not even where a whole chunk of images would be of them."""
    monkeypatch.setattr(rerank_module, "IMAGES_AT_ONCE", 1)
    monkeypatch.setattr(rerank_module, "KEPT_BYTES", 1)
    kept = torch.isin(embeddings.text_ids, torch.tensor([10, 21, 40]))
    texts = (tensor[kept] for tensor in embeddings[2:])
    few = type(embeddings)(embeddings.image_embeds, embeddings.image_ids, *texts)
    (found,) = rerank(retriever, few, [few], reader, 2)
    assert sorted(reader.read) == [10, 21, 40]
    assert found["text_to_image"][0].gallery == 3


def test_items_that_tie_at_the_depth_are_not_re_ranked(retriever, embeddings, reader, pairs):
    """Two images alike: where only one of them is among the first n, which one is up to the order of the data."""
    image_embeds = embeddings.image_embeds.clone()
    image_embeds[2] = image_embeds[1]
    with_twins = embeddings._replace(image_embeds=image_embeds)
    _, score = pairs
    image = dict(zip(embeddings.image_ids.tolist(), image_embeds.double(), strict=True))
    cut_between_twins = 0
    for depth in range(1, len(image_embeds)):
        (found,) = rerank(retriever, with_twins, [with_twins], reader, depth)
        for language, of in found["text_to_image"].items():
            chosen = (embeddings.text_languages == language).nonzero().flatten().tolist()
            described = sorted({int(embeddings.text_ids[row]) for row in chosen})
            if depth >= len(described):
                continue
            expected = []
            for row in chosen:
                own = int(embeddings.text_ids[row])
                text = embeddings.text_embeds[row].double()
                similarity = {i: (text * image[i]).sum().item() for i in described}
                left_out = sorted(similarity.values(), reverse=True)[depth]
                first = [i for i in described if similarity[i] > left_out]
                cut_between_twins += len(first) < depth and own in first
                if own in first:
                    expected.append(1 + sum(score[row, i] >= score[row, own] for i in first if i != own))
                else:
                    expected.append(1 + sum(similarity[i] >= similarity[own] for i in described if i != own))
            assert of.ranks.tolist() == expected
    assert cut_between_twins > 0


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_nothing_is_made_of_a_tie(retriever, embeddings, reader, depth):
    """All embeddings alike: which items are the first n is up to the order of the data; re-ranking changes nothing."""
    alike = embeddings._replace(
        image_embeds=torch.ones_like(embeddings.image_embeds), text_embeds=torch.ones_like(embeddings.text_embeds)
    )
    (found,) = rerank(retriever, alike, [alike], reader, depth)
    dual = ranks_by_direction(alike, with_first=True)
    for direction, languages in dual.items():
        for language, of in languages.items():
            if depth < of.gallery:
                assert found[direction][language].ranks.equal(of.ranks)
                assert found[direction][language].ties.equal(of.ties)
                assert (found[direction][language].first == -1).all()
