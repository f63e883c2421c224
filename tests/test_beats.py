"""What is wrong with the processes of a run, judged from what they say of themselves, on a clock of the test's own."""

import itertools
from dataclasses import replace

import pytest

from ccr_lightning.training.beats import Beat, Ranks

AGAIN = "go on with --resume auto"


class Group:
    """Two or more processes that beat each second."""

    def __init__(self, size=2):
        self.ranks = Ranks(size, 600, AGAIN)
        self.beats = [Beat(rank, 0, f"node-{rank}", place="at step 3") for rank in range(size)]
        self.now, self._numbers = 0.0, itertools.count(1)

    def after(self, seconds, silent=(), every=1.0, **changes):
        """What was said within these seconds, and after how many of them."""
        for rank, of in changes.items():
            number = int(rank.removeprefix("rank_"))
            self.beats[number] = replace(self.beats[number], **of)
        for passed in range(1, int(seconds / every) + 1):
            self.now += every
            number = next(self._numbers)
            self.beats = [beat if beat.rank in silent else replace(beat, number=number) for beat in self.beats]
            if says := self.ranks.look(self.beats, self.now):
                return passed * every, says
        return None


def test_nobody_is_blamed_for_long_work_that_nobody_waits_for():
    assert Group().after(10_000, rank_0={"begun": 4}, rank_1={"begun": 4}) is None


def test_a_process_that_others_wait_for():
    group = Group(3)
    assert group.after(5, rank_0={"begun": 4}, rank_1={"begun": 4}, rank_2={"begun": 4}) is None
    seconds, says = group.after(
        10_000, rank_0={"begun": 5}, rank_2={"begun": 5}, rank_1={"within": "in read (a.py:7) "}
    )
    assert says == (
        "rank 1 of 3 (on node-1) is stuck: it has been at step 3 for 600 seconds in read (a.py:7) while others wait "
        f"for it; {AGAIN}, and with a larger CCR_RANK_TIMEOUT if it was at work."
    )
    assert 590 <= seconds <= 602


def test_a_process_that_gets_on_is_waited_for():
    group = Group()
    for done in range(20):  # batches of an uneven share of the validation, five minutes each
        assert group.after(300, rank_0={"begun": 5}, rank_1={"done": done}) is None


def test_silence():
    seconds, says = Group().after(10_000, silent=[1])
    assert says == (
        "rank 1 of 2 (on node-1) was killed or stopped, or its machine is lost: nothing was heard of it for 120 "
        f"seconds, and before that it was at step 3; {AGAIN}."
    )
    assert 120 <= seconds <= 122


def test_silence_where_a_connection_broke():
    group = Group()
    assert group.after(10) is None
    seconds, says = group.after(100, silent=[1], rank_0={"state": "lost", "words": "RuntimeError: closed"})
    assert says.startswith("rank 1 of 2 (on node-1) was killed or stopped")
    assert 5 <= seconds <= 7


def test_a_broken_connection_of_processes_that_live():
    seconds, says = Group().after(100, rank_0={"state": "lost", "words": "RuntimeError: closed"})
    assert says == f"rank 0 of 2 (on node-0) stopped at step 3: RuntimeError: closed; mend that and {AGAIN}."
    assert 15 <= seconds <= 17


def test_a_pause_of_the_one_that_judges_is_no_silence_of_others():
    group = Group()
    assert group.after(5, rank_0={"begun": 5}) is None
    assert group.after(3600, silent=[1], every=3600.0) is None
    assert group.after(500) is None
    assert group.after(120) is not None  # the patience goes on where it was


@pytest.mark.parametrize("traceback", ["", "Traceback: ...\n"])
def test_an_error_that_all_have(traceback):
    group = Group()
    failed = {"state": "failed", "words": "the file is gone.", "traceback": traceback}
    seconds, says = group.after(10, rank_0=failed, rank_1=failed)
    every = f"all 2 ranks stopped at step 3: the file is gone; mend that and {AGAIN}."
    assert (seconds, says) == (1, every if traceback else "the file is gone.")
    assert group.ranks.traceback == traceback


def test_the_first_error_of_two():
    group = Group()
    assert group.after(1, rank_1={"state": "failed", "words": "no memory."}) is None
    _, says = group.after(10, rank_0={"state": "failed", "words": "gloo timed out."})
    assert says == f"rank 1 of 2 (on node-1) stopped at step 3: no memory; mend that and {AGAIN}."


@pytest.mark.parametrize(
    ("status", "how"),
    [(-11, "was killed by SIGSEGV"), (3, "said nothing and ended with status 3"), (-200, "was killed by 200")],
)
def test_what_the_one_that_started_it_knows(status, how):
    _, says = Group(3).after(10, silent=[2], rank_0={"exits": {2: status}})
    assert says == f"rank 2 of 3 (on node-2) {how}; it was last heard of at step 3; {AGAIN}."


def test_processes_that_never_met():
    ranks = Ranks(2, 600, AGAIN)
    name = "rank 1 of 2 (on this host)"
    killed = "was killed by SIGSEGV; it was last heard of before the first batch"
    assert ranks.exited({}, has_met=False) is None
    assert ranks.exited({1: -11}, has_met=False) == f"{name} {killed}; {AGAIN}."
    assert ranks.exited({1: 1}, has_met=False) == f"{name} ended before all had met, and has said why; {AGAIN}."


def test_processes_that_end():
    assert Group().after(10_000, silent=[0, 1], rank_0={"state": "ended"}, rank_1={"state": "ended"}) is None
    assert Group().after(10_000, silent=[1], rank_1={"state": "ended"}, rank_0={"exits": {1: 0}}) is None


def test_one_that_was_interrupted_while_others_were_not():
    seconds, says = Group().after(100, silent=[1], rank_1={"state": "interrupted"})
    assert says == f"rank 1 of 2 (on node-1) was interrupted at step 3, and others were not; {AGAIN}."
    assert 30 <= seconds <= 32


def test_the_first_one_is_watched_by_the_others():
    ranks = Ranks(3, 600, AGAIN)
    beat = Beat(0, 1, "node-0")
    assert [ranks.look_at_first(beat, now, is_hurried=False) for now in range(120)] == [None] * 120
    assert ranks.look_at_first(beat, 121, is_hurried=False).startswith("rank 0 of 3 (on node-0) was killed or stopped")


def test_a_beat_arrives_as_it_was_sent():
    beat = Beat(1, 2, "node", exits={3: -9}, words="größer")
    assert Beat.parse(beat.dump()) == beat
