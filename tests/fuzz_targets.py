"""What reads files that others have written, and good files for each: what tests/fuzz.py damages."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from published_layouts import WRITERS, in_languages
from tiny_models import save_tiny

from ccr_lightning.cli.main import main
from ccr_lightning.cli.messages import load_config
from ccr_lightning.data.images import decode_image
from ccr_lightning.data.shards import write_shards
from ccr_lightning.data.sources.webdataset import WebDatasetShards
from ccr_lightning.data.store import open_store, read_left_out
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.comparison import comparison, read_results, rows_of
from ccr_lightning.evaluation.query_ranks import read_query_ranks
from ccr_lightning.files import load_json
from ccr_lightning.models.loading import describe, from_pretrained
from ccr_lightning.models.pretrained import read_weights
from ccr_lightning.models.torch_file import read_torch_file
from ccr_lightning.report.reading import read_curves, read_scored
from ccr_lightning.search.index import Index
from ccr_lightning.training.checkpoint_file import read_checkpoint
from ccr_lightning.training.metrics_file import MetricsFile
from ccr_lightning.types import ImageCaptions

LANGUAGES = {
    "multi30k-task1": "en de fr", "multi30k-task1-gz": "fr de en", "multi30k-task2": "en de",
    "xflickrco": "en de es id ja ru tr zh", "flickr30k": "en", "wit-lines": "ar en id ja ko tr",
    "wit-table": "ar en id ja ko tr", "coco": "en zh ja", "coco-cn": "zh", "xtd": "en es it ko ru tr zh de fr ja",
    "xm3600": "en de ja", "cclm-coco": "en ja zh", "cclm-multi30k": "en de fr",
    "pretrain-paths": "de en es fr id ja ru tr zh", "pretrain-image": "de en es fr id ja ru tr zh",
    "pretrain-binary": "de en es fr id ja ru tr zh", "jsonl": "en de ja",
}  # fmt: skip
FIVE = ("multi30k-task2", "flickr30k", "coco", "cclm-coco")
IMAGES = (".jpg", ".jpeg", ".png")


class Target(NamedTuple):
    """Something that reads files.

    Attributes:
        files: The good ones, any of which is damaged.
        read: Reads all there is to read; raises CCRError for what it refuses.
    """

    files: list[Path]
    read: Callable[[], Any]


def targets(home: Path, trained: Path) -> dict[str, Target]:
    """Every reader, with files in a folder.

    Args:
        home: A new folder.
        trained: The folder of a run, whose home has the configuration, the cache and the data beside.
    """
    home.mkdir(exist_ok=True)
    return {**_sources(home), **_images(home), **_of_a_run(home, trained), **_of_a_model(home, trained), **_index(home)}


def picture(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (40 * number % 256, 80, 120)).save(buffer, kind)
    return buffer.getvalue()


def _sources(home: Path) -> dict[str, Target]:
    records = [ImageCaptions(f"{number}", picture(number), {"en": (f"dog {number}",)}, "here") for number in range(2)]
    found = {}
    for name, write in WRITERS.items():
        folder, languages = home / "layouts" / name, LANGUAGES[name].split()
        times = 5 if name in FIVE else 1
        folder.mkdir(parents=True)
        layout = write(folder, languages, {"test": [in_languages(record, languages, times) for record in records]})
        source = layout.source(**{} if name == "flickr30k" else {"languages": languages})
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in IMAGES]
        found[f"source {name}"] = Target(files, lambda source=source: list(source.records("test")))
        assert list(source.records("test"))
    folder = home / "shards"
    write_shards(source, "test", folder)  # of the last layout, JSON lines
    shards = [path for path in folder.iterdir() if path.is_file()]
    found["source webdataset"] = Target(shards, lambda: list(WebDatasetShards({"test": str(folder)}).records("test")))
    return found


def _images(home: Path) -> dict[str, Target]:
    files = []
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        files.append(home / f"picture.{kind.lower()}")
        files[-1].write_bytes(picture(1, kind))

    def read(path: Path) -> None:
        decode_image(path.read_bytes(), str(path))

    return {f"image {path.suffix[1:]}": Target([path], lambda path=path: read(path)) for path in files}


def _copy(path: Path, home: Path) -> Path:
    copy = home / path.name
    copy.write_bytes(path.read_bytes())
    return copy


def _of_a_run(home: Path, trained: Path) -> dict[str, Target]:
    run = Path(shutil.copytree(trained, home / "run"))
    last = run / "checkpoints" / "last.ckpt"
    (store,) = [Path(shutil.copytree(path, home / path.name)) for path in trained.parents[1].glob("cache/jsonl-test-*")]
    tokenizer = _copy(next(trained.parents[1].glob("cache/jsonl-tokenizer-*.json")), home)
    left_out = store / "left_out.jsonl"
    left_out.write_text(json.dumps({"left_out": "record", "kind": "missing image", "message": "a"}) + "\n")

    def read_store() -> None:
        opened = open_store(store)
        for row in range(len(opened)):
            opened.captions(row), opened.image(row), opened.where(row)

    def show_results() -> None:
        results = read_results([run])
        comparison(rows_of(results), "table")
        read_scored(results)

    def read_metrics() -> None:
        """For the report, and for a run that goes on."""
        goes_on = home / "goes on" / "metrics.csv"
        goes_on.parent.mkdir(exist_ok=True)
        goes_on.write_bytes((run / "metrics.csv").read_bytes())
        refused = None
        try:
            read_curves(run)
        except CCRError as error:
            refused = error
        MetricsFile(goes_on, first_step=1).log_metrics({"train/loss": 1.0}, step=1)
        if refused:
            raise refused

    return {
        "config": Target([run / "config.yaml"], lambda: load_config(str(run / "config.yaml"))),
        "checkpoint, without weights": Target([last], lambda: read_checkpoint(last, "meta")),
        "checkpoint, whole": Target([last], lambda: read_checkpoint(last, verify=True)),
        "file of torch": Target([last], lambda: read_torch_file(last)),
        "results": Target([run / "results.json"], show_results),
        "ranks": Target([run / "ranks.csv"], lambda: read_query_ranks(run / "ranks.csv")),
        "metrics": Target([run / "metrics.csv"], read_metrics),
        "manifest of a store": Target([store / "manifest.json"], read_store),
        "list of left out": Target([left_out], lambda: read_left_out(store)),
        "tokeniser": Target([tokenizer], lambda: _read_tokenizer(tokenizer)),
    }


def _read_tokenizer(path: Path) -> None:
    """As the data module does with that in its cache."""
    try:
        CaptionTokenizer.from_dict(load_json(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise CCRError(f"{path}: the trained tokeniser is damaged.") from error


def _of_a_model(home: Path, trained: Path) -> dict[str, Target]:
    model = home / "model"
    with quiet():
        assert main(["export", str(trained), str(model)]) == 0
    tiny = save_tiny("CLIP", home / "clip")

    def load() -> None:
        describe(str(model))
        from_pretrained(model)

    return {
        "settings of a model": Target([model / "config.json"], load),
        "weights of a model": Target([model / "model.safetensors"], lambda: read_weights(model)),
        "settings of a dual encoder": Target([tiny / "config.json"], lambda: describe(str(tiny))),
    }


def _index(home: Path) -> dict[str, Target]:
    pictures, folder = home / "pictures", home / "index"
    pictures.mkdir()
    for number in range(3):
        (pictures / f"{number}.png").write_bytes(picture(number))
    with quiet():
        assert main(["embed", str(pictures), "-o", str(folder), "--ckpt_path", str(home / "clip")]) == 0

    def search() -> None:
        index = Index(folder)
        list(index.pictures())
        index.search(index.image_embeds()[0][:1], k=2)

    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"index": Target([folder / "index.json"], search), "parts of an index": Target(files, search)}


@contextmanager
def quiet() -> Iterator[None]:
    """Commands that say nothing."""
    arguments = sys.argv
    sys.argv = ["ccr"]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.argv = arguments
