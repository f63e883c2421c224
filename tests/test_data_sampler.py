import itertools
from collections import Counter

import numpy as np
import pytest

from ccr_lightning.data.sampler import SampleKey, ShardSampler, TrainBatchSampler, draw_languages
from ccr_lightning.data.seeding import derived_seed
from ccr_lightning.errors import CCRError

LANGUAGES = ("en", "de", "ja", "zh", "fr")


def rows(sampler):
    return [[key.position for key in batch] for batch in sampler]


def test_an_epoch_has_each_image_at_most_once_in_full_batches():
    sampler = TrainBatchSampler(22, 4, seed=3)
    batches = rows(sampler)
    assert len(sampler) == len(batches) == 5
    assert {len(batch) for batch in batches} == {4}
    assert len(set(itertools.chain(*batches))) == 20
    assert set(itertools.chain(*batches)) < set(range(22))


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = TrainBatchSampler(40, 4, seed=seed)
        sampler.set_epoch(epoch)
        return str(rows(sampler))

    assert order(0, 0) == order(0, 0)
    assert len({order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_the_order_never_changes():
    """Resuming a run of an earlier version depends on it."""
    assert rows(TrainBatchSampler(10, 5, seed=0)) == [[6, 5, 1, 2, 4], [0, 7, 3, 8, 9]]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batch_of_one_process(world_size):
    alone = TrainBatchSampler(50, 4 * world_size, seed=1)
    ranks = [TrainBatchSampler(50, 4, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in range(3):
        for sampler in (alone, *ranks):
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in ranks]
        assert {len(sampler) for sampler in ranks} == {len(alone)} == {len(share) for share in shares}
        joined = [list(itertools.chain(*batches)) for batches in zip(*shares, strict=True)]
        assert joined == list(alone)


def test_start_holds_for_its_epoch_only():
    full = TrainBatchSampler(40, 4, seed=0)
    resumed = TrainBatchSampler(40, 4, seed=0, start=(2, 7))
    for epoch, first in ((2, 7), (3, 0)):
        full.set_epoch(epoch)
        resumed.set_epoch(epoch)
        assert list(resumed) == list(full)[first:]
        assert len(resumed) == 10


def test_without_reshuffling_epochs_are_alike():
    sampler = TrainBatchSampler(40, 4, seed=0, reshuffle=False)
    first = list(sampler)
    sampler.sampler.set_epoch(5)  # as Lightning calls it
    assert list(sampler) == first
    resumed = TrainBatchSampler(40, 4, seed=0, start=(2, 7), reshuffle=False)
    for epoch, start in ((2, 7), (3, 0)):
        resumed.set_epoch(epoch)
        assert list(resumed) == first[start:]


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_by_length(world_size):
    lengths = np.random.default_rng(0).integers(5, 90, 1003).astype(np.int32)
    settings = {"seed": 3, "lengths": lengths}
    alone = TrainBatchSampler(1003, 4 * world_size, **settings, length_window=25)
    ranks = [TrainBatchSampler(1003, 4, **settings, rank=r, world_size=world_size, length_window=25) for r in (0, 1)]
    by_chance = TrainBatchSampler(1003, 4 * world_size, seed=3)
    for epoch in (0, 1):
        for sampler in (alone, *ranks, by_chance):
            sampler.set_epoch(epoch)
        batches = rows(alone)
        assert batches == rows(alone)
        drawn = rows(by_chance)
        assert len(batches) == len(drawn) == 1003 // (4 * world_size)
        for begin in range(0, len(drawn), 25):  # each window has the images that it would have had
            window, chance = batches[begin : begin + 25], drawn[begin : begin + 25]
            assert sorted(itertools.chain(*window)) == sorted(itertools.chain(*chance))
            spans = sorted((min(lengths[batch]), max(lengths[batch])) for batch in window)
            assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(spans))
        longest_first = [max(lengths[batch]) for batch in batches[:25]]
        assert longest_first not in (sorted(longest_first), sorted(longest_first, reverse=True))
        if world_size == 2:
            joined = [list(itertools.chain(*shares)) for shares in zip(*map(rows, ranks), strict=True)]
            assert joined == batches
    padded = [len(batch) * max(lengths[batch]) / sum(lengths[batch]) for batch in batches]
    assert np.mean(padded) < 1.2
    resumed = TrainBatchSampler(1003, 4 * world_size, **settings, length_window=25, start=(1, 30))
    resumed.set_epoch(1)
    assert rows(resumed) == batches[30:]


def test_keys():
    sampler = TrainBatchSampler(8, 4, seed=0)
    sampler.sampler.set_epoch(5)
    first, second = sampler
    assert {(key.epoch, key.step) for key in first} == {(5, 0)}
    assert {(key.epoch, key.step) for key in second} == {(5, 1)}
    assert isinstance(first[0], SampleKey)
    assert type(first[0].position) is int


def test_too_few_images():
    with pytest.raises(CCRError, match="7 images, too few for a batch of 4 on each of 2"):
        TrainBatchSampler(7, 4, seed=0, world_size=2)


@pytest.mark.parametrize(("size", "world_size"), [(10, 2), (11, 2), (11, 4), (2, 3)])
def test_evaluation_shards_are_disjoint_and_complete(size, world_size):
    shards = [ShardSampler(size, rank, world_size) for rank in range(world_size)]
    assert sorted(itertools.chain(*shards)) == list(range(size))
    assert [len(list(shard)) for shard in shards] == [len(shard) for shard in shards]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_languages_are_drawn_evenly_and_stay_in_order():
    drawn = [draw_languages(LANGUAGES, 2, (), 0, epoch, step) for epoch in range(4) for step in range(250)]
    assert all(len(set(pair)) == 2 and LANGUAGES.index(pair[0]) < LANGUAGES.index(pair[1]) for pair in drawn)
    counts = Counter(itertools.chain(*drawn))
    assert all(330 < counts[language] < 470 for language in LANGUAGES)  # 400 expected, deviation 15
    assert drawn[:20] == [draw_languages(LANGUAGES, 2, (), 0, 0, step) for step in range(20)]
    assert drawn[:20] != [draw_languages(LANGUAGES, 2, (), 1, 0, step) for step in range(20)]


def test_required_languages_are_always_drawn():
    drawn = [draw_languages(LANGUAGES, 3, ("ja", "en"), 0, 0, step) for step in range(100)]
    assert all(len(languages) == 3 and {"ja", "en"} < set(languages) for languages in drawn)
    assert {language for languages in drawn for language in languages} == set(LANGUAGES)
    assert draw_languages(LANGUAGES, None, (), 0, 0, 0) == LANGUAGES


def test_seeds_are_spread_and_never_change():
    seeds = {derived_seed("image", seed, epoch, row) for seed in range(5) for epoch in range(5) for row in range(40)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("order", 0, 0) == 4876581156571347824
