"""Parameters sharded over real gloo ranks (FSDP2) against ddp: losses, gradients' norms, weights, and whole runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from gloo_ranks import results_of_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ccr_lightning import distributed
from ccr_lightning.cli.main import main
from ccr_lightning.functional.matching import draw_matching
from ccr_lightning.losses import ContrastiveLoss
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training.fusion_losses import batch_masked_lm_loss, batch_matching_loss
from ccr_lightning.training.optim import adamw, parameter_groups
from ccr_lightning.types import Batch

pytestmark = pytest.mark.ddp

B, K, L, VOCAB = 4, 3, 12, 40
SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
BACKBONES = {"swin": ("swin_tiny_patch4_window7_224", SWIN, 32), "vit": ("test_vit", {}, 64)}
STEPS = 3


class Tokens:
    special_token_ids, mask_token_id, vocab_size = (0, 1, 2), 4, VOCAB


class Losses(nn.Module):
    """A retriever and the sum of its three losses."""

    def __init__(self, backbone):
        super().__init__()
        torch.manual_seed(0)
        name, model_args, width = BACKBONES[backbone]
        sizes = {"layers": 2, "heads": 2, "feed_forward_size": 16, "dropout": 0.0}
        encoder = ImageEncoder(name, image_size=32, model_args=model_args)
        fusion = FusionEncoder(8, image_width=width, **sizes)
        self.retriever = Retriever(encoder, TextEncoder(VOCAB, 8, **sizes), fusion, embed_dim=4)

    def forward(self, batch):
        images = self.retriever.encode_image(batch.images)
        texts = self.retriever.encode_text(batch.input_ids, batch.attention_mask)
        scale, ids = self.retriever.logit_scale, batch.image_ids
        loss = ContrastiveLoss()(images.embeds, texts.embeds, scale, caption_mask=batch.caption_mask, image_ids=ids)
        draw = draw_matching(images.embeds, texts.embeds, scale, caption_mask=batch.caption_mask, image_ids=ids)
        loss = loss + batch_matching_loss(self.retriever, batch, images, texts, draw)
        return loss + batch_masked_lm_loss(self.retriever, batch, images, draw, Tokens(), 0.4)

    def embed(self, batch):
        return self.retriever.encode_image(batch.images).embeds


def batch_of(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, L + 1, (B, K), generator=generator)
    input_ids = torch.randint(5, VOCAB, (B, K, L), generator=generator)
    input_ids[..., 0] = 0
    return Batch(
        torch.randn(B, 3, 32, 32, generator=generator),
        torch.arange(B) + B * seed,
        input_ids,
        torch.arange(L) < lengths[..., None],
        torch.rand(B, K, generator=generator) < 0.8,
        ("de", "en", "fr"),
        lengths.numpy(),
    )


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trained(module, call, rank, world_size):
    """Losses, norms of the gradients before they are clipped, embeddings that rank 0 alone computes, and weights."""
    retriever = module.retriever
    optimizer = adamw(parameter_groups(retriever, 1e-2, 0.1, new_parameters={"log_logit_scale"}), (0.9, 0.98))
    losses, norms, embeddings = [], [], []
    for step in range(STEPS):
        torch.manual_seed(rank + 10 * step)
        loss = call(batch_of(step * world_size + rank))
        loss.backward()
        norms.append(whole(nn.utils.clip_grad_norm_(module.parameters(), 1.0)).item())
        optimizer.step()
        optimizer.zero_grad()
        retriever.clamp_temperature_()
        losses.append(loss.item())
        distributed.gather_parameters(module)
        with torch.no_grad():
            embeddings += [module.embed(batch_of(seed)) for seed in (range(100, 102) if rank == 0 else ())]
        distributed.release_parameters(module)
    kept = sum(of.to_local().numel() if isinstance(of, DTensor) else of.numel() for of in module.parameters())
    return losses, norms, embeddings, {name: whole(of).detach() for name, of in retriever.named_parameters()}, kept


def of_rank(rank, world_size):
    found = {}
    for backbone in BACKBONES:
        module = Losses(backbone)
        found[backbone, "ddp"] = trained(module, DistributedDataParallel(module), rank, world_size)
        mesh = init_device_mesh("cpu", (world_size,))
        for how in ("whole", "layers"):
            module = Losses(backbone)
            layers = module.retriever.layers() if how == "layers" else []
            assert how == "whole" or len(layers) > 6
            distributed.shard(module, layers, mesh, ["embed"])
            found[backbone, how] = trained(module, module, rank, world_size)
    return found


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request, tmp_path_factory):
    return results_of_ranks(of_rank, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("how", ["whole", "layers"])
def test_steps_are_those_of_ddp(ranks, backbone, how):
    for rank, found in enumerate(ranks):
        losses, norms, embeddings, weights, _ = found[backbone, how]
        expected_losses, expected_norms, expected_embeddings, expected_weights, _ = found[backbone, "ddp"]
        assert losses == pytest.approx(expected_losses, rel=1e-4)
        assert norms == pytest.approx(expected_norms, rel=1e-3)
        assert max(norms) > 1  # they are clipped
        assert len(embeddings) == (2 * STEPS if rank == 0 else 0)
        torch.testing.assert_close(embeddings, expected_embeddings, rtol=0, atol=1e-4)
        for name, weight in expected_weights.items():
            if not name.endswith("attention.key.bias"):  # its gradient is 0 but for rounding, which AdamW makes large
                torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-3, msg=name)


def test_each_rank_keeps_its_part(ranks):
    for backbone in BACKBONES:
        total = ranks[0][backbone, "ddp"][-1]
        for how in ("whole", "layers"):
            kept = [found[backbone, how][-1] for found in ranks]
            assert sum(kept) == total
            assert max(kept) < 1.2 * total / len(ranks)


def command_of(config, runs, name, *settings):
    """A run on two processes, the first of which evaluates one batch more, and re-ranks."""
    program = [sys.executable, "-m", "ccr_lightning.cli.main", "fit", "--config", str(config), "--runs_dir", str(runs)]
    common = ["--name", name, "--trainer.devices", "2", "--data.batch_size", "4", "--data.eval_batch_size", "1"]
    epochs = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2"]  # the best is after the second
    common += [*epochs, "--model.protocol.rerank_depth", "4"]
    return [*program, *common, *settings]


def fit(config, runs, name, *settings):
    command = command_of(config, runs, name, *settings)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return runs / name


@pytest.fixture(scope="module")
def runs(exact_config, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    best = str(fit(exact_config, runs, "ddp", "--trainer.strategy", "ddp") / "checkpoints" / "best.ckpt")
    fit(exact_config, runs, "fsdp2", "--trainer.strategy", "fsdp2")
    fit(exact_config, runs, "resumed", "--trainer.strategy", "fsdp2", "--resume", best)
    return runs


def results(run, name="results"):
    document = json.loads((run / f"{name}.json").read_text())
    return {key: document[key] for key in ("languages", "mean_recall", "mrv", "mrsd")}


@pytest.mark.parametrize("name", ["fsdp2", "resumed"])
def test_training_is_that_of_ddp(runs, name):
    """Also where it resumes what ddp began."""
    found, expected = (torch.load(runs / of / "checkpoints" / "last.ckpt", weights_only=True) for of in (name, "ddp"))
    assert found["global_step"] == expected["global_step"] == 6
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for key, weight in expected["state_dict"].items():
        if not key.endswith("attention.key.bias"):
            torch.testing.assert_close(found["state_dict"][key], weight, rtol=0, atol=1e-4, msg=key)


@pytest.mark.parametrize("document", ["results", "results-reranked"])
def test_results_are_those_of_ddp(runs, document):
    assert results(runs / "fsdp2", document) == results(runs / "ddp", document)


def test_the_run_is_tested_on_one_device(runs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    one = [
        "--trainer.devices",
        "1",
        "--trainer.strategy",
        "auto",
        "--name",
        "again",
        "--model.protocol.rerank_depth",
        "0",
    ]
    assert main(["test", "--ckpt_path", str(runs / "fsdp2"), *one]) == 0
    assert results(runs / "again") == results(runs / "fsdp2")
    found, expected = (json.loads((runs / of / "results.json").read_text())["model"] for of in ("again", "fsdp2"))
    assert found == expected  # the hash of whole weights


def test_another_model_is_refused_in_a_sentence(exact_config, runs):
    checkpoint = str(runs / "fsdp2" / "checkpoints" / "last.ckpt")
    for change, says in (
        (["--model.masked_lm_weight", "0"], "the checkpoint's run trained 161 tensors and this one trains"),
        (["--model.retriever.init_args.embed_dim", "8"], "model.retriever.init_args.embed_dim was 16 and is 8"),
    ):
        command = command_of(
            exact_config,
            runs,
            "other",
            "--trainer.strategy",
            "fsdp2",
            "--resume",
            checkpoint,
            "--resume-changed",
            *change,
        )
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {says}")
    assert not (runs / "other").exists()


def test_the_older_sharding_is_refused(exact_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    arguments = ["--config", str(exact_config), "--runs_dir", str(tmp_path), "--trainer.strategy", "fsdp"]
    assert main(["fit", *arguments]) == 1
    assert "trainer.strategy is fsdp, torch's older way: give fsdp2." in capsys.readouterr().err
