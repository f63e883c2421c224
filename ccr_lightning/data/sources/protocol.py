"""What the package asks of a source of captioned images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from ccr_lightning.data.faults import Report, stop
from ccr_lightning.types import ImageCaptions


@runtime_checkable
class Source(Protocol):
    """A collection of images with captions; any object with these members is one, nothing is registered or inherited.

    A config names it by ``class_path`` and ``init_args``, so a constructor takes plain types only.
    """

    @property
    def name(self) -> str:
        """Short name for folders, logs and tables."""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of the captions, in the order of the K axis."""
        ...

    @property
    def parallel(self) -> bool:
        """Whether MRV, a variance of ranks over languages, is reported.

        That is where every language describes the same images, in one gallery, with captions that correspond or that
        the field compares ranks over.
        """
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that it can have; the files of some may not be there."""
        ...

    def fingerprint(self, split: str) -> str:
        """Return a short string that changes when the split's data or the settings change, without reading the images.

        It asks for nothing of the other splits, which need not be there.
        """
        ...

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, with all its captions; its file is not looked for.

        Args:
            split: One of :attr:`splits`.
            report: Called with each record that cannot be used, which is then left out; by default it is raised.
        """
        ...
