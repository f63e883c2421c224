"""Re-ranking against a plain loop that scores one pair at a time."""

import itertools

import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation import rerank as rerank_module
from ccr_lightning.evaluation.rerank import StateBank, rerank
from ccr_lightning.metrics import RetrievalRanks
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
        FusionEncoder(16, layers=1, heads=2, feed_forward_size=32, image_width=64, dropout=0.1),
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


@pytest.fixture(scope="module")
def bank(retriever, split):
    """The split in batches that mix languages and are padded to different lengths."""
    images, captions = split
    filled = StateBank()
    with torch.no_grad():
        for start in range(0, len(images), 3):
            chunk = images[start : start + 3]
            batch = ImageBatch(torch.stack([pixels for _, pixels in chunk]), torch.tensor([i for i, _ in chunk]))
            filled.add(batch, retriever.encode_image(batch.images))
        for start in range(0, len(captions), 5):
            batch = caption_batch(captions[start : start + 5])
            filled.add(batch, retriever.encode_text(batch.input_ids, batch.attention_mask))
    return filled


@pytest.fixture(scope="module")
def dual(retriever, split):
    """The dual encoder's ranks, from metrics that saw one caption at a time."""
    images, captions = split
    metric = RetrievalRanks()
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


def ranks_by_loops(split, pairs, language, direction, depth):
    """Rank of each query: the best positive's place, after the first ``depth`` are put in the order of their score."""
    images, captions = split
    similarity, score = pairs
    texts = [n for n, (_, k, _) in enumerate(captions) if k == language]
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
        found.append((image_id, rank))
    return sorted(found), len(items)


def test_the_loop_sees_clear_differences(split, pairs):
    similarity, score = pairs
    _, captions = split
    for n in range(len(captions)):
        assert closest([similarity[n, i] for i in IMAGE_IDS]) > 1e-5
        assert closest([score[n, i] for i in IMAGE_IDS]) > 1e-5
    for i in IMAGE_IDS:
        assert closest([similarity[n, i] for n in range(len(captions))]) > 1e-5
        assert closest([score[n, i] for n in range(len(captions))]) > 1e-5


@pytest.mark.parametrize("depth", [1, 3, 6, 100])  # 100: more than any gallery has
@pytest.mark.parametrize(("pairs_at_once", "by"), [(1024, "matching"), (4, "matching"), (4, "matching_and_similarity")])
def test_ranks_are_those_of_the_loop(retriever, bank, dual, split, pairs, depth, pairs_at_once, by, monkeypatch):
    monkeypatch.setattr(rerank_module, "PAIRS_AT_ONCE", pairs_at_once)
    found = rerank(retriever, bank, dual, depth, by)
    if by == "matching_and_similarity":
        similarity, score = pairs
        pairs = similarity, {pair: score[pair] + similarity[pair] / 0.07 for pair in score}
    for direction in ("image_to_text", "text_to_image"):
        assert sorted(found[direction]) == [0, 1, 2]
        for language in range(N_LANGUAGES):
            ranks = found[direction][language]
            expected, gallery = ranks_by_loops(split, pairs, language, direction, depth)
            assert sorted(zip(ranks.image_ids.tolist(), ranks.ranks.tolist(), strict=True)) == expected
            assert ranks.gallery == gallery


def test_the_matching_head_changes_ranks_only_within_the_depth(retriever, bank, dual):
    after = rerank(retriever, bank, dual, 3)
    moved = 0
    for direction in ("image_to_text", "text_to_image"):
        for language in range(N_LANGUAGES):
            before, ranks = dual[direction][language].ranks, after[direction][language].ranks
            assert torch.equal(before[before > 3], ranks[before > 3])
            assert ranks[before <= 3].max() <= 3
            moved += int((before != ranks).sum())
    assert moved > 0


def test_an_unknown_order(retriever, bank, dual):
    with pytest.raises(
        CCRError, match=r"re-ranking by 'luck' is unknown: choose matching or matching_and_similarity\."
    ):
        rerank(retriever, bank, dual, 3, "luck")


def test_images_are_projected_once_each(retriever, bank, dual):
    rows = []
    key = retriever.fusion.layers[0].cross_attention.key
    handle = key.register_forward_hook(lambda layer, inputs, output: rows.append(len(inputs[0])))
    rerank(retriever, bank, dual, 3)
    handle.remove()
    assert sum(rows) == 2 * (7 + 6 + 7)  # in both directions, the images that a language describes


def test_a_retriever_without_fusion(bank, dual):
    plain = Retriever(
        ImageEncoder("test_convnext", image_size=32),
        TextEncoder(vocab_size=50, hidden_size=16, layers=1, heads=2, feed_forward_size=32),
        embed_dim=8,
    )
    with pytest.raises(CCRError, match="no fusion encoder, which re-ranking needs"):
        rerank(plain, bank, dual, 1)


def test_the_bank_gives_back_what_was_added(retriever, bank, split):
    _, captions = split
    embeds, states, ids = bank.images()
    assert ids.tolist() == sorted(IMAGE_IDS)
    assert len(embeds) == len(states) == N_IMAGES
    for language in range(N_LANGUAGES):
        own = [caption for caption in captions if caption[1] == language]
        own.sort(key=lambda caption: (caption[0], int(caption[2][0])))  # by image, then by the number in it
        embeds, states, ids, mask = bank.captions(language)
        assert ids.tolist() == [image_id for image_id, _, _ in own]
        assert mask.sum(1).tolist() == [len(tokens) for _, _, tokens in own]
        for row, (_, _, tokens) in enumerate(own):
            with torch.no_grad():
                alone = retriever.encode_text(tokens[None], torch.ones(1, len(tokens), dtype=torch.bool))
            torch.testing.assert_close(embeds[row], alone.embeds[0])
            torch.testing.assert_close(states[row, : len(tokens)], alone.states[0])
