"""What the documents show: configurations that can be built, every source, commands with settings that there are."""

import importlib
import inspect
import pkgutil
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from ccr_lightning.cli.data_arguments import read_data
from ccr_lightning.cli.main import main
from ccr_lightning.data import sources
from ccr_lightning.data.sources.protocol import Source

ROOT = Path(__file__).parents[1]
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
MACHINES = (ROOT / "docs" / "several_machines.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```bash\n(.*?)^```$", MACHINES, re.DOTALL | re.MULTILINE)
VARIABLES = {"$config": "configs/pretrain.yaml", "$SLURM_NNODES": "2", "$SLURM_NTASKS_PER_NODE": "8"}
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", DATA, re.DOTALL | re.MULTILINE)


def source_classes():
    modules = [
        importlib.import_module(f"{sources.__name__}.{found.name}") for found in pkgutil.iter_modules(sources.__path__)
    ]
    classes = [
        of for module in modules for of in vars(module).values() if getattr(of, "__module__", "") == module.__name__
    ]
    return {of for of in classes if inspect.isclass(of) and hasattr(of, "records") and of is not Source}


def anchors(text):
    """Those that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files():
    pages = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")] + sorted(
        (ROOT / "docs").glob("*.md")
    )
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))]
    lost = [(page.name, link) for page, link in links if "://" not in link and not (page.parent / link).exists()]
    assert len(links) > 30
    assert not lost


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search(r"sources\.(\w+)", block)[1])
def test_configurations_are_built(block, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ccr"])
    (tmp_path / "my.yaml").write_text(block, encoding="utf-8")
    source = read_data([str(tmp_path / "my.yaml")]).source
    assert type(source) in source_classes()
    settings = yaml.safe_load(block)["data"]
    assert settings["source"]["class_path"] == f"{type(source).__module__}.{type(source).__name__}"
    languages = settings["source"]["init_args"].get("languages")
    assert languages is None or tuple(languages) == source.languages


def test_every_source_has_a_configuration_and_a_row():
    assert len(source_classes()) == 12
    for of in source_classes():
        path = f"{of.__module__}.{of.__name__}"
        assert any(f"class_path: {path}\n" in block for block in BLOCKS), path
        for text in (DATA, README):
            assert f"| `{path.removeprefix('ccr_lightning.data.sources.')}`" in text, path


def test_links_lead_somewhere():
    links = [*re.findall(r"\]\(#([^)]+)\)", DATA), *re.findall(r"\]\(docs/data\.md#([^)]+)\)", README)]
    assert len(links) > 20
    assert set(links) <= anchors(DATA)
    for folder, text in ((ROOT / "docs", DATA), (ROOT, README)):
        for path in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (folder / path).exists(), path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.split()[0])
def test_commands_for_several_machines_have_settings_that_there_are(script, monkeypatch, capsys):
    subprocess.run(["bash", "-n", "-c", script], check=True)
    command = shlex.split(script.replace("\\\n", " ")[script.replace("\\\n", " ").index("ccr fit") :])
    arguments = [VARIABLES.get(argument, argument) for argument in command[1:]]
    monkeypatch.setattr("sys.argv", ["ccr"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--print_config"])
    assert stopped.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["strategy"] in arguments
