"""The error that a user reads, and the others that end a command."""


class CCRError(ValueError):
    """Something the user can put right: one sentence that says what is wrong, where, and what to do.

    The ``ccr`` command prints it without a traceback and exits with status 1; in Python it is a ``ValueError``.

    Example:
        >>> raise CCRError("captions.jsonl:3: the caption in 'de' is empty; remove it or fill it in.")
        Traceback (most recent call last):
        ...
        ccr_lightning.errors.CCRError: captions.jsonl:3: the caption in 'de' is empty; remove it or fill it in.
    """


class Interrupted(CCRError):
    """Somebody asked a command to end before it was done.

    Args:
        message: One sentence that says how to go on.
        exit_status: That of the ``ccr`` command, as a shell has it: 128 and the number of the signal.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class OutOfMemory(CCRError):
    """There was not enough memory, or no further thread could be started."""


class Stopped(SystemExit):
    """A signal asks this process to end.

    Args:
        signum: The signal; the exit status is 128 more, as a shell has it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class SaidElsewhere(CCRError):
    """Another process of the run, or another thread of this one, has told the user what is wrong."""
