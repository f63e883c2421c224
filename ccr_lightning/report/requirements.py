"""What a report needs beside the package itself."""

from __future__ import annotations

from importlib.util import find_spec

from ccr_lightning.errors import CCRError


def require_libraries() -> None:
    """Refuse to go on without the libraries that draw figures and fill in pages.

    Raises:
        CCRError: One is not installed.
    """
    if missing := [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]:
        raise CCRError(f"a report needs {' and '.join(missing)}: pip install 'ccr-lightning[report]'.")
