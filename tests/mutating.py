"""Files that somebody has damaged, by accident or on purpose: made of good ones by chance."""

import io
import json
import random
import struct
import zipfile
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, float("nan"), float("inf")),
    *("", " ", "\0", "\ud800", "../../etc/passwd", "/etc/passwd", "a" * 5000, "1" * 5000, "\u202e", "en", "a.jpg"),
    *([], {}, [[]], {"": ""}, [None] * 50, {"en": None}, {"en": [1]}, "__class__", "\n", "é\u0301"),
)
DEEP = 3000  # levels of brackets, of which Python's own reader gives up


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three faults; of what is structured, mostly such as leave the structure whole."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        ways = [_bytes_changed, _bytes_changed, _cut]
        if content[:2] == b"PK":
            ways += [_archive_changed] * 4
        elif content[:1] in b"{[":
            ways += [_json_changed] * 6
        elif content[8:9] == b"{":
            ways += [_header_changed] * 4
        else:
            ways += [_text_changed] * 4
        content = rng.choice(ways)(content, rng)
    return content


def _bytes_changed(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        place = rng.randrange(len(changed) + 1)
        what = rng.randrange(4)
        if what == 0 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[place:place] = rng.randbytes(rng.choice([1, 2, 8]))
        elif what == 2:
            del changed[place : place + rng.choice([1, 2, 8, 100])]
        else:
            changed[place : place + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, b"\x80" * 4, b"\x7f" + b"\xff" * 7])
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    place, other = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
    return rng.choice([content[:place], content[place:], content[:place] + content[other:], content * 2, b""])


def _text_changed(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    if not lines:
        return rng.choice([b"\n", b"\xef\xbb\xbf", b"{", b"\0"])
    number, what = rng.randrange(len(lines)), rng.randrange(7)
    if what == 0:
        lines[number] = lines[number].replace(rng.choice([b"\t", b",", b":", b" "]), b"", 1)
    elif what == 1:
        lines.insert(number, rng.choice([b"\n", b"\xff\xfe\n", b"\0\n", b"[" * DEEP + b"\n", b"x" * 5000 + b"\n"]))
    elif what == 2:
        lines.insert(number, rng.choice(lines))
    elif what == 3:
        lines[number] = lines[number].replace(b"\n", b"\r\n")
    elif what == 4:
        lines[number] = json.dumps(rng.choice(HOSTILE)).encode() + b"\n"
    elif what == 5 and lines[number][:1] == b"{":
        lines[number] = _json_changed(lines[number], rng) + b"\n"
    else:
        del lines[number]
    return b"".join(lines)


def _json_changed(content: bytes, rng: random.Random) -> bytes:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return _text_changed(content, rng)
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key in list(part) if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], dict | list):
                walk(part[key])

    if isinstance(tree, dict | list):
        walk(tree)
    if not places or rng.random() < 0.02:
        return rng.choice([b"[" * DEEP + b"]" * DEEP, json.dumps(rng.choice(HOSTILE)).encode()])
    part, key = rng.choice(places)
    what = rng.randrange(5)
    if what == 0:
        del part[key]
    elif what == 1 and isinstance(part, dict):
        part[str(rng.choice(HOSTILE))] = part.pop(key)
    elif what == 2:
        part[key] = rng.choice(places)[0] if rng.random() < 0.3 else [part[key]]
    else:
        part[key] = rng.choice(HOSTILE)
    try:
        return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # a part within itself
        return content[:-1]


def _archive_changed(content: bytes, rng: random.Random) -> bytes:
    """One member changed and packed anew, with the checksum that is right; or the archive's own list of members."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return _bytes_changed(content, rng)
    small = [name for name, of in members.items() if len(of) < 100_000]
    if not small or rng.random() < 0.3:
        place = content.rfind(b"PK\x01\x02")
        return content[:place] + _bytes_changed(content[place:], rng)
    name, what = rng.choice(small), rng.randrange(4)
    if what == 0:
        members[f"{name}{rng.choice(['x', '/../y', ''])}"] = members.pop(name)
    elif what == 1:
        del members[name]
    else:
        members[name] = _bytes_changed(members[name], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, of in members.items():
            archive.writestr(member, of)
    return buffer.getvalue()


def _header_changed(content: bytes, rng: random.Random) -> bytes:
    """The JSON in front of a safetensors file, and its length."""
    (length,) = struct.unpack("<Q", content[:8])
    header = _json_changed(content[8 : 8 + length], rng)
    said = rng.choice([len(header)] * 4 + [0, 2**63, len(header) + 1])
    return struct.pack("<Q", said) + header + content[8 + length :]
