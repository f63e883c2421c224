"""The page of results of benchmarks.objectives: every table, recomputed from the records it is made of."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import recomputed
from PIL import Image

from benchmarks import objectives
from benchmarks.experiments import figures, plan
from benchmarks.experiments.figures import draw
from benchmarks.experiments.page import page
from benchmarks.experiments.running import Results
from ccr_lightning.data.sources.openmoji import LANGUAGES, OpenMoji

ROOT = Path(__file__).parents[1]
PARTS = ("image encoder", "text encoder")
PAGE = ROOT / "docs" / "results.md"
RUNS = ROOT / "docs" / "results" / "runs.jsonl"
FIGURES = ("objectives.png", "mechanisms.png", "ablations.png")
COUNTS = r"Of (\d+) comparisons (?:\([^)]+\) )?\W*(\d+) confirm .+?, (\d+) say the opposite, and (\d+) decide nothing"
VERDICTS = ("**yes**", "**no, the opposite**", "undecided")

EFFECTS = {  # on recall: for the claim on one split, against it or not at all on the other
    ("one_to_k", "composition"): 0.3, ("one_to_one", "composition"): 0.0, ("english_pivot", "composition"): 0.1,
    ("one_to_k", "family"): 0.0, ("one_to_one", "family"): 0.3, ("english_pivot", "family"): 0.0,
}  # fmt: skip


def made_up(results):
    """Results of all trials, with numbers that nothing was trained for."""
    generator = np.random.default_rng(0)

    def draw(low, high):
        return float(f"{generator.uniform(low, high):.6g}")

    def pair(low, high):
        return {"image_to_text": draw(low, high), "text_to_image": draw(low, high)}

    for trial in [trial for part in objectives.PARTS for trial in objectives.trials(part)]:
        better = EFFECTS[trial.objective, trial.split]
        mrv, mrsd = pair(5 - 10 * better, 20 - 40 * better), pair(1, 3)
        length = trial.options["trainer.max_epochs"]
        chosen = plan.RATES.get((trial.objective, trial.split, length), recomputed.configured_rate(trial.objective))
        scores = {
            "recalls": {of: {f"recall@{k}": draw(0.3 + better, 0.35 + better) for k in (1, 5, 10)} for of in mrv},
            "mean_recall": draw(0.94, 0.96) if trial.options.get("model.lr", chosen) == chosen else draw(0.3, 0.9),
            "of_language": {language: draw(0.3 + better, 0.35 + better) for language in LANGUAGES},
            "recall@1_of_language": {language: pair(0.3, 0.9) for language in LANGUAGES},
            "mrv": {**mrv, "mean": sum(mrv.values()) / 2},
            "mrsd": {**mrsd, "mean": sum(mrsd.values()) / 2},
            "same_first": draw(0, 1),
        }
        cost = {"steps": 480, "images": 61440, "tokens": int(draw(1e6, 5e6))}
        record = {
            "key": trial.key(),
            **trial.described,
            "scored": "val" if trial.selects else "test",
            "scores": scores,
            "cost": {**cost, "cpu_seconds": draw(100, 300), "wall_seconds": draw(100, 300)},
            "versions": {"python": "3", "torch": "2", "lightning": "2", "timm": "1"},
            "commit": "0",
            "processor": "none",
        }
        if "ByLanguage" in trial.callbacks:
            record["by_language"] = [
                {"step": 24 * epoch, "recall@1": {language: draw(0, 1) for language in LANGUAGES}}
                for epoch in range(1, plan.EPOCHS + 1)
            ]
        if "GradientAngles" in trial.callbacks:
            record["angles"] = [
                {
                    "step": step,
                    **{
                        objective: {
                            part: {"of a step": draw(5, 90), "of the expectation": draw(1, 50)} for part in PARTS
                        }
                        for objective in ("one_to_k", "one_to_one", "english_pivot")
                    },
                }
                for step in (0, 72, 144, 216)
            ]
        results.found[record["key"]] = record
    results.write()
    return results


@pytest.fixture(scope="module")
def folder_of_made_up(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        results = made_up(Results(tmp_path_factory.mktemp("made up") / "runs.jsonl"))
        results.path.with_name("page.md").write_text(page(results), encoding="utf-8")
    return results.path.parent


@pytest.fixture
def text_and_records(folder_of_made_up):
    lines = (folder_of_made_up / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    return (folder_of_made_up / "page.md").read_text(encoding="utf-8"), recomputed.Records(lines)


def test_the_page_says_what_the_records_say(text_and_records):
    assert recomputed.objectives(*text_and_records, plan.BUDGETS["equal CPU time"]) == (2 * 5 * 20, 2 * 4 * 4)
    assert (
        recomputed.ablations(*text_and_records)
        == 8 * (12 + 6 + 5 + 4 + 3 + 2 + 4 + 9 + 6 + 6 + 9)
        + 6
        + 6
        + 2 * (8 + 3 + 4 + 3 + 2 + 1 + 3 + 6 + 4 + 4 + 6)
        + 4
        + 4
    )
    assert recomputed.in_words(*text_and_records) == 2 * (4 + 3 + 2 + 1 + 3 + 5 * 2 + 3)
    assert recomputed.mechanisms(*text_and_records) == 3 * 4 * 2 + 6 * 4 * 2 + 2 + 8
    assert recomputed.candidates(*text_and_records) == (14 + 5) * 5
    assert recomputed.beyond(*text_and_records, plan.BEYOND) == 2 * 2 * 17 + 2 * 2 * 5
    assert recomputed.tuning(*text_and_records) == 2 * 3 * 5 + 2 * 2 * 3 + 6 * 2
    assert recomputed.run(*text_and_records) == 7
    assert "not run" not in text_and_records[0]
    assert all(f"| {word}: " in text_and_records[0] for word in VERDICTS)


@pytest.mark.parametrize(
    "part", ["objectives", "ablations", "in_words", "mechanisms", "candidates", "beyond", "tuning", "run"]
)
def test_a_number_that_is_changed_is_found(text_and_records, part):
    """The checks above can fail."""
    text, records = text_and_records
    more = {"objectives": [plan.BUDGETS["equal CPU time"]], "beyond": [plan.BEYOND]}.get(part, [])
    title = {
        "objectives": "**The objectives, `family` split**",
        "ablations": "**batch size**",
        "in_words": "| varied | with |",
        "run": " trainings took",
        "mechanisms": "and the mean of the other languages, in the course\nof training:",
        "candidates": "| term, weight |",
        "beyond": "**With and without the term, `family` split, 15 seeds**",
        "tuning": "as many trainings of each objective.",
    }[part]
    before, found, table = text.partition(title)
    assert found
    number = re.search(r"\d+\.\d(?= ±|,| /| \||\d* \[| CPU hours)", table)
    changed = table[: number.start()] + str(float(number[0]) + 1.5) + table[number.end() :]
    with pytest.raises(AssertionError):
        getattr(recomputed, part)(before + title + changed, records, *more)


def test_a_word_that_is_changed_is_found(text_and_records):
    text, records = text_and_records
    before, found, after = text.partition("| R@1 of the rarest ")
    word = re.match("[a-z]+", after)[0]
    other = "lower" if word == "higher" else "higher"
    with pytest.raises(AssertionError):
        recomputed.in_words(before + found + other + after.removeprefix(word), records)


def test_a_verdict_that_is_changed_is_found(text_and_records):
    text, records = text_and_records
    yes, opposite, undecided = VERDICTS
    for old, new in ((yes, undecided), (opposite, yes), (undecided, yes)):
        assert f"| {old}: " in text
        with pytest.raises(AssertionError):
            recomputed.objectives(text.replace(f"| {old}: ", f"| {new}: ", 1), records, plan.BUDGETS["equal CPU time"])


def test_an_interval_that_is_missing_is_found(text_and_records):
    text, records = text_and_records
    with pytest.raises(AssertionError):
        recomputed.ablations(re.sub(r" ± [\d.]+", "", text), records)


def test_learning_rates_are_those_that_were_best_in_tuning():
    """By mean recall on the validation split; of all rates the best two by both splits are tried with three seeds."""
    records = recomputed.Records(RUNS.read_text(encoding="utf-8").splitlines())
    for objective in ("one_to_k", "one_to_one", "english_pivot"):
        of_one_seed = {
            rate: sum(
                record["scores"]["mean_recall"]
                for split in ("composition", "family")
                for record in records.of(objective, split, [1000], scored="val", rate=rate)
            )
            for rate in (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2)
        }
        assert sorted(sorted(of_one_seed, key=of_one_seed.get)[-2:]) == list(plan.FINALISTS[objective])
        for split, lengths in (("composition", (5, 10, 20, 40)), ("family", (10, 20, 40))):
            for epochs in lengths:
                trained = plan.trained(objective, split, 0, epochs).settings()["model"]["lr"]
                assert trained == records.best_rate(objective, split, epochs), (objective, split, epochs)


def test_the_term_beyond_the_paper_is_the_best_candidate():
    """By the rule that the page states: with one seed the best four, with three of these the best that is one term."""
    records = recomputed.Records(RUNS.read_text(encoding="utf-8").splitlines())

    def best(names, seeds):
        found = {}
        for name in ("1-to-K", *names):
            weights = plan.CANDIDATES[name]
            callbacks = {"AddTerms": {"weights": weights}} if weights else {}
            of = {
                s: records.of("one_to_k", s, seeds, scored="val", callbacks=callbacks)
                for s in ("composition", "family")
            }
            recalls = [np.mean(recomputed.values(of[s], "mean recall")) for s in of]
            found[name] = recalls, np.mean([np.log(recomputed.values(of[s], "MRV")) for s in of])
        least, _ = found.pop("1-to-K")
        kept = [name for name, (recalls, _) in found.items() if np.all(np.array(recalls) >= least)]
        return sorted(kept, key=lambda name: found[name][1])

    every = [name for name in plan.CANDIDATES if name != "1-to-K"]
    assert set(best(every, [1000])[:4]) == set(plan.BEST_CANDIDATES)
    assert best(plan.BEST_CANDIDATES, [1000, 1001, 1002])[0] == "text_to_text 0.5, agreement 0.5"
    single = [name for name in plan.BEST_CANDIDATES if len(plan.CANDIDATES[name]) == 1]
    winner = best(single, [1000, 1001, 1002])[0]
    assert {"text_to_text": plan.BEYOND["model.text_to_text_weight"]} == plan.CANDIDATES[winner]


def test_all_objectives_get_better_when_they_train_longer():
    records = recomputed.Records(RUNS.read_text(encoding="utf-8").splitlines())
    for objective in ("one_to_k", "one_to_one", "english_pivot"):
        of_length = [
            np.mean(recomputed.values(records.of(objective, "composition", [0, 1, 2], epochs), "R@1"))
            for epochs in (5, 10, 20, 40)
        ]
        assert of_length == sorted(of_length)


def test_intervals_of_the_best_candidates_overlap():
    """Those of MRV, as the page says; their ends are in its table."""
    _, finalists = [
        table for table in recomputed.tables(PAGE.read_text(encoding="utf-8")) if table.head[0] == "term, weight"
    ]
    for column in [number for number, name in enumerate(finalists.head) if name.endswith(": MRV")]:
        ends = [re.search(r"\[(\S+), (\S+)\]", row[column]).groups() for row in finalists.rows]
        lows, highs = zip(*([float(end.replace(",", "")) for end in both] for both in ends), strict=True)
        assert max(lows) <= min(highs)


def test_what_is_said_of_the_term_follows_from_the_records():
    records = recomputed.Records(RUNS.read_text(encoding="utf-8").splitlines())
    said = " ".join((ROOT / "docs" / "models.md").read_text(encoding="utf-8").split())
    for quantity, pattern in (
        ("MRV", r"MRV was (.+?) times that of .+? and (.+?) times on"),
        ("mean recall", r"mean recall (.+?) and (.+?) points"),
        ("R@1", r"R@1 (.+?) and (.+?) points"),
        ("R@5", r"R@5 (.+?) and (.+?) points"),
    ):
        for split, seeds, words in zip(
            ("composition", "family"), (range(15, 35), range(5, 15)), re.search(pattern, said).groups(), strict=True
        ):
            own, others = (
                recomputed.values(records.of("one_to_k", split, list(seeds), options=options), quantity)
                for options in (plan.BEYOND, {})
            )
            recomputed.check_difference(words, own, others, is_ratio=quantity == "MRV")


def test_the_shipped_records_are_those_of_all_trainings(monkeypatch):
    """None is missing, and none is of settings that are trained no more."""
    monkeypatch.chdir(ROOT)
    keys = {trial.key() for part in objectives.PARTS for trial in objectives.trials(part)}
    assert keys == {json.loads(line)["key"] for line in RUNS.read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize("name", FIGURES)
def test_shipped_figures_are_drawn_from_the_shipped_records(name):
    with Image.open(RUNS.with_name(name)) as figure:
        assert figure.text["sha256 of runs.jsonl"] == hashlib.sha256(RUNS.read_bytes()).hexdigest()


def test_the_readme_says_what_the_page_says():
    """Its table of the objectives, the counts of verdicts, and the minutes of the reduced version."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    of_page = PAGE.read_text(encoding="utf-8")
    (shown,) = [table for table in recomputed.tables(readme) if table.head[1:2] == ["`composition`: R@1"]]
    cells = {}
    for split in ("composition", "family"):
        (table,) = [one for one in recomputed.tables(of_page) if one.title == f"The objectives, `{split}` split"]
        for quantity, *of in table.rows:
            cells |= {(name, split, quantity): cell for name, cell in zip(table.head[1:], of, strict=True)}
    assert [name for name, *_ in shown.rows] == table.head[1:]
    for name, *of in shown.rows:
        assert of == [cells[name, split, of] for split in ("composition", "family") for of in ("R@1", "MRV")]
    counts = [re.search(COUNTS, " ".join(text.split())).groups() for text in (readme, of_page)]
    assert counts[0] == counts[1]
    assert re.search(r"in (\d+) minutes on 2 cores", readme)[1] == re.search(r"took \*\*(\d+) minutes", of_page)[1]


def test_the_shipped_page_says_what_the_shipped_records_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = PAGE.read_text(encoding="utf-8")
    records = recomputed.Records(RUNS.read_text(encoding="utf-8").splitlines())
    recomputed.objectives(text, records, plan.BUDGETS["equal CPU time"])
    for part in (
        recomputed.ablations,
        recomputed.in_words,
        recomputed.mechanisms,
        recomputed.candidates,
        recomputed.tuning,
        recomputed.run,
    ):
        part(text, records)
    recomputed.beyond(text, records, plan.BEYOND)
    took = json.loads(RUNS.with_name("reduced.json").read_text(encoding="utf-8"))
    minutes, at_a_time, cores = re.search(
        r"took \*\*(\d+) minutes\*\*, (\d) at a time, on (\d+) cores", text.replace("\n", " ")
    ).groups()
    assert (int(minutes), int(at_a_time), int(cores)) == (round(took["seconds"] / 60), took["jobs"], took["cores"])
    assert (took["trainings"], took["cores"], took["seconds"] < 45 * 60) == (3 * 2 * 2, 2, True)
    assert f"{took['same_scores']} of them gave exactly the scores" in text
    assert text == page(Results(RUNS))


def test_figures(folder_of_made_up, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    draw(Results(folder_of_made_up / "runs.jsonl"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FIGURES)
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())


def test_figures_show_all_that_they_are_of(folder_of_made_up, monkeypatch):
    """A point with error bars for each setting, and a line for each language, angle or objective."""
    monkeypatch.chdir(ROOT)
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path, digest: drawn.append(figure))
    draw(Results(folder_of_made_up / "runs.jsonl"), folder_of_made_up)
    by_budget, watched, varied = drawn
    assert [len(axes.containers) for axes in by_budget.axes] == [6, 6]
    assert [len(axes.lines) for axes in watched.axes] == [14, 14, 14, 6, 6]  # 13 languages and the diagonal
    assert [[len(of[0].get_xdata()) for of in axes.containers] for axes in varied.axes] == 2 * [
        [4, 4, 4], [5], [3, 3, 3], [3, 3, 3],
    ]  # fmt: skip


def test_the_reduced_version_says_how_long_it_took(folder_of_made_up, tmp_path, monkeypatch, capsys):
    """Where some of the trainings are there already, only how many have the shipped scores."""
    monkeypatch.chdir(ROOT)
    there = Results(folder_of_made_up / "runs.jsonl")

    def made_up_run(trials, results, folder, jobs):
        new = [there.of(trial) for trial in trials if results.of(trial) is None]
        for record in new:
            results.add(record)
        return new

    monkeypatch.setattr(objectives, "run", made_up_run)
    shipped = Results(folder_of_made_up / "runs.jsonl")
    other = shipped.of(plan.objectives("family")[0].trials[0])
    other["scores"]["mean_recall"] += 1e-6
    shipped.path = tmp_path / "shipped" / "runs.jsonl"
    shipped.write()
    monkeypatch.setattr(objectives, "SHIPPED", tmp_path / "shipped")
    arguments = ["--reduced", "--jobs", "3", "--results", str(tmp_path)]
    objectives.main(arguments)
    assert capsys.readouterr().out.count("| 1-to-K | one random language | English pivot |") == 2
    took = json.loads((tmp_path / "reduced.json").read_text(encoding="utf-8"))
    assert (took["trainings"], took["jobs"], took["seconds"]) == (3 * 2 * 2, 3, 0)
    assert took["same_scores"] == 3 * 2 * 2 - 1
    records = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(record["objective"], record["split"], record["seed"]) for record in records} == {
        (objective, split, seed)
        for objective in ("one_to_k", "one_to_one", "english_pivot")
        for split in ("composition", "family")
        for seed in (0, 1)
    }
    assert took["cpu_seconds"] == pytest.approx(sum(record["cost"]["cpu_seconds"] for record in records), abs=0.51)
    (tmp_path / "reduced.json").unlink()
    capsys.readouterr()
    for left in (0, 4):
        (tmp_path / "runs.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records[left:]))
        objectives.main(arguments)
        assert not (tmp_path / "reduced.json").exists()
        assert capsys.readouterr().out.startswith("11 of 12 trainings have exactly the scores in ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--reduced", "page"], "--reduced is a part of its own"),
        (["nothing"], "there is no part 'nothing'"),
        (["page", "--results", "."], "--results .: name a folder"),
        (["page", "--results", ".."], "--results ..: name a folder"),
        (["page", "--config", "none.yaml"], "--config none.yaml: there is no such file"),
        (["--config", "configs/experiments/large.yaml", "page"], "--config page: there is no such file; parts stand"),
        (["page", "--results", "{folder}/none"], "there are no results in"),
        (["page", "--results", "{folder}"], "runs.jsonl, line 2 is no result (Unterminated"),
        (["page", "--results", "{folder}/lacking"], "runs.jsonl, line 1 is no result (it lacks commit, cost, "),
        (["page", "--results", "{folder}/number"], "runs.jsonl, line 1 is no result ('int' object"),
        (["page", "--results", "{folder}/latin"], "runs.jsonl cannot be read ('utf-8' codec"),
        (["page", "--results", "{folder}/folder"], "runs.jsonl cannot be read ([Errno 21] Is a directory"),
        (["page", "--config"], "argument --config: expected at least one argument"),
        (["page", "--config", "{folder}/empty.yaml"], "--config: settings that cannot be laid over"),
        (["page", "--config", "{folder}/broken.yaml"], "--config: settings that cannot be laid over"),
        (["page", "--config", "{folder}/model.yaml"], "--config: settings that cannot be laid over"),
    ],
)
def test_what_is_asked_wrongly(arguments, says, folder_of_made_up, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    first, second, *_ = (folder_of_made_up / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "runs.jsonl").write_text(f"{first}\n{second[:300]}\n", encoding="utf-8")
    for name, content in (("lacking", b'{"key": "a"}'), ("number", b"3"), ("latin", b"\xe9")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "runs.jsonl").write_bytes(content)
    (tmp_path / "folder" / "runs.jsonl").mkdir(parents=True)
    for name, content in (("empty", ""), ("broken", "a: [b"), ("model", "model: 3")):
        (tmp_path / f"{name}.yaml").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        objectives.main([argument.format(folder=tmp_path) for argument in arguments])
    assert says in f"{stopped.value}{capsys.readouterr().err}"


def test_another_working_directory_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        objectives.main(["page"])
    assert "in the root of the repository" in capsys.readouterr().err


def test_links_of_a_page_elsewhere_lead_to_files(folder_of_made_up, tmp_path, monkeypatch):
    """Wherever the folder of results is, inside the repository and outside."""
    monkeypatch.chdir(ROOT)
    lines = (folder_of_made_up / "runs.jsonl").read_text(encoding="utf-8")
    for folder in (tmp_path / "again", Path(os.path.relpath(tmp_path)) / "deeper" / "again"):
        folder.mkdir(parents=True)
        (folder / "runs.jsonl").write_text(lines, encoding="utf-8")
        objectives.main(["page", "--results", str(folder)])
        written = folder.with_name("again.md")
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", written.read_text(encoding="utf-8"))
        assert len(links) == 7 + 3 + 1  # of the repository, figures, results
        assert [link for link in links if not (written.parent / link).exists()] == []


def test_what_is_said_of_the_splits_is_so():
    for split, sizes in plan.IMAGES.items():
        pictures = OpenMoji(split_scheme=split)
        assert {part: sum(1 for _ in pictures.records(part)) for part in sizes} == sizes


def test_a_page_of_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = page(Results(tmp_path / "none.jsonl"))
    assert "Of 0 comparisons that could be made, of 32, since trainings are missing, **0 confirm" in text
    assert text.count("not run") > 100
    draw(Results(tmp_path / "none.jsonl"), tmp_path)
    assert not list(tmp_path.iterdir())
