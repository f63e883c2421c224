"""A retriever as a folder: the same in a new process, and refused where anything in it has changed."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ccr_lightning import Retriever, from_pretrained
from ccr_lightning.cli.main import main
from ccr_lightning.errors import CCRError


@pytest.fixture(scope="module")
def exported(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    assert main(["export", str(trained_run), str(folder)]) == 0
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_weights_are_those_of_the_run(trained_run, exported):
    state = torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    retriever = Retriever.from_pretrained(exported)
    own = retriever.state_dict()
    assert {f"retriever.{name}" for name in own} == set(state)
    assert all(state[f"retriever.{name}"].equal(tensor) for name, tensor in own.items())
    assert not retriever.training
    assert (retriever.tokenizer.max_tokens, retriever.transform.image_size) == (40, 32)
    assert {path.name for path in exported.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }


def test_a_new_process_scores_it_alike(trained_run, exported, tmp_path):
    """All of results.json but where the weights lay: numbers, hashes of weights, data, tokeniser and transform."""
    config = json.loads((trained_run.parents[1] / "tiny.yaml").read_text())
    (tmp_path / "data.yaml").write_text(json.dumps({"data": {"source": config["data"]["source"]}}))
    command = [sys.executable, "-m", "ccr_lightning.cli.main", "test", "--ckpt_path", str(exported)]
    settings = [
        "--config",
        "data.yaml",
        "--data.cache_dir",
        config["data"]["cache_dir"],
        "--trainer.accelerator",
        "cpu",
    ]
    protocol = ["--model.protocol.mrv_languages", "[en, de]", "--model.protocol.rerank_by", "matching_and_similarity"]
    done = subprocess.run([*command, *settings, *protocol], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "runs" / "mine-data" / "results.json").read_text())
    theirs = json.loads((trained_run / "results.json").read_text())
    assert ours.pop("checkpoint")["path"] == str(exported)
    theirs.pop("checkpoint")
    assert ours == theirs


def test_the_card_has_the_results(trained_run, exported):
    document = json.loads((trained_run / "results.json").read_text())
    card = (exported / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "ccr-lightning"\n')
    assert 'language: ["en", "de", "ja"]' in card
    for language, of in document["languages"].items():
        first = [100 * of[direction]["recall@1"] for direction in ("text_to_image", "image_to_text")]
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {language} |")]
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        assert [float(cells[0]), float(cells[3])] == pytest.approx(first, abs=0.05)
    assert f"MRV {document['mrv']['mean']:.2f}" in card
    code = card[card.index("```python\n") + len("```python\n") : card.index("\n```\n")]
    run = subprocess.run([sys.executable, "-c", code], cwd=exported.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_python_saves_what_it_loaded(exported, tmp_path):
    retriever = Retriever.from_pretrained(exported)
    retriever.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()
    assert isinstance(from_pretrained(tmp_path / "again"), Retriever)
    retriever.tokenizer = None
    with pytest.raises(CCRError, match="set its tokenizer and transform"):
        retriever.save_pretrained(tmp_path / "third")


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def rewrite(folder, change):
    """Other weights with the right sha256, as somebody would make them by hand."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    change_config(folder, lambda config: config["sha256"].update({"model.safetensors": digest}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda of: flip(of / "model.safetensors", -5), "model.safetensors: the file is not the one that was saved"),
        (lambda of: flip(of / "tokenizer.json", 50), "tokenizer.json: the file is not the one that was saved"),
        (lambda of: os.truncate(of / "model.safetensors", 1000), "model.safetensors: the file is not the one that"),
        (lambda of: (of / "tokenizer.json").unlink(), "tokenizer.json: there is no such file, which config.json names"),
        (lambda of: (of / "model.safetensors").unlink(), "model.safetensors: there is no such file"),
        (lambda of: (of / "config.json").unlink(), "there is no config.json"),
        (lambda of: (of / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda of: (of / "config.json").write_text("[]"), "config.json: this is no JSON object"),
        (
            lambda of: (of / "config.json").write_text("[" * 100_000),
            "it is nested too deeply",
        ),
        (lambda of: change_config(of, lambda c: c["retriever"].pop("fusion")), "'fusion' is missing"),
        (lambda of: change_config(of, lambda c: c["transform"].update(mean="abc")), "settings that no retriever has"),
        (lambda of: change_config(of, lambda c: c.update(format=9)), "its format is 9, and this version reads 1"),
        (lambda of: change_config(of, lambda c: c.pop("transform")), "'transform' is missing or no mapping"),
        (lambda of: change_config(of, lambda c: c["retriever"].pop("embed_dim")), "settings that no retriever has"),
        (
            lambda of: change_config(of, lambda c: c["transform"].update(colour=1)),
            "'transform' has 'colour', a setting",
        ),
        (
            lambda of: change_config(of, lambda c: c["retriever"].update(image_encoder=[])),
            "'image_encoder' is no mapping",
        ),
        (
            lambda of: change_config(of, lambda c: c["retriever"].update(text_weights="x")),
            "'retriever' has 'text_weights'",
        ),
        (
            lambda of: change_config(of, lambda c: c["tokenizer"].update(name_or_path="x")),
            "'tokenizer' has 'name_or_path'",
        ),
        (
            lambda of: change_config(of, lambda c: c["sha256"].pop("model.safetensors")),
            "model.safetensors: the file is not",
        ),
        (
            lambda of: change_config(of, lambda c: c["retriever"].update(embed_dim=8)),
            r"are not those of config.json: 4 of \d+ tensors differ, first 'image_projection.weight' \(8, 64",
        ),
        (
            lambda of: change_config(of, lambda c: c["retriever"]["text_encoder"].update(layers=1001)),
            "layers=1001 is out of range: choose 0 to 1,000",
        ),
        (
            lambda of: change_config(of, lambda c: c["retriever"]["fusion"].update(layers=1001)),
            "layers=1001 is out of range: choose 1 to 1,000",
        ),
        (
            lambda of: change_config(of, lambda c: c["sha256"].update({"../../etc/passwd": "0"})),
            "there is no such file",
        ),
        (lambda of: change_config(of, lambda c: c["sha256"].update({"n" * 300: "0"})), "there is no such file"),
        (
            lambda of: rewrite(of, lambda w: w.pop("log_logit_scale")),
            r"'log_logit_scale' \(1,\) in the model and missing",
        ),
        (lambda of: rewrite(of, lambda w: w.update(extra=torch.ones(1))), "'extra' missing in the model and"),
    ],
)
def test_a_folder_that_is_not_as_it_was_saved(copy, damage, says):
    damage(copy)
    with pytest.raises(CCRError, match=says):
        Retriever.from_pretrained(copy)


def test_settings_cannot_have_a_file_read(copy, tmp_path):
    """timm would unpickle what ``checkpoint_path`` names, code and all."""

    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save(Runs(), copy / "hostile.pth")
    config = json.loads((copy / "config.json").read_text())
    (tmp_path / "data.yaml").write_text(json.dumps({"data": {"source": "nothing"}}))
    for key, value in (
        ("model_args", {"checkpoint_path": "hostile.pth"}),
        ("pretrained_file", str(copy / "hostile.pth")),
    ):
        encoder = {**config["retriever"]["image_encoder"], key: value}
        changed = {**config, "retriever": {**config["retriever"], "image_encoder": encoder}}
        (copy / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CCRError, match=r"'checkpoint_path'|'pretrained_file'"):
            Retriever.from_pretrained(copy)
        assert main(["test", "--ckpt_path", str(copy), "--config", str(tmp_path / "data.yaml")]) == 1
    assert not (tmp_path / "ran").exists()


def test_the_card_of_other_weights_has_no_results(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["state_dict"]["retriever.log_logit_scale"] += 1
    torch.save(checkpoint, best)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    assert "Results" not in (tmp_path / "model" / "README.md").read_text()


def test_nothing_at_a_path_and_no_way_to_the_hub(tmp_path, monkeypatch):
    with pytest.raises(CCRError, match="nowhere: there is no such folder of a model"):
        from_pretrained(tmp_path / "nowhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = (
        "from ccr_lightning import from_pretrained\nfrom ccr_lightning.errors import CCRError\n"
        "try:\n    from_pretrained('somebody/some-model')\nexcept CCRError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
    assert said.startswith("somebody/some-model: there is no such folder here, and the Hugging Face hub has no such")
    assert said.endswith("pass the path of a folder with the model's files.\n")


def test_a_run_is_no_model(trained_run):
    with pytest.raises(CCRError, match="this is a run: make a model of it with ccr export"):
        from_pretrained(trained_run)


def test_one_caption_is_a_list_too(exported):
    with pytest.raises(
        CCRError, match=r"encode takes a list of captions, and got the text 'a red apple': pass \[text\]"
    ):
        from_pretrained(exported).tokenizer.encode("a red apple")


def test_export_refuses(trained_run, exported, tmp_path, capsys):
    for arguments, says in (
        ([trained_run, exported / "config.json" / "x"], "config.json is a file; name another folder."),
        ([trained_run, exported], f"{exported}: there is something already; name a new folder."),
        ([tmp_path / "nowhere", tmp_path / "new"], "nowhere: there is no checkpoint at"),
        ([trained_run], "ccr export: the following arguments are required: FOLDER; 'ccr export --help' explains."),
        ([exported / "model.safetensors", tmp_path / "new"], "this is a file of a model: pass its folder"),
    ):
        assert main(["export", *map(str, arguments)]) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("error: ")
        assert says in errors
        assert errors.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_the_authors_becomes_a_model(tmp_path, capsys):
    from authors_model import TEXT_HEADS, AuthorsModel, random_weights
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "apple": 5, "red": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    roles = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(tmp_path / "words")
    weights = random_weights()
    torch.save({"model": weights, "config": {"image_res": 64, "max_tokens": 9}}, tmp_path / "published.th")
    command = ["convert", str(tmp_path / "published.th"), str(tmp_path / "model"), "--text_heads", str(TEXT_HEADS)]
    capsys.readouterr()
    assert main([*command, "--tokenizer", str(tmp_path / "words")]) == 0
    said = capsys.readouterr().out
    assert "images of 64 px, 4 heads in a text layer" in said
    account = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert f"{len(account['loaded'])} tensors loaded, 0 of them interpolated; {len(account['ignored'])} not" in said
    assert account["loaded"].keys() | account["ignored"].keys() == {name.replace(".bert.", ".") for name in weights}

    model = from_pretrained(tmp_path / "model")
    input_ids, mask = model.tokenizer.encode(["red apple"])
    assert input_ids.tolist() == [[0, 6, 5, 2]]
    authors = AuthorsModel(weights)
    expected = authors.embeds("text_proj", authors.text_states(input_ids, mask))
    torch.testing.assert_close(model.encode_text(input_ids, mask).embeds.double(), expected, rtol=0, atol=1e-6)
    assert (model.tokenizer.max_tokens, model.transform.image_size) == (9, 64)

    assert "of 50 tokens the tokeniser knows 7: is it the one that the weights were trained with?" in said
    capsys.readouterr()
    assert main([*command[:2], str(tmp_path / "other"), *command[3:], "--max_tokens", "99"]) == 1
    assert "ccr convert: --max_tokens is 99, and the checkpoint has 12 positions" in capsys.readouterr().err
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**roles, "pad_token": "<mask>"})
    other.save_pretrained(tmp_path / "other-words")
    assert (
        main([*command[:2], str(tmp_path / "other"), *command[3:], "--tokenizer", str(tmp_path / "other-words")]) == 1
    )
    assert "does not number <s>, <pad> and </s> as 0, 1 and 2" in capsys.readouterr().err

    (tmp_path / "published.th").write_bytes(b"")
    assert main([*command[:2], str(tmp_path / "other")]) == 1
    assert "published.th: the file cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
