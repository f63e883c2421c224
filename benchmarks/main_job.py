"""The table of README's results: the main job over several seeds, then the same checkpoints re-ranked.

python -m benchmarks.main_job --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RERANK_DEPTH = 16


def main() -> None:
    """Trains each seed that has no results yet, going on where it was interrupted, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default="configs/pretrain.yaml")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"))
    args = parser.parse_args()
    rows = [_row(seed, args.config, args.runs_dir) for seed in args.seeds]
    print("| seed | minutes | R@1 | R@5 | R@10 | MRV | MRSD | re-ranked R@1, MRV | by match and similarity |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def _row(seed: int, config: str, runs_dir: Path) -> list[str]:
    run = runs_dir / f"seed-{seed}"
    if not (run / "results.json").exists():
        _train(seed, config, run)
    reranked = [_reranked(run, by) for by in ("matching", "matching_and_similarity")]
    dual = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return [
        str(seed),
        f"{_minutes(run):.1f}" if _minutes(run) else "-",
        *(f"{_recall(dual, k):.1f}" for k in (1, 5, 10)),
        f"{dual['mrv']['mean']:.2f}",
        f"{dual['mrsd']['mean']:.2f}",
        *(f"{_recall(of, 1):.1f}, {of['mrv']['mean']:.2f}" for of in reranked),
    ]


def _reranked(run: Path, by: str) -> dict[str, Any]:
    """Scores the run's best checkpoint, the best candidates of each query ordered once more."""
    how = ["--model.protocol.rerank_depth", str(RERANK_DEPTH), "--model.protocol.rerank_by", by]
    _ccr("test", "--ckpt_path", str(run), *how, "--trainer.devices", "1")
    results: dict[str, Any] = json.loads((run / "results-reranked.json").read_text(encoding="utf-8"))
    return results


def _train(seed: int, config: str, run: Path) -> None:
    """Trains, and adds the time it took to that of earlier attempts."""
    start, earlier = time.monotonic(), _minutes(run)
    settings = ["--seed_everything", str(seed), "--name", run.name, "--runs_dir", str(run.parent)]
    try:
        _ccr("fit", "--config", config, *settings, "--resume", "auto")
    finally:
        run.mkdir(parents=True, exist_ok=True)
        minutes = earlier + (time.monotonic() - start) / 60
        (run / "minutes.txt").write_text(f"{minutes:.2f}\n", encoding="utf-8")


def _minutes(run: Path) -> float:
    """How long the run has trained, as far as it was trained by this program."""
    file = run / "minutes.txt"
    return float(file.read_text(encoding="utf-8")) if file.exists() else 0.0


def _ccr(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "ccr_lightning.cli.main", *args], check=True)


def _recall(results: dict[str, Any], k: int) -> float:
    recalls = [scores[f"recall@{k}"] for scores in results["mean_recalls"].values()]
    return 100 * sum(recalls) / len(recalls)


if __name__ == "__main__":
    main()
