"""Every configuration that is shipped: parsed by the command's own parser, built, and compared with the paper."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from configured import configured

from ccr_lightning.cli.main import main
from ccr_lightning.data.transforms import CLIP_MEAN, CLIP_STD
from ccr_lightning.errors import CCRError
from ccr_lightning.models.retriever import Retriever

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml"))
PAPER = [path for path in FILES if path.parent == Path("configs/paper")]
RUNS = [
    path
    for path in FILES
    if path.parent not in (Path("configs/test"), Path("configs/finetune"))  # those have tests of their own
    and re.search("^data:", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
]
SIX = ("zh", "ja", "en", "de", "fr", "cs")
TEN = ("cs", "de", "en", "es", "fr", "id", "ja", "ru", "tr", "zh")


def header(path):
    """The comment that opens a file."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    until = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:until])


def configs(path):
    """What the command in the header passes to ``--config``."""
    command = header(path)[header(path).index("ccr fit ") :]
    return re.findall(r"--config (\S+)", command)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A function that runs ``ccr fit`` up to the trainer, and returns settings, model and data module."""
    known = {}

    def run(paths, device):
        if (*paths, device) not in known:
            arguments = [part for path in paths for part in ("--config", path)]
            if device == "meta":  # as from the hub, without it
                part = "--model.retriever.init_args"
                arguments += [f"{part}.text_weights", "null", f"{part}.image_encoder.init_args.pretrained", "false"]
            runs = tmp_path_factory.mktemp("runs")
            known[(*paths, device)] = configured(*arguments, "--runs_dir", runs, device=device)
        return known[(*paths, device)]

    return run


def test_there_are_configurations():
    assert Path("configs/pretrain.yaml") in RUNS
    assert len(PAPER) == 4
    assert set(PAPER) < set(RUNS)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_open_with_what_they_do(path):
    assert len(header(path)) > 60
    if path in RUNS:
        assert configs(path)[-1] == str(path), "the header names the command that runs the file"
        assert all((ROOT / other).is_file() for other in configs(path))


@pytest.mark.parametrize("path", RUNS, ids=str)
def test_runs_are_built(path, build):
    settings, model, data = build(configs(path), "meta" if path in PAPER else "cpu")
    retriever, tokenizer = model.retriever, settings.data.tokenizer.init_args
    text, fusion = retriever.text_encoder, retriever.fusion
    assert data.transform.image_size == retriever.image_encoder.image_size
    assert tokenizer.max_tokens <= text.max_positions
    if fusion is not None:
        assert (fusion.width, fusion.image_width) == (text.width, retriever.image_encoder.width)
    if tokenizer.name_or_path is None:
        assert tokenizer.vocab_size == text.vocab_size
    assert settings.trainer.max_epochs % (settings.trainer.check_val_every_n_epoch or 1) == 0  # the end is validated


@pytest.mark.parametrize("path", PAPER, ids=str)
def test_paper_settings(path, build):
    settings, model, data = build(configs(path), "meta")
    assert 522e6 < sum(parameter.numel() for parameter in model.parameters()) < 524e6

    kind, count = re.fullmatch(r"pretrain_(2m|3m)_(6|10)", path.stem).groups()
    assert tuple(data.languages) == {"6": SIX, "10": TEN}[count]
    assert settings.data.languages_per_step is None
    n_images = {"2m": "1,863,804", "3m": "3,309,520"}[kind]
    assert n_images in header(path)
    assert n_images in data.source.obtain
    assert data.source.parallel

    of = settings.model
    assert (of.objective, of.text_to_image_weight) == ("one_to_k", 1.0)
    assert (of.contrastive_weight, of.matching_weight, of.masked_lm_weight) == (1.0, 1.0, 1.0)
    assert (of.positive_language, of.mask_rate, of.draw_warmup) == ("least_likely", 0.4, 0.0)
    assert (of.lr, of.new_lr_scale, of.weight_decay, of.betas) == (1e-4, 2.0, 0.01, (0.9, 0.98))
    assert of.warmup_fraction == 0.03
    assert of.protocol.mrv_languages == ["en", "de", "fr", "cs"]
    assert set(of.protocol.mrv_languages) <= set(data.languages)
    assert of.retriever.init_args.temperature == 0.07

    of = settings.trainer
    assert (of.devices, of.strategy, of.precision, of.max_epochs) == (2, "ddp", "16-mixed", 30)
    assert of.gradient_clip_val == 1.0
    assert settings.data.batch_size == 64
    written = yaml.safe_load((ROOT / "configs/paper/parts/model.yaml").read_text())["retriever"]["init_args"]
    assert settings.data.tokenizer.init_args.name_or_path == written["text_weights"] == "FacebookAI/xlm-roberta-large"
    encoder = written["image_encoder"]["init_args"]
    assert (encoder["name"], encoder["pretrained"]) == ("swin_base_patch4_window7_224.ms_in22k", True)
    assert settings.data.tokenizer.init_args.max_tokens == 40
    of = settings.data.transform.init_args
    assert (of.image_size, of.crop_scale, of.horizontal_flip, of.rand_augment) == (224, (0.2, 1.0), True, True)
    assert (of.mean, of.std) == (CLIP_MEAN, CLIP_STD)

    text, fusion = model.retriever.text_encoder, model.retriever.fusion
    assert (len(text.layers), len(fusion.layers), text.width, text.vocab_size) == (6, 6, 1024, 250002)
    assert model.retriever.image_encoder.width == 1024
    assert model.retriever.image_projection.out_features == 256


def test_every_parameter_of_the_main_run_has_a_gradient(build):
    """Else ddp would stop at the second step."""
    _, model, _ = build(["configs/pretrain.yaml"], "cpu")
    retriever, size = model.retriever, model.retriever.image_encoder.image_size
    images = retriever.encode_image(torch.randn(2, 3, size, size))
    input_ids = torch.randint(5, 100, (2, 7))
    mask = torch.ones_like(input_ids, dtype=torch.bool)
    texts = retriever.encode_text(input_ids, mask)
    fused = retriever.fuse(texts.states, mask, images.states)
    outputs = (images.embeds, texts.embeds, retriever.match_logits(fused), retriever.masked_lm_logits(fused))
    (sum(output.square().sum() for output in outputs) * retriever.logit_scale).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("path", PAPER, ids=str)
def test_paper_data_that_are_missing(path, build, monkeypatch, tmp_path):
    _, _, data = build(configs(path), "meta")
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        file = data.source.files[split]
        with pytest.raises(
            CCRError, match=rf"^{file}: the captions of split '{split}' are not there; download the "
        ) as e:
            next(data.source.records(split))
        assert "below image_root" in str(e.value)
        assert "\n" not in str(e.value)


def test_missing_data_are_found_before_the_model_is_built(monkeypatch, capsys, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a model was built")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ccr"])
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(Retriever, "__init__", refuse)
    capsys.readouterr()
    assert main(["fit", "--config", str(ROOT / "configs/paper/pretrain_3m_6.yaml")]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith(
        "error: data/ccrk-3m/train.jsonl: the captions of split 'train' are not there; download the 3,3"
    )
