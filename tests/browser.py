"""A real headless Chromium for tests of pages; they are skipped, with a reason, where there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.browser import NAMES, find_browser, started_browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser, which ends with the module, since the loop of playwright's is in the way of others."""
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)} is in PATH")
    with started_browser(path) as browser:
        yield browser


@contextmanager
def watched_page(chromium: Any, width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator[Any]:
    """A page whose ``faults`` are messages of the console and errors, and ``asked`` the addresses that it asked for."""
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.faults, page.asked = [], []
    page.on("console", lambda message: page.faults.append(message.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("dialog", lambda dialog: page.faults.append(f"a dialog opened: {dialog.message}"))
    try:
        yield page
    finally:
        context.close()


def serious_violations(page: Any) -> list[str]:
    """What axe-core finds that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{of['id']}: {node['html']} {node['failureSummary']}"
        for of in found
        if of["impact"] in ("serious", "critical")
        for node in of["nodes"]
    ]
