"""The training module through real trainers on the CPU, with a tiny retriever and drawn pictures."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.protocol import EvaluationProtocol
from ccr_lightning.functional.masking import mask_tokens
from ccr_lightning.functional.matching import draw_matching
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training.checkpointing import AtomicCheckpointIO
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.types import ImageBatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]
LOSSES = ("contrastive", "matching", "masked_lm")


@pytest.fixture(scope="module")
def shared(tmp_path_factory, write_tiny_jsonl):
    """Data that is whole, and data with holes: captions missing, and several of one language."""
    folder = tmp_path_factory.mktemp("training")
    sources = {name: write_tiny_jsonl(folder / name) for name in ("whole", "holes")}
    for split in ("train", "test"):
        path = Path(sources["holes"]["files"][split])
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for number, line in enumerate(lines):
            captions = line["captions"]
            if number % 3 == 1:
                del captions["ja"]
            if number % 4 == 2:
                del captions["en"]
            if number % 4 == 3:
                captions["de"].append(f"noch ein Satz, Nummer {number}")
        path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return folder / "cache", sources


@pytest.fixture
def data(shared):
    cache_dir, sources = shared

    def make(kind="whole", **settings):
        settings = {"transform": ImageTransform(32, crop_scale=(1.0, 1.0)), "batch_size": 8, **settings}
        tokenizer = settings.pop("tokenizer", None) or CaptionTokenizer(vocab_size=200)
        return CaptionDataModule(JsonLines(**sources[kind]), tokenizer, cache_dir=str(cache_dir), **settings)

    return make


def model(dropout=0.0, fusion=True, drop_path_rate=0.0, **settings):
    torch.manual_seed(0)
    sizes = {"layers": 1, "heads": 2, "feed_forward_size": 32, "dropout": dropout}
    retriever = Retriever(
        ImageEncoder("test_convnext", image_size=32, drop_path_rate=drop_path_rate),
        TextEncoder(vocab_size=200, hidden_size=16, max_positions=40, **sizes),
        FusionEncoder(16, image_width=64, **sizes) if fusion else None,
        embed_dim=16,
    )
    return RetrievalModule(retriever, **{"lr": 3e-3, **settings})


def trainer(*callbacks, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    settings = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": False, **quiet, **settings}
    return lightning.Trainer(
        accelerator="cpu", callbacks=list(callbacks), plugins=[AtomicCheckpointIO()], gradient_clip_val=1.0, **settings
    )


class Watcher(lightning.Callback):
    """Remembers, of each step, what was logged and the learning rate, and which parameters had a gradient."""

    def __init__(self):
        self.logged, self.lrs, self.with_gradient = [], [], set()

    def on_after_backward(self, trainer, module):
        for name, parameter in module.retriever.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                self.with_gradient.add(name)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.lrs.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def mean(self, name, steps):
        return float(np.mean([logged[f"train/{name}"] for logged in self.logged[steps]]))


@pytest.mark.parametrize("objective", ["one_to_k", "one_to_one", "english_pivot"])
def test_the_losses_fall(data, objective):
    watcher = Watcher()
    module = model(objective=objective)
    trainer(watcher, max_epochs=10).fit(module, datamodule=data())
    assert len(watcher.logged) == 20
    floor = math.log(3) / 2 if objective == "one_to_k" else 0.0  # of image to text: K positives share a denominator
    first, last = (watcher.mean("contrastive", steps) for steps in (slice(0, 2), slice(-2, None)))
    assert floor < last < first - 0.5
    for name in ("masked_lm", "loss"):
        assert watcher.mean(name, slice(-4, None)) < watcher.mean(name, slice(0, 4)) - 0.1
    assert watcher.lrs == pytest.approx([3e-3 * (20 - step) / 20 for step in range(20)])
    assert watcher.with_gradient == {name for name, _ in module.retriever.named_parameters()}


@pytest.mark.parametrize(
    ("off", "unused"),
    [
        (["contrastive"], ["image_projection.", "text_projection.", "log_logit_scale"]),
        (["matching"], ["matching_head."]),
        (["masked_lm"], ["masked_lm_head."]),
        (["matching", "masked_lm"], ["matching_head.", "masked_lm_head.", "fusion."]),
    ],
)
def test_a_weight_of_zero_switches_a_loss_off(data, off, unused):
    weights = {"contrastive": 0.5, "matching": 2.0, "masked_lm": 0.25} | dict.fromkeys(off, 0.0)
    module = model(**{f"{name}_weight": weight for name, weight in weights.items()})
    before = {name: parameter.detach().clone() for name, parameter in module.retriever.named_parameters()}
    watcher = Watcher()
    trainer(watcher, max_steps=1).fit(module, datamodule=data())
    (logged,) = watcher.logged
    assert logged.keys() == {f"train/{name}" for name in (*LOSSES, "loss", "temperature") if name not in off}
    total = sum(weight * logged[f"train/{name}"] for name, weight in weights.items() if weight)
    assert logged["train/loss"] == pytest.approx(total, rel=1e-6)
    without = {name for name in before if name.startswith(tuple(unused))}
    assert watcher.with_gradient == before.keys() - without
    for name, parameter in module.retriever.named_parameters():
        assert not (name in without and (parameter.detach() != before[name]).any()), name


class EmbedsFirstBatch(lightning.Callback):
    """Encodes the first training batch with the model as it is before the first step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batch = batch
        with torch.no_grad():
            self.images = module.retriever.encode_image(batch.images).embeds.double().numpy()
            self.texts = module.retriever.encode_text(batch.input_ids, batch.attention_mask).embeds.double().numpy()
            self.temperature = module.retriever.temperature.double().item()


def log_softmax_at(logits, at):
    return logits[at] - math.log(sum(math.exp(logit) for logit in logits.values()))


def one_to_k_by_loops(v, t, mask, temperature, text_to_image_weight):
    """Section 3 of the method: every image against all texts, and every text against all images."""
    n_images, n_languages = mask.shape
    image_terms, text_terms = [], []
    for i in range(n_images):
        own = [k for k in range(n_languages) if mask[i, k]]
        logits = {
            (j, k): v[i] @ t[j, k] / temperature for j in range(n_images) for k in range(n_languages) if mask[j, k]
        }
        image_terms.append(-np.mean([log_softmax_at(logits, (i, k)) for k in own]))
        for k in own:
            logits = {j: v[j] @ t[i, k] / temperature for j in range(n_images)}
            text_terms.append(-log_softmax_at(logits, i))
    return 0.5 * (np.mean(image_terms) + text_to_image_weight * np.mean(text_terms))


def clip_by_loops(queries, texts, both, temperature):
    """CLIP's symmetric loss of the rows where both sides are there."""
    rows = [i for i in range(len(both)) if both[i]]
    forth = [-log_softmax_at({j: queries[i] @ texts[j] / temperature for j in rows}, i) for i in rows]
    back = [-log_softmax_at({j: queries[j] @ texts[i] / temperature for j in rows}, i) for i in rows]
    return 0.5 * (np.mean(forth) + np.mean(back))


@pytest.mark.parametrize(
    ("kind", "weight", "text_to_text_weight"), [("whole", 1.0, 0.5), ("holes", 1.0, 0.0), ("whole", 1 / 3, 0.0)]
)
def test_the_logged_contrastive_loss_is_the_formula(data, kind, weight, text_to_text_weight):
    seen, watcher = EmbedsFirstBatch(), Watcher()
    module = model(text_to_image_weight=weight, text_to_text_weight=text_to_text_weight)
    trainer(seen, watcher, max_steps=1).fit(module, datamodule=data(kind))
    mask = seen.batch.caption_mask.numpy()
    assert mask.all() == (kind == "whole")
    assert len(set(seen.batch.image_ids.tolist())) == 8
    expected = one_to_k_by_loops(seen.images, seen.texts, mask, seen.temperature, weight)
    if text_to_text_weight:
        among_texts = [
            one_to_k_by_loops(
                seen.texts[:, k], np.delete(seen.texts, k, 1), np.delete(mask, k, 1), seen.temperature, 1.0
            )
            for k in range(3)
        ]
        expected += text_to_text_weight * np.mean(among_texts)
    assert watcher.logged[0]["train/contrastive"] == pytest.approx(expected, rel=1e-5)


def test_the_logged_pivot_loss_is_the_formula(data):
    seen, watcher = EmbedsFirstBatch(), Watcher()
    module = model(fusion=False, objective="english_pivot", pivot_language="de", matching_weight=0, masked_lm_weight=0)
    trainer(seen, watcher, max_steps=1).fit(module, datamodule=data())
    assert seen.batch.languages == ("en", "de", "ja")
    everywhere = np.ones(8, dtype=bool)
    en, de, ja = (seen.texts[:, k] for k in range(3))
    expected = clip_by_loops(seen.images, de, everywhere, seen.temperature)
    expected += np.mean([clip_by_loops(de, other, everywhere, seen.temperature) for other in (en, ja)])
    assert watcher.logged[0]["train/contrastive"] == pytest.approx(expected, rel=1e-5)


def test_one_language(data):
    watcher, seen = Watcher(), EmbedsFirstBatch()
    trainer(watcher, seen, max_epochs=6).fit(model(), datamodule=data(languages=["de"]))
    assert seen.batch.input_ids.shape[:2] == (8, 1)
    assert watcher.mean("contrastive", slice(-2, None)) < watcher.mean("contrastive", slice(0, 2)) - 0.3


@pytest.mark.parametrize("objective", ["one_to_k", "one_to_one", "english_pivot"])
def test_missing_captions(data, objective):
    watcher = Watcher()  # finds gradients that are not finite
    module = model(objective=objective, dropout=0.1)
    trainer(watcher, max_epochs=2).fit(module, datamodule=data("holes"))
    assert len(watcher.logged) == 4
    assert all(math.isfinite(value) for logged in watcher.logged for value in logged.values())
    assert watcher.with_gradient == {name for name, _ in module.retriever.named_parameters()}


def test_fusion_sees_the_pairs_of_the_batch(data):
    module, pairs = model(), []
    module.retriever.fusion.register_forward_hook(lambda fusion, inputs, output: pairs.append(len(inputs[0])))
    trainer(max_steps=1).fit(module, datamodule=data())
    assert pairs == [24, 8]  # text with image, text with another image, image with another text; masked texts


def test_bfloat16(data):
    watcher, module = Watcher(), model()
    fitting = trainer(watcher, precision="bf16-mixed", limit_val_batches=None)
    fitting.fit(module, datamodule=data())
    assert all(math.isfinite(value) for logged in watcher.logged for value in logged.values())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert all(group["fused"] for group in fitting.optimizers[0].param_groups)  # and its gradients were clipped
    assert 0 <= fitting.callback_metrics["val/mean_recall"] <= 1


def test_reranking_in_bfloat16(data):
    module = model(protocol=EvaluationProtocol(rerank_depth=3))
    dtypes = set()
    module.retriever.matching_head.register_forward_hook(lambda layer, inputs, output: dtypes.add(output.dtype))
    trainer(precision="bf16-mixed").test(module, datamodule=data(), verbose=False)
    assert dtypes == {torch.float32}  # in bfloat16, different scores would tie
    for direction in ("image_to_text", "text_to_image"):
        dual, new = (of.results["mean_recalls"][direction] for of in (module.evaluation, module.reranked))
        assert (dual["recall@5"], dual["recall@10"]) == (new["recall@5"], new["recall@10"])


def test_the_optimiser_follows_the_settings(data):
    module = model(lr=0.01, weight_decay=0.3, betas=(0.8, 0.95), new_lr_scale=3.0, warmup_fraction=0.5)
    module.retriever.image_encoder.pretrained = True  # its backbone is old, all else new
    watcher, names = Watcher(), {parameter: name for name, parameter in module.retriever.named_parameters()}
    fitting = trainer(watcher, max_epochs=2)
    fitting.fit(module, datamodule=data())
    (optimizer,) = fitting.optimizers
    settings = {names[one]: group for group in optimizer.param_groups for one in group["params"]}
    assert settings.keys() == set(names.values())
    for name, group in settings.items():
        assert group["betas"] == (0.8, 0.95)
        assert group["initial_lr"] == pytest.approx(0.01 if "image_encoder.backbone" in name else 0.03), name
        owner, _, leaf = name.rpartition(".")
        layer = module.retriever.get_submodule(owner)
        decays = leaf == "weight" and isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding)
        assert group["weight_decay"] == (0.3 if decays else 0.0), name
    first = optimizer.param_groups[0]["initial_lr"]
    assert watcher.lrs == pytest.approx([first / 2, first, first, first / 2])  # 2 of 4 steps warm up


def test_matching_and_masked_lm_follow_the_settings(data, monkeypatch):
    draws, masks = [], []
    monkeypatch.setattr(
        "ccr_lightning.training.module.draw_matching",
        lambda *args, **settings: draws.append((args[2].item(), settings)) or draw_matching(*args, **settings),
    )
    monkeypatch.setattr(
        "ccr_lightning.training.fusion_losses.mask_tokens",
        lambda *args, **settings: masks.append(settings) or mask_tokens(*args, **settings),
    )
    module = model(lr=0.0, positive_language="least_similar", mask_rate=0.15, draw_warmup=0.5)
    trainer(max_epochs=2).fit(module, datamodule=data())
    assert [settings["positive_language"] for _, settings in draws] == ["least_similar"] * 4
    assert [settings["rate"] for settings in masks] == [0.15] * 4
    scales = [0.0, 0.5 / 0.07, 1 / 0.07, 1 / 0.07]  # any negatives at first, the paper's from half of the training on
    assert [scale for scale, _ in draws] == pytest.approx(scales)


def test_each_device_draws_its_own():
    module, drawn = model(), []
    for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        epoch, batch, rank = place
        module._trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        module.on_train_batch_start(None, batch)
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 4


def test_each_batch_draws_its_own(data):
    class Draws(lightning.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.seen.append(torch.initial_seed())

    draws = Draws()
    trainer(draws, max_epochs=2, accumulate_grad_batches=2).fit(model(), datamodule=data())
    assert len(set(draws.seen)) == 4


@pytest.mark.parametrize("start", [0.001, 0.5])
def test_the_temperature_stays_in_its_range(data, start):
    module, watcher = model(lr=0.5), Watcher()
    module.retriever.log_logit_scale.data.fill_(-math.log(start))
    module.retriever.log_logit_scale.register_hook(lambda gradient: torch.full_like(gradient, 1 - 2 * (start < 0.1)))
    trainer(watcher, max_epochs=1).fit(module, datamodule=data())
    assert module.retriever.temperature.item() == pytest.approx(start, rel=1e-6)  # after the last step too


@pytest.mark.parametrize(
    ("module_settings", "data_settings", "message"),
    [
        ({}, {"batch_size": 1}, "batch_size is 1"),
        ({}, {"tokenizer": CaptionTokenizer(vocab_size=201)}, "the tokeniser has 201 tokens but the text encoder only"),
        (
            {"protocol": EvaluationProtocol(mrv_languages=["en", "fr"])},
            {},
            "mrv_languages names 'fr', which is not among .* en, de, ja",
        ),
        ({"fusion": False}, {}, "need a fusion encoder"),
        ({"fusion": False, "matching_weight": 0}, {}, "need a fusion encoder"),
        (
            {
                "fusion": False,
                "matching_weight": 0,
                "masked_lm_weight": 0,
                "protocol": EvaluationProtocol(rerank_depth=2),
            },
            {},
            "need a fusion encod",
        ),
        ({"contrastive_weight": 0, "matching_weight": 0, "masked_lm_weight": 0}, {}, "are all 0"),
        ({"draw_warmup": 2}, {}, "draw_warmup is 2"),
        ({"masked_lm_weight": -1}, {}, "must not be negative"),
        ({"objective": "one_to_one", "text_to_image_weight": 0.5}, {}, "has no meaning"),
        ({"objective": "english_pivot", "pivot_language": "fr"}, {}, "needs 'fr' in every batch"),
        ({"objective": "english_pivot"}, {"languages_per_step": 2}, r"pass --data\.required_languages '\[en\]'"),
        ({}, {"tokenizer": CaptionTokenizer(vocab_size=200, max_tokens=41)}, "captions of 41 tokens .* only 40 posit"),
        ({}, {"transform": ImageTransform(48)}, r"the images are \(3, 48, 48\) and the image encoder takes"),
        ({}, {"batch_size": 17}, "too few for a batch of 17"),
    ],
)
def test_settings_that_do_not_fit(data, module_settings, data_settings, message):
    with pytest.raises(CCRError, match=message):
        trainer(max_steps=1).fit(model(**module_settings), datamodule=data(**data_settings))


def test_training_without_an_end(data):
    with pytest.raises(CCRError, match=r"set --trainer\.max_epochs"):
        trainer(max_epochs=-1).fit(model(), datamodule=data())


def test_without_a_data_module(data):
    module = data()
    module.prepare_data()
    module.setup("fit")
    with pytest.raises(CCRError, match="pass datamodule="):
        trainer().fit(model(), module.train_dataloader())


class Stop(lightning.Callback):
    """Saves a checkpoint after a batch, or after an epoch, and breaks off."""

    def __init__(self, path, epoch, batch=None):
        self.path, self.epoch, self.batch = path, epoch, batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            self._stop(trainer)

    def on_train_epoch_end(self, trainer, module):
        if self.batch is None and trainer.current_epoch == self.epoch:
            self._stop(trainer)

    def _stop(self, trainer):
        trainer.save_checkpoint(self.path)
        raise KeyError("stopped")


@pytest.mark.parametrize("batch", [None, 0, 1], ids=["after an epoch", "within an epoch", "at its last batch"])
def test_a_resumed_run_ends_with_the_same_weights(data, tmp_path, batch):
    def run(*callbacks, **settings):
        module = model(dropout=0.1, drop_path_rate=0.1, positive_language="uniform", seed=3)
        moving = data("holes", seed=3, languages_per_step=2, transform=ImageTransform(32, horizontal_flip=True))
        torch.manual_seed(len(callbacks))  # what was drawn before must not matter
        trainer(*callbacks, max_epochs=4).fit(module, datamodule=moving, weights_only=True, **settings)
        return module

    def weights(module):
        return {name: value.clone() for name, value in module.state_dict().items()}

    straight = weights(run())
    path = tmp_path / "last.ckpt"
    with pytest.raises(KeyError, match="stopped"):
        run(Stop(path, epoch=1, batch=batch))
    stopped = torch.load(path, weights_only=True)
    assert stopped["global_step"] == (3 if batch == 0 else 4)
    assert any(not torch.equal(stopped["state_dict"][name], value) for name, value in straight.items())
    resumed = weights(run(ckpt_path=path))
    assert resumed.keys() == straight.keys()
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name


def scores_by_loops(images, image_ids, texts, text_ids, text_languages, n_languages):
    """Recall and MRV by explicit loops in float64: a rank counts the wrong items that are at least as similar."""
    ranks, scores = {}, {}
    for k in range(n_languages):
        captions = [n for n in range(len(texts)) if text_languages[n] == k]
        shown = [i for i in range(len(images)) if any(text_ids[n] == image_ids[i] for n in captions)]
        by_image = {}
        for i in shown:
            similarity = {n: images[i] @ texts[n] for n in captions}
            best = max(similarity[n] for n in captions if text_ids[n] == image_ids[i])
            wrong = [n for n in captions if text_ids[n] != image_ids[i]]
            by_image[image_ids[i]] = [1 + sum(similarity[n] >= best for n in wrong)]
        ranks["image_to_text", k] = by_image
        by_image = {image_ids[i]: [] for i in shown}
        for n in captions:
            similarity = {i: texts[n] @ images[i] for i in shown}
            own = next(similarity[i] for i in shown if image_ids[i] == text_ids[n])
            wrong = [i for i in shown if image_ids[i] != text_ids[n]]
            by_image[text_ids[n]].append(1 + sum(similarity[i] >= own for i in wrong))
        ranks["text_to_image", k] = by_image
    for (direction, k), by_image in ranks.items():
        flat = [rank for several in by_image.values() for rank in several]
        for cutoff in (1, 5, 10):
            scores[direction, k, cutoff] = np.mean([rank <= cutoff for rank in flat])
    for direction in ("image_to_text", "text_to_image"):
        common = set.intersection(*(set(ranks[direction, k]) for k in range(n_languages)))
        means = [[np.mean(ranks[direction, k][i]) for k in range(n_languages)] for i in common]
        scores[direction, "mrv"] = np.mean([np.mean((row - np.mean(row)) ** 2) for row in np.array(means)])
        scores[direction, "mrsd"] = np.mean([np.sqrt(np.mean((row - np.mean(row)) ** 2)) for row in np.array(means)])
        scores["instances"] = len(common)
    return scores


def test_results_are_what_loops_over_the_predictions_find(data, tmp_path):
    module, captions = model(), data("holes", eval_batch_size=5)
    fitting = trainer(max_epochs=2)
    fitting.fit(module, datamodule=captions)
    fitting.save_checkpoint(tmp_path / "best.ckpt")

    scored = model(protocol=EvaluationProtocol())
    scored.load_state_dict({name: torch.zeros_like(value) for name, value in scored.state_dict().items()})
    trainer().test(scored, datamodule=captions, ckpt_path=tmp_path / "best.ckpt", weights_only=True, verbose=False)

    predicted = {"image": [], "text": []}
    module.eval()
    with torch.no_grad():
        for number, loader in enumerate(captions.test_dataloader()):
            for batch in map(captions.normalize, loader):
                kind = "image" if isinstance(batch, ImageBatch) else "text"
                predicted[kind].append((module.predict_step(batch, 0, number), batch))
    images, texts = (
        torch.cat([output["embeds"] for output, _ in predicted[kind]]).double().numpy() for kind in ("image", "text")
    )
    ids, text_ids = (
        torch.cat([batch.image_ids for _, batch in predicted[kind]]).tolist() for kind in ("image", "text")
    )
    languages = torch.cat([batch.languages for _, batch in predicted["text"]]).tolist()
    expected = scores_by_loops(images, ids, texts, text_ids, languages, 3)

    found = scored.evaluation.results
    for (direction, k, cutoff), recall in ((key, value) for key, value in expected.items() if len(key) == 3):
        of = found["languages"][captions.languages[k]][direction]
        assert of[f"recall@{cutoff}"] == pytest.approx(recall, abs=1e-12), (direction, k, cutoff)
    for direction in ("image_to_text", "text_to_image"):
        for statistic in ("mrv", "mrsd"):
            assert found[statistic][direction] == pytest.approx(expected[direction, statistic], rel=1e-12)
    assert found["mrv"]["instances"] == expected["instances"]
    assert expected["text_to_image", "mrv"] > 0


def test_another_architecture_is_refused():
    other = model(fusion=False, matching_weight=0, masked_lm_weight=0)
    with pytest.raises(CCRError, match=r"another architecture: .* 'retriever\.fusion\..* in the model and missing in"):
        model().load_state_dict(other.state_dict())
