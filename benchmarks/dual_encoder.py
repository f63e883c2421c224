"""A dual encoder of transformers on the built-in pictures, before and after 1-to-K training.

python -m benchmarks.dual_encoder [--folder runs/dual_encoder]

Weights of published models are not part of this package, so the model is a small SigLIP with random weights, made with
transformers and saved as any other; training is through the same commands as for published ones: ccr test --ckpt_path
and ccr fit --init_from. Prints recall@1 and MRV of the test split at the start, after training the projections only,
after low-rank adapters, and after training all of it. About a quarter of an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.measure import one_or_more
from ccr_lightning.data.sources.openmoji import OpenMoji
from ccr_lightning.data.tokenizer import CaptionTokenizer

_PIXELS, _TOKENS = 48, 24
_WAYS: dict[str, tuple[str, list[str]]] = {  # name of the run: what is trained, and how that is said
    "projections": ("the projections", ["--model.tuned", "projections"]),
    "lora": ("the projections, and adapters in the layers", ["--model.tuned", "lora"]),
    "all": ("all of it", []),
}


def save_siglip(folder: Path) -> None:
    """Save a small SigLIP with random weights, its image processor, and a tokeniser trained on the captions."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tokenizer = CaptionTokenizer(vocab_size=8000)
    records = OpenMoji(split_scheme="composition", image_size=_PIXELS).records("train")
    tokenizer.train(text for record in records for texts in record.captions.values() for text in texts)
    tokenizer.save(folder)
    named = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"model_max_length": _TOKENS}))
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2}
    text = {"vocab_size": 8000, "max_position_embeddings": _TOKENS, "num_hidden_layers": 2, **sizes}
    text |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 2}
    vision = {"image_size": _PIXELS, "patch_size": 8, "num_hidden_layers": 4, **sizes}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():  # where SigLIP's own training starts
        model.logit_scale.fill_(2.3026)
        model.logit_bias.fill_(-10.0)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": _PIXELS, "width": _PIXELS}).save_pretrained(folder)


def ccr(*arguments: str) -> None:
    """Run a command."""
    command = [sys.executable, "-m", "ccr_lightning.cli.main", *arguments]
    print(f"$ {shlex.join(['ccr', *arguments])}", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Make the model, test it, train it in each way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/dual_encoder"), help="of the model and its runs")
    parser.add_argument("--epochs", type=one_or_more, default=12)
    args = parser.parse_args()
    model = args.folder / "siglip"
    save_siglip(model)
    source = {"split_scheme": "composition", "image_size": _PIXELS}
    settings: dict[str, Any] = {
        "model": {"lr": 1e-3, "warmup_fraction": 0.05},
        "data": {
            "source": {"class_path": "ccr_lightning.data.sources.openmoji.OpenMoji", "init_args": source},
            "batch_size": 128,
            "languages_per_step": 4,
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": args.epochs,
            "check_val_every_n_epoch": args.epochs,
        },
    }
    config = args.folder / "openmoji.yaml"
    config.write_text(yaml.safe_dump(settings))
    places = ["--config", str(config), "--runs_dir", str(args.folder)]
    ccr("test", "--ckpt_path", str(model), *places, "--name", "start")
    for name, (_, options) in _WAYS.items():
        ccr("fit", "--init_from", str(model), *places, "--name", name, *options)
    print("\n| trained | R@1 | R@10 | MRV |\n|---|---|---|---|")
    for name, (way, _) in {"start": ("nothing", []), **_WAYS}.items():
        document = json.loads((args.folder / name / "results.json").read_text())
        of = [
            sum(each[recall] for each in document["mean_recalls"].values()) / 2 for recall in ("recall@1", "recall@10")
        ]
        first, tenth = (f"{100 * recall:.1f}" for recall in of)
        print(f"| {way} | {first} | {tenth} | {document['mrv']['mean']:.2f} |")


if __name__ == "__main__":
    main()
