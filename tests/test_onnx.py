"""ONNX files of both encoders: onnxruntime computes from them what the model does in torch."""

import copy
import logging
import re
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from tiny_models import TEXTS, save_tiny

from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.models import onnx_export
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.loading import from_pretrained
from ccr_lightning.models.onnx_export import export_onnx
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.transformers_encoder import TransformersDualEncoder
from ccr_lightning.models.vision import ImageEncoder

FILES = ["image_encoder.onnx", "text_encoder.onnx"]
SWIN = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "window_size": 4}
BACKBONES = {"test_convnext": None, "swin_tiny_patch4_window7_224": SWIN}


def retriever(name="test_convnext", kind=Retriever, knows_inputs=True):
    torch.manual_seed(0)
    image_encoder = ImageEncoder(name, image_size=64, model_args=BACKBONES.get(name))
    text_encoder = TextEncoder(vocab_size=120, hidden_size=16, heads=2, feed_forward_size=32, max_positions=24)
    fusion = FusionEncoder(16, layers=1, heads=2, feed_forward_size=32, image_width=image_encoder.width)
    model = kind(image_encoder, text_encoder, fusion, embed_dim=16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    if knows_inputs:
        model.tokenizer = CaptionTokenizer(vocab_size=120, max_tokens=24)
        model.tokenizer.train(TEXTS)
        model.transform = ImageTransform(64)
    return model.eval()


def run(path, *inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    names = [given.name for given in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))
    return names, output.name, torch.from_numpy(found)


@torch.no_grad()
def check(folder, model):
    """Compares files to a model on batches that the export has not seen; their texts have padding, or none."""
    rng = np.random.default_rng(1)
    for count in (1, 5):
        sizes = ((50, 70), (10, 64), (64, 64), (100, 30), (33, 31))[:count]
        pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
        pixels = torch.from_numpy(np.stack([model.transform.evaluate(picture) for picture in pictures]))
        images = model.transform.normalize(pixels.permute(0, 3, 1, 2))
        names, output, found = run(folder / FILES[0], images)
        assert (names, output) == (["images"], "image_embeds")
        torch.testing.assert_close(found, model.encode_image(images).embeds, rtol=0, atol=1e-5)
    for texts in (TEXTS, ["a cat"], ["りんご", "a", ""], ["cat " * 40]):
        ids, mask = model.tokenizer.encode(texts)
        names, output, found = run(folder / FILES[1], ids, mask.long())
        assert (names, output) == (["input_ids", "attention_mask"], "text_embeds")
        torch.testing.assert_close(found, model.encode_text(ids, mask).embeds, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_own_retrievers(tmp_path, name):
    model = retriever(name)
    assert export_onnx(model, tmp_path / "new") == FILES
    check(tmp_path / "new", model)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == FILES


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "Siglip2", "AltCLIP", "ChineseCLIP"])
def test_models_of_transformers(tmp_path, kind):
    model = TransformersDualEncoder(str(save_tiny(kind, tmp_path / "model"))).eval()
    assert export_onnx(model, str(tmp_path / "onnx")) == FILES
    check(tmp_path / "onnx", model)


@torch.no_grad()
def test_rows_and_captions_may_be_missing_and_padding_hold_anything(tmp_path):
    model = retriever()
    export_onnx(model, tmp_path)
    ids, mask = torch.randint(120, (4, 24)), torch.arange(24) < torch.tensor([[3], [0], [24], [1]])
    found = run(tmp_path / FILES[1], ids, mask.long())[2]
    torch.testing.assert_close(found, model.encode_text(ids, mask).embeds, rtol=0, atol=1e-5)
    others = torch.where(mask, ids, ids.flip(1))
    torch.testing.assert_close(run(tmp_path / FILES[1], others, mask.long())[2][[0, 2, 3]], found[[0, 2, 3]])


def test_without_tokenizer_and_transform_inputs_are_random(tmp_path):
    model = retriever(knows_inputs=False)
    model.tokenizer = CaptionTokenizer()  # not trained yet
    assert export_onnx(model, tmp_path) == FILES
    known = retriever()
    model.tokenizer, model.transform = known.tokenizer, known.transform
    check(tmp_path, model)


def test_a_model_in_training_and_bfloat16_is_exported_in_float32_and_stays_as_it_was(tmp_path):
    model = retriever("test_resnet").to(torch.bfloat16).train()
    model.text_projection.requires_grad_(False)
    before = copy.deepcopy(model)
    export_onnx(model, tmp_path)
    check(tmp_path, copy.deepcopy(before).float().eval())
    assert all(part.training for part in model.modules())
    for (name, tensor), expected in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert tensor.dtype == expected.dtype, name
        assert tensor.equal(expected), name
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    assert gradients == [parameter.requires_grad for parameter in before.parameters()]


def test_large_weights_lie_beside_and_none_remain_of_an_earlier_export(tmp_path, monkeypatch):
    (tmp_path / "text_encoder.onnx.data").write_text("of an earlier export")
    model = retriever()
    text, image = (sum(p.nbytes for p in part.parameters()) for part in (model.text_encoder, model.image_encoder))
    assert text < 100_000 < image
    monkeypatch.setattr(onnx_export, "_MOST_BYTES_IN_A_FILE", 100_000)
    names = ["image_encoder.onnx", "image_encoder.onnx.data", "text_encoder.onnx"]
    assert export_onnx(model, tmp_path) == names == sorted(file.name for file in tmp_path.iterdir())
    check(tmp_path, model)
    assert (tmp_path / names[1]).stat().st_size > image / 2


def test_nothing_is_said(tmp_path, capfd, caplog, recwarn):
    export_onnx(retriever(), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert not [str(warning.message) for warning in recwarn]


class OtherInOnnx(Retriever):
    """Its images are mirrored in the graph that is exported."""

    def encode_image(self, images):
        encoded = super().encode_image(images)
        return encoded._replace(embeds=-encoded.embeds) if torch.compiler.is_exporting() else encoded


class DependsOnValues(Retriever):
    """It takes a turn at values of its texts, which no graph can."""

    def encode_text(self, input_ids, attention_mask, most_tokens=None):
        return super().encode_text(input_ids if input_ids.sum() > 0 else -input_ids, attention_mask)


def test_a_file_that_differs_is_refused_and_what_was_there_stays(tmp_path):
    (tmp_path / FILES[0]).write_text("as before")
    with pytest.raises(CCRError, match=r"^image_encoder\.onnx: .* differ .* by [\d.]+, more than 0\.0001") as caught:
        export_onnx(retriever(kind=OtherInOnnx), tmp_path)
    difference = float(re.search(r"by ([\d.]+),", str(caught.value))[1])
    assert 2 / 4 - 0.05 <= difference <= 2  # twice the largest of 16 coordinates of length 1
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(FILES[0], "as before")]


def test_a_model_that_cannot_be_exported_is_named_in_one_sentence(tmp_path):
    with pytest.raises(
        CCRError, match=r"^text_encoder\.onnx: this model cannot be exported to ONNX \(.*\); try"
    ) as caught:
        export_onnx(retriever(kind=DependsOnValues), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CCRError, match=rf"'{package}'; pip install 'ccr-lightning\[onnx\]'\.$"):
        export_onnx(retriever(), tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CCRError, match=r"file/new: the ONNX files could not be written \(.*\); choose another place\.$"
    ):
        export_onnx(retriever(), tmp_path / "file" / "new")


def test_the_command_writes_them_beside_the_weights(tmp_path, capsys):
    from ccr_lightning.cli.main import main

    save_tiny("CLIP", tmp_path / "clip")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "clip"), str(tmp_path / "out"), "--onnx"]) == 0
    said, errors = capsys.readouterr()
    assert said.splitlines()[-1] == "image_encoder.onnx, text_encoder.onnx written and compared with torch"
    assert errors == ""
    model = from_pretrained(tmp_path / "out")
    input_ids, mask = model.tokenizer.encode(["a red apple", "a cat"])
    session = onnxruntime.InferenceSession(tmp_path / "out" / "text_encoder.onnx")
    (found,) = session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": mask.long().numpy()})
    expected = model.encode_text(input_ids, mask).embeds.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
