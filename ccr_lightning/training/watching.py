"""Several processes train together: if one fails, dies or is stuck, all end, and one of them says which and why."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ccr_lightning import distributed
from ccr_lightning.data.workers import explain_worker
from ccr_lightning.errors import CCRError, Interrupted, SaidElsewhere
from ccr_lightning.memory import FOR_A_THREAD, is_out_of_memory, lacks_thread
from ccr_lightning.progress import tick, ticks
from ccr_lightning.training.beats import NOBODY_TO_BLAME, Beat, Ranks, State

PATIENCE = 600  # seconds that others wait for a process that does not move
TO_MEET = 1800  # seconds that processes wait for each other at the start, and in one and the same collective
_TO_TELL = 3  # seconds that all have to read what is wrong
_TO_LEAVE = 5  # seconds that the first process, which may hold what all share, waits at the end for others
_BEAT = 1.0
_LONGEST = 500  # characters of another library's message


def patience() -> float:
    """Seconds that others wait for a process that does not move: ``$CCR_RANK_TIMEOUT``, by default 600.

    Raises:
        CCRError: It is no number above 0.
    """
    given = os.environ.get("CCR_RANK_TIMEOUT", str(PATIENCE))
    with suppress(ValueError):
        if 0 < float(given) < float("inf"):
            return float(given)
    raise CCRError(f"CCR_RANK_TIMEOUT is {given!r}: give a number of seconds, such as {PATIENCE}.")


class WatchOverRanks(Callback):
    """Lets each process tell the others once a second how far it is, and ends all when the run cannot go on.

    The first process judges; others judge only the first one. Nothing of it happens in the steps themselves, but for
    counting them.
    """

    def __init__(self) -> None:
        self._place = "before the first batch"
        self._state: State = "running"
        self._words = self._traceback = ""
        self._beats: dict[int, Beat] = {}
        self._children: list[Any] = []
        self._exits: dict[int, int] = {}
        self._verdict: dict[str, Any] | None = None
        self._claim: dict[str, Any] | None = None
        self._has_met = self._has_lost_store = self._is_waiting = False
        self._new, self._stopping, self._told = (threading.Event() for _ in range(3))

    @contextmanager
    def over(self, trainer: Trainer, again: str) -> Iterator[None]:
        """Watches while the trainer works; does nothing for a process that is alone.

        Args:
            trainer: Its strategy forms the process group meanwhile.
            again: How the user goes on, in words that follow "and".

        Raises:
            SaidElsewhere: The run cannot go on, and the user knows why.
        """
        if trainer.world_size == 1:
            yield
            return
        self._trainer = trainer
        strategy: Any = trainer.strategy
        strategy._timeout = timedelta(seconds=max(TO_MEET, 3 * patience()))  # Lightning takes it for the process group
        self._ranks = Ranks(trainer.world_size, patience(), again)
        threads = [threading.Thread(target=of, daemon=True) for of in (self._talk, self._judge)]
        for thread in threads:
            thread.start()
        try:
            yield
            self._leave("ended")
        except (SystemExit, KeyboardInterrupt, Interrupted):
            self._leave("interrupted")
            raise
        except Exception as error:
            self._is_waiting = True
            if distributed.never_met(error):
                raise CCRError(self._did_not_meet(error)) from error
            if self._has_met:
                self.on_exception(trainer, trainer.lightning_module, error)
                if self._told.wait(NOBODY_TO_BLAME + 2 * _TO_TELL):
                    raise SaidElsewhere(self._words) from error
            raise
        finally:
            self._stopping.set()
            self._new.set()
            for thread in threads:  # a thread within torch must not see the end of the interpreter
                thread.join(_TO_TELL)

    def _did_not_meet(self, error: Exception) -> str:
        return (
            f"the {self._trainer.world_size} processes of this run did not meet: {_line(error)}; start ccr on all "
            f"{self._trainer.num_nodes} nodes, with one MASTER_ADDR and MASTER_PORT, and a number for each node."
        )

    # What Lightning tells of, in the main thread.

    def _moved(self, place: str) -> None:
        self._place = place
        tick()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Notes the step."""
        self._moved(f"at step {trainer.global_step}")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Notes the next step, which begins with waiting for its data."""
        self._moved(f"at step {trainer.global_step}")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Notes the validation."""
        self._moved(f"in the validation after step {trainer.global_step}")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Notes that training goes on."""
        self._moved(f"at step {trainer.global_step}")

    def on_test_batch_start(self, *_: Any) -> None:
        """Notes the test."""
        self._moved("in the test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tells the others, before anything is put away, which may take long."""
        if self._state != "running":
            return
        if not isinstance(exception, Exception) or isinstance(exception, Interrupted):
            self._state = "interrupted"
            return
        exception = explain_worker(exception) or exception
        is_plain = isinstance(exception, CCRError)
        self._words = str(exception) if is_plain else f"{type(exception).__name__}: {_line(exception)}"
        if is_out_of_memory(exception):  # as where a process is alone
            of_thread = f"no further thread can be started: {FOR_A_THREAD}"
            lacks = of_thread if lacks_thread(exception) else "out of memory"
            self._words, is_plain = f"{lacks} ({self._words})", True
        if not is_plain or os.environ.get("CCR_TRACEBACK"):
            self._traceback = "".join(traceback.format_exception(exception))
        self._state = "lost" if distributed.lost_another_process(exception) else "failed"
        self._new.set()

    def _leave(self, state: State) -> None:
        self._state, self._is_waiting = state, True
        self._wait_for_others(_TO_LEAVE)

    def _wait_for_others(self, seconds: float) -> None:
        """Lets them read what this process has said last, which they cannot if it is the first one and has gone."""
        self._new.set()
        deadline = time.monotonic() + seconds
        while self._trainer.global_rank == 0 and self._are_others_at_work() and time.monotonic() < deadline:
            self._new.set()
            time.sleep(0.05)

    def _are_others_at_work(self) -> bool:
        others = (beat for rank, beat in list(self._beats.items()) if rank not in (0, *self._exits))
        return any(beat.state not in ("ended", "interrupted") for beat in others) and not self._has_lost_store

    # What goes through the store: a thread of its own, since an answer may never come.

    def _talk(self) -> None:
        rank, size = self._trainer.global_rank, self._trainer.world_size
        while (store := _reach_store()) is None:
            if self._stopping.wait(0.1):
                return
        self._has_met = True
        number, host = 0, socket.gethostname()
        listened = range(size) if rank == 0 else [0]
        try:
            while True:
                is_last = self._stopping.is_set()
                self._new.clear()
                number += 1
                store.set(str(rank), self._beat(number, host).dump())
                for of in listened:
                    if text := _read(store, str(of)):
                        self._beats[of] = Beat.parse(text)
                if (claim := self._claim) is not None:
                    store.compare_set("verdict", "", json.dumps(claim))
                if text := _read(store, "verdict"):
                    self._verdict = json.loads(text)
                if is_last:
                    return
                self._new.wait(_BEAT)
        except RuntimeError:  # whoever holds the store has gone
            self._has_lost_store = True

    def _beat(self, number: int, host: str) -> Beat:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        within = ""
        if frame is not None:
            code = frame.f_code
            within = f"in {code.co_name} ({os.path.basename(code.co_filename)}:{frame.f_lineno}) "
        return Beat(
            rank=self._trainer.global_rank,
            number=number,
            host=host,
            pid=os.getpid(),
            place=self._place,
            begun=distributed.begun_collectives(),
            done=ticks(),
            within=within,
            state=self._state,
            words=self._words,
            traceback=self._traceback,
            exits=self._exits,
        )

    # What is made of it: a thread that waits for nothing.

    def _judge(self) -> None:
        while not self._stopping.wait(_BEAT / 2):
            self._look_after_children()
            says = None if self._verdict else self._finds()
            if says is None and self._verdict is None:
                continue
            if says is not None:
                if self._may_say(says):
                    print(f"{self._ranks.traceback}error: {says}", file=sys.stderr, flush=True)
                self._end_first()
            else:
                time.sleep(_BEAT / 2)  # torchrun ends the one that is about to say it as soon as this one ends
            self._end_all()
            return

    def _finds(self) -> str | None:
        if self._state in ("ended", "interrupted"):
            return None
        if not self._has_met:
            return self._ranks.exited(self._exits, has_met=False)
        now, beats = time.monotonic(), list(self._beats.values())
        if self._trainer.global_rank == 0:
            return self._ranks.look(beats, now)
        is_hurried = self._has_lost_store or self._state == "lost"
        return self._ranks.look_at_first(self._beats.get(0), now, is_hurried)

    def _look_after_children(self) -> None:
        """Takes them from Lightning, which would kill this process if one of them ends, and say nothing."""
        launcher: Any = self._trainer.strategy.launcher
        started = getattr(launcher, "procs", [])
        if not self._children and any(thread.name == "child-process-observer" for thread in threading.enumerate()):
            self._children = launcher.procs = list(started)
            started.clear()
        statuses = {self._trainer.global_rank + n: child.poll() for n, child in enumerate(self._children, start=1)}
        self._exits = {rank: status for rank, status in statuses.items() if status is not None}

    def _may_say(self, says: str) -> bool:
        """Whether this is the one process that says it."""
        trainer = self._trainer
        self._claim = {"by": trainer.global_rank, "says": says}
        self._new.set()
        deadline = time.monotonic() + _TO_TELL
        while self._has_met and self._verdict is None and not self._has_lost_store and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._verdict is not None:
            return bool(self._verdict["by"] == trainer.global_rank)
        return trainer.global_rank == 0 or trainer.local_rank == (1 if trainer.node_rank == 0 else 0)

    def _end_first(self) -> None:
        """Ends the first process if it has started this one, which would have been ended by it if it could."""
        first = self._beats.get(0)
        if first is not None and (first.host, first.pid) == (socket.gethostname(), os.getppid()):
            os.kill(first.pid, signal.SIGKILL)

    def _end_all(self) -> None:
        """Lets the others read the verdict, then ends what does not end by itself, this process too."""
        self._state = "ended"
        self._wait_for_others(_TO_TELL)
        for child in self._children:
            child.kill()
        if not self._is_waiting:
            os._exit(1)
        give_up = threading.Timer(_TO_LEAVE, os._exit, [1])  # of a device that hangs, nothing can be put away
        give_up.daemon = True
        with suppress(RuntimeError):  # there is no memory for a thread
            give_up.start()
        self._told.set()


def _reach_store() -> Any | None:
    with suppress(RuntimeError, ValueError):  # it cannot be reached for now, or the group has just gone
        return distributed.store("ranks")
    return None


def _read(store: Any, key: str) -> bytes | None:
    """What is there; ``get`` would wait for it, and write pages to the terminal if the store goes meanwhile."""
    text: bytes = store.compare_set(key, "-", "-")
    return None if text == b"-" else text


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
