"""Fixtures that several test files share."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

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


@pytest.fixture
def tiny_jsonl(tmp_path: Path) -> Callable[..., dict[str, object]]:
    """A function that writes drawn images and their captions as JSON lines.

    It returns the ``init_args`` of ``JsonLines``: ``files`` and ``image_root``. Images are numbered through the
    splits, and the captions of a language are all different.
    """

    def make(
        train: int = 16,
        val: int = 6,
        test: int = 8,
        languages: tuple[str, ...] = ("en", "de", "ja"),
        size: int = 24,
        folder: str = "tiny",
    ) -> dict[str, object]:
        root = tmp_path / folder
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

    return make
