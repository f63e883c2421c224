"""The experiments of benchmarks.objectives: what is done to data and losses, what is measured, what is said of it."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from torch.nn import functional as F

from benchmarks import objectives
from benchmarks.experiments import plan, running
from benchmarks.experiments.candidates import TERMS
from benchmarks.experiments.degraded import Degraded
from benchmarks.experiments.figures import draw
from benchmarks.experiments.gradients import angles
from benchmarks.experiments.intervals import difference, holm, mean
from benchmarks.experiments.page import page
from benchmarks.experiments.running import Results, run
from benchmarks.experiments.trial import OBJECTIVES, Trial
from ccr_lightning.cli.data_arguments import read_data
from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.openmoji import LANGUAGES, OpenMoji
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training.module import RetrievalModule

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"


@pytest.fixture(scope="module")
def pictures():
    return OpenMoji(image_size=16)


@pytest.fixture(scope="module")
def records(pictures):
    return list(pictures.records("train"))


def test_missing_captions(pictures, records):
    degraded = Degraded(pictures, kept={"de": 0.5, "ja": 0.0})
    found = list(degraded.records("train"))
    assert [of.image_id for of in found] == [of.image_id for of in records]
    assert all(
        set(of.captions.items()) <= set(all_of.captions.items()) for of, all_of in zip(found, records, strict=True)
    )
    kept = {language: sum(language in of.captions for of in found) / len(found) for language in LANGUAGES}
    assert kept.pop("ja") == 0
    assert kept.pop("de") == pytest.approx(0.5, abs=0.03)
    assert set(kept.values()) == {1.0}
    assert [of.captions for of in degraded.records("val")] == [of.captions for of in pictures.records("val")]


def test_an_image_keeps_a_caption(pictures):
    found = list(Degraded(pictures, kept=dict.fromkeys(LANGUAGES, 0.01)).records("train"))
    assert {len(of.captions) for of in found} >= {1, 2}
    assert min(len(of.captions) for of in found) == 1


def test_swapped_captions(pictures, records):
    found = list(Degraded(pictures, swapped=0.3).records("train"))
    for language in ("en", "zh"):
        before = [of.captions[language] for of in records]
        after = [of.captions[language] for of in found]
        assert sorted(before) == sorted(after)
        assert sum(one != other for one, other in zip(before, after, strict=True)) / len(before) == pytest.approx(
            0.3, abs=0.001
        )
    other = [of.captions["de"] != all_of.captions["de"] for of, all_of in zip(found, records, strict=True)]
    same = [of.captions["en"] != all_of.captions["en"] for of, all_of in zip(found, records, strict=True)]
    assert np.corrcoef(other, same)[0, 1] == pytest.approx(0, abs=0.06), "each language has images of its own"


def test_what_is_done_to_training_data_makes_another_store(pictures):
    made = [Degraded(pictures), Degraded(pictures, kept={"de": 0.5}), Degraded(pictures, swapped=0.1)]
    made.append(Degraded(pictures, swapped=0.1, seed=1))
    assert len({of.fingerprint("train") for of in made}) == 4
    assert {of.fingerprint("test") for of in made} == {pictures.fingerprint("test")}


def loops(name, images, texts, scale):
    """The terms with the indices of their definitions."""
    n, k, _ = texts.shape
    logits = [[[scale * float(texts[b, j] @ images[i]) for i in range(n)] for j in range(k)] for b in range(n)]

    def minus_log_softmax(row, at):
        return math.log(sum(math.exp(of) for of in row)) - row[at]

    if name == "spread_of_positives":
        return np.mean([np.var([logits[b][j][b] for j in range(k)]) for b in range(n)])
    if name == "hardest_language":
        return np.mean([max(minus_log_softmax(logits[b][j], b) for j in range(k)) for b in range(n)])
    if name == "agreement":
        total = 0.0
        for b in range(n):
            p = [[math.exp(-minus_log_softmax(logits[b][j], i)) for i in range(n)] for j in range(k)]
            m = [sum(of[i] for of in p) / k for i in range(n)]
            total += sum(m[i] * math.log(m[i] / p[j][i]) for j in range(k) for i in range(n)) / k
        return total / n
    if name == "mean_text":
        means = [sum(texts[b, j] for j in range(k)) for b in range(n)]
        means = [of / of.norm() for of in means]
        s = [[scale * float(images[i] @ means[b]) for b in range(n)] for i in range(n)]
        to_text = np.mean([minus_log_softmax(s[i], i) for i in range(n)])
        return (to_text + np.mean([minus_log_softmax([s[i][b] for i in range(n)], b) for b in range(n)])) / 2
    total = 0.0
    for anchor in range(k):
        others = [j for j in range(k) if j != anchor]
        s = [[[scale * float(texts[i, anchor] @ texts[b, j]) for j in others] for b in range(n)] for i in range(n)]
        forth = np.mean(
            [
                np.mean(
                    [minus_log_softmax([of for row in s[i] for of in row], i * len(others) + j) for j in range(k - 1)]
                )
                for i in range(n)
            ]
        )
        back = np.mean([minus_log_softmax([s[i][b][j] for i in range(n)], b) for b in range(n) for j in range(k - 1)])
        total += (forth + back) / 2
    return total / k


@pytest.mark.parametrize("name", sorted(TERMS))
def test_terms(name):
    generator = torch.Generator().manual_seed(3)
    images = F.normalize(torch.randn(4, 6, generator=generator, dtype=torch.float64), dim=-1)
    texts = F.normalize(torch.randn(4, 3, 6, generator=generator, dtype=torch.float64), dim=-1)
    found = TERMS[name](images, texts, torch.tensor(5.0, dtype=torch.float64))
    assert found.item() == pytest.approx(loops(name, images, texts, 5.0), rel=1e-9)


def test_terms_of_texts_that_agree():
    images = F.normalize(torch.randn(4, 6), dim=-1)
    texts = images[:, None].expand(4, 3, 6)
    for name in ("agreement", "spread_of_positives"):
        assert TERMS[name](images, texts, torch.tensor(5.0)).item() == pytest.approx(0, abs=1e-6)


def test_intervals_and_tests_are_scipys():
    own, other = {0: 3.0, 1: 5.5, 2: 4.0, 3: 4.5, 9: 100.0}, {0: 2.0, 1: 3.0, 2: 3.5, 3: 4.0}
    values = [own[seed] - other[seed] for seed in other]
    found = difference(own, other)
    expected = stats.ttest_rel([own[seed] for seed in other], list(other.values()))
    low, high = expected.confidence_interval(0.95)
    assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high))
    assert found.p == pytest.approx(expected.pvalue)
    assert mean(values)[:2] == pytest.approx((found.value, found.half))
    assert math.isnan(mean([1.0]).half)


def test_holm_adjusts_as_published():
    """The example of Wikipedia's article on the method: four hypotheses at 5 %, of which the first and fourth fall."""
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [p < 0.05 for p in adjusted] == [True, False, False, True]


def test_trials_have_keys_of_their_own():
    everything = [trial for part in objectives.PARTS for trial in objectives.trials(part)]
    settings = {json.dumps([trial.settings(), list(trial.tested_on), trial.selects]) for trial in everything}
    assert len({trial.key() for trial in everything}) == len(settings) > 150
    assert all(trial.seed == plan.TUNING_SEED for part in ("tuning", "candidates") for trial in objectives.trials(part))
    assert plan.TUNING_SEED not in plan.SEEDS


@pytest.mark.parametrize("part", objectives.PARTS)
def test_trials_are_configurations(part, tmp_path, monkeypatch):
    """Data and callbacks of every kind are built by the command's own parser."""
    monkeypatch.setattr("sys.argv", ["ccr"])
    seen = set()
    for trial in objectives.trials(part):
        settings = trial.settings()
        data = json.dumps(settings["data"], sort_keys=True)
        if data not in seen:
            seen.add(data)
            path = tmp_path / f"{len(seen)}.yaml"
            path.write_text(yaml.safe_dump(settings, allow_unicode=True))
            assert read_data([str(path)]).source.name.startswith(f"openmoji-{trial.split}")


def test_tokens_are_equal_where_they_should_be():
    rows = {row.name: row.trials[0].settings() for row in plan.objectives("tokens", "composition")}

    def texts(settings):  # of each image, in all
        per_step = 1 if settings["model"]["objective"] == "one_to_one" else settings["data"]["languages_per_step"]
        return settings["trainer"]["max_epochs"] * per_step

    assert {texts(of) for of in rows.values()} == {plan.EPOCHS * plan.LANGUAGES_PER_STEP}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Real trainings, as short as can be: of each kind that leaves something behind."""
    folder = tmp_path_factory.mktemp("experiments")
    short = {"trainer.max_epochs": 2, "trainer.check_val_every_n_epoch": 1, "trainer.limit_train_batches": 2}
    watched = {"ByLanguage": {}, "GradientAngles": {"every_n_epochs": 1, "batches": 1, "draws": 2}}
    trials = {
        "watched": Trial("english_pivot", "composition", 0, short, callbacks=watched),
        "unseen": Trial("one_to_one", "family", 0, {**short, "data.languages": ["en", "de"]}, tested_on=("en", "pt")),
        "chosen by": Trial("one_to_k", "family", 1, short, {"kept": {"de": 0.5}}, selects=True),
        "with a term": Trial(
            "one_to_k", "composition", 0, short, callbacks={"AddTerm": {"term": "mean_text", "weight": 0.5}}
        ),
        "without it": Trial("one_to_k", "composition", 0, short),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        results = Results(folder / "runs.jsonl")
        run(trials.values(), results, folder / "runs", jobs=2)
        yield SimpleNamespace(folder=folder, trials=trials, of={name: results.of(of) for name, of in trials.items()})


def test_what_is_kept_of_a_training(trained):
    record = trained.of["watched"]
    assert (record["objective"], record["split"], record["seed"], record["scored"]) == (
        "english_pivot", "composition", 0, "test",
    )  # fmt: skip
    assert record["cost"]["steps"] == 4
    assert record["cost"]["images"] == 4 * 128
    assert record["cost"]["cpu_seconds"] > 0
    assert [of["step"] for of in record["by_language"]] == [2, 4]
    assert set(record["by_language"][0]["recall@1"]) == set(LANGUAGES)
    assert [of["step"] for of in record["angles"]] == [0, 2]
    assert set(record["scores"]["of_language"]) == set(LANGUAGES)
    assert trained.of["chosen by"]["scored"] == "val"
    assert set(trained.of["unseen"]["scores"]["of_language"]) == {"en", "pt"}
    assert not list((trained.folder / "runs").iterdir())


def test_tokens_are_those_that_were_read(trained):
    """Counted once more, in the batches of a loader."""
    source, transform = OpenMoji("composition", image_size=48), ImageTransform(image_size=48, crop_scale=(1.0, 1.0))
    tokenizer = CaptionTokenizer(vocab_size=8000, max_tokens=40)
    data = CaptionDataModule(source, tokenizer, transform, batch_size=128, languages_per_step=4)
    data.prepare_data()
    data.setup("fit")
    total = 0
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        total += sum(int(batch.attention_mask.sum()) for batch, _ in zip(loader, range(2), strict=False))
    assert trained.of["without it"]["cost"]["tokens"] == total


def test_a_term_changes_what_is_learnt(trained):
    assert trained.of["with a term"]["scores"] != trained.of["without it"]["scores"]


def test_what_has_been_trained_is_not_trained_again(trained, monkeypatch):
    def refuse(*_):
        raise AssertionError("it was trained again")

    monkeypatch.setattr(running, "_run", refuse)
    results = Results(trained.folder / "runs.jsonl")
    run(trained.trials.values(), results, trained.folder / "runs", jobs=1)
    with pytest.raises(AssertionError):
        run([Trial("one_to_k", "family", 99)], results, trained.folder / "runs", jobs=1)


def test_a_training_that_fails_stops_no_other_and_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    trials = [Trial("one_to_k", "family", 0, {"model.nothing": 1})]
    with pytest.raises(SystemExit, match=r"one_to_k, family, seed 0, nothing 1: see .+\.log"):
        run(trials, Results(tmp_path / "runs.jsonl"), tmp_path / "runs", jobs=1)
    (log,) = (tmp_path / "runs").glob("*.log")
    assert "nothing" in log.read_text()


@pytest.fixture
def module_and_data(tmp_path, tiny_jsonl):
    """A function that returns a model, not trained, and data in three languages."""
    source, cache = JsonLines(**tiny_jsonl(train=32)), str(tmp_path / "cache")
    tokenizer, transform = CaptionTokenizer(vocab_size=200), ImageTransform(image_size=32)
    data = CaptionDataModule(source, tokenizer, transform, batch_size=8, cache_dir=cache)
    data.prepare_data()
    data.setup("fit")

    def make(objective, languages_per_step):
        torch.manual_seed(0)
        retriever = Retriever(
            ImageEncoder("test_byobnet", image_size=32),
            TextEncoder(vocab_size=200, hidden_size=16, layers=1, heads=2, feed_forward_size=32, dropout=0.0),
            embed_dim=16,
        )
        data.languages_per_step = languages_per_step
        return RetrievalModule(retriever, objective, matching_weight=0.0, masked_lm_weight=0.0), data

    return make


def test_a_step_of_all_languages_points_where_they_do(module_and_data):
    found = angles(*module_and_data("one_to_k", None), batches=2, draws=2)
    for of in found.values():
        assert of == {"of a step": pytest.approx(0, abs=0.01), "of their mean": pytest.approx(0, abs=0.01)}


def test_angles_of_fewer_languages(module_and_data):
    """The fewer there are the wider, and a mean has lost some of the chance."""
    one, two = (angles(*module_and_data("one_to_k", k), batches=2, draws=6) for k in (1, 2))
    for part in one:
        assert one[part]["of a step"] > two[part]["of a step"] > 1
        assert one[part]["of a step"] > one[part]["of their mean"] > 0
    pivot = angles(*module_and_data("english_pivot", None), batches=2, draws=2)
    assert pivot["image encoder"]["of a step"] > 1
    assert pivot["text encoder"]["of a step"] == pytest.approx(pivot["text encoder"]["of their mean"], abs=0.01)


def test_measuring_angles_changes_nothing(module_and_data):
    module, data = module_and_data("one_to_one", None)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.random.get_rng_state()
    angles(module, data, batches=1, draws=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert data.languages_per_step is None
    assert data.seed == 0


def made_up(results):
    """Results of all trials, with numbers that nothing was trained for."""
    generator = np.random.default_rng(0)

    def draw(low, high):
        return float(f"{generator.uniform(low, high):.6g}")

    def pair(low, high):
        return {"image_to_text": draw(low, high), "text_to_image": draw(low, high)}

    for trial in [trial for part in objectives.PARTS for trial in objectives.trials(part)]:
        mrv, mrsd = pair(5, 50), pair(1, 3)
        scores = {
            "recalls": {of: {f"recall@{k}": draw(0.3, 0.9) for k in (1, 5, 10)} for of in mrv},
            "mean_recall": draw(0.3, 0.9),
            "of_language": {language: draw(0.3, 0.9) for language in LANGUAGES},
            "recall@1_of_language": {language: pair(0.3, 0.9) for language in LANGUAGES},
            "mrv": {**mrv, "mean": sum(mrv.values()) / 2},
            "mrsd": {**mrsd, "mean": sum(mrsd.values()) / 2},
            "same_first": draw(0, 1),
        }
        record = {
            "key": trial.key(),
            **trial.described,
            "scores": scores,
            "cost": {"steps": 480, "images": 61440, "tokens": int(draw(1e6, 5e6)), "cpu_seconds": draw(100, 300)},
            "versions": {"python": "3", "torch": "2", "lightning": "2", "timm": "1"},
            "commit": "0",
            "processor": "none",
        }
        if "ByLanguage" in trial.callbacks:
            record["by_language"] = [
                {"step": 24 * epoch, "recall@1": {language: draw(0, 1) for language in LANGUAGES}}
                for epoch in range(1, plan.EPOCHS + 1)
            ]
            record["angles"] = [
                {"step": step, **{part: {"of a step": draw(5, 90), "of their mean": draw(1, 50)} for part in PARTS}}
                for step in (0, 120, 240, 360)
            ]
        results.found[record["key"]] = record
    results.write()
    return results


PARTS = ("image encoder", "text encoder")


@pytest.fixture(scope="module")
def folder_of_made_up(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        results = made_up(Results(tmp_path_factory.mktemp("made up") / "runs.jsonl"))
        results.path.with_name("page.md").write_text(page(results), encoding="utf-8")
    return results.path.parent


def tables(text):
    """The lines of the tables of a page, by the text before each, as cells."""
    found, title, before = {}, "", ""
    for line, following in pairwise([*text.splitlines(), ""]):
        if line.startswith("| ") and not line.startswith("| ---"):
            if following.startswith("| ---"):
                title = before
                found[title] = []
            else:
                found[title].append([cell.strip() for cell in line.strip("| ").split(" | ")])
        elif line.strip():
            before = line.strip("*: ")
    return found


def check_page(text, lines):
    """Recompute, with numpy and scipy alone, what the page's tables of the objectives say, from the lines of JSON."""
    records = [json.loads(line) for line in lines]
    short = {"1-to-K": "one_to_k", "one random language": "one_to_one", "English pivot": "english_pivot"}
    epochs = {
        "equal images": {"one_to_k": 10, "one_to_one": 10, "english_pivot": 10},
        "equal text tokens": {"one_to_k": 10, "one_to_one": 40, "english_pivot": 10},
        "equal CPU time": plan.BUDGETS["time"],
    }

    def of(name, title):
        budget, split = re.match(r"(.+), `(\w+)` split", title).groups()
        chosen = [
            record
            for record in records
            if record["objective"] == short[name]
            and record["split"] == split
            and record["seed"] in range(5)
            and record["options"].get("trainer.max_epochs") == epochs[budget][short[name]]
            and record["options"].get("trainer.check_val_every_n_epoch") == epochs[budget][short[name]] // 4
            and len(record["options"]) == 2
            and not record["degraded"]
            and not record["callbacks"]
        ]
        assert sorted(record["seed"] for record in chosen) == [0, 1, 2, 3, 4]
        return sorted(chosen, key=lambda record: record["seed"])

    def values(records, column):
        scores = [record["scores"] for record in records]
        if match := re.fullmatch(r"(i2t|t2i) R@(\d+)", column):
            direction = {"i2t": "image_to_text", "t2i": "text_to_image"}[match[1]]
            return [100 * score["recalls"][direction][f"recall@{match[2]}"] for score in scores]
        if column == "R@1":
            return [50 * sum(of["recall@1"] for of in score["recalls"].values()) for score in scores]
        if column in ("i2t MRV", "t2i MRV"):
            direction = {"i2t": "image_to_text", "t2i": "text_to_image"}[column[:3]]
            return [score["mrv"][direction] for score in scores]
        if column in ("MRV", "MRSD"):
            return [score[column.lower()]["mean"] for score in scores]
        if column == "worst language":
            return [100 * min(score["of_language"].values()) for score in scores]
        if column == "below English":
            return [
                100 * (score["of_language"]["en"] - np.mean([v for k, v in score["of_language"].items() if k != "en"]))
                for score in scores
            ]
        name, unit = {"images": ("images", 1e3), "tokens": ("tokens", 1e6), "CPU s": ("cpu_seconds", 1)}[column]
        return [record["cost"][name] / unit for record in records]

    columns = ["images", "tokens", "CPU s"]
    columns += [f"{of} R@{k}" for of in ("i2t", "t2i") for k in (1, 5, 10)]
    columns += ["i2t MRV", "t2i MRV", "MRSD", "worst language", "below English"]
    checked, compared = 0, []
    for title, rows in tables(text).items():
        if not re.match(r"equal .+ split$", title):
            continue
        for name, *cells in rows:
            for column, cell in zip(columns, cells, strict=True):
                numbers = values(of(name, title), column)
                value, *half = (float(part.replace(",", "")) for part in cell.split(" ± "))
                digits = len(cell.split(" ± ")[0].partition(".")[2])
                assert value == pytest.approx(np.mean(numbers), abs=0.51 * 10**-digits), (title, name, column)
                if half:
                    low, high = stats.t.interval(0.95, 4, np.mean(numbers), stats.sem(numbers))
                    assert half[0] == pytest.approx((high - low) / 2, abs=0.51 * 10**-digits), (title, name, column)
                checked += 1
    (differences,) = [rows for title, rows in tables(text).items() if title.startswith("1-to-K against the others")]
    for budget, split, other, quantity, said, p in differences:
        title = f"{budget}, `{split}` split"
        own, others = values(of("1-to-K", title), quantity), values(of(other, title), quantity)
        is_ratio = quantity == "MRV"
        if is_ratio:
            own, others = np.log(own), np.log(others)
        test = stats.ttest_rel(own, others)
        numbers = [test.statistic * 0 + np.mean(np.subtract(own, others)), *test.confidence_interval(0.95)]
        numbers = np.exp(numbers) if is_ratio else numbers
        shown = [float(number) for number in re.findall(r"[-+]?\d+\.\d+", said)]
        assert shown == pytest.approx(list(numbers), abs=0.0051 if is_ratio else 0.051), (title, other, quantity)
        compared.append((test.pvalue, float(p), np.mean(np.subtract(own, others)), quantity, other, title))
    order = sorted(range(len(compared)), key=lambda number: compared[number][0])
    highest = 0.0
    for place, number in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * compared[number][0]))
        assert compared[number][1] == pytest.approx(highest, rel=0.06)
    confirmed = sum(
        p < 0.05 and (value > 0) == (quantity in ("R@1", "worst language")) for _, p, value, quantity, *_ in compared
    )
    opposite = sum(p < 0.05 for _, p, *_ in compared) - confirmed
    says = f"Of {len(compared)} comparisons {confirmed} confirm the claim, {opposite} say the opposite, and "
    assert says + str(len(compared) - confirmed - opposite) in " ".join(text.split())
    return checked, len(compared)


def test_the_page_says_what_the_records_say(folder_of_made_up):
    text = (folder_of_made_up / "page.md").read_text(encoding="utf-8")
    lines = (folder_of_made_up / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert check_page(text, lines) == (2 * 3 * 3 * 14, 2 * 3 * 8)
    assert plan.BUDGETS["images"] == dict.fromkeys(OBJECTIVES, 10)
    assert "not run" not in text


def test_a_number_that_is_changed_is_found(folder_of_made_up):
    """The check above can fail."""
    text = (folder_of_made_up / "page.md").read_text(encoding="utf-8")
    lines = (folder_of_made_up / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    for number in re.findall(r"\d+\.\d ± \d+\.\d", text)[:3]:
        with pytest.raises(AssertionError):
            check_page(text.replace(number, "1.0 ± 1.0"), lines)


@pytest.mark.skipif(not PAGE.exists(), reason="nothing has been trained")
def test_the_shipped_page_says_what_the_shipped_records_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = PAGE.read_text(encoding="utf-8")
    check_page(text, (ROOT / "docs" / "results" / "runs.jsonl").read_text(encoding="utf-8").splitlines())
    assert text == page(Results(ROOT / "docs" / "results" / "runs.jsonl"))


def test_figures(folder_of_made_up, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    draw(Results(folder_of_made_up / "runs.jsonl"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"objectives.png", "mechanisms.png"}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())


def test_a_page_of_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = page(Results(tmp_path / "none.jsonl"))
    assert "Of 0 comparisons 0 confirm" in text
    assert text.count("not run") > 100
    draw(Results(tmp_path / "none.jsonl"), tmp_path)
    assert not list(tmp_path.iterdir())
