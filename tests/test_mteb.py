"""Models under mteb: the scores of its tasks are those of the library's own embeddings, by plain numpy."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_models import POSITIONS, save_tiny
from torch.utils.data import DataLoader

from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import CLIP_MEAN, CLIP_STD, ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.mteb_model import MTEBModel
from ccr_lightning.models.retriever import ImageEncoder, Retriever, TextEncoder
from ccr_lightning.models.transformers_encoder import TransformersDualEncoder

CAPTIONS = {  # two of each picture
    "en": [
        *(
            "a red apple",
            "an apple on a table",
            "a black cat",
            "",
            "two dogs",
            "dogs, running",
            "a boat",
            "a blue boat",
        ),
        *("one tree", "a very tall tree", "a house with a garden", "a house in which somebody lives, on a hill"),
    ],
    "de": [
        *("ein roter Apfel", "ein Apfel", "eine schwarze Katze", "Katze", "zwei Hunde", "", "ein Boot", "Schiff"),
        *("Baum", "ein sehr hoher Baum", "ein Haus mit Garten", "ein Haus, in dem jemand wohnt, auf einem Berg"),
    ],
}
OWNERS = np.arange(12) // 2
MODELS = ["CLIP", "Siglip2", "Retriever"]


def pictures(language):
    """Pictures in several modes and sizes, and what each of them looks like in RGB."""
    rng = np.random.default_rng(len(language) + ord(language[0]))
    given, seen = [], []
    for number, (width, height) in enumerate(((60, 40), (32, 32), (20, 90), (7, 5), (33, 31), (200, 64))):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        if number % 3 == 1:
            pixels[:] = pixels[..., :1]
            given.append(Image.fromarray(pixels[..., 0]))
        elif number % 3 == 2:
            alpha = rng.choice(np.array([0, 255], np.uint8), (height, width, 1))
            given.append(Image.fromarray(np.concatenate([pixels, alpha], 2)))
            pixels = np.where(alpha == 0, np.uint8(255), pixels)
        else:
            given.append(Image.fromarray(pixels))
        seen.append(pixels)
    assert [image.mode for image in given] == ["RGB", "L", "RGBA"] * 2
    return given, seen


def library_embeds(folder):
    """Functions that embed a text and the pixels of a picture with nothing but transformers."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if "Siglip" in str(folder) else False

    def text(caption):
        tokens = tokenizer([caption], padding=padding, truncation=True, max_length=POSITIONS, return_tensors="pt")
        if not tokens["attention_mask"].any():  # of an empty text, where no special tokens are added
            del tokens["attention_mask"]
        return model.get_text_features(**tokens).pooler_output[0]

    def image(pixels):
        made = processor(images=[Image.fromarray(pixels)], return_tensors="pt")
        return model.get_image_features(**made).pooler_output[0]

    return text, image


def retriever_embeds(retriever):
    """The same of a retriever, one text or picture at a time, its pixels normalised by numpy."""

    def text(caption):
        input_ids, mask = retriever.tokenizer.encode([caption])
        return retriever.encode_text(input_ids, mask).embeds[0]

    def image(pixels):
        resized = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC))
        normal = (resized / 255 - CLIP_MEAN) / CLIP_STD
        return retriever.encode_image(torch.from_numpy(normal.transpose(2, 0, 1)[None]).float()).embeds[0]

    return text, image


def tiny_retriever():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "layers": 2, "heads": 2, "feed_forward_size": 32}
    retriever = Retriever(
        ImageEncoder("test_convnext", image_size=32), TextEncoder(vocab_size=120, **sizes), embed_dim=16
    )
    with torch.no_grad():
        for parameter in retriever.parameters():
            if parameter.dim() > 1:  # so that texts, and pictures, differ
                parameter.normal_(std=0.5)
    retriever.tokenizer = CaptionTokenizer(vocab_size=120)
    retriever.tokenizer.train(caption for captions in CAPTIONS.values() for caption in captions)
    retriever.transform = ImageTransform(image_size=32)
    return retriever


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Of each kind a model and the functions that embed without the code under test."""
    monkeypatch, made = pytest.MonkeyPatch(), {}
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path_factory.mktemp("cache")))  # a folder that importing mteb makes
    for kind in ("CLIP", "Siglip2"):
        folder = save_tiny(kind, tmp_path_factory.mktemp(kind))
        made[kind] = TransformersDualEncoder(str(folder)), *library_embeds(folder)
    retriever = tiny_retriever()
    made["Retriever"] = retriever, *retriever_embeds(copy.deepcopy(retriever).eval())
    yield made
    monkeypatch.undo()


def task_of(category):
    """A task of mteb with the captions and pictures: from text, image or both to text or image."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Local{category}",
            description="Captions of noise.",
            reference=None,
            dataset={"path": "in/memory", "revision": "1"},
            type="Any2AnyMultilingualRetrieval",
            category=category,
            eval_splits=["test"],
            eval_langs={"en": ["eng-Latn"], "de": ["deu-Latn"]},
            main_score="ndcg_at_10",
            modalities=["text", "image"],
        )

        def load_data(self, **kwargs):
            self.dataset = {language: {"test": split_of(category, language)} for language in CAPTIONS}
            self.data_loaded = True

    return Local()


def split_of(category, language):
    source, _, target = category.partition("2")
    of_texts = {"id": [f"t{number}" for number in range(12)], "text": CAPTIONS[language]}
    images = pictures(language)[0]
    of_images = {"id": [f"i{number}" for number in range(6)], "image": images}
    both = of_texts | {"image": [images[(owner + 1) % 6] for owner in OWNERS]}  # the next one's picture
    sides = {"t": of_texts, "i": of_images, "it": both}
    owners = {"t": OWNERS, "it": OWNERS, "i": np.arange(6)}
    relevant = owners[source][:, None] == owners[target]
    queries, corpus = sides[source], sides[target]
    return {
        "queries": Dataset.from_dict(queries),
        "corpus": Dataset.from_dict(corpus),
        "relevant_docs": {
            query: {document: 1 for document, hit in zip(corpus["id"], row, strict=True) if hit}
            for query, row in zip(queries["id"], relevant, strict=True)
        },
        "top_ranked": None,
    }


@torch.no_grad()
def expected_scores(category, language, text, image):
    """NDCG at 10 and recall at 1."""

    def unit(rows):
        rows = np.stack([row.numpy() for row in rows]).astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    texts, images = unit(map(text, CAPTIONS[language])), unit(map(image, pictures(language)[1]))
    embeds = {"t": texts, "i": images, "it": texts + images[(OWNERS + 1) % 6]}
    owners = {"t": OWNERS, "it": OWNERS, "i": np.arange(6)}
    source, _, target = category.partition("2")
    similarity = unit(map(torch.from_numpy, embeds[source])) @ embeds[target].T
    assert np.diff(np.sort(similarity, axis=1)).min() > 1e-5, "ties: another seed is needed"
    relevant = owners[source][:, None] == owners[target]
    hits = np.take_along_axis(relevant, np.argsort(-similarity, axis=1), axis=1)
    gains = 1 / np.log2(np.arange(hits.shape[1]) + 2)
    ndcg = (hits * gains)[:, :10].sum(1) / gains[: relevant[0].sum()].sum()
    return ndcg.mean(), (hits[:, 0] / relevant.sum(1)).mean()


def evaluate(model, category, cache=None):
    import mteb

    (result,) = mteb.evaluate(model, task_of(category), cache=cache, show_progress_bar=False).task_results
    assert all(scores["main_score"] == scores["ndcg_at_10"] for scores in result.scores["test"])
    return {scores["hf_subset"]: (scores["ndcg_at_10"], scores["recall_at_1"]) for scores in result.scores["test"]}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("category", ["t2i", "i2t", "it2i"])
def test_scores_are_those_of_numpy(models, kind, category):
    model, text, image = models[kind]
    found = evaluate(MTEBModel(model), category)
    expected = {language: expected_scores(category, language, text, image) for language in CAPTIONS}
    assert found.keys() == expected.keys()
    for language, scores in expected.items():
        assert found[language] == pytest.approx(scores, abs=1e-5)
    assert expected["en"] != expected["de"]


def loader(rows, **settings):
    """A loader that leaves pictures of several sizes as they are, as mteb's do."""
    return DataLoader(rows, collate_fn=columns, **settings)


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def embeds_of(model, rows, workers=0, **encode_kwargs):
    return model.encode(
        loader(rows, num_workers=workers), task_metadata=None, hf_split="test", hf_subset="en", show_progress_bar=False,
        **encode_kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_order_is_kept_however_many_at_once(models, kind):
    model = models[kind][0]
    texts = [{"text": caption} for caption in CAPTIONS["en"]]
    images = [{"image": image} for image in pictures("en")[0]]
    both = [{**text, **image} for text, image in zip(texts, images, strict=False)]
    for rows in (texts, images, both):
        one_by_one = np.concatenate([embeds_of(MTEBModel(model), [row]) for row in rows])
        assert one_by_one.dtype == np.float32
        assert np.linalg.norm(one_by_one, axis=1) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(one_by_one[:, None] - one_by_one, axis=-1)[np.triu_indices(len(rows), 1)].min() > 1e-3
        for size in (1, 4, 100):
            assert embeds_of(MTEBModel(model, batch_size=size), rows) == pytest.approx(one_by_one, abs=2e-6)
        assert embeds_of(MTEBModel(model), rows[::-1], workers=2, batch_size=5)[::-1] == pytest.approx(
            one_by_one, abs=2e-6
        )


def test_batches_are_as_large_as_asked_for(models, monkeypatch):
    model = copy.deepcopy(models["Retriever"][0])
    sizes, encode_image = [], model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda images: sizes.append(len(images)) or encode_image(images))
    rows = [{"image": image} for image in pictures("en")[0]]
    embeds_of(MTEBModel(model), rows)  # mteb's loader has one at a time
    embeds_of(MTEBModel(model), rows, batch_size=4)
    embeds_of(MTEBModel(model, batch_size=5), rows, batch_size=4)
    assert sizes == [1] * 6 + [4, 2] + [5, 1]


def test_a_model_in_training_is_evaluated_without_dropout(models):
    model = copy.deepcopy(models["Retriever"][0])
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in model.modules())
    wrapped, rows = MTEBModel(model), [{"text": caption} for caption in CAPTIONS["en"]]
    model.train()
    assert np.array_equal(embeds_of(wrapped, rows), embeds_of(wrapped, rows))


def test_the_progress_bar_is_mtebs_choice(models, capsys):
    model = MTEBModel(models["Retriever"][0])
    where = {"task_metadata": None, "hf_split": "test", "hf_subset": "en"}
    model.encode(loader([{"text": "a"}]), show_progress_bar=False, **where)
    assert capsys.readouterr().err == ""
    model.encode(loader([{"text": "a"}]), **where)
    assert "1/1" in capsys.readouterr().err


def test_what_mteb_keeps_of_a_model(models):
    from mteb.models import EncoderProtocol

    retriever = models["Retriever"][0]
    model = MTEBModel(retriever, name="mine/tiny")
    meta = model.mteb_model_meta
    assert isinstance(model, EncoderProtocol)
    assert (meta.name, meta.embed_dim, meta.languages, meta.max_tokens) == ("mine/tiny", 16, None, 40)
    assert sorted(meta.modalities) == ["image", "text"]
    assert meta.similarity_fn_name.value == "cosine"
    assert meta.n_parameters == sum(np.prod(parameter.shape) for parameter in retriever.parameters())
    assert meta.memory_usage_mb == pytest.approx(4 * meta.n_parameters / 1024**2)
    first, second = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])
    assert model.similarity(first, second).numpy() == pytest.approx(np.array([[0.6, 0.8], [1, 0]]))
    assert model.similarity_pairwise(first, second).numpy() == pytest.approx(np.array([0.6, 0]))


def test_mteb_remembers_results_of_the_same_model_only(models, tmp_path):
    from mteb.cache import ResultCache

    clip, cache = copy.deepcopy(models["CLIP"][0]), ResultCache(tmp_path)
    before = evaluate(MTEBModel(clip), "i2t", cache)
    again = MTEBModel(copy.deepcopy(clip))
    again.encode = None  # is not called
    assert evaluate(again, "i2t", cache) == before
    with torch.no_grad():
        clip.model.text_projection.weight.add_(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)))
    after = evaluate(MTEBModel(clip), "i2t", cache)
    assert after == evaluate(MTEBModel(clip), "i2t")
    assert after != before


def test_the_revision_says_what_decides_the_embeddings(models):
    model = copy.deepcopy(models["Retriever"][0])
    revisions = [MTEBModel(model).mteb_model_meta.revision, MTEBModel(tiny_retriever()).mteb_model_meta.revision]
    assert len(set(revisions)) == 1
    model.tokenizer.max_tokens = 5
    revisions.append(MTEBModel(model).mteb_model_meta.revision)
    model.transform = ImageTransform(image_size=32, mean=(0.5, 0.5, 0.5))
    revisions.append(MTEBModel(model).mteb_model_meta.revision)
    assert len(set(revisions)) == 3


@pytest.mark.gpu
def test_a_gpu_embeds_as_the_cpu(models):
    for kind in MODELS:
        model = copy.deepcopy(models[kind][0])
        rows = [{"text": text, "image": image} for text, image in zip(CAPTIONS["en"], pictures("en")[0], strict=False)]
        expected = embeds_of(MTEBModel(model, device="cpu"), rows)
        assert embeds_of(MTEBModel(model), rows) == pytest.approx(expected, abs=1e-4)
        assert model.log_logit_scale.is_cuda


def test_what_does_not_fit_is_one_sentence(models, monkeypatch):
    model = models["Retriever"][0]
    with pytest.raises(CCRError, match=r"mteb handed over audio and no text or image; choose a task that has them\."):
        embeds_of(MTEBModel(model), [{"audio": 1}])
    with pytest.raises(CCRError, match=r"got name 'tiny'; mteb wants organisation/model"):
        MTEBModel(model, name="tiny")
    with pytest.raises(CCRError, match=r"got batch_size 0; give 1 or more"):
        MTEBModel(model, batch_size=0)
    with pytest.raises(CCRError, match=r"got device 'nowhere', which cannot be used \(Expected one of cpu"):
        MTEBModel(model, device="nowhere")
    for part in ("tokenizer", "transform"):
        lacking = copy.deepcopy(model)
        setattr(lacking, part, None)
        with pytest.raises(CCRError, match=r"this Retriever does not know what prepares its inputs: set its tokenizer"):
            MTEBModel(lacking)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(CCRError, match=r"MTEBModel needs mteb: pip install 'ccr-lightning\[mteb\]'\."):
        MTEBModel(model)


def test_mteb_is_not_imported_with_the_package():
    code = "import sys, ccr_lightning.evaluation.mteb_model, ccr_lightning.cli.training; print('mteb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
