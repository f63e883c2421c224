"""Imports run one way: cli, training, evaluation, search, then models, data, losses, metrics, functional, types.

Models know data, since a model that is shared brings what prepares its inputs.
"""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

import ccr_lightning

ROOT = Path(ccr_lightning.__file__).parent
EVERYWHERE = {"errors", "files", "hub", "libraries", "locks", "memory", "pages", "progress", "tables", "_version"}
LOW = {"functional", "distributed", "types"}
MIDDLE = {"models", "losses", "metrics", "data"} | LOW
ALLOWED = {  # what each part may import, besides itself and EVERYWHERE
    **{part: set() for part in EVERYWHERE},
    "types": set(),
    "functional": {"types"},
    "distributed": {"types"},
    "models": LOW | {"data"},
    "losses": LOW,
    "metrics": LOW,
    "data": LOW,
    "evaluation": MIDDLE,
    "search": MIDDLE | {"evaluation"},
    "serve": MIDDLE | {"evaluation", "search"},
    "training": MIDDLE | {"evaluation"},
    "report": MIDDLE | {"evaluation"},
    "doctor": {"data"},
    "cli": MIDDLE | {"doctor", "evaluation", "report", "search", "serve", "training"},
}
ALLOWED["__init__"] = set(ALLOWED)  # the package's own public names


def forbidden_imports(module: str, source: str) -> list[str]:
    """Names that the module may not import, wherever in its source it does."""
    part, package = module.split(".")[1], module.rpartition(".")[0]
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            imported += [f"{origin}.{alias.name}" for alias in node.names]
    own = [name for name in imported if name.split(".")[0] == "ccr_lightning"]
    return [name for name in own if name.partition(".")[2].split(".")[0] not in ALLOWED[part] | EVERYWHERE | {part}]


def module_name(path: Path) -> str:
    return ".".join(("ccr_lightning", *path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=module_name)
def test_imports_run_one_way(path):
    assert forbidden_imports(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("data.store", "from ccr_lightning.models.text import TextEncoder", "ccr_lightning.models.text.TextEncoder"),
        ("models.text", "import ccr_lightning.training.module as module", "ccr_lightning.training.module"),
        ("losses", "from ccr_lightning import distributed, metrics", "ccr_lightning.metrics"),
        ("metrics", "import torch, ccr_lightning", "ccr_lightning"),
        ("data.collate", "import ccr_lightning.models.text", "ccr_lightning.models.text"),
        ("data.sources.jsonl", "from ...training import optim", "ccr_lightning.training.optim"),
        ("types", "def f():\n    from ccr_lightning import RecallAtK", "ccr_lightning.RecallAtK"),
        ("evaluation.table", "if TYPE_CHECKING:\n    import ccr_lightning.cli.main", "ccr_lightning.cli.main"),
        ("functional.masking", "from ccr_lightning.distributed import gather", "ccr_lightning.distributed.gather"),
    ],
)
def test_a_planted_violation_is_found(module, source, found):
    allowed = "import lightning, ccr_lightning_extras\nfrom ccr_lightning.errors import CCRError\n"
    assert forbidden_imports(f"ccr_lightning.{module}", allowed + source) == [found]


def test_every_direction_but_down_is_refused():
    order = ["cli", "training", "evaluation", "models", "functional", "types"]
    for place, part in enumerate(order):
        for other_place, other in enumerate(order):
            found = forbidden_imports(f"ccr_lightning.{part}.a", f"import ccr_lightning.{other}.b")
            assert bool(found) == (other_place < place)
