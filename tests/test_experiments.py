"""The experiments of benchmarks.objectives: what is done to data and losses, what is measured, what is said of it."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from configured import configured
from scipy import stats
from torch.nn import functional as F

from benchmarks import objectives
from benchmarks.experiments import ablations, plan, running
from benchmarks.experiments.callbacks import Meter
from benchmarks.experiments.candidates import TERMS
from benchmarks.experiments.degraded import Degraded
from benchmarks.experiments.gradients import STEPS, Step, angles, mean_cosines
from benchmarks.experiments.intervals import difference, holm, mean
from benchmarks.experiments.page import page
from benchmarks.experiments.running import Results, run
from benchmarks.experiments.trial import Trial
from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.openmoji import LANGUAGES, OpenMoji
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.training.module import RetrievalModule

ROOT = Path(__file__).parents[1]


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
    choosing = {trial.seed for part in ("tuning", "candidates") for trial in objectives.trials(part)}
    assert choosing == set(plan.TUNING_SEEDS)
    assert not choosing & set(plan.SEEDS)


@pytest.mark.parametrize("part", objectives.PARTS)
def test_trials_are_configurations(part, tmp_path, monkeypatch):
    """Of each kind one is built, by the command itself: of those that differ in more than seed, split and numbers."""
    monkeypatch.setenv("CCR_TRUST", "benchmarks")
    kinds = {}
    for trial in objectives.trials(part):
        names = re.sub(r"[-+.\d]+(e-\d+)?", "", json.dumps([trial.options, trial.degraded, trial.callbacks]))
        kinds.setdefault((trial.objective, names), trial)
    for number, trial in enumerate(kinds.values()):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(trial.settings(), allow_unicode=True))
        settings, model, data = configured("--config", path, "--runs_dir", tmp_path)
        assert data.source.name.startswith(f"openmoji-{trial.split}")
        assert model.contrastive.objective == trial.objective
        assert model.contrastive.text_to_text_weight == trial.options.get("model.text_to_text_weight", 0)
        assert (model.retriever.fusion is None) == ("model.retriever.init_args.fusion" not in trial.options)
        assert model.retriever.temperature.item() == pytest.approx(
            trial.options.get("model.retriever.init_args.temperature", 0.07)
        )
        named = [of.class_path.rpartition(".")[2] for of in settings.trainer.callbacks]
        assert named == [*trial.callbacks, "Meter"]


def test_a_larger_size_is_built(tmp_path):
    """Of the losses too, whose fusion encoder is as wide as the others."""
    large = plan.objectives("family")[0].trials[0], ablations.ablations()["losses"][-1].trials[0]
    for number, trial in enumerate(large):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(trial.settings([ROOT / "configs/experiments/large.yaml"]), allow_unicode=True))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CCR_TRUST", "benchmarks")
            _, model, _ = configured("--config", path, "--runs_dir", tmp_path, device="meta")
        retriever = model.retriever
        assert retriever.text_encoder.width == 256
        if retriever.fusion is not None:
            assert (retriever.fusion.width, retriever.fusion.image_width) == (256, retriever.image_encoder.width)


def test_the_page_states_the_size_of_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, model, _ = configured("--config", "configs/experiments/one_to_k.yaml", "--runs_dir", tmp_path)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"a dual encoder of {millions:.1f} M parameters" in page(Results(tmp_path / "none.jsonl"))


def test_every_training_is_validated_five_times_and_at_its_end():
    for trial in [trial for part in objectives.PARTS for trial in objectives.trials(part)]:
        of = trial.settings()["trainer"]
        number, rest = divmod(of["max_epochs"], of["check_val_every_n_epoch"])
        assert (number, rest) == (of["max_epochs"] if "ByLanguage" in trial.callbacks else 5, 0)


def test_steps_whose_angles_are_measured_are_those_that_are_trained():
    for step in STEPS:
        of = Trial(step.objective, "composition", 0).settings()
        assert of["model"]["objective"] == step.objective
        assert of["data"]["languages_per_step"] == step.languages
        assert tuple(of["data"].get("required_languages", ())) == step.required


def test_tokens_are_equal_where_they_should_be():
    settings = {row.name: row.trials[0].settings() for row in plan.at_budgets("composition")}
    equal = [settings[name] for name in ("one_to_k", "english_pivot", "one_to_one, equal text tokens")]

    def texts(settings):  # of each image, in all
        per_step = 1 if settings["model"]["objective"] == "one_to_one" else settings["data"]["languages_per_step"]
        return settings["trainer"]["max_epochs"] * per_step

    assert {texts(of) for of in equal} == {plan.EPOCHS * plan.LANGUAGES_PER_STEP}


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
            "one_to_k", "composition", 0, short, callbacks={"AddTerms": {"weights": {"text_to_text": 0.5}}}
        ),
        "by its option": Trial("one_to_k", "composition", 0, {**short, "model.text_to_text_weight": 0.5}),
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
    assert record["cost"]["wall_seconds"] > 0
    assert [of["step"] for of in record["by_language"]] == [2, 4]
    assert set(record["by_language"][0]["recall@1"]) == set(LANGUAGES)
    assert [of["step"] for of in record["angles"]] == [0, 2]
    assert set(record["scores"]["of_language"]) == set(LANGUAGES)
    assert trained.of["chosen by"]["scored"] == "val"
    assert set(trained.of["unseen"]["scores"]["of_language"]) == {"en", "pt"}
    assert [path.name for path in (trained.folder / "runs").iterdir()] == [".lock"]


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


def test_the_meter_counts_steps_alone(monkeypatch):
    """After an interruption within an epoch, and where another callback measures before an epoch."""
    clock = SimpleNamespace(cpu=100.0, wall=1000.0)
    monkeypatch.setattr(time, "process_time", lambda: clock.cpu)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.wall)

    class Reads(torch.nn.Module):
        def forward(self, input_ids, attention_mask, most_tokens):
            return input_ids

    def spend(cpu):
        clock.cpu += cpu
        clock.wall += 2 * cpu

    module = SimpleNamespace(training=True, retriever=SimpleNamespace(text_encoder=Reads()))
    read = torch.ones(2, 5, dtype=torch.bool)

    def step(meter, cpu):
        meter.on_train_batch_start(None, module, None, 0)
        module.retriever.text_encoder(None, read, 5)
        spend(cpu)
        meter.on_train_batch_end(None, module, None, SimpleNamespace(images=torch.zeros(2)), 0)

    before = Meter()
    before.load_state_dict({"steps": 3, "images": 6, "tokens": 30, "cpu_seconds": 9.0, "wall_seconds": 18.0})
    meter = Meter()
    meter.load_state_dict(before.state_dict())
    meter.on_fit_start(None, module)
    meter.on_train_start(None, module)
    step(meter, 3.0)
    spend(50)
    module.retriever.text_encoder(None, read, 5)  # a measurement
    meter.on_train_epoch_start(None, module)
    step(meter, 2.0)
    assert meter.cost == {"steps": 5, "images": 10, "tokens": 50, "cpu_seconds": 14.0, "wall_seconds": 28.0}


def test_a_term_changes_what_is_learnt_as_its_option_does(trained):
    scores = {
        name: trained.of[name]["scores"]["mrv"]["mean"] for name in ("with a term", "by its option", "without it")
    }
    assert scores["with a term"] == pytest.approx(scores["by its option"], rel=1e-3)
    assert scores["with a term"] != pytest.approx(scores["without it"], rel=1e-3)


def test_what_has_been_trained_is_not_trained_again(trained, monkeypatch):
    def refuse(*_):
        raise AssertionError("it was trained again")

    monkeypatch.setattr(running, "_run", refuse)
    results = Results(trained.folder / "runs.jsonl")
    run(trained.trials.values(), results, trained.folder / "runs", jobs=1)
    with pytest.raises(AssertionError):
        run([Trial("one_to_k", "family", 99)], results, trained.folder / "runs", jobs=1)


AT_WORK = """
import json, sys
from pathlib import Path
from benchmarks.experiments import running
from benchmarks.experiments.trial import Trial

def work(trial, more, folder, commands):
    key = trial.key()
    (folder / key).mkdir()
    for ending in (".yaml", ".log"):
        (folder / (key + ending)).touch()
    seconds = 0 if trial.seed == 0 else 120
    commands.run([sys.executable, "-c", f"import time; time.sleep({seconds})"], folder / (key + ".log"), {})
    scores = {"mean_recall": 0.5, "mrv": {"mean": 1.0}}
    record = dict.fromkeys(running.FIELDS) | trial.described
    return record | {"key": key, "scores": scores, "cost": {"cpu_seconds": 1}}

running._run = work
folder = Path(sys.argv[1])
trials = [Trial("one_to_k", "family", seed) for seed in range(6)]
running.run(trials, running.Results(folder / "runs.jsonl"), folder / "runs", jobs=2)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_trainings_and_keeps_what_was_found(number, status, tmp_path):
    """Of six trainings, two at a time, one has ended, two are at work and three are queued."""
    command = [sys.executable, "-c", AT_WORK, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = [process.stdout.readline(), process.stdout.readline()]
        wait_for(lambda: len(list((tmp_path / "runs").glob("*.log"))) == 2)
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    assert said[0].startswith("6 trainings, 0 done before, 2 at a time")
    assert said[1].startswith("1 of 6: one_to_k, family, seed 0")
    assert (process.returncode, out, errors) == (status, "", "interrupted: the same command goes on\n")
    assert [json.loads(line)["seed"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == [0]
    assert second.returncode == 1
    assert f"{tmp_path / 'runs'}: another process is at work in it; wait for it" in second.stderr


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def at_once(trial, more, folder, commands):
    """In the place of a training: its record."""
    (folder / trial.key()).mkdir()
    for ending in (".yaml", ".log"):
        (folder / (trial.key() + ending)).touch()
    scores = {"mean_recall": 0.5, "mrv": {"mean": 1.0}}
    record = dict.fromkeys(running.FIELDS) | trial.described
    return record | {"key": trial.key(), "scores": scores, "cost": {"cpu_seconds": 1}}


def test_what_another_process_found_meanwhile_is_kept_and_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(running, "_run", at_once)
    first, second = Results(tmp_path / "runs.jsonl"), Results(tmp_path / "runs.jsonl")
    trials = [Trial("one_to_k", "family", seed) for seed in range(3)]
    assert [record["seed"] for record in run(trials[:2], first, tmp_path / "runs", jobs=1)] == [0, 1]
    assert [record["seed"] for record in run(trials[1:], second, tmp_path / "runs", jobs=1)] == [2]
    kept = [json.loads(line)["seed"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert sorted(kept) == [0, 1, 2]


def test_results_that_cannot_be_kept_end_all_trainings(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def work(trial, more, folder, commands):
        seconds = 0 if trial.seed == 0 else 120
        commands.run([sys.executable, "-c", f"import time; time.sleep({seconds})"], folder / "log", {})
        (tmp_path / "runs.jsonl").mkdir()  # where the results should go
        return at_once(trial, more, folder, commands)

    monkeypatch.setattr(running, "_run", work)
    trials = [Trial("one_to_k", "family", seed) for seed in range(20)]
    with pytest.raises(
        CCRError, match=r"runs\.jsonl: the results could not be written \(.+\); move what is in its way"
    ):
        run(trials, Results(tmp_path / "runs.jsonl"), tmp_path / "runs", jobs=2)
    ended = (tmp_path / "runs.jsonl").stat().st_mtime
    assert time.time() - ended < 60


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "benchmarks.objectives", "--reduced", "--results", str(tmp_path)]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "file" / "runs")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    says = f"error: {tmp_path / 'file' / 'runs'}: the folder cannot be written (Not a directory); name another one.\n"
    assert (done.returncode, done.stderr) == (1, says)


def test_results_do_not_make_a_commit_another_one(tmp_path, monkeypatch):
    """They are written while what is to come is still trained; any other change counts."""
    monkeypatch.chdir(tmp_path)
    files = [Path("docs/results/runs.jsonl"), Path("docs/results.md"), Path("code.py")]
    Path("docs/results").mkdir(parents=True)
    for file in files:
        file.touch()
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@example.org commit -q -m a"):
        subprocess.run(["git", *command.split()], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    for file, sign in zip(files, ("", "", "+"), strict=True):
        file.write_text("changed")
        assert running.commit() == head[:10] + sign


def test_without_a_commit_nothing_is_trained(tmp_path, monkeypatch):
    """As in a copy of the files without the repository, and where there is no git."""
    for name, value in (("GIT_DIR", str(tmp_path / "none")), ("PATH", "")):
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            patch.setenv(name, value)
            with pytest.raises(
                CCRError, match=r"git does not tell the commit.+; run it in a clone of the repository\.$"
            ):
                run([Trial("one_to_k", "family", 0)], Results(tmp_path / "runs.jsonl"), tmp_path / "runs", jobs=1)
    assert not list(tmp_path.iterdir())


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
    found = angles(*module_and_data("one_to_k", None), batches=2, draws=2, steps=(Step("one_to_k", None),))
    for of in found["one_to_k"].values():
        assert of == {"of a step": pytest.approx(0, abs=0.01), "of the expectation": pytest.approx(0, abs=0.01)}


def test_angles_of_fewer_languages(module_and_data):
    """The fewer there are the wider; what is left without the chance is less."""
    module, data = module_and_data("one_to_k", None)
    one, two = (
        angles(module, data, batches=2, draws=8, steps=(Step("one_to_k", k), Step("english_pivot", None, ("en",))))
        for k in (1, 2)
    )
    for part, of in one["one_to_k"].items():
        assert of["of a step"] > two["one_to_k"][part]["of a step"] > 1
        assert of["of a step"] > of["of the expectation"]
    # The pivot's step has no chance in it where it takes all languages.
    for of in one["english_pivot"].values():
        assert of["of a step"] > 1
        assert of["of a step"] == pytest.approx(of["of the expectation"], abs=0.01)


def test_the_expected_gradient_is_found_in_noise():
    """Draws around a known direction, 60 degrees from the reference, with noise many times as long."""
    generator = torch.Generator().manual_seed(0)
    reference, across = torch.zeros(10_000), torch.zeros(10_000)
    reference[0], across[1] = 2.0, 1.0
    expected = 5 * (math.cos(math.radians(60)) * reference / 2 + math.sin(math.radians(60)) * across)
    noise = 0.2 * torch.randn(64, 10_000, generator=generator)  # of length 20
    of_a_step, of_expectation = mean_cosines(expected + noise, reference)
    assert of_expectation == pytest.approx(math.cos(math.radians(60)), abs=0.05)
    assert of_a_step == pytest.approx(5 * math.cos(math.radians(60)) / math.sqrt(5**2 + 20**2), abs=0.01)


def test_measuring_angles_changes_nothing(module_and_data):
    module, data = module_and_data("one_to_one", None)
    loss = module.contrastive
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.random.get_rng_state()
    angles(module, data, batches=1, draws=2, steps=(Step("one_to_k", 2),))
    assert module.contrastive is loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert data.languages_per_step is None
    assert data.seed == 0
