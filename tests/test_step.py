"""The losses of a step: nothing waits for a device, and chunks and bounds change nothing."""

from contextlib import nullcontext
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from ccr_lightning import distributed
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.functional import logsumexp, places
from ccr_lightning.models import transformer
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training import chunks
from ccr_lightning.training.metrics_file import MetricsFile
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.training.progress import TrainingBar
from ccr_lightning.types import Batch
from tests.gloo_ranks import results_of_ranks

B, K, L = 7, 3, 12
SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}


class Tokens:
    special_token_ids = (0, 1, 2)
    mask_token_id = 4
    vocab_size = 40


def module(dropout=0.0, image_model="test_convnext", image_size=32, image_width=64, model_args=None, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "layers": 2, "heads": 2, "feed_forward_size": 32, "dropout": dropout}
    retriever = Retriever(
        ImageEncoder(image_model, image_size, drop_path_rate=dropout, model_args=model_args),
        TextEncoder(Tokens.vocab_size, max_positions=L, **sizes),
        FusionEncoder(image_width=image_width, **sizes),
        embed_dim=16,
    )
    return RetrievalModule(retriever, **settings)


def batch(image_size=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, L + 1, (B, K), generator=generator)
    caption_mask = torch.rand(B, K, generator=generator) < 0.8
    return Batch(
        images=torch.randn(B, 3, image_size, image_size, generator=generator),
        image_ids=torch.tensor([0, 1, 2, 3, 4, 5, 0]),
        input_ids=torch.randint(3, Tokens.vocab_size, (B, K, L), generator=generator),
        attention_mask=torch.arange(L) < lengths[..., None],
        caption_mask=caption_mask,
        languages=("de", "en", "ja"),
        most_tokens=lengths.numpy(),
    )


def to(device, of):
    return Batch(*(value.to(device) if isinstance(value, torch.Tensor) else value for value in of))


def losses_and_gradients(module, of):
    module.zero_grad()
    torch.manual_seed(5)
    losses = module.losses(of, Tokens)
    sum(losses.values()).backward()
    return losses, {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


class Transfers(TorchDispatchMode):
    """Notes the operations that see two devices: to copy to a GPU from ordinary memory is to wait for it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if len({of.device for of in tree_leaves((args, kwargs, result)) if isinstance(of, torch.Tensor)}) > 1:
            self.seen.append(str(operation))
        return result


@pytest.mark.parametrize("objective", ["one_to_k", "one_to_one", "english_pivot"])
@pytest.mark.parametrize("is_tiled", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_nothing_waits_for_the_device(objective, is_tiled, chunk_size, monkeypatch):
    """A tensor on the meta device has no values: whatever needs one of them to go on raises."""
    monkeypatch.setattr(logsumexp, "DENSE_CELLS", 0 if is_tiled else 10**9)
    size = {"image_model": "swin_tiny_patch4_window7_224", "image_size": 32, "image_width": 16, "model_args": SWIN}
    of = module(dropout=0.1, objective=objective, chunk_size=chunk_size, **size).to("meta")
    of_batch = to("meta", batch())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the meta device
    transform, pixels = ImageTransform(32), torch.zeros(B, 3, 32, 32, dtype=torch.uint8, device="meta")
    transform.normalize(pixels)  # the first one copies mean and deviation
    with Transfers() as transfers:
        images = transform.normalize(pixels)
        losses = of.losses(of_batch._replace(images=images), Tokens, sharpness=0.5)
        sum(losses.values()).backward()
        of.retriever.clamp_temperature_()
    assert len(losses) == 3
    assert all(parameter.grad is not None for parameter in of.parameters())
    assert transfers.seen == []


def test_what_waits_is_found():
    numbers = torch.zeros(3, device="meta")
    with Transfers() as transfers:
        torch.zeros(3).to("meta")
    assert transfers.seen == ["aten._to_copy.default"]
    for waits in (lambda: numbers.sum().item(), lambda: numbers.nonzero(), lambda: numbers[numbers > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            waits()


@pytest.mark.parametrize("objective", ["one_to_k", "one_to_one"])
def test_tokens_computed_in_vain_change_nothing(objective, monkeypatch):
    of, of_batch = module(objective=objective).double(), batch()
    of_batch = of_batch._replace(images=of_batch.images.double())
    expected = losses_and_gradients(of, of_batch)
    for known in (places, transformer, logsumexp):
        monkeypatch.setattr(known, "is_awaited", lambda device: True)
    for most_tokens in (of_batch.most_tokens, of_batch.most_tokens + 1):
        assert_same(losses_and_gradients(of, of_batch._replace(most_tokens=most_tokens)), expected, 1e-12)


def test_more_tokens_than_the_bound():
    of, of_batch = module(), batch()
    with pytest.raises(CCRError, match="cells of a mask are True and the bound is"):
        of.losses(of_batch._replace(most_tokens=of_batch.most_tokens - 1), Tokens)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
def test_chunks_give_the_same_gradient(chunk_size):
    of_batch = batch()
    of_batch = of_batch._replace(images=of_batch.images.double())
    expected = losses_and_gradients(module().double(), of_batch)
    assert_same(losses_and_gradients(module(chunk_size=chunk_size).double(), of_batch), expected, 1e-12)


def test_chunks_repeat_their_dropout(monkeypatch):
    found = losses_and_gradients(module(dropout=0.3, chunk_size=2), batch())
    monkeypatch.setattr(chunks, "checkpoint", lambda function, *args, use_reentrant: function(*args))
    kept = losses_and_gradients(module(dropout=0.3, chunk_size=2), batch())
    assert_same(found, kept, 0)
    other_draws = losses_and_gradients(module(dropout=0.3), batch())
    assert found[0]["contrastive"] != other_draws[0]["contrastive"]


def test_a_chunk_at_a_time():
    of, sizes = module(chunk_size=3), []
    of.retriever.image_encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    losses = of.losses(batch(), Tokens)
    assert sizes == [3, 3, 1]
    sum(losses.values()).backward()
    assert sorted(sizes) == [1, 1, 3, 3, 3, 3]


def test_chunks_that_make_no_sense():
    with pytest.raises(CCRError, match="chunk_size=0 is out of range: choose 1 or more"):
        module(chunk_size=0)
    with pytest.raises(CCRError, match="chunk_size=4 needs a model without BatchNorm"):
        module(chunk_size=4, image_model="test_byobnet", image_width=256)


class Step(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, of_batch):
        return sum(self.of.losses(of_batch, Tokens).values())


def _gradients_of_rank(rank, world_size):
    found = []
    for chunk_size, is_sharded in ((None, False), (2, False), (2, True)):
        step = Step(module(chunk_size=chunk_size).double())
        if is_sharded:
            distributed.shard(step, step.of.retriever.layers(), init_device_mesh("cpu", (world_size,)), [])
        call = step if is_sharded else DistributedDataParallel(step)
        of_batch = batch(seed=rank)
        torch.manual_seed(rank)
        call(of_batch._replace(images=of_batch.images.double())).backward()
        gradients = {name: parameter.grad for name, parameter in step.named_parameters()}
        found.append({name: of.full_tensor() if is_sharded else of for name, of in gradients.items()})
    return found


@pytest.mark.ddp
def test_chunks_on_two_ranks(tmp_path):
    (whole, *others), of_other_rank = results_of_ranks(_gradients_of_rank, 2, tmp_path)
    assert_same([*others, *of_other_rank], 5 * [whole], 1e-12)
    assert np.mean([gradient.abs().sum().item() for gradient in whole.values()]) > 0


class Batches(lightning.LightningDataModule):
    """What a module asks its data for."""

    languages = ("de", "en", "ja")
    tokenizer = SimpleNamespace(
        max_tokens=L, special_token_ids=Tokens.special_token_ids, mask_token_id=4, vocab_size=Tokens.vocab_size
    )

    def train_dataloader(self):
        return DataLoader([batch(seed=seed) for seed in range(5)], batch_size=None, collate_fn=lambda of: of)


class Reads(TorchDispatchMode, lightning.Callback):
    """Counts how often a value is read on the host in a training, once its first step is over."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation.name() == "aten::_local_scalar_dense"
        return operation(*args, **(kwargs or {}))

    def on_train_batch_start(self, trainer, module, of, batch_idx):
        if batch_idx == 1:
            self.__enter__()

    def on_train_end(self, trainer, module):
        self.__exit__(None, None, None)


@pytest.mark.parametrize("logging", [1000, 1])
def test_a_training_waits_for_what_it_logs_alone(logging, monkeypatch, tmp_path):
    """The whole step of a real trainer, with the progress bar of the command, clipping and the optimiser."""
    for known in (places, transformer, logsumexp):
        monkeypatch.setattr(known, "is_awaited", lambda device: True)
    reads = Reads()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=1.0,
        log_every_n_steps=logging,
        callbacks=[reads, TrainingBar()],
        logger=MetricsFile(tmp_path / "metrics.csv"),
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module(), datamodule=Batches())
    assert trainer.global_step == 5
    assert (reads.count > 0) == (logging == 1)


def test_chunks_of_a_compiled_model():
    with pytest.raises(CCRError, match="chunk_size and is_compiled do not go together"):
        module(chunk_size=4, is_compiled=True)


def test_the_backward_pass_of_chunks_is_linear():
    """Elements of the operations of a backward pass: of eight times as many rows, eight times as many."""

    class Elements(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            self.count += sum(of.numel() for of in tree_leaves(result) if isinstance(of, torch.Tensor))
            return result

    counts = []
    for rows in (16, 128):
        states = torch.randn(rows, 50, requires_grad=True)
        results = chunks.in_chunks(torch.sin, 2, states * 1)
        with Elements() as elements:
            results.sum().backward()
        counts.append(elements.count)
    assert counts[1] < 8.5 * counts[0]
