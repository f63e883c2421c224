import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch
import yaml
from filelock import FileLock
from PIL import Image
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    NllbTokenizer,
)
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M_CODES
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB_CODES

from ccr_lightning.cli import data_translate as command
from ccr_lightning.cli.main import main
from ccr_lightning.data import translation as translation_module
from ccr_lightning.data.language_codes import request_languages
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.translation import config_snippet, translate_source
from ccr_lightning.data.translator import Translator
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions, MachineTranslation

pytestmark = [
    pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses"),
    pytest.mark.filterwarnings("ignore:Unfeasible length constraints"),  # of the models that never end
]

SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "init_std": 0.5,
}
SENTENCES = ["a red circle", "the green square is here", "a blue cross number 12", "one dog and two cats", "pink jazz"]
LANGUAGES = "ar bg bn cs da de el en es et fa fi fil fr he hi hr hu id it ja ko lt lv ms nl no pl pt ro ru sk sl sr sv"
LANGUAGES = [*LANGUAGES.split(), "sw", "ta", "te", "th", "tr", "uk", "ur", "vi", "zh"]


def _pieces(prefix):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_prefix=str(prefix),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    pieces = [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
    return ["▁", *(piece for piece in pieces if piece != "▁")]


def _save(folder, tokenizer, model, words):
    """Random weights write words only, at least three, and come to an end after some time, like a trained model."""
    torch.manual_seed(0)
    model.apply(model._init_weights)
    settings = model.generation_config
    settings.bad_words_ids = [[n] for n in range(model.config.vocab_size) if n not in words]
    settings.min_new_tokens = 4
    settings.exponential_decay_length_penalty = (5, 1.5)
    settings.num_beams, settings.max_length = 5, 200  # as published models have it
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def m2m(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m2m")
    pieces = _pieces(folder / "spm")
    vocab = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    (folder / "words.json").write_text(json.dumps(vocab))
    tokenizer = M2M100Tokenizer(str(folder / "words.json"), str(folder / "spm.model"))
    model = M2M100ForConditionalGeneration(M2M100Config(vocab_size=len(vocab) + 108, **SIZES))
    return _save(folder / "tiny-m2m", tokenizer, model, range(5, len(vocab)))


@pytest.fixture(scope="module")
def nllb(tmp_path_factory):
    vocab = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = NllbTokenizer(vocab={token: number for number, token in enumerate(vocab)}, merges=[])
    model = M2M100ForConditionalGeneration(M2M100Config(vocab_size=len(tokenizer), **SIZES))
    return _save(tmp_path_factory.mktemp("nllb") / "tiny-nllb", tokenizer, model, range(5, len(vocab)))


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A function that saves a Marian model, of a pair of languages or with tokens for several."""
    folder = tmp_path_factory.mktemp("marian")
    pieces = _pieces(folder / "spm")

    def make(name, tokens=(), **languages):
        words = ["</s>", "<unk>", "<pad>", *tokens, *pieces]
        vocab = {token: number for number, token in enumerate(words)}
        (folder / "words.json").write_text(json.dumps(vocab))
        spm = str(folder / "spm.model")
        tokenizer = MarianTokenizer(spm, spm, str(folder / "words.json"), **languages)
        ids = {"pad_token_id": 2, "eos_token_id": 0, "forced_eos_token_id": 0, "decoder_start_token_id": 2}
        model = MarianMTModel(MarianConfig(vocab_size=len(words), **ids, **SIZES))
        path = _save(folder / name, tokenizer, model, range(4 + len(tokens), len(words)))
        return path

    return make


@pytest.fixture(autouse=True)
def one_thread():
    """More of them wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def lines(tmp_path):
    """A function that writes JSON lines for images that are not there, and returns their source."""

    def make(*captions, split="train", **settings):
        file = tmp_path / "data" / f"{split}.jsonl"
        file.parent.mkdir(exist_ok=True)
        rows = [
            {"image": f"pictures/{n}.jpg", "image_id": f"id-{n}", "captions": by_language}
            for n, by_language in enumerate(captions)
        ]
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return JsonLines({split: str(file)}, image_root=str(file.parent), **settings)

    return make


class Pictures:
    """A source of other images than those of JsonLines."""

    name, languages, parallel, splits = "pictures", ("en",), True, ("train", "val")

    def __init__(self, **images):
        self.images = images

    def fingerprint(self, split):
        return "0"

    def records(self, split, report=None):
        if split not in self.images:
            raise CCRError(f"{split} is not there; fetch it.")
        for number, image in enumerate(self.images[split]):
            yield ImageCaptions(f"{split}{number}", image, {"en": (f"a dog number {number}",)}, f"here:{number}")


def _read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def _captions(count):
    return [{"en": [f"a red circle number {n}" + " and a cat" * (n % 4)]} for n in range(count)]


def _one_by_one(path, texts, src_lang, first_token, beams=1):
    """Translations by transformers alone: each caption by itself, without padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForSeq2SeqLM.from_pretrained(path)
    if src_lang:
        tokenizer.src_lang = src_lang
    results = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        forced = {} if first_token is None else {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(first_token)}
        row = model.generate(ids, num_beams=beams, do_sample=False, max_new_tokens=50, **forced)[0]
        results.append(tokenizer.decode(row[2 if forced else 1 :], skip_special_tokens=True).strip())
    return results


TEXTS = ["a red circle", "two cats and one dog are here and there and here", "a", "number 12 is pink", "jazz", "a cat"]


@pytest.mark.parametrize(("beams", "batch_size"), [(1, 4), (3, 64)])
def test_m2m_batches_translate_like_single_captions(m2m, beams, batch_size):
    done = []
    found = Translator(m2m, batch_size=batch_size, beams=beams).translate(TEXTS, "en", "de", done.append)
    assert found == _one_by_one(m2m, TEXTS, "en", "__de__", beams)
    assert len(set(found)) > 3
    assert sum(done) == len(TEXTS)


def test_nllb_batches_translate_like_single_captions(nllb):
    found = Translator(nllb, batch_size=4).translate(TEXTS, "en", "zh")
    assert found == _one_by_one(nllb, TEXTS, "eng_Latn", "zho_Hans")
    assert found != Translator(nllb).translate(TEXTS, "en", "fa") == _one_by_one(nllb, TEXTS, "eng_Latn", "pes_Arab")


def test_marian_batches_translate_like_single_captions(marian):
    pair = marian("pair", source_lang="en", target_lang="de")
    assert Translator(pair, batch_size=4).translate(TEXTS, "en", "de") == _one_by_one(pair, TEXTS, None, None)
    several = marian("several", [">>deu<<", ">>cmn_Hans<<"], source_lang="eng", target_lang="mul")
    prefixed = [f">>cmn_Hans<< {text}" for text in TEXTS]
    assert Translator(several).translate(TEXTS, "en", "zh") == _one_by_one(several, prefixed, None, None)


def test_the_languages_of_one_call_do_not_stay_for_the_next(m2m):
    translator = Translator(m2m)
    german = translator.translate(TEXTS, "en", "de")
    assert translator.translate(TEXTS, "fr", "de") != german
    assert translator.translate(TEXTS, "en", "de") == german
    assert translator.translate([], "en", "de") == []


def test_tokens_in_a_caption_are_text(m2m, monkeypatch):
    translator, read = Translator(m2m), []
    generate = translator._model.generate
    monkeypatch.setattr(
        translator._model, "generate", lambda **given: read.extend(given["input_ids"].tolist()) or generate(**given)
    )
    assert all(translator.translate(["a red </s> circle", "a <pad> cat"], "en", "de"))
    assert [(row.count(2), row[: row.index(2)].count(1)) for row in read] == [(1, 0), (1, 0)]


def _with_generation(path, folder, **settings):
    """The model with other settings of generation."""
    folder.mkdir()
    for file in Path(path).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").unlink()
    before = json.loads((Path(path) / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(before | settings))
    return str(folder)


def _silent(path, folder):
    tokens = json.loads((Path(path) / "config.json").read_text())["vocab_size"]
    return _with_generation(path, folder, bad_words_ids=[[n] for n in range(tokens) if n != 2], min_new_tokens=0)


def test_a_translation_without_words_or_without_end_is_none(m2m, marian, tmp_path):
    silent = _silent(m2m, tmp_path / "silent")
    assert Translator(silent).translate(TEXTS, "en", "de") == [None] * len(TEXTS)
    endless = _with_generation(m2m, tmp_path / "endless", min_new_tokens=500)
    assert Translator(endless).translate(TEXTS, "en", "de") == [None] * len(TEXTS)
    pair = marian("forced", source_lang="en", target_lang="de")  # writes an end in the last place, wherever it is
    endless = _with_generation(pair, tmp_path / "forced", min_new_tokens=500)
    assert Translator(endless).translate(TEXTS, "en", "de") == [None] * len(TEXTS)


def test_how_long_a_translation_may_be_depends_on_its_caption_only(m2m, tmp_path):
    wordy = _with_generation(m2m, tmp_path / "wordy", min_new_tokens=48, exponential_decay_length_penalty=(48, 9.0))
    short, long = "a cat", "two cats and one dog are here and there and here"
    translator = Translator(wordy)
    assert translator.translate([short], "en", "de") == [None]
    assert translator.translate([short, long], "en", "de") == [None, *_one_by_one(wordy, [long], "en", "__de__")]


def test_a_caption_longer_than_the_model_reads_is_none(m2m):
    first, long, last = Translator(m2m).translate(["a cat", "a dog and " * 40, "a red dog"], "en", "de")
    assert long is None
    assert first
    assert last


def test_m2m_languages(m2m):
    tokenizer = AutoTokenizer.from_pretrained(m2m)
    for language in {*LANGUAGES} - {"te"}:
        request = request_languages(tokenizer, "tiny", language, language)
        code = "tl" if language == "fil" else language
        assert (request.src_lang, request.prefix) == (code, "")
        assert request.first_token == tokenizer.get_lang_id(code)
    with pytest.raises(CCRError, match=r"tiny cannot translate into 'te', it knows af, am, .*, zu; choose") as caught:
        request_languages(tokenizer, "tiny", "en", "te")
    assert str(caught.value).count(",") == len(M2M_CODES["m2m100"])
    with pytest.raises(CCRError, match="cannot translate from 'xx'"):
        request_languages(tokenizer, "tiny", "xx", "de")


def test_nllb_languages(nllb):
    tokenizer = AutoTokenizer.from_pretrained(nllb)
    expected = {"ar": "arb_Arab", "fa": "pes_Arab", "fil": "tgl_Latn", "lv": "lvs_Latn", "ms": "zsm_Latn"}
    expected |= {"no": "nob_Latn", "quz": "quy_Latn", "sw": "swh_Latn", "zh": "zho_Hans", "ace_Latn": "ace_Latn"}
    for language in {*LANGUAGES, *expected}:
        request = request_languages(tokenizer, "tiny", language, language)
        assert request.src_lang in NLLB_CODES
        assert request.first_token == tokenizer.convert_tokens_to_ids(request.src_lang)
        assert request.src_lang == expected.get(language, request.src_lang)
    with pytest.raises(CCRError, match=r"cannot translate into 'tlh', it knows .*ace_Latn, .*, de, .*, zu"):
        request_languages(tokenizer, "tiny", "en", "tlh")


@pytest.mark.parametrize(
    ("tokens", "source_lang", "target_lang", "language", "prefix"),
    [
        ([], "en", "de", "de", ""),
        ([], "eng", "deu", "de", ""),
        ([], "eng", "zho", "zh", ""),
        ([">>deu<<", ">>nob<<"], "eng", "mul", "no", ">>nob<< "),
        ([">>fr<<", ">>pt_br<<", ">>pt<<"], "en", "ROMANCE", "pt", ">>pt<< "),
        ([">>cmn<<", ">>cmn_Hans<<", ">>cmn_Hant<<"], "eng", "zho", "zh", ">>cmn_Hans<< "),
        ([">>ara<<", ">>zsm_Latn<<"], None, None, "ar", ">>ara<< "),
        ([">>ara<<", ">>zsm_Latn<<"], "deu+eng", None, "ms", ">>zsm_Latn<< "),
    ],
)
def test_marian_languages(marian, tokens, source_lang, target_lang, language, prefix):
    folder = marian("languages", tokens, source_lang=source_lang, target_lang=target_lang)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert request_languages(tokenizer, "tiny", "en", language) == (None, prefix, None)


def test_marian_without_the_language(marian):
    pair = AutoTokenizer.from_pretrained(marian("other", source_lang="eng", target_lang="deu"))
    with pytest.raises(CCRError, match="cannot translate into 'fr', it knows de;"):
        request_languages(pair, "tiny", "en", "fr")
    with pytest.raises(CCRError, match="translates from 'en', not from 'ja'"):
        request_languages(pair, "tiny", "ja", "de")
    several = AutoTokenizer.from_pretrained(marian("other2", [">>deu<<", ">>xyz<<"], source_lang="en"))
    with pytest.raises(CCRError, match="cannot translate into 'fr', it knows de, xyz;"):
        request_languages(several, "tiny", "en", "fr")
    silent = AutoTokenizer.from_pretrained(marian("other3"))
    with pytest.raises(CCRError, match="does not say which language"):
        request_languages(silent, "tiny", "en", "fr")


def test_a_model_of_another_kind(tmp_path):
    with pytest.raises(CCRError, match=r"nowhere: no translation model can be loaded from there \(.*\); give a folder"):
        Translator(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CCRError, match="no translation model can be loaded"):
        Translator(str(tmp_path))
    for setting in ("batch_size", "beams"):
        with pytest.raises(CCRError, match=f"{setting} is 0; give 1 or more"):
            Translator("any", **{setting: 0})


def test_a_tokeniser_without_its_package(m2m, monkeypatch):
    def load(*arguments, **settings):
        raise ImportError("M2M100Tokenizer requires the SentencePiece library")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    with pytest.raises(CCRError, match=r"needs a package that is not there; run: pip install 'ccr-lightning\[transl"):
        Translator(m2m)


def test_a_device_that_is_not_there(m2m):
    with pytest.raises(CCRError, match="the device 'cuda:99' cannot be used"):
        Translator(m2m, device="cuda:99")


def test_one_line_for_each_record_and_what_it_holds(m2m, lines, tmp_path):
    machine = {"text": "Katze", "translated_by": "another", "translated_on": "2020-01-01"}
    source = lines(
        {"en": ["a red circle", "one dog"], "de": ["Ein Kreis."]},
        {"ja": "犬\u2028", "de": [machine, "Hund"]},
        {"en": "a cat"},
    )
    translation = translate_source(source, "train", Translator(m2m), "en", ["de", "fr"], tmp_path / "out", 2)
    first, second, third = _read(tmp_path / "out" / "train.jsonl")
    today = translation.translated_on
    german, french = ({"translated_by": m2m, "translated_on": today, "text": None} for _ in range(2))
    to_french = _one_by_one(m2m, ["a red circle", "one dog", "a cat"], "en", "__fr__")
    assert first == {
        "image": "pictures/0.jpg",
        "image_id": "id-0",
        "captions": {
            "en": ["a red circle", "one dog"],
            "de": ["Ein Kreis."],
            "fr": [french | {"text": text} for text in to_french[:2]],
        },
    }
    assert second["captions"] == {"ja": ["犬\u2028"], "de": [machine, "Hund"]}
    assert second["image"], second["image_id"] == ("pictures/1.jpg", "id-1")
    assert third["captions"] == {
        "en": ["a cat"],
        "de": [german | {"text": text} for text in _one_by_one(m2m, ["a cat"], "en", "__de__")],
        "fr": [french | {"text": to_french[2]}],
    }
    assert translation.captions == {"en": 3, "de": 4, "fr": 3, "ja": 1}
    assert translation.captions_to_do == 4
    assert (translation.images, translation.images_without_source, translation.left_out) == (3, 1, {})
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".lock") == [
        "train.jsonl",
        "train.translation.json",
    ]


def test_json_lines_read_the_output_with_and_without_translations(m2m, lines, tmp_path):
    source = lines({"en": ["a red circle"]}, {"en": ["a dog"], "fr": ["un chien"]})
    translation = translate_source(source, "train", Translator(m2m), "en", ["fr", "no"], tmp_path / "out")
    config = yaml.safe_load(config_snippet(translation, tmp_path / "out", source.languages))
    arguments = config["data"]["source"]["init_args"]
    assert config["data"]["source"]["class_path"] == "ccr_lightning.data.sources.jsonl.JsonLines"
    assert arguments["languages"] == ["en", "fr", "no"]
    assert arguments["image_root"] == str(tmp_path / "data")
    records = list(JsonLines(**arguments).records("train"))
    assert [record.image for record in records] == [record.image for record in source.records("train")]
    assert [{language: len(texts) for language, texts in record.captions.items()} for record in records] == [
        {"en": 1, "fr": 1, "no": 1},
        {"en": 1, "fr": 1, "no": 1},
    ]
    kinds = [isinstance(record.captions["fr"][0], MachineTranslation) for record in records]
    assert kinds == [True, False]
    human = JsonLines(arguments["files"], arguments["image_root"], machine_translations=False)
    assert [dict(record.captions) for record in human.records("train")] == [
        {"en": ("a red circle",)},
        {"en": ("a dog",), "fr": ("un chien",)},
    ]


def test_translations_of_another_model_stay_what_they_are(m2m, lines, tmp_path):
    source = lines({"en": ["a red circle"]})
    first = translate_source(source, "train", Translator(m2m), "en", ["de"], tmp_path / "one")
    arguments = yaml.safe_load(config_snippet(first, tmp_path / "one", ["en"]))["data"]["source"]["init_args"]
    translate_source(JsonLines(**arguments), "train", Translator(m2m), "en", ["fr"], tmp_path / "two")
    (once,), (twice,) = _read(tmp_path / "one" / "train.jsonl"), _read(tmp_path / "two" / "train.jsonl")
    assert once["captions"].items() <= twice["captions"].items()
    assert twice["captions"]["de"][0]["translated_by"] == m2m


def test_what_cannot_be_translated_is_left_out_and_counted(m2m, lines, tmp_path):
    source = lines({"en": ["a cat", "a dog and " * 40]}, {"en": ["a dog and " * 40]}, {"en": "a dog"})
    translation = translate_source(source, "train", Translator(m2m), "en", ["de"], tmp_path / "out")
    assert [len(line["captions"].get("de", ())) for line in _read(tmp_path / "out" / "train.jsonl")] == [1, 0, 1]
    assert translation.left_out == {"de": 2}
    assert translation.captions == {"en": 4, "de": 2}
    silent = _silent(m2m, tmp_path / "silent")
    translation = translate_source(source, "train", Translator(silent), "en", ["de"], tmp_path / "none")
    assert translation.left_out == {"de": 4}
    assert "languages:\n      - en\n" in config_snippet(translation, tmp_path / "none", ["en"])


def _png(colour, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(buffer, kind)
    return buffer.getvalue()


def test_images_that_a_source_holds_are_written(m2m, tmp_path):
    held = [_png("red"), _png("blue", "JPEG"), _png("green", "WEBP")]
    translation = translate_source(Pictures(train=held), "train", Translator(m2m), "en", ["de"], tmp_path / "out", 2)
    assert translation.image_root == str(tmp_path / "out")
    names = [line["image"] for line in _read(tmp_path / "out" / "train.jsonl")]
    assert names == ["images/train-0.png", "images/train-1.jpg", "images/train-2.webp"]
    read = JsonLines({"train": str(tmp_path / "out" / "train.jsonl")}, translation.image_root)
    assert [record.image.read_bytes() for record in read.records("train")] == held
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3


@pytest.mark.parametrize(("most", "what"), [(100, "the state of the translation"), (5000, "an image")])
def test_a_full_disk(m2m, tmp_path, most, what):
    noise = io.BytesIO()
    Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3)).save(noise, "PNG")
    held, translator, out = [_png("red"), noise.getvalue()], Translator(m2m), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))  # writing fails as it does on a full disk
    try:
        with pytest.raises(
            CCRError,
            match=rf"{what} could not .+ large\); free some space, or choose another folder; then start again\.$",
        ):
            translate_source(Pictures(train=held), "train", translator, "en", ["de"], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    translate_source(Pictures(train=held), "train", translator, "en", ["de"], out)
    assert [line["image"] for line in _read(out / "train.jsonl")] == ["images/train-0.png", "images/train-1.png"]


def test_an_image_without_captions_keeps_its_line(m2m, tmp_path):
    class Some(Pictures):
        def records(self, split, report=None):
            for place, record in enumerate(super().records(split, report)):
                yield record if place else replace(record, captions={}, blank_captions=(record.where,))

    source = Some(train=[_png("red"), _png("blue")])
    translation = translate_source(source, "train", Translator(m2m), "en", ["de"], tmp_path / "out")
    assert [line["captions"].keys() for line in _read(tmp_path / "out" / "train.jsonl")] == [set(), {"en", "de"}]
    read = JsonLines({"train": str(tmp_path / "out" / "train.jsonl")}, translation.image_root)
    assert [record.image.name for record in read.records("train")] == ["train-1.png"]


def test_an_image_that_is_none_stops_before_the_work(m2m, tmp_path):
    source = Pictures(train=[_png("red"), b"text"])
    with pytest.raises(CCRError, match="here:1: the image is not a picture that Pillow can open"):
        translate_source(source, "train", Translator(m2m), "en", ["de"], tmp_path / "out")
    assert not (tmp_path / "out" / "images").exists()
    with pytest.raises(CCRError, match="some images as files and others as bytes"):
        translate_source(
            Pictures(train=[_png("red"), Path("a.png")]), "train", Translator(m2m), "en", ["de"], tmp_path / "out"
        )
    with pytest.raises(CCRError, match="has no images"):
        translate_source(Pictures(train=[]), "train", Translator(m2m), "en", ["de"], tmp_path / "out")


def test_image_root_is_the_folder_of_the_images_of_all_splits(m2m, tmp_path):
    source = Pictures(train=[tmp_path / "coco/train/a.jpg", tmp_path / "coco/train/b.jpg"])
    translation = translate_source(source, "train", Translator(m2m), "en", ["de"], tmp_path / "out")
    assert translation.image_root == str(tmp_path / "coco" / "train")
    source.images["val"] = [tmp_path / "coco/val/c.jpg"]
    for split in ("train", "val"):
        translation = translate_source(source, split, Translator(m2m), "en", ["de"], tmp_path / "both")
        assert translation.image_root == str(tmp_path / "coco")
    assert [line["image"] for line in _read(tmp_path / "both" / "train.jsonl")] == ["train/a.jpg", "train/b.jpg"]


WORK = """
import sys
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.translation import translate_source
from ccr_lightning.data.translator import Translator
file, root, model, out = sys.argv[1:]
translate_source(JsonLines({"train": file}, root), "train", Translator(model), "en", ["de", "fr"], out, 4)
"""


def test_work_killed_in_the_middle_goes_on_to_the_same_bytes(m2m, lines, tmp_path, monkeypatch):
    source = lines(*_captions(80))
    arguments = [source.files["train"], source.image_root, m2m, str(tmp_path / "killed")]
    part = tmp_path / "killed" / "train.jsonl.part"
    translator = Translator(m2m)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", WORK, *arguments], env=environment) as process:
        while not part.exists() or part.stat().st_size < 3000:
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(CCRError, match="another process is writing it"):
            translate_source(source, "train", translator, "en", ["de", "fr"], tmp_path / "killed", 4)
        os.kill(process.pid, signal.SIGKILL)
    saved = part.read_bytes()
    assert len(saved) >= 3000
    assert not (tmp_path / "killed" / "train.jsonl").exists()
    saved = saved[: saved.rindex(b"\n") - 20]  # and a line was not written to its end
    part.write_bytes(saved + bytes(100_000))  # zeros, as they may follow after a power cut

    whole = translate_source(source, "train", translator, "en", ["de", "fr"], tmp_path / "whole", 4)
    monkeypatch.setattr(translation_module, "_today", lambda: "2099-12-31")
    translated = []
    translate = translator.translate
    monkeypatch.setattr(translator, "translate", lambda texts, *a: translated.extend(texts) or translate(texts, *a))
    resumed = translate_source(source, "train", translator, "en", ["de", "fr"], tmp_path / "killed", 4)

    assert (tmp_path / "killed" / "train.jsonl").read_bytes() == (tmp_path / "whole" / "train.jsonl").read_bytes()
    assert resumed == whole
    assert whole.captions == {"en": 80, "de": 80, "fr": 80}
    assert len(translated) == 2 * (80 - saved.count(b"\n") // 4 * 4)
    assert not part.exists()


def test_finished_work_is_not_done_again(m2m, lines, tmp_path, monkeypatch):
    source, translator = lines(*_captions(3)), Translator(m2m)
    first = translate_source(source, "train", translator, "en", ["de"], tmp_path / "out")
    before = (tmp_path / "out" / "train.jsonl").stat()
    monkeypatch.setattr(translator, "translate", None)
    assert translate_source(source, "train", translator, "en", ["de"], tmp_path / "out") == first
    assert (tmp_path / "out" / "train.jsonl").stat() == before
    (tmp_path / "out" / "train.jsonl").rename(tmp_path / "out" / "train.jsonl.part")  # killed before the very last step
    assert translate_source(source, "train", translator, "en", ["de"], tmp_path / "out") == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["fr"]}, "train.jsonl: was begun with target_languages de and not fr; go on with de, or choose"),
        ({"source_language": "fr"}, "source_language en and not fr"),
        ({"beams": 2}, "beams 1 and not 2"),
        ({"chunk": 3}, "records_per_chunk 512 and not 3"),
        ({}, "the source has changed"),
        ({"model": "nllb"}, "model .*tiny-m2m and not .*tiny-nllb"),
    ],
)
def test_work_begun_with_other_settings_is_refused(m2m, nllb, lines, tmp_path, changes, message):
    source = lines(*_captions(3))

    def work(model="m2m", beams=1, source_language="en", targets=("de",), chunk=512):
        translator = Translator({"m2m": m2m, "nllb": nllb}[model], beams=beams)
        translate_source(source, "train", translator, source_language, targets, tmp_path / "out", chunk)

    work()
    if not changes:
        lines(*_captions(4))
    with pytest.raises(CCRError, match=message):
        work(**changes)


def test_what_the_folder_may_hold(m2m, lines, tmp_path):
    source, translator = lines(*_captions(2)), Translator(m2m)
    with pytest.raises(CCRError, match=r"data/train.jsonl is there already and no translation of this"):
        translate_source(source, "train", translator, "en", ["de"], tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(CCRError, match="the folder cannot be written"):
        translate_source(source, "train", translator, "en", ["de"], tmp_path / "file" / "out")
    part = tmp_path / "out" / "train.jsonl.part"
    part.parent.mkdir()
    part.write_text('{"captions": {"en": []}}\n' * 2)  # of something else: there is no state
    translate_source(source, "train", translator, "en", ["de"], tmp_path / "out")
    assert [line["image_id"] for line in _read(tmp_path / "out" / "train.jsonl")] == ["id-0", "id-1"]
    (tmp_path / "out" / "train.jsonl").rename(part)
    part.write_bytes(part.read_bytes().replace(b"{", b"", 1))
    with pytest.raises(CCRError, match=r"train.jsonl.part: is damaged \(.*\); delete it and start again"):
        translate_source(source, "train", translator, "en", ["de"], tmp_path / "out")
    (tmp_path / "out" / "train.translation.json").write_text("{}")
    with pytest.raises(CCRError, match=r"train.translation.json: cannot be read"):
        translate_source(source, "train", translator, "en", ["de"], tmp_path / "out")
    with FileLock(tmp_path / "out" / ".train.translation.lock"), pytest.raises(CCRError, match="another process"):
        translate_source(source, "train", translator, "en", ["de"], tmp_path / "out")


def test_languages_that_make_no_sense(m2m, lines, tmp_path):
    source, translator = lines(*_captions(2)), Translator(m2m)
    for targets, message in (
        (["en"], "are in 'en' already"),
        (["de", "de"], "name at least one, each once"),
        ([], "name at least one, each once"),
        (["te"], "cannot translate into 'te'"),
    ):
        with pytest.raises(CCRError, match=message):
            translate_source(source, "train", translator, "en", targets, tmp_path / "out")
    with pytest.raises(CCRError, match="has no split 'test'"):
        translate_source(source, "test", translator, "en", ["de"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(m2m, tiny_jsonl, tmp_path, capsys):
    arguments = tiny_jsonl(train=3, languages=("en", "ja"))
    out = tmp_path / "out"
    given = [arguments["files"]["train"], "--model", m2m, "--to", "de,no", "--out", str(out), "--batch_size", "2"]
    assert command.run(given) == 0
    printed = capsys.readouterr()
    assert f"{out}/train.jsonl is written: 3 images, 3 in en, 3 in ja, 3 in de, 3 in no." in printed.out
    assert "left out" not in printed.out
    config = yaml.safe_load(printed.out[printed.out.index("data:") :])
    source = JsonLines(**config["data"]["source"]["init_args"])
    assert source.languages == ("en", "ja", "de", "no")
    assert [record.image.is_file() for record in source.records("train")] == [True] * 3
    assert command.run(given) == 0
    assert "was finished before" in capsys.readouterr().out


def test_the_command_interrupted(m2m, tiny_jsonl, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Translator, "translate", interrupt)
    file = tiny_jsonl(train=3)["files"]["train"]
    assert command.run([file, "--model", m2m, "--to", "fr", "--out", str(tmp_path / "out")]) == 130
    assert "interrupted: the same command goes on" in capsys.readouterr().err


def test_the_command_explains_itself(capsys):
    assert main(["data", "translate"]) == main(["data", "translate", "a.jsonl", "--help"]) == 0
    assert capsys.readouterr().out == command.HELP * 2
    for given, message in (
        (["a.jsonl", "--to", "de", "--out", "out"], "--model"),
        (["a.jsonl", "--model", "m", "--out", "o", "--to", "de", "--batch_size", "x"], "batch_size"),
        (["a.jsonl", "--model", "m", "--out", "o", "--to", "de", "--beam", "1"], "unknown option '--beam'"),
    ):
        with pytest.raises(CCRError, match=message):
            command.run(given)
