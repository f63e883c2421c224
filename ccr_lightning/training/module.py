"""The LightningModule: wires the model, the losses, the metrics and the optimiser; holds no formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ccr_lightning import distributed
from ccr_lightning.data.seeding import derived_seed
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.evaluate import Evaluation, evaluate, parts
from ccr_lightning.evaluation.protocol import EvaluationProtocol
from ccr_lightning.evaluation.query_ranks import query_ranks
from ccr_lightning.evaluation.rerank import rerank
from ccr_lightning.evaluation.scores import RECALLS, SHORT, retrieval_results
from ccr_lightning.functional.contrastive import draw_one_caption
from ccr_lightning.functional.galleries import Direction, Embeddings, Share
from ccr_lightning.functional.matching import PositiveLanguage, draw_matching
from ccr_lightning.losses import ContrastiveLoss, Objective
from ccr_lightning.memory import is_out_of_memory, lacks_thread
from ccr_lightning.metrics import RetrievalEmbeddings
from ccr_lightning.models.dual_encoder import DualEncoder, Encoded
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.training.checkpoint_file import explain_mismatch
from ccr_lightning.training.checkpointing import explain_optimizer_mismatch, take_optimizer_settings
from ccr_lightning.training.checks import (
    check_galleries,
    check_mrv_languages,
    check_pivot,
    check_tokenizer,
    check_transform,
)
from ccr_lightning.training.chunks import check_chunks, has_batch_norm, in_chunks
from ccr_lightning.training.compiling import compile_parts
from ccr_lightning.training.fusion_losses import batch_masked_lm_loss, batch_matching_loss, draw_sharpness
from ccr_lightning.training.optim import adamw, freeze_unused, linear_warmup_decay, parameter_groups
from ccr_lightning.training.out_of_memory import explain_step
from ccr_lightning.training.tuning import Tuned, tune
from ccr_lightning.types import Batch, CaptionBatch, ImageBatch

if TYPE_CHECKING:
    from ccr_lightning.types import Counts

_DEFAULT_PROTOCOL = EvaluationProtocol()


class RetrievalModule(LightningModule):
    """Trains and tests a dual encoder, with or without fusion (Nie et al., KDD 2024).

    The training loss is the weighted sum of contrastive, matching and masked-LM loss; a weight of 0 switches a loss off
    and saves its cost. Under ddp the gradient is that of one process with the whole batch, but for BatchNorm, whose
    statistics are each device's, and for matching, which draws its negatives on each device, as in the paper.

    Args:
        retriever: The model: a :class:`~ccr_lightning.models.retriever.Retriever`, or another dual encoder.
        objective: ``one_to_k`` (the paper's), ``one_to_k_sigmoid`` (for models with a ``logit_bias``, such as SigLIP),
            or what the paper compares with: ``one_to_one`` (one random language per image and step) or
            ``english_pivot`` (image-pivot and pivot-other).
        text_to_image_weight: Weight of text→image in ``one_to_k``; 1/K is that of the authors' code.
        text_to_text_weight: Weight of the contrastive loss between texts of different languages, beside that of
            ``one_to_k``; 0 leaves it out, as the paper does.
        pivot_language: The pivot of ``english_pivot``.
        contrastive_weight: Weight of the contrastive loss.
        matching_weight: Weight of the matching loss with hard negatives.
        masked_lm_weight: Weight of the masked-LM loss.
        positive_language: How matching chooses the language of an image's positive text.
        draw_warmup: Share of the training over which matching's draws sharpen: all texts and images alike at its start,
            the paper's preferences from its end on. It helps where the fusion encoder starts at random.
        mask_rate: Share of a caption's tokens that masked-LM hides, at most 12 of them.
        tuned: What is trained of a pretrained model: ``all``, the ``last_layers`` of each encoder, the ``projections``,
            or adapters (``lora``, with the extra of that name); see :func:`~ccr_lightning.training.tuning.tune`.
        tuned_layers: How many layers of each encoder ``last_layers`` trains.
        lora_rank: Rank of the adapters.
        chunk_size: Images, with their captions, that are encoded at a time in training: of the others only the token
            states are kept, and computed again for the backward pass (gradient caching), for a third more work. But for
            other draws of dropout the gradient is the same. Not with BatchNorm. None: all at once.
        is_compiled: Whether to train with ``torch.compile``: it takes minutes at the start and, on a CPU, a C++
            compiler; measure whether it pays.
        lr: Peak learning rate.
        new_lr_scale: Factor on ``lr`` for parts that start from random values beside pretrained ones.
        weight_decay: AdamW's weight decay of matrices.
        betas: AdamW's betas.
        warmup_fraction: Share of the steps that warms the learning rate up; afterwards it decays linearly to 0.
        protocol: How splits are scored; re-ranking is for the test split only.
        seed: Seeds dropout and the draws of each batch, together with its epoch, its number and the device's.

    Attributes:
        evaluation: The numbers of the split that was scored last, and the rank of every query.
        reranked: The same after re-ranking; None without.
        accepts_changes: Whether a run that resumes takes the optimiser's settings of now instead of those of before.

    Raises:
        CCRError: If a setting makes no sense, or does not suit the model or the data.
    """

    def __init__(
        self,
        retriever: DualEncoder,
        objective: Objective = "one_to_k",
        text_to_image_weight: float = 1.0,
        text_to_text_weight: float = 0.0,
        pivot_language: str = "en",
        contrastive_weight: float = 1.0,
        matching_weight: float = 1.0,
        masked_lm_weight: float = 1.0,
        positive_language: PositiveLanguage = "least_likely",
        draw_warmup: float = 0.0,
        mask_rate: float = 0.4,
        tuned: Tuned = "all",
        tuned_layers: int = 2,
        lora_rank: int = 16,
        chunk_size: int | None = None,
        is_compiled: bool = False,
        lr: float = 1e-4,
        new_lr_scale: float = 2.0,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_fraction: float = 0.03,
        protocol: EvaluationProtocol = _DEFAULT_PROTOCOL,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= draw_warmup <= 1:
            raise CCRError(f"draw_warmup is {draw_warmup}: give a share of the training, from 0 to 1.")
        if min(contrastive_weight, matching_weight, masked_lm_weight) < 0:
            raise CCRError("contrastive_weight, matching_weight and masked_lm_weight must not be negative: 0 is off.")
        if (matching_weight or masked_lm_weight or protocol.rerank_depth) and retriever.fusion is None:
            raise CCRError(
                "matching, masked-LM and re-ranking need a fusion encoder: give the retriever one, or set "
                "matching_weight, masked_lm_weight and protocol.rerank_depth to 0."
            )
        if not (contrastive_weight or matching_weight or masked_lm_weight):
            raise CCRError(
                "contrastive_weight, matching_weight and masked_lm_weight are all 0, which leaves no loss: set one."
            )
        if objective == "one_to_k_sigmoid" and retriever.logit_bias is None:
            raise CCRError(
                "objective one_to_k_sigmoid needs a model with a logit_bias, such as SigLIP: choose objective one_to_k."
            )
        check_chunks(chunk_size, retriever)
        if chunk_size is not None and is_compiled:
            raise CCRError("chunk_size and is_compiled do not go together: leave one of them out.")
        self.retriever = retriever
        self.contrastive = ContrastiveLoss(
            objective,
            text_to_image_weight=text_to_image_weight,
            text_to_text_weight=text_to_text_weight,
            pivot_language=pivot_language,
        )
        self.loss_weights = {
            "contrastive": contrastive_weight,
            "matching": matching_weight,
            "masked_lm": masked_lm_weight,
        }
        self.positive_language = positive_language
        self.draw_warmup = draw_warmup
        self.mask_rate = mask_rate
        self.tuned: Tuned = tuned
        self.tuned_layers = tuned_layers
        self.lora_rank = lora_rank
        self.chunk_size = chunk_size
        self.is_compiled = is_compiled
        self.lr = lr
        self.new_lr_scale = new_lr_scale
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup_fraction = warmup_fraction
        self.protocol = protocol
        self.seed = seed
        self.embeddings = RetrievalEmbeddings()
        distributed.keep_constants(self)
        self.evaluation: Evaluation | None = None
        self.reranked: Evaluation | None = None
        self.accepts_changes = False

    def setup(self, stage: str) -> None:
        """Checks the settings against the data, and freezes what no loss reaches."""
        check_mrv_languages(self.protocol.mrv_languages, self._data)
        if stage == "test" and not self._is_trial:
            check_galleries(self.protocol, self._data)
        if stage == "fit" or self.tuned == "lora":  # of which checkpoints have the adapters
            tune(self.retriever, self.tuned, self.tuned_layers, self.lora_rank)
        if stage == "fit":
            if self.contrastive.objective == "english_pivot":
                check_pivot(self.contrastive.pivot_language, self._data)
            freeze_unused(self.retriever, self.loss_weights, self.contrastive.objective)
            if self.is_compiled:
                compile_parts(self.retriever, self.trainer.strategy.root_device)

    def configure_model(self) -> None:
        """Shards the model if the strategy asks for it, layer by layer."""
        if self.device_mesh is not None:
            steps = ("training_step", "validation_step", "test_step", "predict_step")
            distributed.shard(self, self.retriever.layers(), self.device_mesh["data_parallel"], steps)

    def _check_inputs(self) -> None:
        check_tokenizer(self.retriever, self._data.tokenizer)
        if self.retriever.transform is not None:
            check_transform(self.retriever.transform, self._data.transform)

    on_fit_start = on_validation_start = on_test_start = on_predict_start = _check_inputs

    @property
    def _data(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise CCRError("RetrievalModule takes languages and tokeniser from a CaptionDataModule: pass datamodule=.")
        return data

    @property
    def _fused(self) -> Retriever:
        """The model where there is fusion, which other dual encoders lack."""
        assert isinstance(self.retriever, Retriever)
        return self.retriever

    @property
    def _is_trial(self) -> bool:
        """Whether this is a trial of a few batches, of which nothing can be scored."""
        return bool(getattr(self.trainer, "fast_dev_run", False))

    def on_train_start(self) -> None:
        """Has a step that runs out of memory explained."""
        loop = self.trainer.fit_loop.epoch_loop.automatic_optimization
        step = type(loop).run

        def run(*args: Any) -> Any:
            try:
                return step(loop, *args)  # not optimizer_step, outside of which gradients are accumulated
            except Exception as error:
                is_sharded = self.device_mesh is not None  # whose parts all have to ask for
                if is_sharded or not is_out_of_memory(error) or lacks_thread(error):
                    raise
                raise self._explain_out_of_memory(error) from None

        loop.run = run  # type: ignore[assignment,method-assign]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes the batch's draws a function of (seed, epoch, batch, rank), so that a resumed run repeats them."""
        self._batch = batch
        torch.manual_seed(derived_seed("step", self.seed, self.trainer.current_epoch, batch_idx, self.global_rank))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then puts the temperature back into its range: each checkpoint holds one that is in it."""
        super().optimizer_step(*args, **kwargs)
        self.retriever.clamp_temperature_()

    def _explain_out_of_memory(self, error: BaseException) -> CCRError:
        tokenizer = self._data.tokenizer

        def losses(batch: Batch) -> dict[str, Tensor]:
            with distributed.alone(), self.trainer.precision_plugin.forward_context():
                return self.losses(batch, tokenizer)

        may_be_cut = self.chunk_size is None and not self.is_compiled and not has_batch_norm(self.retriever)
        return explain_step(error, self, self._batch, losses, may_be_cut)

    def losses(self, batch: Batch, tokenizer: CaptionTokenizer, sharpness: float = 1.0) -> dict[str, Tensor]:
        """Computes the losses that are switched on: this device's shares, whose means over devices are the losses.

        On one device nothing in it waits for a GPU.

        Args:
            batch: Of this device.
            tokenizer: Knows which tokens are special.
            sharpness: Factor on the logits that matching draws from, see ``draw_warmup``.
        """
        if self.contrastive.objective == "one_to_one":
            batch = _keep_one_caption(batch)

        def encode_text(input_ids: Tensor, attention_mask: Tensor, most_tokens: Counts) -> Encoded:
            return self.retriever.encode_text(input_ids, attention_mask, int(most_tokens.sum()))

        images = in_chunks(self.retriever.encode_image, self.chunk_size, batch.images)
        texts = in_chunks(encode_text, self.chunk_size, batch.input_ids, batch.attention_mask, batch.most_tokens)
        weights = self.loss_weights
        losses: dict[str, Tensor] = {}
        if weights["contrastive"]:
            losses["contrastive"] = self.contrastive(
                images.embeds,
                texts.embeds,
                self.retriever.logit_scale,
                self.retriever.logit_bias,
                caption_mask=batch.caption_mask,
                image_ids=batch.image_ids,
                languages=batch.languages,
            )
        if weights["matching"] or weights["masked_lm"]:
            draw = draw_matching(
                images.embeds,
                texts.embeds,
                self.retriever.logit_scale * sharpness,
                caption_mask=batch.caption_mask,
                image_ids=batch.image_ids,
                positive_language=self.positive_language,
            )
            if weights["matching"]:
                losses["matching"] = batch_matching_loss(self._fused, batch, images, texts, draw, self.chunk_size)
            if weights["masked_lm"]:
                losses["masked_lm"] = batch_masked_lm_loss(
                    self._fused, batch, images, draw, tokenizer, self.mask_rate, self.chunk_size
                )
        return losses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the weighted sum of the losses that are switched on."""
        steps = int(self.trainer.estimated_stepping_batches)
        losses = self.losses(batch, self._data.tokenizer, draw_sharpness(self.global_step, steps, self.draw_warmup))
        loss = torch.stack([self.loss_weights[name] * value for name, value in losses.items()]).sum()
        means = distributed.mean(torch.stack([loss, *losses.values()]))  # of the devices' shares: the losses themselves
        # Not for Lightning's progress bar: it would wait for the value at each step. TrainingBar shows it.
        logged = {f"train/{name}": value for name, value in zip(["loss", *losses], means, strict=True)}
        self.log_dict({**logged, "train/temperature": self.retriever.temperature}, batch_size=len(batch.images))
        return loss

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(
            self.retriever,
            self.lr,
            self.weight_decay,
            new_parameters=self.retriever.new_parameters(),
            new_lr_scale=self.new_lr_scale,
        )

    def configure_optimizers(self) -> Any:
        """AdamW with the paper's parameter groups, linear warm-up and decay over the whole training."""
        groups = self._parameter_groups()
        optimizer = adamw(groups, self.betas, is_mixed="mixed" in str(self.trainer.precision))
        total_steps = self.trainer.estimated_stepping_batches
        # That built the training loader. Lightning has to build it again, once a resumed run's progress is restored.
        self.trainer.fit_loop._combined_loader = None
        if total_steps == float("inf"):
            raise CCRError("training without an end has no learning-rate schedule: set --trainer.max_epochs.")
        schedule = linear_warmup_decay(optimizer, int(total_steps), self.warmup_fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validation_step(self, batch: ImageBatch | CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Encodes the batch and keeps its embeddings."""
        self._accumulate(batch)

    def test_step(self, batch: ImageBatch | CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Encodes the batch and keeps its embeddings."""
        self._accumulate(batch)

    def predict_step(
        self, batch: ImageBatch | CaptionBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Returns the embeddings of the batch's images or captions, (B, D), and the numbers that say whose they are."""
        embeds = self._encode(batch).embeds
        if isinstance(batch, ImageBatch):
            numbers = {"ids": batch.image_ids}
        else:
            numbers = {name: getattr(batch, name) for name in ("image_ids", "languages", "caption_index")}
        # Copies: what a loader's worker has sent keeps a file open for as long as it lives.
        return {"embeds": embeds, **{name: values.clone() for name, values in numbers.items()}}

    def on_validation_epoch_start(self) -> None:
        """Starts without embeddings and results."""
        self.evaluation = self.reranked = None
        self.embeddings.reset()
        distributed.gather_parameters(self)  # a device may have more batches than another

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Scores the validation split with the test's own code; a trial of some batches has nothing to score."""
        if not self._is_trial:
            protocol = replace(self.protocol, folds=1, text_to_text=False)
            self.evaluation = self._score("val", self.embeddings.compute(), protocol)
        self.embeddings.reset()
        distributed.release_parameters(self)

    def on_test_epoch_end(self) -> None:
        """Scores the test split, and once more after re-ranking if asked for; not in a trial of some batches."""
        if not self._is_trial:
            embeddings = self.embeddings.compute()
            self.evaluation = self._score("test", embeddings, self.protocol)
            if self.protocol.rerank_depth:
                self.reranked = self._score_reranked(embeddings)
        self.embeddings.reset()
        distributed.release_parameters(self)

    def _encode(self, batch: ImageBatch | CaptionBatch) -> Encoded:
        if isinstance(batch, ImageBatch):
            return self.retriever.encode_image(batch.images)
        return self.retriever.encode_text(batch.input_ids, batch.attention_mask)

    def _accumulate(self, batch: ImageBatch | CaptionBatch) -> None:
        encoded = self._encode(batch)
        if isinstance(batch, ImageBatch):
            self.embeddings.update(encoded.embeds, None, batch.image_ids)
        else:
            self.embeddings.update(
                None,
                encoded.embeds,
                batch.image_ids,
                languages=batch.languages,
                caption_index=batch.caption_index,
            )

    def _score(self, name: str, embeddings: Embeddings, protocol: EvaluationProtocol) -> Evaluation:
        share = Share(distributed.rank(), distributed.world_size(), distributed.total)
        evaluation = evaluate(
            embeddings, self._data.languages, protocol=protocol, parallel=self._data.source.parallel, share=share
        )
        self._log_results(name, evaluation.results)
        return evaluation

    def _score_reranked(self, embeddings: Embeddings) -> Evaluation:
        protocol = self.protocol
        reader = self._data.reader("test", self._prepare)
        with self.trainer.precision_plugin.forward_context():
            whole, *folds = rerank(
                self._fused,
                embeddings,
                parts(embeddings, protocol.folds),
                reader,
                protocol.rerank_depth,
                protocol.rerank_by,
            )
        results = retrieval_results(
            whole, self._data.languages, protocol=protocol, parallel=self._data.source.parallel, folds=folds
        )
        self._log_results("test_reranked", results)
        return Evaluation(results, query_ranks(whole, embeddings, self._data.languages))

    def _prepare(self, batch: ImageBatch | CaptionBatch) -> ImageBatch | CaptionBatch:
        on_device: ImageBatch | CaptionBatch = type(batch)(*(tensor.to(self.device) for tensor in batch))
        normalized: ImageBatch | CaptionBatch = self._data.normalize(on_device)
        return normalized

    def _log_results(self, name: str, results: Mapping[str, Any]) -> None:
        logged = {f"{name}/mean_recall": results["mean_recall"]}
        for direction in get_args(Direction):
            for recall in RECALLS:
                logged[f"{name}/{SHORT[direction]}/{recall}"] = results["mean_recalls"][direction][recall]
        for statistic in ("mrv", "mrsd"):
            if results[statistic]["mean"] is not None:
                logged[f"{name}/{statistic}"] = results[statistic]["mean"]
        self.log_dict(logged, prog_bar=False, rank_zero_only=False)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that a run which resumes trains what it trained before, with the same optimiser.

        Raises:
            CCRError: If not.
        """
        weights = checkpoint.get("state_dict")  # a strategy that shards has loaded them already
        if self.trainer.state.fn != "fit" or (weights and explain_mismatch(self.state_dict(), weights)):
            return  # another architecture is refused below
        before = [group for optimizer in checkpoint.get("optimizer_states", []) for group in optimizer["param_groups"]]
        now = [group | {"betas": self.betas} for group in self._parameter_groups()]
        if self.accepts_changes:
            take_optimizer_settings(checkpoint, now)
        if mismatch := explain_optimizer_mismatch(now, before):
            raise CCRError(mismatch)

    def load_initial_weights(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Loads the weights of another run, whose image encoder may be for images of another size.

        Args:
            weights: The state of another ``RetrievalModule``.

        Returns:
            The tensors that were resampled, since they depend on the image size, such as position tables.

        Raises:
            CCRError: If keys or other sizes differ.
        """
        prefix = "retriever.image_encoder."
        own = self.state_dict()
        resampled = [name for name, tensor in weights.items() if name in own and tensor.shape != own[name].shape]
        if isinstance(self.retriever, Retriever) and resampled and all(name.startswith(prefix) for name in resampled):
            of_encoder = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
            fitted = self.retriever.image_encoder.resample(of_encoder)
            weights = {**weights, **{f"{prefix}{name}": tensor for name, tensor in fitted.items()}}
        self.load_state_dict(weights)
        return resampled

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights, and says in one sentence what does not fit if they are another architecture's.

        Raises:
            CCRError: If keys or sizes differ.
        """
        mismatch = explain_mismatch(self.state_dict(), state_dict)
        if mismatch:
            raise CCRError(mismatch)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _keep_one_caption(batch: Batch) -> Batch:
    choice = draw_one_caption(batch.caption_mask)
    rows = torch.arange(len(choice), device=choice.device)
    return batch._replace(
        input_ids=batch.input_ids[rows, choice][:, None],
        attention_mask=batch.attention_mask[rows, choice][:, None],
        caption_mask=batch.caption_mask[rows, choice][:, None],
        languages=("mixed",),
        most_tokens=batch.most_tokens.max(1, keepdims=True),
    )
