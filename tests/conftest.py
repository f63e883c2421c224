"""Fixtures that several test files share."""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from published_layouts import WRITERS, in_languages

COLOURS = {
    "en": ["red", "green", "blue", "yellow", "black", "orange", "purple", "brown", "pink", "grey"],
    "de": ["rot", "grün", "blau", "gelb", "schwarz", "orange", "lila", "braun", "rosa", "grau"],
    "ja": ["赤い", "緑の", "青い", "黄色の", "黒い", "橙の", "紫の", "茶色の", "桃色の", "灰色の"],
}
SHAPES = {
    "en": ["circle", "square", "cross"],
    "de": ["Kreis", "Quadrat", "Kreuz"],
    "ja": ["丸", "四角", "十字"],
}
PATTERNS = {"en": "a {} {} number {}", "de": "{} ist der {} {}", "ja": "{}{} {}番"}


def _draw(folder: Path, number: int, size: int) -> str:
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    colour = COLOURS["en"][number % 10]
    box = (2 + number % 3, 2, size - 3, size - 3 - number % 5)
    shape = number % 3
    if shape == 0:
        draw.ellipse(box, fill=colour)
    elif shape == 1:
        draw.rectangle(box, fill=colour)
    else:
        draw.line(box, fill=colour, width=3)
        draw.line((box[2], box[1], box[0], box[3]), fill=colour, width=3)
    name = f"pictures/{number}.png"
    (folder / "pictures").mkdir(exist_ok=True)
    image.save(folder / name)
    return name


def _caption(language: str, number: int) -> str:
    return PATTERNS[language].format(COLOURS[language][number % 10], SHAPES[language][number % 3], number)


@pytest.fixture(autouse=True, scope="session")
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the commands would remove at the end of their process goes with pytest's folders: its workers just stop."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("t"))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Lightning trainer of another rank tells so to the whole process; the tests that follow are rank 0 again."""
    if "lightning" in sys.modules:
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], Path]:
    """A function that puts a copy of a folder where the hub's client keeps what it fetched; it is offline, too."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder: Path, name: str) -> Path:
        place, commit = tmp_path / "hub" / f"models--{name.replace('/', '--')}", "0" * 40
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        if not (folder / "config.json").exists():  # of which the client takes a note
            (place / ".no_exist" / commit).mkdir(parents=True)
            (place / ".no_exist" / commit / "config.json").touch()
        return Path(shutil.copytree(folder, place / "snapshots" / commit))

    return put


@pytest.fixture(scope="session")
def write_tiny_jsonl() -> Callable[..., dict[str, Any]]:
    """A function that writes drawn images and their captions as JSON lines into a new folder.

    It returns the ``init_args`` of ``JsonLines``: ``files`` and ``image_root``. Images are numbered through the
    splits, and the captions of a language are all different.
    """

    def write(
        root: Path,
        train: int = 16,
        val: int = 6,
        test: int = 8,
        languages: tuple[str, ...] = ("en", "de", "ja"),
        size: int = 24,
    ) -> dict[str, Any]:
        root.mkdir()
        files, number = {}, 0
        for split, count in (("train", train), ("val", val), ("test", test)):
            lines = []
            for _ in range(count):
                captions = {language: [_caption(language, number)] for language in languages}
                lines.append({"image": _draw(root, number, size), "image_id": str(number), "captions": captions})
                number += 1
            path = root / f"{split}.jsonl"
            path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
            files[split] = str(path)
        return {"files": files, "image_root": str(root)}

    return write


@pytest.fixture
def tiny_jsonl(tmp_path: Path, write_tiny_jsonl: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """``write_tiny_jsonl`` into ``folder`` of the test's own folder."""

    def make(folder: str = "tiny", **settings: Any) -> dict[str, Any]:
        return write_tiny_jsonl(tmp_path / folder, **settings)

    return make


@pytest.fixture(scope="session")
def tiny_config() -> Callable[[dict[str, Any], Path], dict[str, Any]]:
    """A function that returns a configuration of ``ccr fit``: a tiny model on ``init_args`` of ``JsonLines``."""

    def make(jsonl: dict[str, Any], cache_dir: Path) -> dict[str, Any]:
        def part(class_path: str, **init_args: Any) -> dict[str, Any]:
            return {"class_path": f"ccr_lightning.{class_path}", "init_args": init_args}

        sizes = {"hidden_size": 16, "layers": 1, "heads": 2, "feed_forward_size": 32, "dropout": 0.1}
        retriever = part(
            "models.retriever.Retriever",
            image_encoder=part("models.vision.ImageEncoder", name="test_convnext", image_size=32),
            text_encoder=part("models.text.TextEncoder", vocab_size=200, max_positions=40, **sizes),
            fusion=part("models.fusion.FusionEncoder", image_width=64, **sizes),
            embed_dim=16,
        )
        return {
            "model": {"retriever": retriever, "lr": 2e-3},
            "data": {
                "source": part("data.sources.jsonl.JsonLines", **jsonl),
                "tokenizer": part("data.tokenizer.CaptionTokenizer", vocab_size=200),
                "transform": part("data.transforms.ImageTransform", image_size=32),
                "batch_size": 8,
                "cache_dir": str(cache_dir),
            },
            "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        }

    return make


@pytest.fixture(scope="session")
def exact_config(
    tmp_path_factory: pytest.TempPathFactory,
    write_tiny_jsonl: Callable[..., dict[str, Any]],
    tiny_config: Callable[[dict[str, Any], Path], dict[str, Any]],
) -> Path:
    """A configuration of ``ccr fit`` on several processes, in which only the order is random.

    Odd numbers of images, so that processes evaluate unequal shares.
    """
    folder = tmp_path_factory.mktemp("exact")
    content = tiny_config(write_tiny_jsonl(folder / "data", val=5, test=7), folder / "cache")
    parts = content["model"]["retriever"]["init_args"]
    for part in ("text_encoder", "fusion"):
        parts[part]["init_args"]["dropout"] = 0.0
    content["data"]["transform"]["init_args"]["crop_scale"] = [1.0, 1.0]
    content["trainer"]["log_every_n_steps"] = 1
    path = folder / "drawn.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pictures() -> dict[str, list[Any]]:
    """Some of the built-in pictures by split: 8 of train, 4 of val, 20 of test."""
    from ccr_lightning.data.sources.openmoji import OpenMoji

    source = OpenMoji(image_size=24)
    return {
        split: list(islice(source.records(split), count)) for split, count in {"train": 8, "val": 4, "test": 20}.items()
    }


@pytest.fixture(scope="session")
def trained_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., dict[str, Any]], pictures: dict[str, list[Any]]
) -> Path:
    """The folder of the run of a tiny model, trained for an epoch on pictures with captions in en, de and ja."""
    from ccr_lightning.cli.main import main

    home = tmp_path_factory.mktemp("home")
    languages = ("en", "de", "ja")
    records = {split: [in_languages(record, languages) for record in of] for split, of in pictures.items()}
    config = tiny_config(WRITERS["jsonl"](home / "data", languages, records).init_args, home / "cache")
    config["trainer"]["max_epochs"] = 1
    config["data"] |= {"languages_per_step": 2, "required_languages": ["en"]}
    config["model"]["protocol"] = {"mrv_languages": ["en", "de"], "rerank_by": "matching_and_similarity"}
    for part in (config["data"]["tokenizer"], config["model"]["retriever"]["init_args"]["text_encoder"]):
        part["init_args"]["vocab_size"] = 1000
    (home / "tiny.yaml").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ccr"])
        for logger in ("lightning.pytorch", "lightning.fabric"):
            patch.setattr(logging.getLogger(logger), "level", logging.WARNING)
        assert main(["fit", "--config", str(home / "tiny.yaml"), "--runs_dir", str(home / "runs")]) == 0
    return home / "runs" / "tiny"
