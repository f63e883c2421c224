"""Text and fusion encoders that start from layers of XLM-R."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ccr_lightning.errors import CCRError
from ccr_lightning.models.fusion import FusionEncoder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}


@pytest.fixture(scope="module")
def library():
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        num_hidden_layers=8, max_position_embeddings=20, type_vocab_size=1, layer_norm_eps=1e-5, **SIZES
    )
    model = XLMRobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.fixture
def folder(library, tmp_path):
    library.save_pretrained(tmp_path / "xlm-r")
    return tmp_path / "xlm-r"


def retriever(weights, layers=2, positions=18, **changes):
    sizes = {"hidden_size": 16, "heads": 2, "feed_forward_size": 24, **changes}
    return Retriever(
        ImageEncoder("test_convnext", image_size=32),
        TextEncoder(vocab_size=50, layers=layers, max_positions=positions, **sizes),
        FusionEncoder(layers=2, image_width=64, **sizes),
        embed_dim=8,
        text_weights=str(weights),
    ).eval()


@torch.no_grad()
def assert_started(model, library):
    """The text encoder computes what layers 1 and 3 of 8 compute, and fusion has layers 5 and 7."""
    input_ids = torch.tensor([[0, 7, 8, 9, 2], [0, 11, 2, 1, 1]])
    mask = input_ids != 1
    whole = library.roberta.encoder.layer
    library.roberta.encoder.layer = nn.ModuleList([whole[1], whole[3]])
    expected = library.roberta(input_ids, attention_mask=mask.long()).last_hidden_state
    library.roberta.encoder.layer = whole
    torch.testing.assert_close(model.encode_text(input_ids, mask).states[mask], expected[mask], rtol=0, atol=1e-5)
    for layer, number in zip(model.fusion.layers, (5, 7), strict=True):
        theirs = whole[number]
        assert layer.attention.value.weight.equal(theirs.attention.self.value.weight)
        assert layer.attention.norm.bias.equal(theirs.attention.output.LayerNorm.bias)
        assert layer.feed_forward.intermediate.weight.equal(theirs.intermediate.dense.weight)
        assert layer.feed_forward.output.bias.equal(theirs.output.dense.bias)
    states = torch.randn(3, 16)
    torch.testing.assert_close(model.masked_lm_logits(states), library.lm_head(states), rtol=0, atol=1e-5)


def test_it_starts_from_every_other_layer(library, folder):
    model = retriever(folder)
    assert_started(model, library)
    new = model.new_parameters()
    assert {name.split(".")[0] for name in new} == {
        *("image_encoder", "image_projection", "text_projection", "log_logit_scale", "fusion", "matching_head")
    }
    assert all("cross_attention" in name for name in new if name.startswith("fusion"))


def test_the_order_of_the_keys_and_the_format_do_not_matter(library, folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(dict(reversed(sorted(weights.items()))), folder / "pytorch_model.bin")
    assert_started(retriever(folder), library)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, folder / f"model-0000{number + 1}-of-00002.safetensors")
    assert_started(retriever(folder), library)


def test_a_model_without_a_head(library, tmp_path):
    library.roberta.save_pretrained(tmp_path)
    model = retriever(tmp_path)
    new = {name for name in model.new_parameters() if name.startswith("masked_lm_head.")}
    assert len(new) == 5
    assert model.text_encoder.word_embeddings.weight.equal(library.roberta.embeddings.word_embeddings.weight)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": 4}, "its num_attention_heads is 2 and the text encoder's 4"),
        ({"feed_forward_size": 32}, "its intermediate_size is 24 and the text encoder's 32"),
        ({"layers": 3}, "it has 8 layers, of which 5 cannot be taken evenly"),
        ({"positions": 19}, "it has 18 positions: set the text encoder's max_positions"),
    ],
)
def test_sizes_that_do_not_fit(folder, changes, says):
    with pytest.raises(CCRError, match=says):
        retriever(folder, **changes)


def test_other_models_and_damage_are_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    missing = "roberta.encoder.layer.3.output.dense.weight"
    save_file({name: of for name, of in weights.items() if name != missing}, folder / "model.safetensors")
    with pytest.raises(CCRError, match=r"'encoder\.layer\.3\.output\.dense\.weight' is missing"):
        retriever(folder)
    save_file(weights | {missing: torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(CCRError, match=r"what becomes 'text_encoder\.layers\.1\.feed_forward.* is \(2, 2\)"):
        retriever(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CCRError, match=r"model\.safetensors: cannot be read"):
        retriever(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CCRError, match=r"pytorch_model\.bin: there is no such file"):
        retriever(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(CCRError, match="its model_type is 'bert'; give one of xlm-roberta"):
        retriever(folder)
    with pytest.raises(CCRError, match="nowhere: there is no such folder of a model"):
        retriever(tmp_path / "nowhere")
