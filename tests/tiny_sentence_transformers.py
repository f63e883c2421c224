"""Tiny random models of sentence-transformers: CLIP in the layout of ``clip-ViT-B-32``, and a text model for it."""

import json
from pathlib import Path

import torch
from tiny_models import POSITIONS, _bert_tokenizer, save_tiny


def save_tiny_images(folder: Path) -> Path:
    """Writes a CLIP, which embeds captions too, within a folder of its own as models of older versions are."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPProcessor

    inner = save_tiny("CLIP", folder / "0_CLIPModel")
    CLIPProcessor(AutoImageProcessor.from_pretrained(inner), AutoTokenizer.from_pretrained(inner)).save_pretrained(
        inner
    )
    kind = "sentence_transformers.models.CLIPModel"
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": inner.name, "type": kind}]))
    return folder


def save_tiny_texts(folder: Path, width: int = 16) -> Path:
    """Writes a DistilBERT with mean pooling and a dense layer, as M-CLIP's text model is made."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
    from transformers import DistilBertConfig, DistilBertModel

    bare = folder / "bare"
    tokenizer = _bert_tokenizer(bare)
    sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 2 * POSITIONS}
    torch.manual_seed(1)
    DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    parts = [
        Transformer(str(bare), max_seq_length=POSITIONS),
        Pooling(32, "mean"),
        Dense(32, width, bias=False, activation_function=torch.nn.Identity()),
    ]
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder), create_model_card=False)
    return folder
