"""The error that a user reads."""


class CCRError(ValueError):
    """Something the user can put right: one sentence that says what is wrong, where, and what to do.

    The ``ccr`` command prints it without a traceback and exits with status 1; in Python it is a ``ValueError``.

    Example:
        >>> raise CCRError("captions.jsonl:3: the caption in 'de' is empty; remove it or fill it in.")
        Traceback (most recent call last):
        ...
        ccr_lightning.errors.CCRError: captions.jsonl:3: the caption in 'de' is empty; remove it or fill it in.
    """
