"""What the processes of a training step send each other, counted, beside what formulas say.

python -m benchmarks.communication [--processes 2 4] [--config configs/paper/pretrain_2m_6.yaml] [--strategy fsdp2]

Trains the model of a configuration for some steps on random images and captions, in processes that talk through gloo
on this machine, and notes every collective of the last step where torch dispatches it: those of this package, of ddp
or fsdp2, and of Lightning. Bytes are those of the tensors that go into and come out of each process; how often a byte
crosses a wire depends on the backend.

Under ddp it also notes when each bucket of gradients is full and its sum begins, as a share of the backward pass. The
bytes of all buckets but the last are on their way while it still computes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser
from tabulate import tabulate
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from benchmarks.measure import one_or_more, write
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.training.sharding import FullyShardedStrategy
from ccr_lightning.types import Batch

STEPS = 3  # ddp orders its buckets after the first
LOSSES = 4  # three, and their sum
LANGUAGES = ("en", "de", "fr", "cs", "ja", "zh", "es", "ko", "pt", "it", "ru", "tr", "ar", "id")

OPERATIONS = {
    "c10d::_allgather_base_": "all-gather",
    "c10d::_reduce_scatter_base_": "reduce-scatter",
    "c10d::allreduce_": "all-reduce",
    "c10d::broadcast_": "broadcast",
    "_c10d_functional::all_reduce": "all-reduce of DTensor",
}


class Sizes(NamedTuple):
    """What the formulas speak of."""

    processes: int
    images: int  # of each process
    languages: int
    tokens: int  # of a caption
    width: int  # of the embeddings


class Call(NamedTuple):
    """A collective, as one process sees it."""

    operation: str
    shape: tuple[int, ...]  # of this process's part
    contributed: int  # bytes
    received: int


class Collectives(TorchDispatchMode):
    """Notes the collectives of this process."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note it if it is a collective."""
        if DTensor in types:
            return NotImplemented  # it takes itself apart first
        name = function._schema.name
        if function.namespace == "c10d" or name in OPERATIONS:
            given = received = args[0][0] if isinstance(args[0], list) else args[0]
            if name.endswith("_base_"):
                received, given = args[:2]
            own = received if OPERATIONS[name] == "reduce-scatter" else given
            self.calls.append(Call(OPERATIONS[name], tuple(own.shape), given.nbytes, received.nbytes))
        return function(*args, **(kwargs or {}))


class Watch(lightning.Callback):
    """Notes what the last step of a training sends, and when the gradients of ddp are ready."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.buckets: list[tuple[int, float]] = []  # bytes, seconds since the backward pass began
        self._collectives = Collectives()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to watch."""
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, self._sum)  # no state: the group of all
        self._collectives.__enter__()

    def on_before_backward(self, *_: Any) -> None:
        """Note the time."""
        self._began, self.buckets = time.perf_counter(), []

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep what has been sent since the step before."""
        self.calls, self._collectives.calls = self._collectives.calls, []

    def on_train_end(self, *_: Any) -> None:
        """Watch no longer."""
        self._collectives.__exit__(None, None, None)

    def _sum(self, state, bucket):  # ddp takes an annotation that is a string for a wrong one
        self.buckets.append((bucket.buffer().nbytes, time.perf_counter() - self._began))
        return allreduce_hook(state, bucket)


class RandomCaptions(lightning.LightningDataModule):
    """Batches of noise, alike in shape on all processes."""

    def __init__(self, module: RetrievalModule, sizes: Sizes) -> None:
        super().__init__()
        encoders = module.retriever
        vocab_size, self.image_size = encoders.text_encoder.vocab_size, encoders.image_encoder.image_size
        self.languages, self.sizes = LANGUAGES[: sizes.languages], sizes
        self.tokenizer = SimpleNamespace(
            vocab_size=vocab_size, max_tokens=sizes.tokens, special_token_ids=(0, 1, 2), mask_token_id=4
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of one batch for each step."""
        return DataLoader([self._batch() for _ in range(STEPS)], batch_size=None, collate_fn=lambda batch: batch)

    def _batch(self) -> Batch:
        _, images, languages, tokens, _ = self.sizes
        input_ids = torch.randint(5, self.tokenizer.vocab_size, (images, languages, tokens))
        return Batch(
            torch.randn(images, 3, self.image_size, self.image_size),
            torch.arange(images),
            input_ids,
            torch.ones_like(input_ids, dtype=torch.bool),
            torch.ones(images, languages, dtype=torch.bool),
            self.languages,
            np.full((images, languages), tokens),
        )


def module_of(config: Path) -> RetrievalModule:
    """Build the model that a configuration of ``ccr fit`` describes."""
    model = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]
    if isinstance(model, str):
        model = yaml.safe_load((config.parent / model).read_text(encoding="utf-8"))
    parser = ArgumentParser()
    parser.add_class_arguments(RetrievalModule, "model")
    built: RetrievalModule = parser.instantiate(parser.parse_object({"model": model})).model
    return built


def purpose(call: Call, sizes: Sizes) -> str:
    """What a collective is for, by its kind and shape."""
    images, captions = (sizes.images, sizes.width), (sizes.images, sizes.languages, sizes.width)
    known = {
        ("all-gather", images): "embeddings of images",
        ("all-gather", captions): "embeddings of captions",
        ("all-gather", captions[:2]): "which captions there are",
        ("all-gather", images[:1]): "ids of images",
        ("reduce-scatter", images): "gradients of the embeddings of images",
        ("reduce-scatter", captions): "gradients of the embeddings of captions",
        ("broadcast", (1,)): "whether to stop, asks Lightning",
        ("all-reduce", ()): "numbers of pairs and of hidden tokens",
        ("all-reduce", (LOSSES,)): "losses, for the log",
    }
    others = {"all-gather": "parameters", "broadcast": "buffers", "all-reduce of DTensor": "norms of the gradients"}
    return known.get((call.operation, call.shape), others.get(call.operation, "gradients of the parameters"))


def formulas(sizes: Sizes, module: RetrievalModule, strategy: str) -> dict[str, tuple[int, int]]:
    """Bytes that each process contributes and receives at a step, by what they are for."""
    processes, images, languages, _, width = sizes
    tensors, saved = list(module.parameters()), module.state_dict()
    parameters = sum(of.nbytes for of in tensors)
    buffers = sum(of.nbytes for name, of in module.named_buffers() if name in saved)
    expected = {"whether to stop, asks Lightning": (8, 8)}
    if processes > 1:
        of_images, of_captions = 4 * images * width, 4 * images * languages * width
        expected |= {
            "embeddings of images": (of_images, processes * of_images),
            "embeddings of captions": (of_captions, processes * of_captions),
            "gradients of the embeddings of images": (processes * of_images, of_images),
            "gradients of the embeddings of captions": (processes * of_captions, of_captions),
            "which captions there are": (images * languages, processes * images * languages),
            "ids of images": (8 * images, processes * 8 * images),
            "numbers of pairs and of hidden tokens": (2 * 8, 2 * 8),
            "losses, for the log": (LOSSES * 4, LOSSES * 4),
        }
    if strategy == "ddp":
        return expected | {"gradients of the parameters": (parameters, parameters), "buffers": (buffers, buffers)}
    # The layers are gathered for each use and for its backward pass, those of texts are used twice; the rest once.
    retriever = module.retriever
    of_text = [*retriever.text_encoder.layers, *(retriever.fusion.layers if retriever.fusion else ())]
    once, twice = (
        sum(of.nbytes for layer in layers for of in layer.parameters())
        for layers in (retriever.image_encoder.blocks, of_text)
    )
    gathered = parameters + once + 3 * twice
    return expected | {
        "parameters": (gathered // processes, gathered),
        "gradients of the parameters": (parameters, parameters // processes),
        "norms of the gradients": (4 * len(tensors), 4 * len(tensors)),
    }


def trained(rank: int, sizes: Sizes, config: Path, strategy: str, port: str, output: Path) -> None:
    """Train as one of several processes; the first one writes what it noted."""
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    module, watch = module_of(config), Watch()
    sizes = sizes._replace(width=module.retriever.image_projection.out_features)
    expected = formulas(sizes, module, strategy)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=sizes.processes,
        strategy=FullyShardedStrategy() if strategy == "fsdp2" else strategy,
        max_steps=STEPS,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=RandomCaptions(module, sizes))
    if rank == 0:
        end = watch.buckets[-1][1] if watch.buckets else 1.0
        document = {
            **sizes._asdict(),
            "parameters": sum(of.numel() for of in module.parameters()),
            "collectives": rows(watch.calls, sizes, expected),
            "buckets": [{"bytes": size, "ready": moment / end} for size, moment in watch.buckets],
        }
        output.write_text(json.dumps(document), encoding="utf-8")


def rows(calls: Sequence[Call], sizes: Sizes, expected: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Put the calls of a step that are for one thing together, and the formula beside them."""
    table: dict[str, dict[str, Any]] = {}
    for call in calls:
        name = purpose(call, sizes)
        row = table.setdefault(
            name, {"for": name, "operation": call.operation, "calls": 0, "contributed": 0, "received": 0}
        )
        row["calls"] += 1
        row["contributed"] += call.contributed
        row["received"] += call.received
        row["formula"] = expected.get(name)
    return list(table.values())


def measured(sizes: Sizes, config: Path, strategy: str) -> dict[str, Any]:
    """Train in as many processes as the sizes say."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "first.json"
        torch.multiprocessing.spawn(trained, (sizes, config, strategy, port, output), nprocs=sizes.processes)
        document: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return document


def show(title: str, document: Mapping[str, Any]) -> None:
    """Print the table, and what of the gradients is on its way when."""
    names = ["for", "operation", "calls", "contributed", "received", "formula"]
    table = [
        [row["for"], row["operation"], row["calls"], f"{row['contributed']:,}", f"{row['received']:,}",
         "" if row["formula"] is None else " -> ".join(f"{size:,}" for size in row["formula"])]
        for row in document["collectives"]
    ]  # fmt: skip
    align = ("left", "left", *["right"] * 4)
    print(f"\n{title}\n{tabulate(table, names, tablefmt='pipe', colalign=align)}", flush=True)
    if buckets := document["buckets"]:
        total = sum(bucket["bytes"] for bucket in buckets)
        shares = [sum(of["bytes"] for of in buckets if of["ready"] <= part) / total for part in (0.5, 0.75, 0.9)]
        before_end = 1 - buckets[-1]["bytes"] / total
        print(
            f"gradients on their way before the backward pass ends: {before_end:.1%} of the bytes; "
            "after 50, 75, 90 % of its time: " + ", ".join(f"{share:.1%}" for share in shares)
        )


def main() -> None:
    """Measure, print a table for each number of processes, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=one_or_more, nargs="+", default=[2, 4])
    parser.add_argument("--config", type=Path, default=Path("configs/pretrain.yaml"))
    parser.add_argument("--strategy", choices=["ddp", "fsdp2"], default="ddp")
    parser.add_argument("--images", type=one_or_more, default=16, help="of each process")
    parser.add_argument("--languages", type=one_or_more, default=4)
    parser.add_argument("--tokens", type=one_or_more, default=12, help="of each caption")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks/communication.json"))
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for processes in args.processes:
        sizes = Sizes(processes, args.images, args.languages, args.tokens, width=0)
        document = measured(sizes, args.config, args.strategy)
        title = f"{args.strategy}, {processes} x {args.images} images in {args.languages} languages, {args.config}"
        show(title, document)
        results[title] = document
    write(args.output, results)


if __name__ == "__main__":
    main()
