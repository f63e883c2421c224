"""Tiny random dual encoders of transformers, saved with tokenisers and image processors of their kind."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

TEXTS = ["a red apple on a table", "ein roter Apfel", "りんごが赤い", "un chat noir", "a cat", "Two DOGS, running."]
CHARACTERS = sorted(
    {*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789äöüßéč.,-'", *"".join(TEXTS)} - {" "}
)
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_IMAGES = {"image_size": 32, "patch_size": 8, **_SIZES}
POSITIONS = 24


def _numbered(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = _numbered(*pieces, *(f"{piece}</w>" for piece in pieces), "<|startoftext|>", "<|endoftext|>")
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=POSITIONS)


def _siglip_tokenizer(folder: Path) -> Any:
    from sentencepiece import SentencePieceTrainer
    from transformers import SiglipTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    characters = {"vocab_size": len(CHARACTERS) + 4, "character_coverage": 1.0, "hard_vocab_limit": False}
    SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, " ".join(CHARACTERS)]), model_prefix=str(folder / "spiece"), minloglevel=2,
        model_type="char", **characters,
    )  # fmt: skip
    tokenizer = SiglipTokenizer(
        str(folder / "spiece.model"), model_max_length=POSITIONS, model_input_names=["input_ids"]
    )
    (folder / "spiece.vocab").unlink()
    return tokenizer


def _siglip2_tokenizer(folder: Path) -> Any:
    from transformers import Siglip2Tokenizer

    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    vocab = _numbered(*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *CHARACTERS)
    return Siglip2Tokenizer(vocab=vocab, merges=[], model_max_length=POSITIONS)


def _xlm_r_tokenizer(folder: Path) -> Any:
    from transformers import XLMRobertaTokenizer

    pieces = [*("<s>", "<pad>", "</s>", "<unk>"), "▁", *CHARACTERS, "<mask>"]
    return XLMRobertaTokenizer(
        vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)], model_max_length=POSITIONS
    )


def _bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocab = _numbered(*special, *CHARACTERS, *(f"##{character}" for character in CHARACTERS))
    return BertTokenizer(vocab=vocab, model_max_length=POSITIONS)


def save_tiny(kind: str, folder: Path) -> Path:
    """Writes a random model of a kind, CLIP, SigLIP, SigLIP 2 (NaFlex), AltCLIP or Chinese-CLIP."""
    import transformers as library

    processors = {"Siglip2": {"patch_size": 8, "max_num_patches": 16}, "Siglip": {"size": {"height": 32, "width": 32}}}
    square = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    tokenizers = {
        "CLIP": _clip_tokenizer,
        "Siglip": _siglip_tokenizer,
        "Siglip2": _siglip2_tokenizer,
        "AltCLIP": _xlm_r_tokenizer,
        "ChineseCLIP": _bert_tokenizer,
    }
    tokenizer = tokenizers[kind](folder)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS, **_SIZES}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id}
    if kind == "AltCLIP":
        text |= {"project_dim": 24, "max_position_embeddings": POSITIONS + 2}
    images = {**_IMAGES, "num_patches": 16} if kind == "Siglip2" else _IMAGES
    projection = {} if kind.startswith("Siglip") else {"projection_dim": 16}
    config = getattr(library, f"{kind}Config")(text_config=text, vision_config=images, **projection)
    torch.manual_seed(0)
    model = getattr(library, f"{kind}Model")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        model.logit_scale.fill_(3.0)
    of_images = "CLIPImageProcessor" if kind == "AltCLIP" else f"{kind}ImageProcessor"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    getattr(library, of_images)(**processors.get(kind, square)).save_pretrained(folder)
    return folder
