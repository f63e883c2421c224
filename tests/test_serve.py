"""The server of an index: its answers against numpy and transformers, its schema, its limits, hostile requests."""

import asyncio
import http.client
import inspect
import io
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

import httpx
import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from serving import CAPTIONS, SCRIPT, serving, write_home
from starlette.exceptions import HTTPException

from ccr_lightning.cli.main import main
from ccr_lightning.data.faults import RecordFault
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.search.picture import Picture
from ccr_lightning.serve import limits
from ccr_lightning.serve.limits import Gate, TokenBucket
from ccr_lightning.serve.searching import model_name, picture_name

TEXTS = ["a red apple", "ein roter Apfel", "قطة"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def server(home):
    with serving(home / "captioned.index") as address:
        yield address


@pytest.fixture(scope="module")
def of_files(home):
    with serving(home / "files.index") as address:
        yield address


@pytest.fixture(scope="module")
def schema(server):
    return httpx.get(f"{server}/openapi.json").json()


@torch.no_grad()
def embedded(home, texts=(), images=()):
    """L2-normalised embeddings, by the library alone."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(home / "clip").eval()
    made = []
    if texts:
        tokens = AutoTokenizer.from_pretrained(home / "clip")(
            list(texts), padding=True, truncation=True, max_length=24, return_tensors="pt"
        )
        made.append(model.get_text_features(**tokens).pooler_output)
    if images:
        processor = AutoImageProcessor.from_pretrained(home / "clip")
        pixels = processor(images=[Image.open(path).convert("RGB") for path in images], return_tensors="pt")
        made.append(model.get_image_features(**pixels).pooler_output)
    embeds = torch.cat(made).double().numpy()
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def cosines(home):
    """Of TEXTS with the pictures, in the order of the index."""
    return embedded(home, TEXTS) @ embedded(home, images=[home / "pictures" / name for name in CAPTIONS]).T


def answer(address, schema=None, method="GET", **arguments):
    response = httpx.request(method, address, timeout=60, **arguments)
    assert response.status_code == 200, response.text
    content = response.json()
    if schema:
        check(content, schema, httpx.URL(address).path, method)
    return content


def check(content, schema, path, method="GET"):
    path = re.sub(r"/\d+$", "/{number}", path)
    of = schema["paths"][path][method.lower()]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**of, "components": schema["components"]}).validate(content)


def assert_refused(response, status, says):
    assert response.status_code == status, response.text
    content = json.loads(response.text)
    assert content.keys() == {"error"}
    assert says in content["error"]
    assert re.fullmatch(r"[^\n]{10,300}[.)]", content["error"])


def test_it_finds_what_the_librarys_embeddings_find(server, schema, cosines):
    found = answer(f"{server}/api/search", schema, params={"q": TEXTS, "k": 5, "picture": 3})
    order = np.argsort(-cosines, axis=1)
    ranks = np.argsort(order, axis=1) + 1
    assert [of["text"] for of in found["results"]] == TEXTS
    for query, of in enumerate(found["results"]):
        assert [hit["number"] for hit in of["hits"]] == order[query, :5].tolist()
        assert [hit["place"] for hit in of["hits"]] == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(
            [hit["similarity"] for hit in of["hits"]], cosines[query, order[query, :5]], atol=1e-6
        )
        for hit in of["hits"]:
            assert hit["ranks"] == ranks[:, hit["number"]].tolist()
            assert hit["captions"].keys() == {"en", "de", "ja", "ar"}
    assert found["picture"]["number"] == 3
    assert found["picture"]["ranks"] == ranks[:, 3].tolist()


def test_one_query_has_no_ranks_and_a_language_changes_nothing_where_none_is_told(server, schema):
    plain = answer(f"{server}/api/search", schema, params={"q": "قطة"})
    told = answer(f"{server}/api/search", schema, params={"q": "قطة", "language": "ar"})
    (result,) = plain["results"]
    assert (result["language"], told["results"][0]["language"]) == (None, "ar")
    assert len(result["hits"]) == len(CAPTIONS)
    assert all(hit["ranks"] is None and hit["caption"] is None for hit in result["hits"])
    assert told["results"][0]["hits"] == result["hits"]
    of_some = answer(f"{server}/api/search", schema, params={"q": TEXTS, "language": ["", "de", ""]})["results"]
    assert [of["language"] for of in of_some] == [None, "de", None]
    of_none = answer(f"{server}/api/search", schema, params={"q": TEXTS})["results"]
    for some, none in zip(of_some, of_none, strict=True):
        assert [hit["number"] for hit in some["hits"]] == [hit["number"] for hit in none["hits"]]
        similarity = [hit["similarity"] for hit in none["hits"]]
        np.testing.assert_allclose([hit["similarity"] for hit in some["hits"]], similarity, atol=1e-6)


def test_captions_are_found(server, schema, home):
    captions = [
        (number, language, text)
        for number, of in enumerate(CAPTIONS.values())
        for language, texts in of.items()
        for text in texts
    ]
    plain = [of for of in captions if "\0" not in of[2] and len(of[2]) < 100]  # others: see hostile captions
    cosines = embedded(home, [TEXTS[0]]) @ embedded(home, [text for _, _, text in plain]).T
    found = answer(f"{server}/api/search", schema, params={"q": TEXTS[0], "find": "captions", "k": 200})
    (result,) = found["results"]
    assert len(result["hits"]) == len(captions)
    assert result["hits"][0]["caption"] == {"language": "en", "text": "a red apple"}
    similarity = {
        (hit["number"], hit["caption"]["language"], hit["caption"]["text"]): hit["similarity"] for hit in result["hits"]
    }
    for of, expected in zip(plain, cosines[0], strict=True):
        assert similarity[of] == pytest.approx(expected, abs=1e-6)


def test_pictures_find_pictures_and_captions(server, schema, home):
    paths = [home / "pictures" / name for name in CAPTIONS]
    images = embedded(home, images=paths)
    upload = {"content": paths[1].read_bytes(), "method": "POST"}
    uploaded = answer(f"{server}/api/search?k=3", schema, **upload)["results"][0]["hits"]
    of_index = answer(f"{server}/api/search", schema, params={"like": 1, "k": 3})["results"][0]["hits"]
    cosines = images[1] @ images.T
    assert [hit["number"] for hit in uploaded] == np.argsort(-cosines)[:3].tolist()
    np.testing.assert_allclose([hit["similarity"] for hit in uploaded], np.sort(cosines)[::-1][:3], atol=1e-6)
    assert of_index == uploaded
    texts = ["a red apple", "ein roter Apfel", "ein Apfel"]
    of_texts = dict(zip(texts, embedded(home, texts) @ images[1], strict=True))
    for arguments in (
        {"params": {"find": "captions", "k": 200}, **upload},
        {"params": {"like": 1, "find": "captions", "k": 200}},
    ):
        hits = answer(f"{server}/api/search", schema, **arguments)["results"][0]["hits"]
        similarity = {hit["caption"]["text"]: hit["similarity"] for hit in hits}
        for text, expected in of_texts.items():
            assert similarity[text] == pytest.approx(expected, abs=1e-6)


def test_what_can_be_searched(server, of_files, schema):
    about = answer(f"{server}/api/index", schema)
    assert (about["pictures"], about["captions"]) == (8, 33)
    assert about["languages"] == about["known_languages"] == ["en", "de", "ja", "ar"]
    assert about["model"] == "clip"
    assert [picture["number"] for picture in about["examples"]] == list(range(8))
    about = answer(f"{of_files}/api/index", schema)
    assert (about["captions"], about["languages"]) == (0, [])
    assert {"en", "sw", "quz"} <= set(about["known_languages"])
    one = answer(f"{server}/api/picture/1", schema)
    assert one["captions"] == {language: list(texts) for language, texts in CAPTIONS["01.png"].items()}


def test_nothing_tells_where_files_are(server, of_files, home):
    names = set()
    for address in (server, of_files):
        for path in ("/api/index", "/api/search?q=a&k=200", "/api/picture/0", "/openapi.json", "/"):
            response = httpx.get(address + path)
            assert response.status_code == 200
            assert str(home) not in response.text
            assert str(home.parent) not in response.text
        names |= {hit["name"] for hit in answer(f"{address}/api/search?q=a")["results"][0]["hits"]}
    assert set(CAPTIONS) <= names  # of files, the base names


def test_files_are_named_without_folders_and_records_as_their_data_name_them():
    assert picture_name(Picture("/home/me/sub/a.png", "", "/home/me/sub/a.png")) == "a.png"
    assert picture_name(Picture("mine/train/sub/a.png", "", "sub/a.png")) == "mine/train/sub/a.png"
    assert picture_name(Picture("mine/train/1", "", None)) == "mine/train/1"


def test_models_on_the_disk_are_named_without_folders(tmp_path, monkeypatch):
    (tmp_path / "runs" / "pretrain").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for named in ("runs/pretrain", "./runs/pretrain", str(tmp_path / "runs" / "pretrain"), "/gone/pretrain"):
        assert model_name(named) == "pretrain"
    assert model_name("google/siglip2-base-patch16-224") == "google/siglip2-base-patch16-224"


def test_pictures_are_made_anew(server):
    for kind, size, wide in (("thumbnail", (80, 60), (320, 32)), ("picture", (80, 60), (1600, 160))):
        for number, expected in ((6, size), (7, wide)):
            response = httpx.get(f"{server}/{kind}/{number}")
            assert response.headers["content-type"] == "image/jpeg"
            image = Image.open(io.BytesIO(response.content))
            assert (image.format, image.size, dict(image.getexif())) == ("JPEG", expected, {})
            assert b"SECRET" not in response.content
            assert b"<script" not in response.content


def test_a_picture_is_kept_by_the_browser_under_an_address_of_its_state(server):
    (picture, *_) = answer(f"{server}/api/index")["examples"]
    lasting = httpx.get(server + picture["thumbnail_url"])
    assert lasting.headers["cache-control"] == "private, max-age=31536000, immutable"
    again = httpx.get(f"{server}/thumbnail/{picture['number']}")
    assert again.headers["cache-control"] == "private, no-cache"
    tag = again.headers["etag"]
    assert tag == lasting.headers["etag"]
    assert httpx.get(server + "/thumbnail/1").headers["etag"] != tag
    unchanged = httpx.get(f"{server}/thumbnail/{picture['number']}", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_a_file_that_has_changed_is_not_served(home, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    shutil.copytree(home / "pictures", tmp_path / "pictures")
    assert (
        main(["embed", str(tmp_path / "pictures"), "-o", str(tmp_path / "index"), "--ckpt_path", str(home / "clip")])
        == 0
    )
    with serving(tmp_path / "index") as address:
        names = [picture["name"] for picture in answer(f"{address}/api/index")["examples"]]
        changed, gone, link = names.index("00.png"), names.index("01.png"), names.index("02.png")
        Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "00.png")
        (tmp_path / "pictures" / "01.png").unlink()
        (tmp_path / "pictures" / "02.png").unlink()
        (tmp_path / "pictures" / "02.png").symlink_to(home / "clip" / "config.json")
        for number in (changed, gone, link):
            for address_of in (f"/thumbnail/{number}", f"/picture/{number}", f"/api/search?like={number}"):
                response = httpx.get(address + address_of)
                assert_refused(response, 404, "there is no such picture, or its file is not as it was")
                assert str(tmp_path) not in response.text


def png(width, height):
    """A small file that says to be a large picture."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (png(40_000, 25_000), 422, "far more than 50,000,000 pixels"),
        (png(10_000, 9_000), 422, "10000 x 9000 pixels"),
        (png(30, 30)[:60], 422, "the upload: the image"),
        (b"no picture", 422, "is not a picture"),
        (b"", 422, "has zero bytes"),
        (b"<!DOCTYPE html><script>alert(1)</script>", 422, "is"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage", 422, "is not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "is not a picture"),
        (b"\0" * 20_000_001, 413, "more than 20 MB"),
    ],
    ids=["1e9 pixels", "9e7 pixels", "truncated", "text", "nothing", "HTML", "PostScript", "SVG", "20 MB and a byte"],
)
def test_uploads_that_are_refused(server, body, status, says):
    assert_refused(httpx.post(f"{server}/api/search", content=body), status, says)


def test_an_upload_that_a_model_cannot_take_is_one_sentence(server, home, monkeypatch):
    def embed_images(model, images):
        raise RecordFault("the upload: the image is far too long.", "unreadable image")

    monkeypatch.setattr(DualEncoder, "embed_images", embed_images)
    body = (home / "pictures" / "wide.png").read_bytes()
    assert_refused(httpx.post(f"{server}/api/search", content=body), 422, "the image is far too long")


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/thumbnail/..%2f..%2fetc%2fpasswd", 404, "nothing at this address"),
        ("/thumbnail/../../etc/passwd", 404, "nothing at this address"),
        ("/page/..%2fapp.py", 404, "nothing at this address"),
        ("/page/%2e%2e/app.py", 404, "nothing at this address"),
        ("/page/../app.py", 404, "nothing at this address"),
        ("/page//etc/passwd", 404, "nothing at this address"),
        ("/docs", 404, "nothing at this address"),
        ("/redoc", 404, "nothing at this address"),
        ("/thumbnail/8", 404, "there is no such picture"),
        ("/thumbnail/-1", 404, "there is no such picture"),
        ("/thumbnail/1e3", 404, "there is no such picture"),
        ("/picture/" + "9" * 5000, 404, "there is no such picture"),
        ("/picture/passwd", 404, "there is no such picture"),
        ("/api/picture/8", 404, "there is no such picture"),
        ("/api/search", 422, "there is no query"),
        ("/api/search?q=", 422, "a query is empty"),
        ("/api/search?q=%20%0a", 422, "a query is empty"),
        ("/api/search?q=a&q=", 422, "a query is empty"),
        ("/api/search?q=a&k=0", 422, "k: "),
        ("/api/search?q=a&k=201", 422, "k: "),
        ("/api/search?q=a&k=%3Cscript%3E", 422, "k: "),
        ("/api/search?q=a&find=files", 422, "find: "),
        ("/api/search?q=a&language=en&language=de", 422, "1 queries and 2 languages"),
        ("/api/search?q=a&picture=8", 404, "there is no such picture"),
        ("/api/search?q=a&picture=" + "9" * 30, 404, "there is no such picture"),
        ("/api/search?like=8", 404, "there is no such picture"),
        ("/api/search?like=-1", 422, "like: "),
        ("/api/search?like=1&q=a", 422, "not with both"),
        ("/api/search?" + "&".join(["q=a"] * 41), 422, "q: "),
        ("/api/search?q=" + "x" * 2001, 422, "at most 2000 characters"),
        ("/api/search?q=" + "x" * 100_000, 422, "at most 2000 characters"),
        ("/api/search?q=" + quote("犬" * 100_000), 422, "at most 2000 characters"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_requests_that_are_refused(server, path, status, says):
    assert_refused(raw(server, path), status, says)


def raw(address, path, method="GET", headers=()):
    """A response to a request as it is: clients tidy addresses up."""
    connection = http.client.HTTPConnection(httpx.URL(address).netloc.decode(), timeout=30)
    connection.putrequest(method, path, skip_host="Host" in dict(headers))
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    return httpx.Response(response.status, headers=response.getheaders(), content=response.read())


def test_methods_that_are_refused(server):
    for method, path in (("POST", "/"), ("PUT", "/api/search"), ("DELETE", "/thumbnail/0"), ("OPTIONS", "/api/search")):
        assert_refused(raw(server, path, method), 405, "does not take such a request")


def test_captions_only_where_there_are_some(of_files):
    assert_refused(httpx.get(f"{of_files}/api/search?q=a&find=captions"), 422, "have no captions")


@pytest.mark.parametrize(
    "text", ["\u202eabc", "a\0b\x07\x1b[31m", "\ufeff\u200b!", "😀" * 2000, SCRIPT, "%ED%A0%80", "'; DROP TABLE"]
)
def test_any_text_is_a_query(server, schema, text):
    content = answer(f"{server}/api/search", schema, params={"q": text})
    assert content["results"][0]["text"] == text
    broken = raw(server, "/api/search?q=%ff%ed%a0%80")
    assert broken.status_code == 200
    check(broken.json(), schema, "/api/search")


def test_every_answer_says_what_a_browser_may_do(server):
    for path in ("/", "/page/main.js", "/api/index", "/api/search?q=", "/thumbnail/0", "/nothing"):
        headers = httpx.get(server + path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert headers["cache-control"] == {"/thumbnail/0": "private, no-cache"}.get(
            path, "no-cache" if path in ("/", "/page/main.js") else "no-store"
        )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example:80", 421), ("", 421),
        ("[", 421), ("127.0.0.1:8073.evil.example", 421),
        ("localhost", 200), ("LOCALHOST:9", 200), ("127.0.0.1:1", 200), ("[::1]:8000", 200),
        ("pi.lan", 200),
    ],
)  # fmt: skip
def test_only_its_own_names_are_answered(home, host, status):
    with serving(home / "captioned.index", hosts={"pi.lan"}) as address:
        response = raw(address, "/api/index", headers=[("Host", host)])
    assert response.status_code == status
    if status == 421:
        assert_refused(response, 421, "names a host that this server is not")


def test_other_web_sites_are_refused(server):
    others = [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
    others += [{"Origin": origin} for origin in ("http://evil.example", "null", "http://127.0.0.1:1")]
    for other in others:
        for path in ("/api/search?q=a", "/thumbnail/0"):
            assert_refused(httpx.get(server + path, headers=other), 403, "another web site")
        assert httpx.get(server, headers=other).status_code == 200  # a link to the page
    assert httpx.get(f"{server}/api/search?q=a", headers={"Origin": server.rstrip("/")}).status_code == 200


def test_rates_are_bounded(home):
    with serving(home / "captioned.index", searches=TokenBucket(0.1, 3), pictures=TokenBucket(0.1, 2)) as address:
        for path, burst in (("/api/search?q=a", 3), ("/thumbnail/0", 2)):
            assert [httpx.get(address + path).status_code for _ in range(burst)] == [200] * burst
            response = httpx.get(address + path)
            assert_refused(response, 429, "too many requests")
            assert 9 <= int(response.headers["retry-after"]) <= 11


def test_rates_are_counted_without_threads():
    bucket = TokenBucket(0.1, 1)
    assert inspect.iscoroutinefunction(bucket.__call__)  # FastAPI runs others in threads
    asyncio.run(bucket())
    with pytest.raises(HTTPException, match="429"):
        asyncio.run(bucket())


def test_work_is_done_in_turn_and_few_wait():
    running, most, gate = 0, 0, Gate(1, waiting=2)

    def work(number):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return number

    async def twice_five():
        return [
            await asyncio.gather(*(gate.run(work, number) for number in range(5)), return_exceptions=True)
            for _ in range(2)
        ]

    for done in asyncio.run(twice_five()):  # what was refused leaves nothing behind
        assert done[:3] == [0, 1, 2]
        assert [error.status_code for error in done[3:] if isinstance(error, HTTPException)] == [503, 503]
    assert most == 1


def test_a_slow_upload_is_ended(server, monkeypatch):
    monkeypatch.setattr(limits, "_UPLOAD_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", httpx.URL(server).port), timeout=20) as connection:
        connection.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 408 ")


@pytest.fixture(scope="module")
def process(home):
    """A process of ``ccr serve``, and its address."""
    command = [sys.executable, "-m", "ccr_lightning.cli.main", "serve", str(home / "captioned.index"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            said = started.stdout.readline()
            yield started, re.fullmatch(r"8 pictures at (http://127\.0\.0\.1:\d+)/ \(Ctrl-C ends it\)\n", said)[1]
        finally:
            started.kill()


def peak_memory(process):
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
@pytest.mark.parametrize("length", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
def test_an_upload_of_a_gigabyte_ends_early_and_takes_no_memory(process, length):
    started, address = process
    assert answer(f"{address}/api/search?q=a")["results"]
    before, sent, chunk = peak_memory(started), 0, b"\0" * 2**16
    framed = b"%x\r\n%b\r\n" % (len(chunk), chunk) if "chunked" in length else chunk
    with socket.create_connection(("127.0.0.1", httpx.URL(address).port), timeout=30) as connection:
        connection.sendall(f"POST /api/search HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode())
        connection.settimeout(5)
        with suppress(OSError):  # that nothing is read any more
            while sent < 10**9:
                connection.sendall(framed)
                sent += len(chunk)
    assert sent < 60_000_000
    assert peak_memory(started) - before < 80
    assert answer(f"{address}/api/search?q=a")["results"]


def test_idle_connections_shut_nobody_out(process):
    port = httpx.URL(process[1]).port
    with ExitStack() as idle:
        for _ in range(150):
            connection = idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            connection.sendall(b"GET /api/index HTTP/1.1\r\nHost: loc")
        assert answer(f"{process[1]}/api/index")["pictures"] == 8


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("how", [[], ["--header", "Transfer-Encoding: chunked"], ["--header", "Expect:"]])
def test_curl_is_told_why_an_upload_is_too_large(process, tmp_path, how):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10**9)
    command = ["curl", "--silent", "--upload-file", str(tmp_path / "large"), "--request", "POST", *how]
    done = subprocess.run([*command, f"{process[1]}/api/search"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"error": "the picture has more than 20 MB: make it smaller."}


def test_a_large_upload_is_told_why(process):
    with socket.create_connection(("127.0.0.1", httpx.URL(process[1]).port), timeout=30) as connection:
        connection.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        said = b""
        while part := connection.recv(2**16):
            said += part
    assert said.startswith(b"HTTP/1.1 413 ")
    assert said.endswith(b'{"error":"the picture has more than 20 MB: make it smaller."}')


def test_a_taken_port_is_one_sentence(process, home, capsys):
    port = str(httpx.URL(process[1]).port)
    assert main(["serve", str(home / "captioned.index"), "--port", port]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: ccr serve: cannot listen at 127.0.0.1, port {port} (")
    assert said.endswith("give another with --port, or --port 0 for a free one.\n")


def test_it_ends_quietly(process):
    started, _ = process
    started.send_signal(signal.SIGINT)
    said, errors = started.communicate(timeout=20)
    assert (started.returncode, said, errors) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["captioned.index", "--port", "70000"], "--port is 70000: give a number from 0 to 65535"),
        (["captioned.index", "--host", "no.such.host.invalid"], "there is no host 'no.such.host.invalid'"),
        (["captioned.index", "--host", "192.0.2.1"], "give an address of this machine with --host"),
        (["nothing.index", "--port", "0"], "nothing.index: there is no index; make one with ccr embed"),
        (["truncated.index", "--port", "0"], "the file is missing or damaged"),
        ([], "the following arguments are required: INDEX"),
    ],
)
def test_what_is_refused(home, tmp_path, monkeypatch, capsys, arguments, says):
    shutil.copytree(home / "captioned.index", tmp_path / "captioned.index")
    shutil.copytree(home / "captioned.index", tmp_path / "truncated.index")
    (path,) = (tmp_path / "truncated.index").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *(arguments or ["--port", "0"])]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1


def test_without_its_packages_it_says_what_to_install(home, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(home / "captioned.index")]) == 1
    assert "pip install 'ccr-lightning[serve]'" in capsys.readouterr().err


def test_other_addresses_come_with_a_warning(home, capsys, monkeypatch):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: None)
    assert main(["serve", str(home / "captioned.index"), "--host", "0.0.0.0", "--port", "0"]) == 0
    shown, warning = capsys.readouterr().out.splitlines()
    assert "0.0.0.0" not in shown
    assert warning == "warning: everyone who reaches this address can see and search the pictures."


def test_documented_json_is_of_the_schema(server, schema):
    text = (Path(__file__).parents[1] / "docs" / "search.md").read_text(encoding="utf-8")
    found, refusal = map(json.loads, re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    check(found, schema, "/api/search")
    assert refusal.keys() == {"error"}
    most = answer(f"{server}/api/index")["limits"]
    assert f"| {most['queries']}, of {most['characters']:,} characters each |" in text
    assert f"| `k` | {most['k']} |" in text
    assert f"| {most['upload_bytes'] // 10**6} MB and 50 million pixels," in text
    for path in re.findall(r"`(?:GET|POST) (/\w[^`?]*)", text):
        assert path.replace("/N", "/{number}") in schema["paths"]


def test_help_teaches(capsys):
    assert main(["serve", "--help"]) == 0
    said = capsys.readouterr().out
    assert "ccr serve pictures.index" in said
    assert max(map(len, said.splitlines())) <= 120
