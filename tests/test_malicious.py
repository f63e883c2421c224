"""Files that would do something if anything in them were executed: nothing does."""

import json
import os
import pickle
import pydoc
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tiny_models import save_tiny

from ccr_lightning.cli.main import main

MODULE = """
from pathlib import Path
Path({imported!r}).touch()

def function(*args, **kwargs):
    Path({called!r}).touch()

class Thing:
    def __init__(self, *args, **kwargs):
        Path({called!r}).touch()
"""


@pytest.fixture
def marker(tmp_path):
    """A file that is there once something has been executed."""
    return tmp_path / "executed"


@pytest.fixture
def evil(tmp_path, marker, monkeypatch):
    """A module that anybody can import, as an installed package."""
    (tmp_path / "modules").mkdir()
    text = MODULE.format(imported=str(tmp_path / "imported"), called=str(marker))
    (tmp_path / "modules" / "evil_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield tmp_path / "imported"
    sys.modules.pop("evil_module", None)


@pytest.fixture
def run(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    return Path(shutil.copytree(trained_run, tmp_path / "runs" / "tiny"))


@pytest.fixture
def refused(capsys, marker):
    """A function that runs a command, which ends with one sentence; nothing has been executed by then."""

    def refuse(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        errors = capsys.readouterr().err
        assert not marker.exists()
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        return errors

    return refuse


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def changed(path, change):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.mark.parametrize("command", ["test", "export", "fit", "init_from"])
def test_a_checkpoint_that_runs_a_command(run, refused, marker, tmp_path, command):
    name = "last" if command == "fit" else "best"
    path = run / "checkpoints" / f"{name}.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] = Payload(marker)
    torch.save(content, path)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload does what it should"
    marker.unlink()
    for other in {"previous.ckpt", "best.ckpt"} - {path.name}:  # which a run would go on from
        (run / "checkpoints" / other).unlink(missing_ok=True)
    arguments = {
        "test": ["test", "--ckpt_path", run],
        "export": ["export", run, tmp_path / "exported"],
        "fit": ["fit", "--config", run / "config.yaml", "--runs_dir", run.parent, "--name", "tiny", "--resume", "auto"],
        "init_from": ["fit", "--init_from", run, "--config", run / "config.yaml", "--name", "new"],
    }
    assert f"{name}.ckpt: the checkpoint cannot be read (UnpicklingError)" in refused(*arguments[command])


def test_a_published_checkpoint_that_runs_a_command(refused, marker, tmp_path):
    torch.save({"model": Payload(marker)}, tmp_path / "archive.th")
    (tmp_path / "pickle.th").write_bytes(pickle.dumps({"model": Payload(marker)}))
    assert "asks for posix.system, which" in refused("convert", tmp_path / "archive.th", tmp_path / "model")
    assert "the file cannot be read" in refused("convert", tmp_path / "pickle.th", tmp_path / "model")


def test_an_archive_with_a_pickle_of_its_own(run, refused, marker):
    path = run / "checkpoints" / "best.ckpt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickle.dumps(Payload(marker)) if name.endswith("data.pkl") else content)
    refused("test", "--ckpt_path", run)


def test_yaml_that_builds_objects(run, refused, marker, tmp_path):
    text = f"model: !!python/object/apply:os.system [\"touch '{marker}'\"]\n"
    yaml.unsafe_load(text)
    assert marker.exists(), "the payload does what it should"
    marker.unlink()
    (tmp_path / "own.yaml").write_text(text)
    assert "this is no YAML" in refused("fit", "--config", tmp_path / "own.yaml")
    (run / "config.yaml").write_text(text)
    refused("test", "--ckpt_path", run)
    refused("export", run, tmp_path / "exported")
    refused("data", "check", run / "config.yaml")


SETTINGS = [
    *("data.source", "data.tokenizer", "data.transform", "model.retriever"),
    *("trainer.logger", "trainer.callbacks", "trainer.strategy", "trainer.profiler"),
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "evil_module.function", "evil_module.Thing"])
def test_a_class_path_of_another_kind(run, refused, evil, marker, setting, path):
    """In a configuration that the user names: it is refused before it is called."""
    payloads = {"os.system": {"command": f"touch '{marker}'"}, "subprocess.Popen": {"args": ["touch", str(marker)]}}
    given = {"class_path": path, "init_args": payloads.get(path, {})}
    called = pydoc.locate(path)(**given["init_args"])
    if path == "subprocess.Popen":
        called.wait()
    assert marker.exists(), "the payload does what it should"
    marker.unlink()
    part, name = setting.split(".")
    changed(run / "config.yaml", lambda config: config[part].update({name: given}))
    refused("fit", "--config", run / "config.yaml", "--name", "new", "--runs_dir", run.parent)
    if path == "subprocess.Popen":  # which waits for nothing
        time.sleep(0.3)
        assert not marker.exists()


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        *((name, ["data.source", "model.retriever", "data.tokenizer"]) for name in ("test", "predict")),
        *((name, ["model.retriever", "data.transform"]) for name in ("init_from", "export", "embed")),
    ],
)
def test_a_run_names_no_classes_of_others(run, refused, evil, tmp_path, command, settings):
    """Its configuration is read without being named: other packages are not even imported."""
    original = shutil.copy(run / "config.yaml", tmp_path / "named.yaml")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    arguments = {
        "test": ["test", "--ckpt_path", run],
        "predict": ["predict", "--ckpt_path", run],
        "init_from": ["fit", "--init_from", run, "--config", original, "--name", "new"],
        "export": ["export", run, tmp_path / "exported"],
        "embed": ["embed", tmp_path / "pictures", "-o", tmp_path / "index", "--ckpt_path", run],
    }
    for setting in settings:
        shutil.copy(original, run / "config.yaml")
        part, name = setting.split(".")
        given = {part: {name: {"class_path": "evil_module.Thing"}}}
        changed(run / "config.yaml", lambda config, given=given: [config[of].update(given[of]) for of in given])
        says = refused(*arguments[command])
        assert "it names 'evil_module.Thing', which is not part of this package" in says
        assert not evil.exists()


def of_lightning(name, **arguments):
    return {"class_path": f"lightning.pytorch.{name}", "init_args": arguments}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("callbacks", [{"class_path": "evil_module.Thing"}]),
        ("plugins", [{"class_path": "evil_module.Thing"}]),
        ("profiler", {"class_path": "evil_module.Thing"}),
        ("accelerator", "evil_module.Thing"),
        ("strategy", "evil_module.Thing"),
        ("strategy", {"class_path": "evil_module.Thing"}),
        ("strategy", of_lightning("strategies.DDPStrategy", ddp_comm_hook="evil_module.function")),
        ("strategy", of_lightning("strategies.FSDPStrategy", auto_wrap_policy="evil_module.function")),
        ("strategy", of_lightning("strategies.SingleDeviceStrategy", accelerator="evil_module.Thing")),
        ("strategy", of_lightning("strategies.SingleDeviceStrategy", checkpoint_io="evil_module.Thing")),
    ],
)
def test_scoring_builds_nothing_that_a_run_names_for_the_trainer(run, evil, marker, capsys, name, given):
    changed(run / "config.yaml", lambda config: config["trainer"].update({name: given}))
    assert main(["test", "--ckpt_path", str(run)]) == 0, capsys.readouterr().err
    assert not marker.exists()
    assert not evil.exists()


def test_scoring_writes_no_logs_where_a_run_says(run, marker, capsys):
    logger = of_lightning("loggers.CSVLogger", save_dir=str(marker))
    changed(run / "config.yaml", lambda config: config["trainer"].update({"logger": logger}))
    assert main(["test", "--ckpt_path", str(run)]) == 0, capsys.readouterr().err
    assert not marker.exists()


def test_a_run_names_no_other_file(run, refused):
    original = (run / "config.yaml").read_text(encoding="utf-8")
    for part in ("model", "data", "trainer"):
        (run / "config.yaml").write_text(original, encoding="utf-8")
        changed(run / "config.yaml", lambda config, part=part: config.update({part: "elsewhere.yaml"}))
        assert f"{part!r} is no group of settings" in refused("test", "--ckpt_path", run)


TEXT = '{"class_path": "evil_module\\u002eThing"}'  # in which YAML sees a dot
SOURCE = {"class_path": "evil_module.Thing"}


def text_encoder(config, value):
    config["model"]["retriever"]["init_args"]["text_encoder"] = value


def image_encoder(config, value):
    config["model"]["retriever"]["init_args"]["image_encoder"]["init_args"]["model_args"] = value


HIDDEN = {  # ways to name a class that the parser takes, and where only some commands look
    "dotted callbacks": (
        ["test"],
        lambda config, _: config.update(
            {
                "trainer.callbacks.class_path": "lightning.pytorch.callbacks.LambdaCallback",
                "trainer.callbacks.init_args.on_test_start": "evil_module.function",
            }
        ),
    ),
    "dotted profiler": (
        ["test"],
        lambda config, place: config.update(
            {
                "trainer.profiler.class_path": "lightning.pytorch.profilers.AdvancedProfiler",
                "trainer.profiler.init_args.dirpath": str(place),
            }
        ),
    ),
    "dotted callbacks in the trainer": (
        ["test"],
        lambda config, _: config["trainer"].update(
            {
                "callbacks.class_path": "lightning.pytorch.callbacks.LambdaCallback",
                "callbacks.init_args.on_test_start": "evil_module.function",
            }
        ),
    ),
    "dotted source": (["test"], lambda config, _: config.update({"data.source": "evil_module.Thing"})),
    "dotted class": (["test"], lambda config, _: config.update({"data.source.class_path": "evil_module.Thing"})),
    "dotted class in data": (
        ["test", "init_from"],
        lambda config, _: config["data"].update({"source.class_path": "evil_module.Thing"}),
    ),
    "dotted tokenizer": (
        ["test", "init_from"],
        lambda config, _: config["data"].update({"tokenizer.class_path": "evil_module.Thing"}),
    ),
    "dotted retriever": (
        ["test", "init_from", "export"],
        lambda config, _: config["model"].update({"retriever.class_path": "evil_module.Thing"}),
    ),
    "appended source": (["test"], lambda config, _: config["data"].update({"source+": SOURCE})),
    "text as source": (["test"], lambda config, _: config["data"].update(source=TEXT)),
    "text as tokenizer": (["test", "init_from"], lambda config, _: config["data"].update(tokenizer=TEXT)),
    "text as transform": (["test", "init_from", "export"], lambda config, _: config["data"].update(transform=TEXT)),
    "text as text encoder": (["test", "init_from", "export"], lambda config, _: text_encoder(config, TEXT)),
    "text as init_args": (
        ["test", "init_from", "export"],
        lambda config, _: config["model"]["retriever"].update(init_args=TEXT),
    ),
    "protocol": (["test"], lambda config, _: config["model"].update(protocol="evil_module.Thing")),
    "class as protocol": (["test"], lambda config, _: config["model"].update(protocol=SOURCE)),
    "in any value": (["test", "init_from", "export"], lambda config, _: image_encoder(config, {"a": SOURCE})),
    "text in any value": (["test", "init_from", "export"], lambda config, _: image_encoder(config, {"a": TEXT})),
    "class of the package that is another's": (
        ["test", "init_from", "export"],
        lambda config, _: config["data"].update(transform={"class_path": "ccr_lightning.cli.training.ExitStack"}),
    ),
}


@pytest.mark.parametrize(
    ("command", "way"), [(command, way) for way, (commands, _) in HIDDEN.items() for command in commands]
)
def test_a_run_hides_no_class(run, refused, evil, tmp_path, command, way):
    original = shutil.copy(run / "config.yaml", tmp_path / "named.yaml")
    changed(run / "config.yaml", lambda config: HIDDEN[way][1](config, tmp_path / "chosen"))
    arguments = {
        "test": ["test", "--ckpt_path", run],
        "init_from": ["fit", "--init_from", run, "--config", original, "--name", "new", "--runs_dir", run.parent],
        "export": ["export", run, tmp_path / "exported"],
    }
    assert f"{run / 'config.yaml'}: " in refused(*arguments[command])
    assert not evil.exists()
    assert not (tmp_path / "chosen").exists()
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("name", ["config", "init_from"])
def test_what_else_a_run_says_is_not_taken(run, evil, marker, tmp_path, capsys, name):
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({"data": {"source": SOURCE}}))
    changed(run / "config.yaml", lambda config: config.update({name: str(tmp_path / "whole.yaml")}))
    assert main(["test", "--ckpt_path", str(run)]) == 0, capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "exported")]) == 0, capsys.readouterr().err
    assert not marker.exists()
    assert not evil.exists()


def test_a_file_in_the_place_of_a_class(run, refused, evil, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("openmoji").write_text(yaml.safe_dump(SOURCE))
    changed(run / "config.yaml", lambda config: config["data"].update(source="openmoji"))
    assert "'source' is a text, where no run has one" in refused("test", "--ckpt_path", run)
    assert not evil.exists()


@pytest.mark.parametrize(
    "part",
    [
        {"class_path": "ccr_lightning.data.transforms.ImageTransform"},
        {"class_path": "ccr_lightning.models.retriever.NoSuchClass"},
        {"class_path": "ccr_lightning.models.retriever.Retriever", "init_args": {"embed_dim": "wide"}},
        {"class_path": ["ccr_lightning.models.retriever.Retriever"]},
        "text",
        None,
    ],
)
def test_export_says_what_cannot_be_built(run, refused, tmp_path, part):
    changed(run / "config.yaml", lambda config: config["model"].update(retriever=part))
    says = refused("export", run, tmp_path / "exported")
    assert f"{run / 'config.yaml'}: " in says
    assert "Parser key" not in says


def test_classes_of_others_can_be_trusted(run, evil, marker, tmp_path, monkeypatch, refused, capsys):
    """With their arguments, in which classes have to be trusted too."""
    (tmp_path / "modules" / "my_module.py").write_text(
        "from ccr_lightning.data.sources.jsonl import JsonLines\n"
        "from ccr_lightning.data.sources.protocol import Source\n\n"
        "class Mine(JsonLines):\n"
        "    def __init__(self, other: Source | None = None, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
    )

    def mine(config):
        config["data"]["source"]["class_path"] = "my_module.Mine"

    changed(run / "config.yaml", mine)
    assert "export CCR_TRUST=my_module" in refused("test", "--ckpt_path", run)
    assert "my_module" not in sys.modules
    monkeypatch.setenv("CCR_TRUST", "other,my_module")
    assert main(["test", "--ckpt_path", str(run)]) == 0, capsys.readouterr().err
    sys.modules.pop("my_module")
    for other, says in ((SOURCE, "names 'evil_module.Thing'"), (TEXT, "'other' is a text")):
        changed(
            run / "config.yaml", lambda config, other=other: config["data"]["source"]["init_args"].update(other=other)
        )
        assert says in refused("test", "--ckpt_path", run)
        sys.modules.pop("my_module")
    assert not evil.exists()


def test_scoring_names_what_it_does_not_take(run, capsys):
    plugin = of_lightning("plugins.io.TorchCheckpointIO")
    given = {"strategy": of_lightning("strategies.SingleDeviceStrategy"), "plugins": [plugin], "fast_dev_run": True}
    changed(run / "config.yaml", lambda config: config["trainer"].update(given))
    (run / "results.json").unlink()
    assert main(["test", "--ckpt_path", str(run)]) == 0
    told = capsys.readouterr().out
    assert told.count("trainer.strategy, trainer.plugins not taken") == 1
    assert (run / "results.json").exists()


@pytest.mark.parametrize(
    "source",
    [TEXT, "evil_module.Thing", {"class_path": "ccr_lightning.data.sources.jsonl.JsonLines", "init_args": TEXT}],
)
def test_results_hide_no_class(run, evil, refused, tmp_path, source):
    document = json.loads((run / "results.json").read_text())
    document["source"] = source
    (run / "results.json").write_text(json.dumps(document))
    says = refused("report", run, "-o", tmp_path / "report.html")
    assert "results.json: 'source' is no class_path with init_args" in says
    assert not evil.exists()


@pytest.mark.parametrize("hidden", [{"files.class_path": "evil_module.Thing"}, {"files": SOURCE}])
def test_results_hide_no_class_in_their_arguments(run, evil, tmp_path, hidden):
    document = json.loads((run / "results.json").read_text())
    document["source"]["init_args"] |= hidden
    (run / "results.json").write_text(json.dumps(document))
    assert main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 0
    assert f"{run / 'results.json'}: &#39;files" in (tmp_path / "report.html").read_text()
    assert not evil.exists()


def test_results_name_no_classes_of_others(run, evil, marker, tmp_path):
    document = json.loads((run / "results.json").read_text())
    document["source"] = {"class_path": "evil_module.Thing", "init_args": {}}
    (run / "results.json").write_text(json.dumps(document))
    assert main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 0
    assert not marker.exists()
    assert not evil.exists()
    assert "which is not part of this package" in (tmp_path / "report.html").read_text()


def test_a_model_with_code_of_its_own(refused, marker, tmp_path, run):
    model = save_tiny("CLIP", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.Own", "AutoConfig": "modeling_own.OwnConfig"}
    config["model_type"] = "own"
    (model / "config.json").write_text(json.dumps(config))
    (model / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    refused("test", "--ckpt_path", model, "--config", run / "config.yaml")


def test_a_model_of_sentence_transformers_that_names_other_classes(refused, evil, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    parts = [{"idx": 0, "name": "0", "path": "", "type": "evil_module.Thing"}]
    (model / "modules.json").write_text(json.dumps(parts))
    (tmp_path / "pictures").mkdir()
    refused("embed", tmp_path / "pictures", "-o", tmp_path / "index", "--ckpt_path", f"sentence-transformers:{model}")
    assert not evil.exists()
