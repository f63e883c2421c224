"""What the processes of a run tell each other each second, and what is wrong by that: no threads, no clock."""

from __future__ import annotations

import json
import signal
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Literal

GRACE = 3  # seconds in which others may find the same error
HURRY = 5  # seconds of silence that are enough once connections have broken
NOBODY_TO_BLAME = 15  # seconds after which a broken connection is all there is to say
TO_END = 30  # seconds that all have to end in when one was interrupted
SILENCE = 1 / 5  # of the patience
_SUSPENDED = 5  # seconds without a look: then it was this process that slept

State = Literal["running", "failed", "lost", "interrupted", "ended"]


@dataclass(frozen=True)
class Beat:
    """What one process says of itself.

    Args:
        rank: Its number among all.
        number: How many it has sent.
        host: The name of its machine.
        pid: Its process there.
        place: How far it is, in words that follow "stopped".
        begun: The collectives that it has begun: one that has begun fewer than another is waited for.
        done: The batches, and items of other long work, that are behind it.
        within: The line of code at which it is.
        state: ``lost`` where a connection to another one has broken.
        words: Its error, in one sentence.
        traceback: Where that comes from, if a user has nothing to put right.
        exits: The exit status of each process that it had started and that has ended, by its number.

    Example:
        >>> Beat.parse(Beat(1, 4, "node-1").dump()).host
        'node-1'
    """

    rank: int
    number: int
    host: str
    pid: int = 0
    place: str = "before the first batch"
    begun: int = 0
    done: int = 0
    within: str = ""
    state: State = "running"
    words: str = ""
    traceback: str = ""
    exits: Mapping[int, int] = field(default_factory=dict)

    def dump(self) -> str:
        """Returns it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str | bytes) -> Beat:
        """Reads what ``dump`` returned."""
        content = json.loads(text)
        content["exits"] = {int(rank): status for rank, status in content["exits"].items()}
        return cls(**content)


@dataclass
class _Standing:
    beat: Beat
    heard: float  # when there was a beat
    moved: float  # when it was further than before
    since: float  # when its state began


class Ranks:
    """Remembers the last beats of some processes, and finds the one that is to blame if the run cannot go on.

    Args:
        world_size: The number of all processes.
        patience: Seconds that others wait for one that does not move; for one that is silent a fifth of them.
        again: How the user goes on, in words that follow "and".

    Example:
        >>> ranks = Ranks(2, 600, "start again")
        >>> ranks.look([Beat(0, 1, "a", begun=8), Beat(1, 1, "b", begun=7, state="failed", words="no memory.")], now=0)
        >>> ranks.look([], now=4)
        'rank 1 of 2 (on b) stopped before the first batch: no memory; mend that and start again.'
    """

    def __init__(self, world_size: int, patience: float, again: str) -> None:
        self._size, self._patience, self._again = world_size, patience, again
        self._known: dict[int, _Standing] = {}
        self._looked: float | None = None
        self.traceback = ""  # of the one that is to blame

    def look(self, beats: Collection[Beat], now: float) -> str | None:
        """Returns what is to be said of any process, if something is.

        Args:
            beats: The last ones.
            now: Seconds on a clock of this process.
        """
        self._take(range(self._size), beats, now)
        exits = {rank: status for of in self._known.values() for rank, status in of.beat.exits.items()}
        return (
            self.exited(exits)
            or self._failed(now)
            or self._silent(now, is_hurried=bool(self._in("lost")))
            or self._stuck(now)
            or self._interrupted(now)
            or self._unexplained(now)
        )

    def look_at_first(self, beat: Beat | None, now: float, is_hurried: bool) -> str | None:
        """Returns what is to be said of the first process, which judges all others.

        Args:
            beat: Its last one.
            now: Seconds on a clock of this process.
            is_hurried: Whether it is known already that a process has gone.
        """
        self._take([0], [] if beat is None else [beat], now)
        of = self._known[0]
        if of.beat.state == "failed" and now - of.since > TO_END:
            return self._stopped(of.beat)
        return self._silent(now, is_hurried) or self._interrupted(now, is_hurried)

    def _take(self, expected: Iterable[int], beats: Collection[Beat], now: float) -> None:
        if self._looked is not None and now - self._looked > _SUSPENDED:
            self._forgive(now - self._looked)
        self._looked = now
        for beat in beats:
            self._hear(beat, now)
        for rank in expected:
            if rank not in self._known:
                self._hear(Beat(rank, 0, "a host not known yet"), now)

    def _forgive(self, seconds: float) -> None:
        for of in self._known.values():
            of.heard, of.moved, of.since = of.heard + seconds, of.moved + seconds, of.since + seconds

    def _hear(self, beat: Beat, now: float) -> None:
        if (of := self._known.get(beat.rank)) is None:
            self._known[beat.rank] = _Standing(beat, now, now, now)
            return
        if beat.number != of.beat.number:
            of.heard = now
        if (beat.begun, beat.done) != (of.beat.begun, of.beat.done):
            of.moved = now
        if beat.state != of.beat.state:
            of.since = now
        of.beat = beat

    def _in(self, *states: State) -> list[_Standing]:
        of = (standing for standing in self._known.values() if standing.beat.state in states)
        return sorted(of, key=lambda standing: (standing.since, standing.beat.rank))

    def _name(self, beat: Beat) -> str:
        return f"rank {beat.rank} of {self._size} (on {beat.host})"

    def _failed(self, now: float) -> str | None:
        if not (failed := self._in("failed")):
            return None
        first = failed[0].beat
        agree = [of for of in failed if of.beat.words == first.words]
        if len(agree) < self._size and now - failed[0].since < GRACE:
            return None
        self.traceback = first.traceback
        if len(agree) < self._size:
            return self._stopped(first)
        if first.traceback:
            return f"all {self._size} ranks stopped {first.place}: {_clause(first.words)}; mend that and {self._again}."
        return first.words

    def _stopped(self, beat: Beat) -> str:
        return f"{self._name(beat)} stopped {beat.place}: {_clause(beat.words)}; mend that and {self._again}."

    def exited(self, exits: Mapping[int, int], has_met: bool = True) -> str | None:
        """Returns what is to be said of processes that have ended.

        Args:
            exits: The exit status of each, by its number.
            has_met: Whether they were so far that they could tell the others why.
        """
        for rank, status in sorted(exits.items()):
            beat = self._known[rank].beat if rank in self._known else Beat(rank, 0, "this host")
            if beat.state not in ("running", "lost"):
                continue
            if status < 0:
                how = f"was killed by {signal_name(status)}; it was last heard of {beat.place}"
            elif has_met:
                how = f"said nothing and ended with status {status}; it was last heard of {beat.place}"
            else:
                how = "ended before all had met, and has said why"
            return f"{self._name(beat)} {how}; {self._again}."
        return None

    def _silent(self, now: float, is_hurried: bool) -> str | None:
        allowed = min(HURRY, self._patience * SILENCE) if is_hurried else self._patience * SILENCE
        for of in self._in("running", "lost"):
            if now - of.heard > allowed:
                return (
                    f"{self._name(of.beat)} was killed or stopped, or its machine is lost: nothing was heard of it for "
                    f"{allowed:.0f} seconds, and before that it was {of.beat.place}; {self._again}."
                )
        return None

    def _stuck(self, now: float) -> str | None:
        furthest = max((of.beat.begun for of in self._known.values()), default=0)
        for of in sorted(self._in("running"), key=lambda of: of.beat.begun):
            if of.beat.begun < furthest and now - of.moved > self._patience:
                return (
                    f"{self._name(of.beat)} is stuck: it has been {of.beat.place} for {self._patience:.0f} seconds "
                    f"{of.beat.within}while others wait for it; {self._again}, and with a larger CCR_RANK_TIMEOUT if "
                    "it was at work."
                )
        return None

    def _interrupted(self, now: float, is_hurried: bool = False) -> str | None:
        is_hurried = is_hurried or bool(self._in("lost"))
        for of in self._in("interrupted"):
            if now - of.since > (GRACE if is_hurried else TO_END):
                return f"{self._name(of.beat)} was interrupted {of.beat.place}, and others were not; {self._again}."
        return None

    def _unexplained(self, now: float) -> str | None:
        lost = self._in("lost")
        return self._stopped(lost[0].beat) if lost and now - lost[0].since > NOBODY_TO_BLAME else None


def signal_name(status: int) -> str:
    """What ended a process, by its exit status.

    Args:
        status: A negative number, as ``subprocess`` has it.

    Example:
        >>> signal_name(-9)
        'SIGKILL, which the system sends when memory runs out'
    """
    name = str(-status)
    with suppress(ValueError):
        name = signal.Signals(-status).name
    return f"{name}, which the system sends when memory runs out" if name == "SIGKILL" else name


def _clause(sentence: str) -> str:
    return sentence.removesuffix(".")
