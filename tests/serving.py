"""Servers for tests: an index of tiny pictures with hostile names and captions, behind a real uvicorn."""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from tiny_models import save_tiny

from ccr_lightning.cli.main import main
from ccr_lightning.cli.search import open_index
from ccr_lightning.serve.app import make_app

SCRIPT = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
CAPTIONS = {  # of pictures, by the names of their files
    "00.png": {
        "en": ["a red apple"],
        "de": ["ein roter Apfel", "ein Apfel"],
        "ja": ["赤いりんご"],
        "ar": ["تفاحة حمراء"],
    },
    "01.png": {"en": ["a cat"], "de": ["eine Katze"], "ja": ["猫"], "ar": ["قطة"]},
    "02.png": {"en": [SCRIPT], "de": [f"&amp; {SCRIPT}"], "ja": ["猫\u202etxt.exe"], "ar": ["\u202eقطة\u0007\u0000"]},
    f"{SCRIPT[:30].replace('/', '-')}.png": {"en": ["a dog"], "de": ["ein Hund"], "ja": ["犬"], "ar": ["كلب"]},
    "invoice\u202egnp.exe.png": {"en": ["a house"], "de": ["ein Haus"], "ja": ["家"], "ar": ["بيت"]},
    "bell\u0007\n.png": {"en": ["a tree " * 400], "de": ["ein Baum"], "ja": ["木"], "ar": ["شجرة"]},
    "secret.png": {"en": ["a boat"], "de": ["ein Boot"], "ja": ["船"], "ar": ["قارب"]},
    "wide.png": {"en": ["a very wide wall"], "de": ["eine breite Wand"], "ja": ["壁"], "ar": ["جدار"]},
}


def write_pictures(folder: Path) -> None:
    """Pictures of noise, one for each name; one with what no answer may hold, and a very wide one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in CAPTIONS:
        colour = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(colour).resize((80, 60)).save(folder / name)
    Image.fromarray(rng.integers(0, 256, (9, 90, 3), np.uint8)).resize((3000, 300)).save(folder / "wide.png")
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_text("Comment", "TOP SECRET")
    exif = Image.Exif()
    exif[0x010E] = "TOP SECRET"
    Image.open(folder / "secret.png").save(folder / "secret.png", pnginfo=told, exif=exif)
    with (folder / "secret.png").open("ab") as file:
        file.write(b"TOP SECRET<script>")


def write_home(home: Path) -> Path:
    """A model, and two indexes it made: ``captioned.index`` of records, ``files.index`` of files."""
    save_tiny("CLIP", home / "clip")
    write_pictures(home / "pictures")
    lines = [{"image": name, "image_id": name, "captions": captions} for name, captions in CAPTIONS.items()]
    (home / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ccr"])
        model = ["--ckpt_path", str(home / "clip")]
        given = [str(home / "test.jsonl"), "--image_root", str(home / "pictures")]
        assert main(["embed", *given, "-o", str(home / "captioned.index"), *model]) == 0
        assert main(["embed", str(home / "pictures"), "-o", str(home / "files.index"), *model]) == 0
    return home


@contextmanager
def serving(index: Path, **settings: Any) -> Iterator[str]:
    """The address of a server of an index, which ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener, serving_at(listener, index, **settings) as address:
        yield address


@contextmanager
def serving_at(listener: socket.socket, index: Path, **settings: Any) -> Iterator[str]:
    """The same, at a socket."""
    config = uvicorn.Config(
        make_app(*open_index(index, None), **settings),
        http="h11",
        lifespan="off",
        log_level="error",
        h11_max_incomplete_event_size=2**20,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
