"""Dual encoders of transformers: their embeddings are the library's own, and anything else is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import POSITIONS, TEXTS, save_tiny

from ccr_lightning.models.transformers_encoder import TransformersDualEncoder

KINDS = ["CLIP", "Siglip", "Siglip2", "AltCLIP", "ChineseCLIP"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = save_tiny(kind, tmp_path_factory.mktemp(kind))
        return str(made[kind])

    return of


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((60, 40), (32, 32), (20, 90))]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_the_library(folder_of, kind):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = folder_of(kind)
    library = AutoModel.from_pretrained(folder).eval()
    made = AutoImageProcessor.from_pretrained(folder)(images=pictures(), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length" if kind.startswith("Siglip") else True, truncation=True, max_length=POSITIONS,
        return_tensors="pt",
    )  # fmt: skip
    expected = library.get_image_features(**made).pooler_output, library.get_text_features(**tokens).pooler_output

    model = TransformersDualEncoder(folder).eval()
    pixels = np.stack([model.transform.evaluate(picture) for picture in pictures()])
    images = model.transform.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    input_ids, mask = model.tokenizer.encode(TEXTS)
    assert input_ids.equal(tokens["input_ids"])
    found = model.encode_image(images).embeds, model.encode_text(input_ids, mask).embeds
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs / theirs.norm(dim=-1, keepdim=True), rtol=0, atol=1e-6)
    by_language = model.encode_text(input_ids.view(2, 3, -1), mask.view(2, 3, -1)).embeds
    torch.testing.assert_close(by_language.flatten(0, 1), found[1])
    assert model.logit_scale.item() == pytest.approx(np.exp(3.0), rel=1e-6)
    assert (model.logit_bias is not None) == kind.startswith("Siglip")
    assert input_ids.shape[1] <= model.max_positions == POSITIONS
    assert model.vocab_size == len(AutoTokenizer.from_pretrained(folder))
    assert [len(tower) for tower in model.towers()] == [3, 3]
