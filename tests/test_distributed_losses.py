"""Gradients of real gloo ranks against one process that holds the whole batch."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from gloo_ranks import results_of_ranks
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ccr_lightning import distributed
from ccr_lightning.functional.contrastive import english_pivot_contrastive_loss, one_to_k_contrastive_loss
from ccr_lightning.functional.masking import mask_tokens
from ccr_lightning.functional.matching import draw_matching
from ccr_lightning.functional.sigmoid import one_to_k_sigmoid_loss
from ccr_lightning.losses import ContrastiveLoss
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training.fusion_losses import batch_masked_lm_loss, batch_matching_loss
from ccr_lightning.types import Batch

B, K = 4, 3  # per rank
LANGUAGES = ("de", "en", "fr")
CASES = {
    "one_to_k": {"objective": "one_to_k"},
    "one_to_k, authors' weight": {"objective": "one_to_k", "text_to_image_weight": 1 / K},
    "one_to_k, plain": {"objective": "one_to_k", "plain": True},
    "one_to_k_sigmoid": {"objective": "one_to_k_sigmoid"},
    "one_to_one": {"objective": "one_to_one"},
    "english_pivot": {"objective": "english_pivot"},
}
BIAS = -2.0
COUNTS = {"uneven": (3, 0, 2), "nowhere": (0, 0, 0)}  # items of each rank


class Data(NamedTuple):
    images: torch.Tensor
    texts: torch.Tensor
    caption_mask: torch.Tensor
    image_ids: torch.Tensor

    def of_rank(self, rank):
        return Data(*(tensor[rank * B : (rank + 1) * B] for tensor in self))


def whole_batch(world_size):
    """Repeated images across ranks and within one; missing captions, and an image of the last rank without any."""
    generator, n_rows = torch.Generator().manual_seed(world_size), world_size * B
    mask = torch.rand(n_rows, K, generator=generator) < 0.7
    mask[0], mask[-1] = True, False
    ids = 100 + torch.arange(n_rows)
    ids[B] = ids[1]
    ids[-2] = ids[0]
    ids[3] = ids[2]
    return Data(
        torch.randn(n_rows, 5, generator=generator, dtype=torch.float64),
        torch.randn(n_rows, K, 6, generator=generator, dtype=torch.float64),
        mask,
        ids,
    )


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(5, 4, dtype=torch.float64)
        self.text = nn.Linear(6, 4, dtype=torch.float64)
        self.log_logit_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, images, texts):
        image_embeds, text_embeds = F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1)
        return image_embeds, text_embeds, self.log_logit_scale.exp()


def inputs(data, objective, plain):
    """What the objective sees; one_to_one one text per image."""
    n_texts = 1 if objective == "one_to_one" else K
    given = {} if plain else {"caption_mask": data.caption_mask[:, :n_texts], "image_ids": data.image_ids}
    return data.images, data.texts[:, :n_texts], given


def contrastive_of_rank(data, objective, plain=False, **options):
    towers = DistributedDataParallel(Towers())
    images, texts, given = inputs(data, objective, plain)
    bias = (BIAS,) if objective == "one_to_k_sigmoid" else ()
    loss = ContrastiveLoss(objective, **options)(*towers(images, texts), *bias, languages=LANGUAGES, **given)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in towers.parameters()]


def contrastive_of_one_process(data, objective, plain=False, **options):
    towers = Towers()
    images, texts, given = inputs(data, objective, plain)
    if objective == "english_pivot":
        loss = english_pivot_contrastive_loss(*towers(images, texts), pivot=1, **given)
    elif objective == "one_to_k_sigmoid":
        loss = one_to_k_sigmoid_loss(*towers(images, texts), BIAS, **given)
    else:
        loss = one_to_k_contrastive_loss(*towers(images, texts), **given, **options)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in towers.parameters()]


def items(rank, count):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(10 + rank), dtype=torch.float64)


def mean_of_rank(rank, count):
    model = DistributedDataParallel(Towers().image)
    terms = model(items(rank, count)).square().sum(-1)
    loss = distributed.global_mean(terms.sum(), torch.tensor(count))
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


def fusion_batch(rank):
    """Tiny model and batch; ranks differ in how many images have captions, and in the captions' lengths."""
    torch.manual_seed(0)
    sizes = {"heads": 2, "feed_forward_size": 16, "dropout": 0.0}
    retriever = Retriever(
        ImageEncoder("test_convnext", image_size=32),
        TextEncoder(30, 8, layers=1, **sizes),
        FusionEncoder(8, layers=1, image_width=64, **sizes),
        embed_dim=4,
    )
    torch.manual_seed(100 + rank)
    lengths = torch.randint(4, 9, (B, K)) + 3 * rank
    attention_mask = torch.arange(14) < lengths[..., None]
    caption_mask = torch.ones(B, K, dtype=torch.bool)
    caption_mask[: rank + 1] = False
    input_ids = torch.randint(5, 30, (B, K, 14))
    input_ids[..., 0] = 0  # <s>
    input_ids.scatter_(2, lengths[..., None] - 1, 2)  # </s>
    batch = Batch(
        torch.randn(B, 3, 32, 32),
        torch.arange(B) + B * rank,
        input_ids,
        attention_mask,
        caption_mask,
        LANGUAGES,
        lengths.numpy(),
    )
    images, texts = retriever.encode_image(batch.images), retriever.encode_text(batch.input_ids, attention_mask)
    draw = draw_matching(images.embeds, texts.embeds, 1.0, caption_mask=caption_mask, image_ids=batch.image_ids)
    return retriever, batch, images, texts, draw


class Tokens(NamedTuple):
    special_token_ids: tuple[int, ...] = (0, 1, 2)
    mask_token_id: int = 4
    vocab_size: int = 30


def fusion_losses_of_rank(rank):
    """The shares of the two losses, and their sums and counts as seen from the outputs of the two heads."""
    retriever, batch, images, texts, draw = fusion_batch(rank)
    logits, found = {}, {}
    retriever.matching_head.register_forward_hook(lambda head, given, output: logits.update(matching=output))
    retriever.masked_lm_head.register_forward_hook(lambda head, given, output: logits.update(masked_lm=output))
    share = batch_matching_loss(retriever, batch, images, texts, draw)
    log_probs = logits["matching"].detach().double().log_softmax(1)
    terms = [-log_probs[i + B * kind, int(kind == 0)] for kind in range(3) for i in range(B) if draw.valid[i]]
    found["matching"] = (share.item(), float(sum(terms)), len(terms))

    torch.manual_seed(7)
    share = batch_masked_lm_loss(retriever, batch, images, draw, Tokens(), 0.4)
    rows = torch.arange(B) * K + draw.language
    input_ids, mask = batch.input_ids.flatten(0, 1)[rows], batch.attention_mask.flatten(0, 1)[rows]
    torch.manual_seed(7)
    targets = mask_tokens(input_ids, mask & (input_ids >= 5), mask_token_id=4, vocab_size=30).targets
    hidden = targets[targets >= 0]
    log_probs = logits["masked_lm"].detach().double().log_softmax(1)
    terms = [-log_probs[place, token] for place, token in enumerate(hidden)]
    found["masked_lm"] = (share.item(), float(sum(terms)), len(terms))
    return found


def gather_of_rank(rank):
    own = torch.arange(6, dtype=torch.float64).view(2, 3).add(10 * rank).requires_grad_()
    gathered = distributed.gather_with_grad(own)
    weights = torch.arange(gathered.numel(), dtype=torch.float64).view(gathered.shape) + 100**rank
    (weights * gathered).sum().backward()
    return {
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "gathered": gathered.detach(),
        "gradient": own.grad,
        "bool": distributed.gather(torch.tensor([rank == 1, True])),
        "int64": distributed.gather(torch.tensor([[2**60 + rank]])),
        "strided": distributed.gather(torch.tensor([[0, 1], [2, 3]]).T + 10 * rank),
    }


def everything_of_rank(rank, world_size):
    data = whole_batch(world_size).of_rank(rank)
    results = {name: contrastive_of_rank(data, **case) for name, case in CASES.items()}
    results |= {name: mean_of_rank(rank, counts[rank]) for name, counts in COUNTS.items()}
    results["mean"] = distributed.mean(torch.tensor([1.0, rank], requires_grad=True))
    return results | {"gather": gather_of_rank(rank), "fusion": fusion_losses_of_rank(rank)}


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request, tmp_path_factory):
    """What each rank found, in rank order."""
    return results_of_ranks(everything_of_rank, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.ddp
@pytest.mark.parametrize("case", CASES)
def test_gradient_of_ranks_is_that_of_one_process(ranks, case):
    loss, gradients = contrastive_of_one_process(whole_batch(len(ranks)), **CASES[case])
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    losses = [result[case][0] for result in ranks]
    torch.testing.assert_close(torch.stack(losses).mean(), loss, rtol=1e-12, atol=0)
    for result in ranks:
        torch.testing.assert_close(result[case][1], gradients, rtol=0, atol=1e-12)


@pytest.mark.ddp
def test_global_mean_over_uneven_ranks(ranks):
    model = Towers().image
    everything = torch.cat([items(rank, COUNTS["uneven"][rank]) for rank in range(len(ranks))])
    loss = model(everything).square().sum(-1).mean()
    loss.backward()
    torch.testing.assert_close(torch.stack([result["uneven"][0] for result in ranks]).mean(), loss.detach())
    for result in ranks:
        torch.testing.assert_close(result["uneven"][1], [parameter.grad for parameter in model.parameters()])


@pytest.mark.ddp
@pytest.mark.parametrize("loss", ["matching", "masked_lm"])
def test_fusion_losses_are_means_over_the_items_of_all_ranks(ranks, loss):
    shares, sums, counts = zip(*(result["fusion"][loss] for result in ranks), strict=True)
    assert len(set(counts)) > 1  # a mean of the ranks' own means would be another number
    assert sum(shares) / len(shares) == pytest.approx(sum(sums) / sum(counts), rel=1e-5)


@pytest.mark.ddp
def test_mean_over_ranks(ranks):
    for result in ranks:
        assert not result["mean"].requires_grad
        assert result["mean"].tolist() == pytest.approx([1.0, (len(ranks) - 1) / 2])


@pytest.mark.ddp
def test_global_mean_of_nothing_is_zero(ranks):
    for result in ranks:
        loss, gradients = result["nowhere"]
        assert loss == 0
        assert all(gradient.abs().sum() == 0 for gradient in gradients)


@pytest.mark.ddp
def test_gather(ranks):
    world_size = len(ranks)
    expected = [[3.0 * row + column + 10 * rank for column in range(3)] for rank in range(world_size) for row in (0, 1)]
    for rank, result in enumerate(ranks):
        found = result["gather"]
        assert (found["rank"], found["world_size"]) == (rank, world_size)
        assert found["gathered"].tolist() == expected
        assert found["bool"].tolist() == [value for other in range(world_size) for value in (other == 1, True)]
        assert found["int64"].tolist() == [[2**60 + other] for other in range(world_size)]
        assert found["strided"].tolist() == [
            [row + 10 * other, row + 2 + 10 * other] for other in range(world_size) for row in (0, 1)
        ]


@pytest.mark.ddp
def test_gradient_of_gather_is_summed_over_ranks(ranks):
    for rank, result in enumerate(ranks):
        own_slice = torch.arange(6.0).view(2, 3).double() + 6 * rank
        expected = len(ranks) * own_slice + sum(100**other for other in range(len(ranks)))
        torch.testing.assert_close(result["gather"]["gradient"], expected)


def test_without_a_process_group():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    tensor = torch.ones(2, requires_grad=True)
    assert distributed.gather_with_grad(tensor) is tensor
    assert not distributed.gather(tensor).requires_grad
    mean = distributed.global_mean(tensor.sum() * 3, torch.tensor(4))
    assert mean.item() == 1.5
    nothing = distributed.global_mean(tensor.sum() * 0, torch.tensor(0))
    nothing.backward()
    assert nothing.item() == 0
    assert tensor.grad.tolist() == [0, 0]
