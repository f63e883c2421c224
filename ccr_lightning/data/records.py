"""The records of a source as one stream: pictures read and checked on all cores, each fault in its place."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias

from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.images import decode_image, read_image
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

RecordOrFault: TypeAlias = ImageCaptions | RecordFault

_AHEAD = 4  # pictures in hand per core
_IN_A_ROW = 20_000  # bad records, which are held in memory until a good one comes


def read_records(source: Source, split: str) -> Iterator[RecordOrFault]:
    """Yield the records of a split, and in their places the faults of those that cannot be used.

    Raises:
        CCRError: A file cannot be read, or 20,000 records in a row cannot be used.
    """
    faults: list[RecordFault] = []

    def report(fault: RecordFault) -> None:
        if len(faults) == _IN_A_ROW:
            raise CCRError(f"{str(faults[0]).removesuffix('.')} (so are {_IN_A_ROW - 1:,} records after it in a row).")
        fault.__traceback__ = fault.__cause__ = fault.__context__ = None  # which hold the line that they are about
        faults.append(fault)

    try:
        for record in source.records(split, report):
            yield from faults
            faults.clear()
            yield record
    except OSError as error:
        raise CCRError(f"the split {split!r} of {source.name} cannot be read ({error}); check its files.") from error
    yield from faults


def with_pictures(
    records: Iterable[RecordOrFault], look: Callable[[bytes], str] | None = None
) -> Iterator[RecordOrFault]:
    """Yield the records in their order with the bytes of their pictures, each of them decoded completely once.

    A picture that cannot be decoded becomes a fault in the place of its record. Pictures are decoded on all cores, some
    ahead of what is asked for.

    Args:
        records: The records.
        look: Says of a picture that can be decoded what is damaged in it, to be noted as ``image_damage``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        pending: deque[Future[RecordOrFault]] = deque()
        try:
            for record in records:
                pending.append(pool.submit(_with_picture, record, look))
                if len(pending) > _AHEAD * cores:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _with_picture(record: RecordOrFault, look: Callable[[bytes], str] | None) -> RecordOrFault:
    if isinstance(record, RecordFault):
        return record
    try:
        data = read_image(record.image, record.where)
        decode_image(data, record.where, f"the image {record.image_id}")
    except RecordFault as fault:
        return fault
    return replace(record, image=data, image_damage=look(data) if look else "")
