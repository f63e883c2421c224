"""Published checkpoints: what they compute against a plain float64 model, and that anything odd in one is refused."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from authors_model import DEPTHS, POSITIONS, TEXT_HEADS, VOCABULARY, WIDTH, AuthorsModel, random_weights
from torch.nn import functional as F

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.contrastive import one_to_k_contrastive_loss
from ccr_lightning.functional.matching import matching_loss
from ccr_lightning.models.published import load_published, read_published

WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
POSITION_TABLE = "text_encoder.bert.embeddings.position_embeddings.weight"


@pytest.fixture
def save(tmp_path):
    def to_file(weights, **more):
        torch.save({"model": weights, "config": {"image_res": 64}, **more}, tmp_path / "published.th")
        return tmp_path / "published.th"

    return to_file


@torch.no_grad()
def assert_computes(retriever, weights, image_size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, image_size, image_size, generator=generator)
    input_ids = torch.randint(VOCABULARY, (3, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    authors = AuthorsModel(weights)
    image, text = retriever.encode_image(images), retriever.encode_text(input_ids, mask)
    image_states, text_states = authors.image_states(images), authors.text_states(input_ids, mask)
    fused = retriever.fuse(text.states, mask, image.states)
    expected = authors.fused_states(text_states, mask, image_states)
    for ours, theirs in (
        (image.states, image_states),
        (text.states[mask], text_states[mask]),
        (image.embeds, authors.embeds("vision_proj", image_states)),
        (text.embeds, authors.embeds("text_proj", text_states)),
        (fused[mask], expected[mask]),
        (retriever.match_logits(fused), authors.match_logits(expected)),
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    if "text_encoder.cls.predictions.bias" in weights:
        logits = retriever.masked_lm_logits(fused[mask])
        torch.testing.assert_close(logits.double(), authors.masked_lm_logits(expected[mask]), rtol=1e-5, atol=1e-4)
    assert retriever.temperature.item() == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("fine_tuned", [False, True])
@pytest.mark.parametrize(("image_size", "window"), [(64, 2), (128, 4), (128, 2)])
def test_it_computes_what_the_authors_model_computes(save, fine_tuned, image_size, window):
    weights = random_weights(image_size=image_size, window=window, fine_tuned=fine_tuned)
    path = save(weights, config={"image_res": image_size})
    retriever, account, _ = read_published(path, text_heads=TEXT_HEADS)
    assert_computes(retriever, weights, image_size)
    assert account.loaded.keys() | account.ignored.keys() == {name.replace(".bert.", ".") for name in weights}
    assert not account.loaded.keys() & account.ignored.keys()
    assert {name.split(".")[0] for name in account.new} == ({"masked_lm_head"} if fine_tuned else set())
    assert set(account.changed) == {"temp", POSITION_TABLE.replace(".bert.", ".")}
    assert not retriever.training


def test_the_order_of_the_keys_and_what_else_is_in_the_file_do_not_matter(save):
    weights = random_weights()
    bare = save(dict(sorted(weights.items())), config=None)
    assert_computes(load_published(bare, text_heads=TEXT_HEADS), weights, 64)
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    states = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": (3, (1, 2), None)}
    scalar = np.float64(0.5)
    path = save(
        weights, optimizer=optimizer.state_dict(), rng=states, epoch=29, best=scalar, scheduler={"last_lr": [scalar]}
    )
    assert_computes(load_published(path, text_heads=TEXT_HEADS), weights, 64)
    torch.save(weights, path)  # the weights alone
    assert_computes(load_published(path, text_heads=TEXT_HEADS), weights, 64)


def test_half_precision_and_cclm_and_files_without_buffers(save):
    weights = random_weights()
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    halves["text_encoder.cls.predictions.decoder.weight"] = halves[WORDS]
    rounded = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in halves.items()}
    retriever = load_published(save(halves), text_heads=TEXT_HEADS)
    rounded["temp"] = weights["temp"]
    assert retriever.image_projection.weight.dtype == torch.float32
    assert retriever.image_projection.weight.equal(rounded["vision_proj.weight"])
    boxes = {f"bbox_head.{part}.{leaf}": torch.ones(2) for part in (0, 1, 3) for leaf in ("weight", "bias")}
    account = read_published(save({**weights, **boxes}), text_heads=TEXT_HEADS).account
    assert all("regions" in account.ignored[name] for name in boxes)
    few = {name: of for name, of in weights.items() if not name.endswith(("_index", "attn_mask", "position_ids"))}
    assert_computes(load_published(save(few), text_heads=TEXT_HEADS), weights, 64)
    assert_computes(load_published(save(few, config=None), text_heads=TEXT_HEADS), weights, 64)


def test_for_larger_images_the_tables_are_interpolated(save):
    """As BEiT's authors do it, and those of CCR^k: near offsets keep their values. All else stays as it was."""
    weights = random_weights()
    for name, table in weights.items():
        if name.endswith("relative_position_bias_table"):
            own = int(len(table) ** 0.5)
            weights[name] = torch.linspace(-1, 1, own).repeat(own)[:, None].expand_as(table).contiguous()
    path = save(weights)
    retriever, account, _ = read_published(path, text_heads=TEXT_HEADS, image_size=128)
    small = load_published(path, text_heads=TEXT_HEADS)
    assert retriever.image_encoder.image_size == retriever.transform.image_size == 128
    assert small.transform.image_size == 64
    assert retriever.encode_image(torch.randn(1, 3, 128, 128)).states.shape == (1, 1 + 16, 64)
    before, after = small.state_dict(), retriever.state_dict()
    tables = [name for name in after if name.endswith("relative_position_bias_table")]
    assert len(tables) == sum(DEPTHS)
    for name in before.keys() - set(tables):
        assert before[name].equal(after[name])
    for name in tables:
        assert after[name].shape == (49, before[name].shape[1])
        grid = after[name].view(7, 7, -1)
        torch.testing.assert_close(grid, grid[:1].expand_as(grid), rtol=0, atol=1e-6)  # still constant along the other
        assert grid[0, 2:5].equal(torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, grid.shape[2]))
        assert (grid[0, 1:] >= grid[0, :-1]).all()
    changed = [what for what in account.changed.values() if what.startswith("interpolated from 9 x ")]
    assert len(changed) == len(tables)
    with pytest.raises(CCRError, match="image_size is 100: give a multiple of 32"):
        read_published(path, text_heads=TEXT_HEADS, image_size=100)


def without(name):
    return lambda weights: weights.pop(name)


def with_(name, tensor):
    return lambda weights: weights.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("temp"), "'temp' is missing"),
        (without("vision_encoder.layers.1.blocks.0.attn.qkv.bias"), "layers.1.blocks.0.attn.qkv.bias' is missing"),
        (without("vision_encoder.layers.0.downsample.norm.weight"), "layers.0.downsample.norm.weight' is missing"),
        (
            without("text_encoder.bert.encoder.layer.3.crossattention.self.key.bias"),
            "layer.3.crossattention.self.key.bias",
        ),
        (without("text_encoder.bert.encoder.layer.3.crossattention.self.query.weight"), "have no cross-attention"),
        (
            without("text_encoder.cls.predictions.transform.dense.bias"),
            "cls.predictions.transform.dense.bias' is missing",
        ),
        (without(POSITION_TABLE), "position_embeddings.weight' is missing"),
        (without("itm_head.3.weight"), "'itm_head.3.weight' is missing"),
        (with_("vision_proj.weight", torch.ones(16, 63)), r"'vision_proj.weight' is \(16, 63\) where \(16, 64\)"),
        (with_("text_proj.weight", torch.ones(8, WIDTH)), r"is \(\d+,?.*\) where \(8"),
        (with_("temp", torch.tensor(0.0)), "'temp' is 0"),
        (with_("temp", torch.tensor(14.3)), "'temp' is 14.3"),
        (with_("temp", torch.tensor([0.1, 0.2])), "'temp' is"),
        (with_("temp", torch.tensor(0.1 + 0.1j)), "'temp' is of torch.complex64"),
        (
            with_("vision_encoder.layers.0.blocks.0.attn.relative_position_index", torch.zeros(4, 4, dtype=torch.long)),
            "relative_position_index' is not as Swin's windows have it",
        ),
        (with_("extra_head.weight", torch.ones(2)), "'extra_head.weight' has no place"),
        (with_("text_encoder.bert.pooler.dense.weight", torch.ones(2, 2)), "pooler.dense.weight' has no place"),
        (
            with_("itm_head.0.weight", torch.full((2 * WIDTH, WIDTH), torch.nan)),
            "itm_head.0.weight' has numbers that are not",
        ),
        (with_("itm_head.0.weight", torch.ones(2 * WIDTH, WIDTH, dtype=torch.int32)), "of torch.int32"),
        (with_("epoch", 29), "'epoch' is no tensor but a int"),
        (with_("text_encoder.cls.predictions.decoder.weight", torch.ones(VOCABULARY, WIDTH)), "not the same as"),
        (with_("text_encoder.embeddings.LayerNorm.bias", torch.ones(WIDTH)), "is there twice"),
        (
            with_("text_encoder.bert.embeddings.position_ids", 2 + torch.arange(POSITIONS)[None]),
            "does not count from 0",
        ),
        (without("vision_encoder.patch_embed.proj.weight"), "no checkpoint of CCR"),
    ],
)
def test_a_tensor_that_is_not_as_it_should_be(save, change, says):
    weights = random_weights()
    change(weights)
    path = save(weights)
    with pytest.raises(CCRError, match=says) as error:
        load_published(path, text_heads=TEXT_HEADS)
    assert str(error.value).startswith(f"{path}: ")


def test_names_of_distributed_data_parallel(save):
    path = save({f"module.{name}": of for name, of in random_weights().items()})
    with pytest.raises(CCRError, match=r"its names begin with 'module\.'"):
        load_published(path, text_heads=TEXT_HEADS)


def test_a_missing_block_or_layer(save):
    for part, says in (
        ("vision_encoder.layers.0.blocks.0.", "block 0 is missing"),
        ("text_encoder.bert.encoder.layer.1.", "text layer 1 is"),
    ):
        kept = {name: of for name, of in random_weights().items() if not name.startswith(part)}
        with pytest.raises(CCRError, match=says):
            load_published(save(kept), text_heads=TEXT_HEADS)


def test_a_position_table_in_the_layout_of_transformers(save):
    """There positions start at 2, after an empty row for padding."""
    weights = random_weights()
    table = weights[POSITION_TABLE]
    weights[POSITION_TABLE] = torch.cat([torch.randn(1, WIDTH), torch.zeros(1, WIDTH), table])
    with pytest.raises(CCRError, match="does not count from 0 to 13"):
        load_published(save(weights), text_heads=TEXT_HEADS)
    del weights["text_encoder.bert.embeddings.position_ids"]
    with pytest.raises(CCRError, match="empty row 1, as tables of transformers have, whose positions start at 2"):
        load_published(save(weights), text_heads=TEXT_HEADS)


def test_sizes_that_contradict_each_other(save):
    with pytest.raises(CCRError, match="of images of 64 px, and the settings beside the weights say 128"):
        load_published(save(random_weights(), config={"image_res": 128}), text_heads=TEXT_HEADS)
    with pytest.raises(CCRError, match="text_heads is 5"):
        load_published(save(random_weights()), text_heads=5)
    with pytest.raises(CCRError, match="32 wide, and no multiple of 64: say how many text_heads"):
        load_published(save(random_weights()))


def test_a_damaged_file(save):
    path = save(random_weights())
    whole = path.read_bytes()
    with pytest.raises(CCRError, match="there is no such file"):
        load_published(path.with_name("nowhere.th"))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CCRError, match="truncated, damaged or not torch's"):
        load_published(path)
    for place in range(200, len(whole), len(whole) // 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        with pytest.raises(CCRError, match=r"published\.th: .*damaged"):
            load_published(path, text_heads=TEXT_HEADS)
    path.write_bytes(b"")
    with pytest.raises(CCRError, match="damaged"):
        load_published(path)


class Runs:
    """What pickle would call on loading."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_code_in_it_is_not_run(tmp_path, legacy):
    proof = tmp_path / "ran"
    path = tmp_path / "hostile.th"
    content = {"model": random_weights(), "config": Runs(f"touch {proof}")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CCRError, match=r"hostile.th: the file asks for (posix|nt)\.system, which is no tensor"):
        load_published(path)
    path.write_bytes(pickle.dumps(Runs(f"touch {proof}")))
    with pytest.raises(CCRError, match="damaged or not torch"):
        load_published(path)
    assert not proof.exists()
    path.write_bytes(pickle.dumps(Runs(f"touch {proof}")))
    pickle.loads(path.read_bytes())
    assert proof.exists()  # it would have run


PUBLISHED = Path(__file__).parents[2] / "shared" / "published"


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the authors' outputs are not part of the repository")
@pytest.mark.parametrize("fine_tuned", [False, True])
@torch.no_grad()
def test_it_computes_what_the_authors_code_computed(tmp_path, fine_tuned):
    path = PUBLISHED / "ccrk_layout_pretrain.th"
    if fine_tuned:
        content = torch.load(path, weights_only=True)
        own = {name.replace(".bert.", "."): of for name, of in content["model"].items() if ".cls." not in name}
        path = tmp_path / "fine_tuned.th"
        torch.save({**content, "model": own}, path)
    retriever = load_published(path, text_heads=4)
    file = torch.load(PUBLISHED / "ccrk_layout_io.pt", weights_only=True)
    of = file["finetune_224"] if fine_tuned else file
    inputs, images, languages = file["inputs"], file["B"], file["K"]
    mask = inputs["text_atts"].bool()
    image, text = retriever.encode_image(inputs["image"]), retriever.encode_text(inputs["text_ids"], mask)
    chosen = file["cross_embeds_sel"]

    def close(ours, theirs):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    close(image.states, of["image_embeds"])
    close(text.states[mask], of["text_embeds"][mask])
    close(image.embeds, of["image_feat"])
    close(text.embeds, of["text_feat"])
    fused = retriever.fuse(text.states[chosen], mask[chosen], image.states)
    close(fused[mask[chosen]], of["cross_embeds"][mask[chosen]])
    close(retriever.match_logits(fused), of["itm_logits"])

    def matching(of_texts, negative_image, negative_text):
        rows = [*of_texts, *of_texts, *negative_text]
        pairs = [*range(images), *negative_image, *range(images)]
        logits = retriever.match_logits(retriever.fuse(text.states[rows], mask[rows], image.states[pairs]))
        total, count = matching_loss(logits, torch.ones(images, dtype=torch.bool))
        return total / count

    if fine_tuned:
        texts = text.embeds[chosen][:, None]
        loss = one_to_k_contrastive_loss(image.embeds, texts, retriever.logit_scale, image_ids=file["itc_idx"])
        close(loss, of["loss_itc"])
        negative_images, negative_texts = of["draws"][:images], of["draws"][images:]
        close(matching(chosen.tolist(), negative_images, chosen[negative_texts].tolist()), of["loss_itm"])
        return
    texts = text.embeds.view(images, languages, -1)
    loss = one_to_k_contrastive_loss(image.embeds, texts, retriever.logit_scale, text_to_image_weight=1 / languages)
    close(loss, file["kcl_need_divm"][0])
    for drawn in file["mitm"].values():
        close(matching(drawn["pos_text"], drawn["neg_image"], drawn["neg_text"]), drawn["loss"])
    rows = file["mlm_pos_text"]
    masked = retriever.encode_text(inputs["text_ids_masked"][rows], mask[rows]).states
    fused = retriever.fuse(masked, mask[rows], image.states)
    places = inputs["masked_pos"][rows]
    logits = retriever.masked_lm_logits(fused.gather(1, places[..., None].expand(-1, -1, fused.shape[-1])))
    close(logits, file["mlm_logits"])
    close(
        F.cross_entropy(logits.flatten(0, 1), inputs["masked_ids"][rows].flatten(), ignore_index=-100), file["mlm_loss"]
    )
