"""Tiny random models of open_clip, saved as open_clip does, with tokenisers of their kind."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import CHARACTERS, POSITIONS, _numbered, _siglip_tokenizer, _xlm_r_tokenizer

_VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 3}
_TEXT = {"context_length": POSITIONS, "width": 32, "heads": 4, "layers": 3}
KINDS = ("own", "xlm_r", "siglip", "nllb")
LANGUAGES = ("eng_Latn", "deu_Latn", "jpn_Jpan")


def _nllb_tokenizer() -> Any:
    from transformers import NllbTokenizer

    vocab = _numbered("<s>", "<pad>", "</s>", "<unk>", "▁", *CHARACTERS)
    return NllbTokenizer(vocab=vocab, merges=[], extra_special_tokens=list(LANGUAGES))


def _tower(folder: Path, kind: str, vocab_size: int) -> str:
    """The configuration of a text tower of transformers; open_clip needs no weights of it."""
    from transformers import M2M100Config, XLMRobertaConfig

    sizes = {"vocab_size": vocab_size, "pad_token_id": 1}
    if kind == "xlm_r":
        layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
        config: Any = XLMRobertaConfig(**sizes, **layers, max_position_embeddings=POSITIONS + 2)
    else:
        layers = {f"{part}_{of}": n for part in ("encoder", "decoder") for of, n in (("layers", 3), ("ffn_dim", 48))}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        config = M2M100Config(**sizes, **layers, **heads, d_model=32, max_position_embeddings=POSITIONS + 2)
    config.save_pretrained(folder / "tower")
    return str(folder / "tower")


def save_tiny_open_clip(kind: str, folder: Path, preprocess: dict[str, Any] | None = None) -> Path:
    """Writes a random model: with open_clip's own tokeniser, or towers of XLM-R, SigLIP or NLLB kind."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    model: dict[str, Any] = {"embed_dim": 16, "vision_cfg": _VISION, "text_cfg": dict(_TEXT)}
    text, tokenizer = model["text_cfg"], None
    if kind == "siglip":
        tokenizer = _siglip_tokenizer(folder)
        text |= {"vocab_size": len(tokenizer), "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
        text |= {"tokenizer_kwargs": {"clean": "canonicalize"}}
        timm = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
        model |= {"custom_text": True, "init_logit_bias": -10, "vision_cfg": timm, "embed_dim": 64}
    elif kind != "own":
        tokenizer = _xlm_r_tokenizer(folder) if kind == "xlm_r" else _nllb_tokenizer()
        pooling = {"xlm_r": "mean_pooler", "nllb": "cls_pooler"}[kind]
        tower = _tower(folder, kind, len(tokenizer))
        model["text_cfg"] = {"context_length": POSITIONS, "hf_model_name": tower, "hf_pooler_type": pooling}
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        model["text_cfg"]["hf_tokenizer_name"] = "itself"
    config = {"model_cfg": model, "preprocess_cfg": preprocess or {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    made = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
        made.logit_scale.fill_(3.0)
        if made.logit_bias is not None:
            made.logit_bias.fill_(-4.0)
    save_file({name: of.contiguous() for name, of in made.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
