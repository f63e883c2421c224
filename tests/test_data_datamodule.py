import itertools
import json
import multiprocessing
import os
import resource
import socket
import stat
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from tokenizers import Tokenizer
from watched_training import StopAt, Watcher, one_of_two_ranks, trainer

from ccr_lightning.data import dataset
from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import CLIP_MEAN, CLIP_STD, ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.types import Batch, CaptionBatch, ImageBatch

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


@pytest.fixture
def data(tiny_jsonl, tmp_path):
    arguments = tiny_jsonl(train=18, val=6, test=9)

    def make(**settings):
        settings = {
            "source": JsonLines(**arguments),
            "tokenizer": CaptionTokenizer(vocab_size=200),
            "transform": ImageTransform(16),
            "batch_size": 4,
            "eval_batch_size": 4,
            "cache_dir": str(tmp_path / "cache"),
            **settings,
        }
        return CaptionDataModule(**settings)

    return make


@pytest.fixture
def ready(data):
    def make(**settings):
        module = data(**settings)
        module.prepare_data()
        module.setup()
        return module

    return make


def text_of(module, ids, mask):
    return Tokenizer.from_str(module.tokenizer.to_dict()["tokenizer"]).decode(ids[mask].tolist())


def test_training_batches_hold_what_the_files_say(ready):
    module = ready(transform=ImageTransform(24, crop_scale=(1.0, 1.0)))
    source = {record.image_id: record for record in module.source.records("train")}
    names = module.image_names("train")
    seen = []
    for raw in module.train_dataloader():
        assert raw.images.dtype == torch.uint8
        batch = module.normalize(raw)
        assert isinstance(batch, Batch)
        assert batch.languages == module.languages == ("en", "de", "ja")
        assert batch.images.shape == (4, 3, 24, 24)
        assert batch.input_ids.shape[:2] == batch.caption_mask.shape == (4, 3)
        assert batch.input_ids.shape == batch.attention_mask.shape
        assert batch.caption_mask.all()
        dtypes = [tensor.dtype for tensor in batch[:5]]
        assert dtypes == [torch.float32, torch.int64, torch.int64, torch.bool, torch.bool]
        for i, row in enumerate(batch.image_ids.tolist()):
            record = source[names[row]]
            seen.append(record.image_id)
            for k, language in enumerate(batch.languages):
                text = text_of(module, batch.input_ids[i, k], batch.attention_mask[i, k])
                assert (text,) == record.captions[language]
            pixels = np.asarray(Image.open(record.image).convert("RGB")) / 255
            expected = ((pixels - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)
            np.testing.assert_allclose(batch.images[i].numpy(), expected, atol=1e-5)
    assert len(set(seen)) == len(seen) == 16


def test_missing_captions_and_several_captions(tiny_jsonl, ready, tmp_path):
    arguments = tiny_jsonl(train=8, folder="uneven")
    path = tmp_path / "uneven" / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["captions"]["en"] = [f"caption {n} of {number}" for n in range(4)]
        if number % 2:
            del line["captions"]["ja"]
    path.write_text("\n".join(map(json.dumps, lines)))
    module = ready(source=JsonLines(**arguments))
    loader = module.train_dataloader()
    chosen = {}
    for epoch in range(6):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            odd = torch.tensor([int(module.image_names("train")[row]) % 2 for row in batch.image_ids]).bool()
            assert torch.equal(batch.caption_mask[:, 2], ~odd)
            assert batch.caption_mask[:, :2].all()
            missing = ~batch.caption_mask
            assert (batch.attention_mask[missing].sum(dim=1) == 2).all()  # <s> </s>, so that there is what to attend to
            assert text_of(module, batch.input_ids[missing], batch.attention_mask[missing]) == ""
            for i, row in enumerate(batch.image_ids.tolist()):
                text = text_of(module, batch.input_ids[i, 0], batch.attention_mask[i, 0])
                assert text.endswith(f" of {module.image_names('train')[row]}")
                chosen.setdefault(row, set()).add(text)
    assert all(len(texts) > 1 for texts in chosen.values())


def test_images_without_a_caption_in_the_languages_are_not_trained_on(tiny_jsonl, ready, tmp_path):
    arguments = tiny_jsonl(train=20, test=9, folder="uneven")
    for split in ("train", "test"):
        path = tmp_path / "uneven" / f"{split}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines[::3]:
            del line["captions"]["ja"], line["captions"]["de"]
        path.write_text("\n".join(map(json.dumps, lines)))
    module = ready(source=JsonLines(**arguments), languages=["ja", "de"])
    seen = []
    loader = module.train_dataloader()
    for epoch in range(8):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            assert batch.caption_mask.all()
            seen += batch.image_ids.tolist()
    assert set(seen) == {row for row in range(20) if row % 3}
    assert len(loader) == 3  # of 13 images
    images, captions = (list(batches) for batches in module.test_dataloader())
    assert torch.cat([batch.image_ids for batch in images]).tolist() == list(range(9))
    assert set(torch.cat([batch.image_ids for batch in captions]).tolist()) == {row for row in range(9) if row % 3}


@pytest.mark.parametrize("kept", [0, 2, 100])
def test_pictures_are_decoded_once_while_there_is_room(ready, monkeypatch, kept):
    monkeypatch.setattr("ccr_lightning.data.dataset._KEPT_BYTES", kept * 16 * 16 * 3)
    opened = []
    original = dataset.EncodedPicture
    monkeypatch.setattr(dataset, "EncodedPicture", lambda data, where: opened.append(where) or original(data, where))
    loader = ready(transform=ImageTransform(16, crop_scale=(1.0, 1.0)), batch_size=6).train_dataloader()
    by_row = {}
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            for row, image in zip(batch.image_ids.tolist(), batch.images, strict=True):
                assert torch.equal(by_row.setdefault(row, image), image)
    assert len(opened) == 36 - min(kept, 18)


def test_batches_are_a_function_of_seed_epoch_and_image(ready):
    def batches(epoch, **settings):
        loader = ready(languages_per_step=2, **settings).train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)
        return list(loader)

    first, again = batches(1), batches(1)
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))
        assert a.languages == b.languages
    assert {batch.languages for batch in first} <= {("en", "de"), ("en", "ja"), ("de", "ja")}
    assert len({batch.languages for epoch in range(4) for batch in batches(epoch)}) == 3
    other = batches(1, seed=1)
    assert [a.image_ids.tolist() for a in first] != [b.image_ids.tolist() for b in other]

    by_image = {}
    for batch in itertools.chain(batches(0), batches(0, batch_size=6)):
        for row, image in zip(batch.image_ids.tolist(), batch.images, strict=True):
            assert torch.equal(by_image.setdefault(row, image), image)  # whatever batch it is in


def test_workers_load_the_same_batches(ready):
    alone = list(ready().train_dataloader())
    by_workers = list(ready(num_workers=2).train_dataloader())
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, by_workers, strict=True))
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(alone, by_workers, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_batch_of_an_evaluation_is_kept(ready, num_workers):
    """Each that a worker has sent is some open files, and Lightning keeps the iterator of the last validation."""
    for loader in ready(num_workers=num_workers).val_dataloader():
        batches = iter(loader)
        kept = [weakref.ref(next(batches).image_ids) for _ in range(len(loader))]
        assert [ids() for ids in kept] == [None] * len(loader)
        assert next(batches, None) is None


def test_workers_of_an_evaluation_end_with_its_last_batch(ready):
    for loader, alone in zip(ready(num_workers=2).val_dataloader(), ready().val_dataloader(), strict=True):
        batches = iter(loader)
        found = [next(batches) for _ in range(len(loader))]  # and not a StopIteration after them
        assert multiprocessing.active_children() == []
        assert all(torch.equal(one[0], other[0]) for one, other in zip(found, alone, strict=True))


@pytest.mark.parametrize("split", ["val", "test", "predict"])
def test_evaluation_has_each_image_and_each_caption_once(ready, split):
    module = ready(languages=["ja", "en"])
    images, captions = getattr(module, f"{split}_dataloader")()
    split = "test" if split == "predict" else split
    images, captions = list(images), list(captions)
    records = list(module.source.records(split))
    assert all(isinstance(batch, ImageBatch) for batch in images)
    assert all(isinstance(batch, CaptionBatch) for batch in captions)
    assert torch.cat([batch.image_ids for batch in images]).tolist() == list(range(len(records)))
    assert module.image_names(split) == [record.image_id for record in records]
    found = [
        (language, row, number, text_of(module, ids, mask))
        for batch in captions
        for ids, mask, row, language, number in zip(
            batch.input_ids,
            batch.attention_mask,
            batch.image_ids.tolist(),
            batch.languages.tolist(),
            batch.caption_index.tolist(),
            strict=True,
        )
    ]
    expected = [
        (index, row, 0, records[row].captions[language][0])
        for index, language in enumerate(["ja", "en"])
        for row in range(len(records))
    ]
    assert found == expected


def test_two_ranks_share_the_work(data):
    shares = {}
    for rank in range(2):
        module = data()
        module.prepare_data()
        module.setup()
        module.trainer = one_of_two_ranks(rank)
        shares[rank] = [list(module.train_dataloader()), *map(list, module.test_dataloader())]
    for kind in range(3):
        rows = [[row for batch in shares[rank][kind] for row in batch.image_ids.tolist()] for rank in range(2)]
        if kind == 0:
            assert len(rows[0]) == len(rows[1]) == 8
            assert len({*rows[0], *rows[1]}) == 16
        elif kind == 1:
            assert sorted(rows[0] + rows[1]) == list(range(9))
        else:
            keys = [
                (row, language)
                for rank in range(2)
                for batch in shares[rank][kind]
                for row, language in zip(batch.image_ids.tolist(), batch.languages.tolist(), strict=True)
            ]
            assert sorted(keys) == [(row, language) for row in range(9) for language in range(3)]


RANK = """
import json, sys
from test_data_datamodule import *
arguments, cache_dir, output = json.loads(sys.argv[1])
module = CaptionDataModule(
    JsonLines(**arguments), CaptionTokenizer(vocab_size=200), ImageTransform(16), batch_size=4, eval_batch_size=4,
    languages_per_step=2, cache_dir=cache_dir,
)
watcher = Watcher()
ranks = trainer(devices=2, strategy="ddp", use_distributed_sampler=False, max_epochs=2)
ranks.fit(watcher, datamodule=module)
watcher.evaluated.clear()
ranks.test(watcher, datamodule=module)
images = [row for batch in watcher.evaluated if isinstance(batch, ImageBatch) for row in batch.image_ids.tolist()]
captions = [
    pair
    for batch in watcher.evaluated
    if isinstance(batch, CaptionBatch)
    for pair in zip(batch.image_ids.tolist(), batch.languages.tolist())
]
with open(f"{output}/{ranks.global_rank}.json", "w") as file:
    json.dump([[seen[2:4] for seen in watcher.seen], images, captions], file)
"""


@pytest.mark.ddp
def test_real_ranks_see_together_what_one_process_sees(tiny_jsonl, data, tmp_path):
    arguments = json.dumps([tiny_jsonl(train=18, test=9, folder="ranks"), str(tmp_path / "new cache"), str(tmp_path)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = ":".join(sys.path)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    alone = Watcher()
    trainer(max_epochs=2).fit(alone, datamodule=data(batch_size=8, languages_per_step=2))
    joined = [[a[0] + b[0], a[1], b[1]] for a, b in zip(shares[0][0], shares[1][0], strict=True)]
    assert joined == [[rows, list(languages), list(languages)] for _, _, rows, languages, _, _ in alone.seen]
    assert sorted(shares[0][1] + shares[1][1]) == list(range(9))
    assert sorted(shares[0][2] + shares[1][2]) == [[row, language] for row in range(9) for language in range(3)]


def test_lightnings_own_sharding_is_refused(ready):
    module = ready()
    module.trainer = trainer(devices=2, strategy="ddp")
    for loader in (module.train_dataloader, module.val_dataloader):
        with pytest.raises(CCRError, match="use_distributed_sampler false"):
            loader()


MOMENTS = [
    ("after batch", 1, 1),
    ("after batch", 1, 3),
    ("before batch", 2, 2),
    ("after validation", 1, 2),
    ("after validation", 0, 4),
    ("after epoch", 1, None),
]


@pytest.mark.parametrize(("moment", "epoch", "batch"), MOMENTS)
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(data, tmp_path, moment, epoch, batch):
    settings = {"val_check_interval": 2}
    whole = Watcher()
    trainer(**settings).fit(whole, datamodule=data(languages_per_step=2))
    assert len(whole.seen) == 12
    assert len({str(seen[2:]) for seen in whole.seen}) == 12

    path, first, second = tmp_path / "stop.ckpt", Watcher(), Watcher()
    stop = StopAt(moment, epoch, batch, path)
    with pytest.raises(KeyError, match="stopped"):
        trainer(callbacks=[stop], **settings).fit(first, datamodule=data(languages_per_step=2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer(**settings).fit(second, datamodule=data(languages_per_step=2), ckpt_path=path)
    assert first.seen + second.seen == whole.seen
    assert first.seen
    assert second.seen


@pytest.fixture
def stopped(data, tmp_path):
    """A checkpoint after two of an epoch's four batches of four images."""
    with pytest.raises(KeyError, match="stopped"):
        trainer(callbacks=[StopAt("after batch", 1, 1, tmp_path / "stop.ckpt")]).fit(Watcher(), datamodule=data())
    return tmp_path / "stop.ckpt"


def test_a_resume_within_an_epoch_needs_the_same_global_batch(data, stopped):
    with pytest.raises(CCRError, match=r"batches of 4 images on all devices together, and now they have 8; choose"):
        trainer().fit(Watcher(), datamodule=data(batch_size=8), ckpt_path=stopped)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"length_window": 5}, "length_window 5"),
        ({"seed": 1}, "seed 1"),
        ({"languages": ["en", "de"]}, "18 images of a store in en, de, seed 0"),
        ({"languages_per_step": 2}, "2 languages a step"),
    ],
)
def test_a_resume_within_an_epoch_needs_the_same_order(data, stopped, changed, says):
    with pytest.raises(CCRError, match=rf"within an epoch of 18 images .*, and now .*{says}.*; resume as"):
        trainer().fit(Watcher(), datamodule=data(**changed), ckpt_path=stopped)


def test_a_resume_within_an_epoch_needs_the_same_images(data, stopped):
    module = data()
    path = Path(module.source.files["train"])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CCRError, match=r"within an epoch of 18 images .*, and now there would be 17 images"):
        trainer().fit(Watcher(), datamodule=module, ckpt_path=stopped)


def test_the_same_global_batch_may_be_split_in_another_way(data, stopped):
    whole = Watcher()
    trainer().fit(whole, datamodule=data())
    checkpoint = torch.load(stopped, weights_only=True)
    shares = []
    for rank in range(2):
        module = data(batch_size=2)
        module.prepare_data()
        module.trainer = one_of_two_ranks(rank)
        module.trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])
        module.load_state_dict(checkpoint["CaptionDataModule"])
        loader = module.train_dataloader()
        loader.batch_sampler.set_epoch(1)
        shares.append([batch.image_ids.tolist() for batch in loader])
    joined = [first + second for first, second in zip(*shares, strict=True)]
    assert joined == [seen[2] for seen in whole.seen if seen[0] == 1][2:]


def test_a_resume_between_epochs_may_change_the_batch(data, tmp_path):
    with pytest.raises(KeyError, match="stopped"):
        trainer(callbacks=[StopAt("after epoch", 0, None, tmp_path / "stop.ckpt")]).fit(Watcher(), datamodule=data())
    watcher = Watcher()
    trainer(max_epochs=2).fit(watcher, datamodule=data(batch_size=8), ckpt_path=tmp_path / "stop.ckpt")
    assert [len(seen[2]) for seen in watcher.seen] == [8, 8]


def test_a_second_fit_of_the_same_trainer_starts_its_epoch_anew(data, tmp_path):
    stop = StopAt("after batch", 0, 1, tmp_path / "stop.ckpt")
    interrupted = trainer(callbacks=[stop], max_epochs=1)
    with pytest.raises(KeyError, match="stopped"):
        interrupted.fit(Watcher(), datamodule=data())
    stop.moment = "never"
    watcher = Watcher()
    interrupted.fit(watcher, datamodule=data())
    assert [seen[1] for seen in watcher.seen] == [0, 1, 2, 3]
    assert len({row for seen in watcher.seen for row in seen[2]}) == 16


def test_workers_resume_too(data, tmp_path):
    whole, first, second = Watcher(), Watcher(), Watcher()
    trainer().fit(whole, datamodule=data())
    stop = StopAt("after batch", 2, 0, tmp_path / "stop.ckpt")
    with pytest.raises(KeyError, match="stopped"):
        trainer(callbacks=[stop]).fit(first, datamodule=data())
    trainer().fit(second, datamodule=data(num_workers=1), ckpt_path=tmp_path / "stop.ckpt")
    assert first.seen + second.seen == whole.seen


def test_overfitting_repeats_its_batches(data):
    watcher = Watcher()
    trainer(overfit_batches=1, limit_val_batches=0).fit(watcher, datamodule=data())
    assert len(watcher.seen) == 3
    assert len({str(seen[1:]) for seen in watcher.seen}) == 1


def test_the_checkpoints_tokeniser_is_used(data, tiny_jsonl, tmp_path):
    trained = data()
    fitting = trainer(max_epochs=1)
    fitting.fit(Watcher(), datamodule=trained)
    fitting.save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert list(checkpoint["CaptionDataModule"]) == ["tokenizer", "global_batch", "order", "images"]
    assert "datamodule_hyper_parameters" not in checkpoint

    only_test = tiny_jsonl(train=2, val=2, test=5, folder="elsewhere", languages=("de",))
    del only_test["files"]["train"], only_test["files"]["val"]
    settings = {"source": JsonLines(**only_test), "cache_dir": str(tmp_path / "empty cache")}
    with pytest.raises(CCRError, match="pass the checkpoint of a training run"):
        trainer().test(Watcher(), datamodule=data(**settings))
    other = data(**settings, tokenizer=CaptionTokenizer(vocab_size=70, max_tokens=5))
    watcher = Watcher()
    trainer().test(watcher, datamodule=other, ckpt_path=tmp_path / "run.ckpt")
    assert other.tokenizer.to_dict() == {**trained.tokenizer.to_dict(), "max_tokens": 5}
    captions = next(batch for batch in watcher.evaluated if isinstance(batch, CaptionBatch))
    assert captions.input_ids.shape == (4, 5)
    text = next(other.source.records("test")).captions["de"][0]
    expected = CaptionTokenizer.from_dict({**trained.tokenizer.to_dict(), "max_tokens": 5}).encode([text])[0]
    assert torch.equal(captions.input_ids[0], expected[0])


def test_the_trained_tokeniser_is_kept_in_the_cache(data, tmp_path):
    first = data()
    trainer(max_epochs=1).fit(Watcher(), datamodule=first)
    files = [name for name in sorted(os.listdir(tmp_path / "cache")) if not name.endswith(".lock")]
    times = {name: os.stat(tmp_path / "cache" / name).st_mtime_ns for name in files}
    assert len(files) == 3  # two splits and the tokeniser
    second = data()
    trainer().validate(Watcher(), datamodule=second)
    assert second.tokenizer.to_dict() == first.tokenizer.to_dict()
    assert {name: os.stat(tmp_path / "cache" / name).st_mtime_ns for name in files} == times
    changed = data(tokenizer=CaptionTokenizer(vocab_size=180), languages=["en"])
    trainer(max_epochs=1).fit(Watcher(), datamodule=changed)
    assert changed.tokenizer.to_dict()["tokenizer"] != first.tokenizer.to_dict()["tokenizer"]


def test_a_damaged_tokeniser_in_the_cache(data, tmp_path):
    data().prepare_data()
    (path,) = (tmp_path / "cache").glob("*-tokenizer-*.json")
    assert path.stat().st_mode == (tmp_path / "cache").stat().st_mode & 0o666 | stat.S_IFREG  # as the stores
    whole = path.read_text(encoding="utf-8")
    for damaged in (whole[: len(whole) // 2], "", "[]", "{}", whole.replace("merges", "mergers")):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(CCRError, match=r"json: the trained tokeniser is damaged \(.+\); delete the file") as error:
            trainer(max_epochs=1).fit(Watcher(), datamodule=data())
        assert str(error.value).count(";") == 1
    path.unlink()
    trainer(max_epochs=1).fit(Watcher(), datamodule=data())
    assert path.read_text(encoding="utf-8") == whole


def test_a_tokeniser_that_cannot_be_written(data, tmp_path):
    module = data()
    module.prepare_data()
    (path,) = (tmp_path / "cache").glob("*-tokenizer-*.json")
    path.unlink()
    files = set(os.listdir(path.parent))
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # writing fails as it does on a full disk
    try:
        with pytest.raises(CCRError, match=r"the trained tokeniser could not be written \(.+\); free some space"):
            data().prepare_data()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert set(os.listdir(path.parent)) == files


def test_testing_needs_nothing_of_the_other_splits(tiny_jsonl, data, tmp_path):
    arguments = tiny_jsonl(folder="moved")

    def make():
        return data(source=JsonLines(**arguments))

    fitting = trainer(max_epochs=1)
    fitting.fit(Watcher(), datamodule=make())
    fitting.save_checkpoint(tmp_path / "run.ckpt")
    trainer().test(Watcher(), datamodule=make(), ckpt_path=tmp_path / "run.ckpt")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}

    os.utime(arguments["files"]["train"], (1, 1))
    trainer().test(Watcher(), datamodule=make(), ckpt_path=tmp_path / "run.ckpt")
    os.unlink(arguments["files"]["train"])
    os.unlink(arguments["files"]["val"])
    watcher = Watcher()
    trainer().test(watcher, datamodule=make(), ckpt_path=tmp_path / "run.ckpt")
    assert len(watcher.evaluated) == 8  # 8 images and 24 captions in batches of 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == files

    os.utime(arguments["files"]["test"], (1, 1))
    trainer().test(Watcher(), datamodule=make(), ckpt_path=tmp_path / "run.ckpt")
    assert len(list((tmp_path / "cache").glob("jsonl-test-*"))) == 2


def test_a_tokeniser_of_older_rules_is_not_used(data, tmp_path, monkeypatch):
    data().prepare_data()
    before = set(os.listdir(tmp_path / "cache"))
    monkeypatch.setattr("ccr_lightning.data.tokenizer._RULES", -1)
    data().prepare_data()
    (name,) = set(os.listdir(tmp_path / "cache")) - before
    assert "-tokenizer-" in name


def test_only_the_splits_of_the_stage_are_built(data, tmp_path, tiny_jsonl):
    trainer(max_epochs=1, limit_val_batches=0).fit(Watcher(), datamodule=data())
    assert {name.split("-")[1] for name in os.listdir(tmp_path / "cache")} == {"train", "tokenizer"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "has no negatives"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"languages": ["en", "fr"]}, "languages has 'fr', but there are only en, de, ja"),
        ({"languages": ["en", "en"]}, "name each language once"),
        ({"languages": []}, "languages is empty; name at least one"),
        ({"languages": ["en"], "required_languages": ["de"]}, "required_languages has 'de', but there are only en"),
        ({"languages_per_step": 4}, "languages_per_step is 4"),
        ({"languages_per_step": 0}, "languages_per_step is 0"),
        ({"languages_per_step": 1, "required_languages": ["en", "de"]}, "languages_per_step is 1"),
        ({"batch_size": 19}, "18 images, too few for a batch of 19"),
    ],
)
def test_bad_settings(ready, settings, message):
    with pytest.raises(CCRError, match=message):
        ready(**settings).train_dataloader()


def test_a_language_that_a_split_lacks(tiny_jsonl, data, tmp_path):
    arguments = tiny_jsonl(folder="all")
    arguments["files"]["val"] = tiny_jsonl(folder="some", languages=("en",))["files"]["val"]
    for path in (tmp_path / "some" / "pictures").iterdir():
        path.rename(tmp_path / "all" / "pictures" / path.name)
    module = data(source=JsonLines(**arguments))
    module.prepare_data()
    with pytest.raises(CCRError, match="the split 'val' of jsonl has no caption in 'de', 'ja': name the"):
        module.setup("fit")


def test_a_config_file_builds_it(tiny_jsonl, tmp_path):
    arguments = tiny_jsonl()
    config = {
        "source": {"class_path": "ccr_lightning.data.sources.jsonl.JsonLines", "init_args": arguments},
        "tokenizer": {
            "class_path": "ccr_lightning.data.tokenizer.CaptionTokenizer",
            "init_args": {"vocab_size": 200},
        },
        "transform": {
            "class_path": "ccr_lightning.data.transforms.ImageTransform",
            "init_args": {"image_size": 16, "crop_scale": [0.5, 1.0]},
        },
        "languages": ["ja", "en"],
        "batch_size": 4,
        "cache_dir": str(tmp_path / "cache"),
    }
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CaptionDataModule, "data")
    built = parser.instantiate(parser.parse_object({"data": config})).data
    built.prepare_data()
    built.setup()
    batch = next(iter(built.train_dataloader()))
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.languages == ("ja", "en")

    config["source"] = {"class_path": "ccr_lightning.data.sources.openmoji.OpenMoji", "init_args": {"image_size": 32}}
    built = parser.instantiate(parser.parse_object({"data": config})).data
    assert built.source.image_size == 32
    for wrong in (
        {"class_path": "collections.Counter"},
        {"class_path": "ccr_lightning.data.transforms.ImageTransform"},
    ):
        with pytest.raises(Exception, match="does not implement protocol Source"):
            parser.parse_object({"data": {**config, "source": wrong}})
    with pytest.raises(Exception, match="does not accept option 'batchsize'"):
        parser.parse_object({"data": {**config, "batchsize": 3}})


def spoil(arguments, split, number):
    """Break the record of a line."""
    path = arguments["files"][split]
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    lines[number] = "{"
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


def test_training_leaves_bad_records_out(tiny_jsonl, data, capsys):
    arguments = tiny_jsonl(train=18, folder="bad")
    spoil(arguments, "train", 4)
    module = data(source=JsonLines(**arguments), max_bad_fraction=0.06)
    trainer(max_epochs=2).fit(watcher := Watcher(), datamodule=module)
    assert "left out of jsonl/train: 1 of 18 records, 0 blank captions" in capsys.readouterr().err
    assert module.image_names("train") == [str(number) for number in range(18) if number != 4]
    assert {row for _, _, rows, *_ in watcher.seen for row in rows} <= set(range(17))
    assert module.left_out("train") == {"bad_records": 1, "blank_captions": 0}


@pytest.mark.parametrize(
    ("split", "settings", "says"),
    [
        ("train", {}, r"train\.jsonl:3: not valid JSON .*one of 1 bad records of 18, more than the 1 % that"),
        ("train", {"bad_records": "error", "max_bad_fraction": 1}, r"train\.jsonl:3: not valid JSON"),
        ("val", {"max_bad_fraction": 1}, r"val\.jsonl:3: not valid JSON"),
        (
            "val",
            {"bad_records": "skip"},
            r"val\.jsonl:3: not valid JSON .*one of 1 bad records of 6, more than the 1 %",
        ),
        ("val", {"bad_records": "skip", "max_bad_fraction": 1}, None),
    ],
)
def test_bad_records_stop_the_run(tiny_jsonl, data, split, settings, says):
    arguments = tiny_jsonl(train=18, val=6, folder="bad")
    spoil(arguments, split, 2)
    module = data(source=JsonLines(**arguments), **settings)
    if says is None:
        module.prepare_data()
        assert module.left_out("val")["bad_records"] == 1
        return
    with pytest.raises(CCRError, match=says):
        module.prepare_data()


def test_a_store_that_lacks_records_is_not_used_for_exact_numbers(tiny_jsonl, data):
    arguments = tiny_jsonl(train=18, val=6, folder="bad")
    spoil(arguments, "val", 2)
    data(source=JsonLines(**arguments), bad_records="skip", max_bad_fraction=1).prepare_data()
    with pytest.raises(CCRError, match=r"built without 1 bad records \(the first: .*val\.jsonl:3: not valid JSON"):
        data(source=JsonLines(**arguments), max_bad_fraction=1).prepare_data()


def test_batches_by_caption_length(tiny_jsonl, ready, tmp_path):
    arguments = tiny_jsonl(train=40, folder="long", languages=("en",))
    path = tmp_path / "long" / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["captions"] = {"en": " ".join(["word"] * (1 + number * 7 % 30))}
    path.write_text("\n".join(map(json.dumps, lines)))
    padding = {}
    for window in (1, 10):
        loader = ready(source=JsonLines(**arguments), languages=["en"], length_window=window).train_dataloader()
        masks = [batch.attention_mask for batch in loader]
        padding[window] = 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)
    assert padding[10] < 0.1 < 0.3 < padding[1]
    with pytest.raises(CCRError, match="length_window is 0"):
        ready(length_window=0)
