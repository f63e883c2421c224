"""The encoders, the heads and the retriever, against transformers, torch.nn and timm."""

import math
from pathlib import Path

import pytest
import timm
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

from ccr_lightning.errors import CCRError
from ccr_lightning.models.fusion import FusionEncoder, MaskedLMHead, MatchingHead
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.transformer import Attention, CrossTransformerLayer, FeedForward, KeysValues, Packing
from ccr_lightning.models.vision import ImageEncoder

SWIN = "swin_base_patch4_window7_224"
TINY_SWIN = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 2]}


def _same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def _swin(**kwargs: object) -> ImageEncoder:
    return ImageEncoder(SWIN, image_size=56, model_args=TINY_SWIN, **kwargs)


def _text(**kwargs: object) -> TextEncoder:
    sizes = {"hidden_size": 16, "layers": 2, "heads": 2, "feed_forward_size": 32, "max_positions": 12}
    return TextEncoder(vocab_size=40, **(sizes | kwargs))


def _retriever(fusion: bool = True) -> Retriever:
    torch.manual_seed(0)
    heads = FusionEncoder(16, layers=2, heads=2, feed_forward_size=32, image_width=64) if fusion else None
    return Retriever(_swin(), _text(), heads, embed_dim=8)


def _captions() -> tuple[Tensor, Tensor]:
    """Three captions of 7, 4 and 2 tokens."""
    input_ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    return input_ids.masked_fill(~attention_mask, 1), attention_mask


def _randomise(module: nn.Module) -> nn.Module:
    """Gives every parameter a value of its own: zero biases and unit gains hide mistakes."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def test_text_encoder_and_masked_lm_head_are_those_of_xlm_r() -> None:
    config = XLMRobertaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=14,
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=1e-5,
    )
    reference = _randomise(XLMRobertaForMaskedLM(config))
    theirs, ours, head = reference.roberta, _text().eval(), MaskedLMHead(16, 40).eval()
    with torch.no_grad():
        ours.word_embeddings.weight.copy_(theirs.embeddings.word_embeddings.weight)
        ours.position_embeddings.weight.copy_(  # theirs start at the padding token's id + 1
            theirs.embeddings.position_embeddings.weight[2:] + theirs.embeddings.token_type_embeddings.weight
        )
        head.bias.copy_(reference.lm_head.bias)
    _copy(theirs.embeddings.LayerNorm, ours.norm)
    for layer, expected in zip(ours.layers, theirs.encoder.layer, strict=True):
        for name in ("query", "key", "value"):
            _copy(getattr(expected.attention.self, name), getattr(layer.attention, name))
        _copy(expected.attention.output.dense, layer.attention.output)
        _copy(expected.attention.output.LayerNorm, layer.attention.norm)
        _copy(expected.intermediate.dense, layer.feed_forward.intermediate)
        _copy(expected.output.dense, layer.feed_forward.output)
        _copy(expected.output.LayerNorm, layer.feed_forward.norm)
    _copy(reference.lm_head.dense, head.dense)
    _copy(reference.lm_head.layer_norm, head.norm)

    input_ids, attention_mask = _captions()
    with torch.no_grad():
        expected = reference(input_ids, attention_mask.long(), output_hidden_states=True)
        states = ours(input_ids, attention_mask)
        logits = head(states, ours.word_embeddings.weight)
    _same(states[attention_mask], expected.hidden_states[-1][attention_mask])
    _same(logits[attention_mask], expected.logits[attention_mask], 1e-4)


def test_cross_layer_is_torch_decoder_layer() -> None:
    reference = _randomise(nn.TransformerDecoderLayer(16, 2, 32, activation="gelu", batch_first=True))
    layer = CrossTransformerLayer(16, heads=2, feed_forward_size=32, context_size=16).eval()
    for ours, theirs, norm in (
        (layer.attention, reference.self_attn, reference.norm1),
        (layer.cross_attention, reference.multihead_attn, reference.norm2),
    ):
        with torch.no_grad():
            for index, linear in enumerate((ours.query, ours.key, ours.value)):
                linear.weight.copy_(theirs.in_proj_weight.chunk(3)[index])
                linear.bias.copy_(theirs.in_proj_bias.chunk(3)[index])
        _copy(theirs.out_proj, ours.output)
        _copy(norm, ours.norm)
    _copy(reference.linear1, layer.feed_forward.intermediate)
    _copy(reference.linear2, layer.feed_forward.output)
    _copy(reference.norm3, layer.feed_forward.norm)

    torch.manual_seed(3)
    states, context = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    _, attention_mask = _captions()
    expected = reference(states, context, tgt_key_padding_mask=~attention_mask)
    packing = Packing(attention_mask)
    fused = layer(packing.pack(states), packing, layer.cross_attention.keys_values(context))
    _same(fused, expected[attention_mask])


def test_attention_to_a_context_of_another_width_is_torch_multihead_attention() -> None:
    reference = _randomise(nn.MultiheadAttention(16, 4, kdim=6, vdim=6, batch_first=True))
    attention = Attention(16, heads=4, context_size=6).eval()
    with torch.no_grad():
        for index, name in enumerate(("query", "key", "value")):
            getattr(attention, name).weight.copy_(getattr(reference, f"{name[0]}_proj_weight"))
            getattr(attention, name).bias.copy_(reference.in_proj_bias.chunk(3)[index])
    _copy(reference.out_proj, attention.output)

    torch.manual_seed(3)
    states, context = torch.randn(3, 7, 16), torch.randn(3, 5, 6)
    expected = F.layer_norm(states + reference(states, context, context)[0], (16,))
    packing = Packing(torch.ones(3, 7, dtype=torch.bool))
    _same(packing.pad(attention(packing.pack(states), packing, attention.keys_values(context))), expected)


def test_kept_keys_and_values_serve_many_captions() -> None:
    fusion = _randomise(FusionEncoder(16, layers=2, heads=2, feed_forward_size=32, image_width=6))
    torch.manual_seed(3)
    text_states, image_states, rows = torch.randn(3, 7, 16), torch.randn(2, 5, 6), [1, 0, 1]
    _, attention_mask = _captions()
    expected = fusion(text_states, attention_mask, image_states[rows])
    kept = [KeysValues(of.keys[rows], of.values[rows]) for of in fusion.keys_values(image_states)]
    _same(fusion.attend(text_states, attention_mask, kept), expected, 1e-6)
    pair_by_pair = [
        fusion(text_states[i : i + 1], attention_mask[i : i + 1], image_states[row : row + 1])[0]
        for i, row in enumerate(rows)
    ]
    pair_by_pair = [alone[: int(mask.sum())] for alone, mask in zip(pair_by_pair, attention_mask, strict=True)]
    for i, alone in enumerate(pair_by_pair):
        _same(expected[i, : len(alone)], alone)


def test_text_encoder_is_bidirectional() -> None:
    encoder = _randomise(_text())
    input_ids, attention_mask = torch.tensor([[0, 5, 6, 2]]), torch.ones(1, 4, dtype=torch.bool)
    changed = torch.tensor([[0, 5, 7, 2]])
    difference = (encoder(input_ids, attention_mask) - encoder(changed, attention_mask)).abs().amax(-1)[0]
    assert (difference > 1e-3).all()


def test_padding_changes_no_embedding() -> None:
    retriever = _randomise(_retriever())
    input_ids, attention_mask = _captions()
    embeds = retriever.encode_text(input_ids, attention_mask).embeds
    longer = retriever.encode_text(F.pad(input_ids, (0, 5), value=1), F.pad(attention_mask, (0, 5))).embeds
    other_padding = retriever.encode_text(input_ids.masked_fill(~attention_mask, 9), attention_mask).embeds
    alone = torch.cat([retriever.encode_text(input_ids[i : i + 1, :n], attention_mask[i : i + 1, :n]).embeds
                       for i, n in enumerate((7, 4, 2))])  # fmt: skip
    for same in (longer, other_padding, alone):
        _same(same, embeds, 1e-6)


def test_missing_captions_are_finite_and_disturb_nothing() -> None:
    retriever = _retriever().eval()
    input_ids, attention_mask = _captions()
    missing = torch.cat([attention_mask, torch.zeros(1, 7, dtype=torch.bool)])
    text = retriever.encode_text(torch.cat([input_ids, torch.full((1, 7), 1)]), missing)
    image = retriever.encode_image(torch.randn(4, 3, 56, 56))
    logits = retriever.match_logits(retriever.fuse(text.states, missing, image.states))
    (text.embeds.sum() + logits.sum()).backward()
    assert text.embeds.isfinite().all()
    assert logits.isfinite().all()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in retriever.parameters())
    _same(text.embeds[:3], retriever.encode_text(input_ids, attention_mask).embeds, 1e-6)


def test_dropout_acts_in_training_only() -> None:
    encoder = _text(dropout=0.5)
    captions = _captions()
    torch.manual_seed(0)
    assert not torch.equal(encoder(*captions), encoder(*captions))
    encoder.eval()
    assert torch.equal(encoder(*captions), encoder(*captions))


def test_embeddings_and_the_output_of_each_part_are_dropped() -> None:
    assert not _text(layers=0, dropout=1.0)(*_captions()).any()
    states = torch.randn(12, 16)
    only_residual = F.layer_norm(states, (16,))
    attention = Attention(16, heads=2, dropout=1.0)
    _same(attention.attend_self(states, Packing(torch.ones(3, 4, dtype=torch.bool))), only_residual)
    _same(FeedForward(16, 32, dropout=1.0)(states), only_residual)


def test_attention_weights_are_dropped_in_training() -> None:
    attention = Attention(16, heads=2, dropout=0.5)
    nn.init.zeros_(attention.query.weight)  # every token looks everywhere alike ...
    attention.dropout.forward = lambda states: states  # ... and the output is not dropped
    states, packing = torch.randn(6, 16), Packing(torch.ones(1, 6, dtype=torch.bool))
    torch.manual_seed(0)
    assert not torch.equal(attention.attend_self(states, packing), attention.attend_self(states, packing))


@pytest.mark.parametrize(("hidden_size", "std"), [(1024, 0.02), (64, 0.08)])
def test_initial_parameters(hidden_size: int, std: float) -> None:
    encoder = TextEncoder(400, hidden_size, layers=1, feed_forward_size=512)
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            expected = 0.02 if "embeddings" in name else std
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.1), name
    assert encoder.word_embeddings.weight.any(1).all()


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(2, 13, dtype=torch.int64), torch.ones(2, 13, dtype=torch.bool), "13 tokens.*12 positions"),
        (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64), "torch.int64.*torch.bool"),
        (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool), "do not fit"),
        (torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.bool), "do not fit"),
    ],
)
def test_captions_that_do_not_fit(ids: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(CCRError, match=message):
        _text()(ids, mask)


def test_text_sizes_that_do_not_fit() -> None:
    with pytest.raises(CCRError, match="hidden_size=16 cannot be split into 3 heads"):
        _text(heads=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 0),
        ("layers", -1),
        ("heads", 0),
        ("heads", -2),
        ("feed_forward_size", -1),
        ("dropout", 2.0),
        ("dropout", -0.1),
        ("dropout", math.nan),
    ],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    fusion: dict[str, float] = {"hidden_size": 16, "layers": 1, "heads": 2, "feed_forward_size": 32, "image_width": 6}
    for build in (_text, lambda **setting: FusionEncoder(**(fusion | setting))):
        with pytest.raises(CCRError, match=rf"^{name}={value} is out of range: choose "):
            build(**{name: value})


def test_more_settings_out_of_range() -> None:
    with pytest.raises(CCRError, match="vocab_size=0 is out of range"):
        TextEncoder(vocab_size=0)
    with pytest.raises(CCRError, match="max_positions=0 is out of range"):
        _text(max_positions=0)
    with pytest.raises(CCRError, match="image_width=-1 is out of range"):
        FusionEncoder(16, layers=1, heads=2, feed_forward_size=32, image_width=-1)
    with pytest.raises(CCRError, match="embed_dim=-1 is out of range"):
        Retriever(_swin(), _text(), embed_dim=-1)


def test_every_token_learns() -> None:
    encoder = _text()
    input_ids, attention_mask = torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.bool)
    weights = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(4))
    (encoder(input_ids, attention_mask) * weights).sum().backward()
    assert encoder.word_embeddings.weight.grad is not None
    assert encoder.word_embeddings.weight.grad[:12].any(1).all()


@pytest.mark.parametrize(
    ("name", "size", "args", "layout"),
    [
        (SWIN, 56, TINY_SWIN, "NHWC"),  # windows of 7 and, in the last stages, less
        ("test_vit", 64, {"reg_tokens": 2}, "prefix of 3"),
        ("test_convnext", 96, None, "NCHW"),
        ("mobilenetv4_conv_small_050", 96, None, "NCHW"),
    ],
)
def test_image_states_are_the_mean_and_the_patches_row_by_row(
    name: str, size: int, args: dict[str, object] | None, layout: str
) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(name, size, model_args=args).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        states = encoder(images)
        features = encoder.backbone.forward_features(images)
    if layout == "NHWC":
        side = features.shape[1]
        patches = torch.stack([features[:, y, x] for y in range(side) for x in range(side)], 1)
    elif layout == "NCHW":
        side = features.shape[2]
        patches = torch.stack([features[:, :, y, x] for y in range(side) for x in range(side)], 1)
        patches = (patches - patches.mean(-1, keepdim=True)) / (
            patches.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
    else:
        patches = features[:, 3:]
        assert patches.shape[1] == 16
    assert states.shape == (2, 1 + patches.shape[1], encoder.width)
    _same(states[:, 1:], patches, 1e-4)
    _same(states[:, 0], sum(patches.unbind(1)) / patches.shape[1], 1e-4)


@pytest.mark.parametrize(
    "name",
    [
        SWIN,
        "convnext_atto",
        "resnet18",
        "efficientnet_b0",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_050",
        "inception_next_atto",
        "beit_base_patch16_224",
        "vit_small_patch16_dinov3",
        "vit_base_patch16_siglip_224",
        "hiera_tiny_224",
    ],
)
def test_every_parameter_of_a_timm_model_is_used(name: str) -> None:
    size = timm.get_pretrained_cfg(name).input_size[-1]
    with torch.device("meta"):
        encoder = ImageEncoder(name, size)
        states = encoder(torch.zeros(2, 3, size, size))
    states.sum().backward()
    assert states.shape[2] == encoder.width
    assert [key for key, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_stochastic_depth_is_off_unless_asked_for() -> None:
    images = torch.randn(8, 3, 56, 56)
    encoder = _swin().train()
    assert torch.equal(encoder(images), encoder(images))
    encoder = _swin(drop_path_rate=0.5).train()
    assert not torch.equal(encoder(images), encoder(images))
    with pytest.raises(CCRError, match="drop_path_rate"):
        ImageEncoder("vgg11", 32)
    with torch.device("meta"):
        assert ImageEncoder("vgg11", 32, drop_path_rate=None).width == 512


def test_image_encoder_errors() -> None:
    with pytest.raises(CCRError, match=r"no image model 'swin_bas_patch4_window7_224'.*swin_base_patch4_window7_224"):
        ImageEncoder("swin_bas_patch4_window7_224", 224)
    with pytest.raises(CCRError, match=r"no image model .*swin_tiny_patch4_window7_224\.ms_in22k"):
        ImageEncoder("swin_tiny_patch4_window7_224.ms_in22", 224)
    with pytest.raises(
        CCRError, match=r"'test_convnext' cannot take images of 24 px \(.+\): choose another image_size"
    ):
        ImageEncoder("test_convnext", image_size=24)
    with pytest.raises(CCRError, match=r"cannot build 'test_convnext' for images of 64 px.*widths"):
        ImageEncoder("test_convnext", 64, model_args={"widths": [8]})
    with pytest.raises(CCRError, match=r"images are \(3, 64, 64\).*takes \(3, 56, 56\)"):
        _swin()(torch.zeros(1, 3, 64, 64))


def _original_swin_file(path: Path, **changes: Tensor) -> nn.Module:
    """Writes a classifier in the layout of Swin's authors, and returns the same model as timm has it."""
    torch.manual_seed(5)
    model = timm.create_model(SWIN, num_classes=10, img_size=56, **TINY_SWIN).eval()
    weights = {}
    for name, tensor in model.state_dict().items():
        stage, downsample, rest = name.partition(".downsample.")
        if downsample:  # theirs belongs to the stage before
            name = f"layers.{int(stage[-1]) - 1}{downsample}{rest}"
        weights[name.replace("head.fc.", "head.")] = tensor
    weights["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    torch.save({"model": weights | changes}, path)
    return model


def test_pretrained_file(tmp_path: Path) -> None:
    file = tmp_path / "swin.pth"
    model = _original_swin_file(file)
    encoder = _swin(pretrained_file=str(file)).eval()
    assert encoder.pretrained
    images = torch.randn(2, 3, 56, 56)
    _same(encoder(images)[:, 1:], model.forward_features(images).flatten(1, 2), 1e-6)
    assert not any(isinstance(value, dict) for value in encoder.backbone.pretrained_cfg.values())


def test_weights_for_images_of_another_size() -> None:
    """Tables of relative positions are interpolated, what does not depend on the size is as it was."""
    sizes = {"depths": [1, 1, 1, 1], "embed_dim": 16, "num_heads": [1, 2, 2, 2]}
    small = ImageEncoder(SWIN, image_size=224, model_args=sizes)
    large = ImageEncoder("swin_base_patch4_window12_384", image_size=384, model_args=sizes)
    state = small.state_dict()
    name = "backbone.layers.2.blocks.0.attn.relative_position_bias_table"
    offsets = torch.cartesian_prod(torch.arange(-6.0, 7), torch.arange(-6.0, 7))
    state[name] = torch.stack([torch.full((169,), 0.3), (-offsets.norm(dim=1) / 4).exp()], dim=1)  # constant; a peak
    resampled = large.resample(state)
    large.load_state_dict(resampled)
    changed = {name for name, tensor in resampled.items() if tensor is not state[name]}
    assert len(changed) == 4
    assert all(name.endswith("relative_position_bias_table") for name in changed)
    constant, peak = resampled[name].view(23, 23, 2).unbind(-1)
    _same(constant, torch.full((23, 23), 0.3), 1e-6)
    assert peak[11, 11].item() == pytest.approx(1, abs=1e-6)  # the offset of 0 stays where it was
    for flipped in (peak.flip(0), peak.flip(1), peak.T):
        _same(peak, flipped, 1e-5)
    outwards = peak[11, 11:]
    assert (outwards.diff() < 0).all()
    assert outwards[-1].item() == pytest.approx(math.exp(-6 / 4), abs=1e-5)  # the farthest offset, too


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "test_convnext"])
def test_weights_of_other_models_for_images_of_another_size(name: str) -> None:
    sizes = {"model_args": {"depth": 1, "embed_dim": 32, "num_heads": 2}} if name.startswith("vit") else {}
    small, large = (ImageEncoder(name, image_size=size, **sizes) for size in (64, 96))
    state = small.state_dict()
    large.load_state_dict(large.resample(state))
    same = small.resample(state)
    assert all(same[name] is tensor for name, tensor in state.items())


def test_weights_of_another_architecture_are_not_resampled() -> None:
    state = ImageEncoder("test_vit", image_size=160).state_dict()
    assert ImageEncoder("test_convnext", image_size=64).resample(state) == state


def test_pretrained_file_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CCRError, match=r"missing\.pth: there is no such file"):
        _swin(pretrained_file=str(tmp_path / "missing.pth"))
    file = tmp_path / "weights.pth"
    torch.save({"something": torch.zeros(3)}, file)
    with pytest.raises(CCRError, match=r"cannot build.*Missing key"):
        _swin(pretrained_file=str(file))
    _original_swin_file(file, **{"norm.weight": torch.zeros(32)})
    with pytest.raises(CCRError, match=r"cannot build.*size mismatch for norm\.weight"):
        _swin(pretrained_file=str(file))


def test_one_caption_per_language_or_a_list_of_captions() -> None:
    retriever = _retriever().eval()
    input_ids, attention_mask = _captions()
    flat = retriever.encode_text(input_ids, attention_mask)
    assert flat.embeds.shape == (3, 8)
    assert flat.states.shape == (3, 7, 16)
    by_language = retriever.encode_text(
        torch.stack([input_ids, input_ids.flip(0)]), torch.stack([attention_mask, attention_mask.flip(0)])
    )
    assert by_language.embeds.shape == (2, 3, 8)
    assert by_language.states.shape == (2, 3, 7, 16)
    _same(by_language.embeds, torch.stack([flat.embeds, flat.embeds.flip(0)]), 1e-6)
    _same(by_language.states[1, 2], flat.states[0], 1e-5)


def test_embeddings_are_projected_first_states_of_length_one() -> None:
    retriever = _randomise(_retriever())
    image = retriever.encode_image(torch.randn(2, 3, 56, 56))
    text = retriever.encode_text(*_captions())
    for encoded, projection in ((image, retriever.image_projection), (text, retriever.text_projection)):
        projected = encoded.states[:, 0] @ projection.weight.T + projection.bias
        _same(encoded.embeds, projected / projected.square().sum(-1, keepdim=True).sqrt(), 1e-6)


def test_matching_head_is_that_of_the_paper() -> None:
    head = _randomise(MatchingHead(8))
    reference = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 2))
    for index, name in ((0, "dense"), (1, "norm"), (3, "output")):
        _copy(getattr(head, name), reference[index])
    fused_states = torch.randn(3, 4, 8)
    _same(head(fused_states), reference(fused_states[:, 0]), 1e-6)


def test_bf16_autocast_keeps_embeddings_in_float32() -> None:
    retriever = _retriever().eval()
    images, (input_ids, attention_mask) = torch.randn(3, 3, 56, 56), _captions()
    expected_image, expected_text = retriever.encode_image(images), retriever.encode_text(input_ids, attention_mask)
    with torch.autocast("cpu", torch.bfloat16):
        image, text = retriever.encode_image(images), retriever.encode_text(input_ids, attention_mask)
        fused = retriever.fuse(text.states, attention_mask, image.states)
        logits, token_logits = retriever.match_logits(fused), retriever.masked_lm_logits(fused[attention_mask])
    for encoded, expected in ((image, expected_image), (text, expected_text)):
        assert encoded.embeds.dtype == torch.float32
        _same(encoded.embeds.norm(dim=-1), torch.ones(3), 1e-6)
        _same(encoded.embeds, expected.embeds, 0.05)
    assert logits.dtype == token_logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert token_logits.shape == (13, 40)


def test_gradients_reach_every_parameter() -> None:
    retriever = _retriever()
    images, (input_ids, attention_mask) = torch.randn(3, 3, 56, 56), _captions()
    image, text = retriever.encode_image(images), retriever.encode_text(input_ids, attention_mask)
    fused = retriever.fuse(text.states, attention_mask, image.states)
    loss = (image.embeds @ text.embeds.T * retriever.logit_scale).softmax(1)[:, 0].sum()
    loss = loss + retriever.match_logits(fused)[:, 0].sum() + retriever.masked_lm_logits(fused[:, 1]).square().sum()
    loss.backward()
    for name, parameter in retriever.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("key.bias"):  # shifts all of a query's weights alike: no effect
            assert parameter.grad.any(), name


def test_without_fusion_there_is_no_matching() -> None:
    retriever = _retriever(fusion=False)
    assert not any("head" in name for name, _ in retriever.named_parameters() if "backbone" not in name)
    states = torch.zeros(1, 2, 16)
    for call in (
        lambda: retriever.fuse(states, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 5, 64)),
        lambda: retriever.match_logits(states),
        lambda: retriever.masked_lm_logits(states),
    ):
        with pytest.raises(CCRError, match="no fusion encoder"):
            call()


def test_widths_must_agree() -> None:
    fusion = FusionEncoder(16, layers=1, heads=2, feed_forward_size=32, image_width=48)
    with pytest.raises(CCRError, match="set its hidden_size=16 and image_width=64"):
        Retriever(_swin(), _text(), fusion)


def test_temperature() -> None:
    retriever = _retriever(fusion=False)
    assert retriever.log_logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert retriever.temperature.item() == pytest.approx(0.07)
    assert retriever.logit_scale.item() == pytest.approx(1 / 0.07)
    assert retriever.logit_scale.requires_grad
    for value, clamped in ((9.0, 0.001), (-9.0, 0.5), (3.0, math.exp(-3))):
        nn.init.constant_(retriever.log_logit_scale, value)
        retriever.clamp_temperature_()
        assert retriever.temperature.item() == pytest.approx(clamped)
    with pytest.raises(CCRError, match=r"temperature=0\.7 is out of range"):
        Retriever(_swin(), _text(), temperature=0.7)


def test_new_parameters_are_those_beside_pretrained_ones(tmp_path: Path) -> None:
    assert _retriever().new_parameters() == set()
    _original_swin_file(tmp_path / "swin.pth")
    retriever = Retriever(_swin(pretrained_file=str(tmp_path / "swin.pth")), _text())
    new = retriever.new_parameters()
    old = {name for name, _ in retriever.named_parameters()} - new
    assert old == {f"image_encoder.backbone.{name}" for name, _ in retriever.image_encoder.backbone.named_parameters()}
    assert "text_encoder.word_embeddings.weight" in new


def test_own_normalisation_of_a_pretrained_image_encoder_is_new(tmp_path: Path) -> None:
    file = tmp_path / "convnext.pth"
    torch.save(timm.create_model("test_convnext", num_classes=10).state_dict(), file)
    retriever = Retriever(ImageEncoder("test_convnext", 64, pretrained_file=str(file)), _text())
    assert {name for name in retriever.new_parameters() if name.startswith("image_encoder.")} == {
        "image_encoder.norm.weight",
        "image_encoder.norm.bias",
    }


def test_the_paper_sizes_give_522_million_parameters() -> None:
    with torch.device("meta"):
        retriever = Retriever(
            ImageEncoder(SWIN, 224),
            TextEncoder(250_002, 1024, layers=6, heads=16, feed_forward_size=4096, max_positions=514),
            FusionEncoder(1024, layers=6, heads=16, feed_forward_size=4096, image_width=1024),
        )
        assert retriever.image_encoder(torch.zeros(1, 3, 224, 224)).shape == (1, 50, 1024)
    parameters = {name: parameter.numel() for name, parameter in retriever.named_parameters()}
    assert 522e6 < sum(n for name, n in parameters.items() if not name.startswith("masked_lm_head.")) < 522.5e6
    assert 523.5e6 < sum(parameters.values()) < 524e6


def test_the_signature_is_the_config_schema() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Retriever, "retriever")
    text = {"vocab_size": 40, "hidden_size": 16, "heads": 2}
    fusion = {"hidden_size": 16, "layers": 1, "heads": 2, "feed_forward_size": 32, "image_width": 64}
    vision = {"name": SWIN, "image_size": 56, "model_args": TINY_SWIN}
    config = parser.parse_object(
        {
            "retriever": {
                "image_encoder": {"class_path": "ccr_lightning.models.vision.ImageEncoder", "init_args": vision},
                "text_encoder": {"class_path": "ccr_lightning.models.text.TextEncoder", "init_args": text},
                "fusion": {"class_path": "ccr_lightning.models.fusion.FusionEncoder", "init_args": fusion},
                "embed_dim": 8,
            }
        }
    )
    retriever = parser.instantiate(config).retriever
    assert isinstance(retriever, Retriever)
    assert retriever.encode_image(torch.zeros(1, 3, 56, 56)).embeds.shape == (1, 8)
