"""The page of ``ccr serve`` in a real browser: what it finds against the index itself, keys, widths, hostile data."""

import re

import numpy as np
import pytest
from browser import chromium, serious_violations, watched_page  # noqa: F401
from PIL import Image
from playwright.sync_api import expect
from serving import CAPTIONS, SCRIPT, serving, write_home

from benchmarks import screenshots
from ccr_lightning.cli.search import open_index
from ccr_lightning.serve.limits import TokenBucket

QUERIES = {"en": "a red apple", "de": "ein roter Apfel", "ar": "قطة"}
SIDE_BY_SIDE = "/?" + "&".join(f"q={text}&language={language}" for language, text in QUERIES.items())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def server(home):
    with serving(home / "captioned.index", searches=TokenBucket(1000, 1000)) as address:
        yield address


@pytest.fixture(scope="module")
def order(home):
    """The pictures by their cosines with QUERIES, by numpy: (Q, G)."""
    index, model = open_index(home / "captioned.index", None)
    images = model.embed_images([index.open(number) for number in range(len(index))]).numpy()
    texts = model.embed_captions(list(QUERIES.values())).numpy()
    return np.argsort(-texts @ images.T, axis=1)


@pytest.fixture
def page(chromium, server):  # noqa: F811
    """A page that must end without a word in the console, and ask nobody but its server."""
    with watched_page(chromium) as page:
        yield page
        assert page.faults == []
        assert [asked for asked in page.asked if not asked.startswith((f"{server}/", f"blob:{server}/"))] == []


def shown(page, within="main"):
    return [
        int(number) for number in page.locator(f"{within} .card").evaluate_all("of => of.map(x => x.dataset.number)")
    ]


def search(page, text):
    page.get_by_label("Query, in any language").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_selector("body:not([aria-busy]) main .grid")


def wait_for_pictures(page):
    """Waits until all pictures are there: they come after the results, in their own time."""
    page.wait_for_function("[...document.images].every(of => of.complete && of.naturalWidth > 0)")


def test_a_query_finds_the_right_pictures(page, server, order):
    page.goto(server)
    search(page, QUERIES["en"])
    assert shown(page) == order[0].tolist()
    assert page.get_by_role("status").inner_text() == "8 pictures for “\u2068a red apple\u2069”, best first"
    assert page.title() == "\u2068a red apple\u2069: pictures"
    wait_for_pictures(page)
    search(page, QUERIES["ar"])
    assert shown(page) == order[2].tolist()
    page.go_back()
    expect(page).to_have_title("\u2068a red apple\u2069: pictures")
    assert shown(page) == order[0].tolist()
    assert page.get_by_label("Query, in any language").input_value() == QUERIES["en"]


def test_what_is_typed_before_the_page_is_ready_stays(page, server):
    page.route("**/api/index", lambda route: (page.wait_for_timeout(300), route.continue_()))
    page.goto(server, wait_until="commit")
    box = page.get_by_label("Query, in any language")
    box.fill("a ca")
    page.wait_for_selector(".welcome")
    page.keyboard.type("t")
    assert box.input_value() == "a cat"
    page.keyboard.press("Enter")
    page.wait_for_selector("main .grid")


def test_languages_side_by_side(page, server, order):
    page.goto(server)
    search(page, QUERIES["en"])
    page.get_by_label("Language of query").select_option("English")
    for place, (language, text) in enumerate(list(QUERIES.items())[1:], 2):
        page.get_by_role("button", name="Compare with another query").click()
        page.get_by_label(f"Query {place}, in any language").fill(text)
        page.get_by_label(f"Language of query {place}").select_option(language)
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_selector(".columns")
    assert page.locator(".column").count() == 3
    ranks = np.argsort(order, axis=1) + 1
    for column in range(3):
        within = f".column:nth-of-type({column + 1})"
        assert shown(page, within) == order[column].tolist()
        if column:
            for place, card in enumerate(page.locator(f"{within} .card").all()):
                by = ranks[0, order[column, place]] - (place + 1)
                says = card.text_content()
                expected = f"▲ {by}" if by > 0 else f"▼ {-by}" if by < 0 else "＝"
                assert expected in says
                if by:
                    spoken = f"{abs(by)} place{'s' if abs(by) > 1 else ''} {'higher' if by > 0 else 'lower'} than for"
                    assert spoken in says
    assert page.locator(".lines path").count() == 2 * len(CAPTIONS)  # all pictures are in all columns
    number = int(order[0, 0])
    page.locator(".column .card").first.hover()
    assert page.locator(".card.lit").evaluate_all("of => of.map(x => +x.dataset.number)") == [number] * 3
    assert page.locator(".lines .lit").count() == 2
    assert page.url.count("q=") == 3
    page.reload()
    page.wait_for_selector(".columns")
    assert shown(page, ".column:nth-of-type(3)") == order[2].tolist()


def test_lines_end_at_the_same_pictures(page, server):
    page.goto(server + SIDE_BY_SIDE)
    for width in (1280, 900):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(200)
        for path in page.locator(".lines path").element_handles()[:6]:
            ends = path.evaluate("""(path) => {
              const origin = path.ownerSVGElement.getBoundingClientRect();
              const at = (length) => {
                const { x, y } = path.getPointAtLength(length);
                return [x + origin.x, y + origin.y];
              };
              const cards = [...document.querySelectorAll('.card')]
                .map((of) => [of.dataset.number, of.getBoundingClientRect()]);
              const near = ([x, y], side) => cards.filter(([, box]) =>
                Math.abs(box.top + box.height / 2 - y) < 2 && Math.abs(box[side] - x) < 2).map(([number]) => number);
              return [path.dataset.number, near(at(0), "right"), near(at(path.getTotalLength()), "left")];
            }""")
            assert ends[0] in ends[1]
            assert ends[0] in ends[2]


def test_one_click_from_a_picture_to_all_of_its_languages(page, server, home):
    page.goto(f"{server}/?q=a cat")
    page.locator("main .card[data-number='1']").click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading", level=2).inner_text() == "a cat"
    dialog.get_by_role("button", name="Compare its captions in 4 languages").click()
    page.wait_for_selector(".languages")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.id") == "results"
    index, model = open_index(home / "captioned.index", None)
    images = model.embed_images([index.open(number) for number in range(len(index))]).numpy()
    captions = {language: texts[0] for language, texts in CAPTIONS["01.png"].items()}
    cosines = model.embed_captions(list(captions.values())).numpy() @ images.T
    ranks = dict(zip(captions, (1 + (cosines > cosines[:, 1:2]).sum(axis=1)).tolist(), strict=True))
    rows = page.locator(".languages > ol > li").all()
    assert len(rows) == 4
    said = {row.locator(".code").inner_text(): row.locator(".rank").text_content() for row in rows}
    assert {language: int(re.match(r"\d+", text)[0]) for language, text in said.items()} == ranks
    first = sum(rank == 1 for rank in ranks.values())
    assert page.locator(".summary").inner_text().startswith(f"First in {first} of 4 languages")
    page.get_by_role("button", name="Show 4 of them side by side").click()
    page.wait_for_selector(".columns")
    assert page.locator(".column").count() == 4


def test_an_uploaded_picture_finds_itself_and_captions(page, server, home):
    page.goto(server)
    page.locator("#file").set_input_files(home / "pictures" / "01.png")
    page.wait_for_selector("main .grid")
    assert shown(page)[0] == 1
    assert page.locator("main .grid .card").first.text_content().endswith("1.000")
    assert page.locator(".queried .captions li").count() == 12
    wait_for_pictures(page)
    assert page.locator(".queried img").evaluate("of => of.naturalWidth") == 80
    page.locator(".queried .captions button").first.click()
    page.wait_for_url("**/?q=*")
    page.go_back()
    page.wait_for_selector(".queried")
    assert shown(page, ".grid")[0] == 1


def test_pictures_are_dropped_and_pasted(page, server, home):
    page.goto(server)
    page.wait_for_selector(".welcome")
    data = list((home / "pictures" / "02.png").read_bytes())
    for kind in ("drop", "paste"):
        page.evaluate(
            """([kind, data]) => {
              const carried = new DataTransfer();
              carried.items.add(new File([new Uint8Array(data)], "mine.png", { type: "image/png" }));
              const how = { bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried };
              const event = kind === "drop" ? new DragEvent("drop", how) : new ClipboardEvent("paste", how);
              document.body.dispatchEvent(event);
            }""",
            [kind, data],
        )
        page.wait_for_selector(".queried")
        assert shown(page, ".grid")[0] == 2
        page.get_by_role("link", name="Pictures, in any language").click()
        page.wait_for_selector(".welcome")


def test_text_that_is_copied_with_a_picture_of_it_is_text(page, server, home):
    page.goto(server)
    page.wait_for_selector(".welcome")
    paste = """(within, data) => {
      const carried = new DataTransfer();
      carried.items.add("a cat", "text/plain");
      carried.items.add(new File([new Uint8Array(data)], "text.png", { type: "image/png" }));
      const event = new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: carried });
      within.focus();
      within.dispatchEvent(event);
      return event.defaultPrevented;
    }"""
    data = list((home / "pictures" / "02.png").read_bytes())
    assert page.locator("#queries input").evaluate(paste, data) is False
    assert page.locator("#results").evaluate(paste, data) is True
    page.wait_for_selector(".queried")


def test_the_limits_of_the_page_are_those_of_the_server(page, server):
    def less(route):
        about = route.fetch().json()
        about["limits"] |= {"characters": 5, "k": 3, "upload_bytes": 1_000_000}
        route.fulfill(json=about)

    page.route("**/api/index", less)
    page.goto(f"{server}/?q=a&k=100")
    page.wait_for_selector("main .grid")
    assert len(shown(page)) == 3
    box = page.get_by_label("Query, in any language")
    box.fill("😀" * 6)
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("A query has 6 characters: make it no longer than 5.").wait_for()
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"\0" * 1_000_001})
    page.get_by_role("alert").get_by_text("The picture has more than 1 MB: make it smaller.").wait_for()
    search(page, "😀" * 5)


def test_a_picture_of_the_index_is_a_query(page, server):
    page.goto(f"{server}/?q=a")
    page.locator("main .card[data-number='3']").click()
    page.get_by_role("button", name="Search with this picture").click()
    page.wait_for_selector(".queried")
    assert "like=3" in page.url
    assert shown(page, ".grid")[0] == 3


def test_hostile_captions_and_names_are_text(page, server):
    addresses = [
        "/",
        f"/?q={SCRIPT}",
        f"/?q={SCRIPT}&q=%E2%80%AEabc%00",
        "/?languages_of=2",
        "/?like=2",
        "/?language=%3Cb%3E&q=x",
    ]
    for address in addresses:
        page.goto(server + address)
        page.wait_for_selector("main > *")
        if page.locator("main .card[data-number]").count():
            page.locator("main .card[data-number='2']").first.click()
            assert SCRIPT in page.locator("dialog").inner_text()
            page.keyboard.press("Escape")
        page.wait_for_timeout(50)
        assert (
            page.evaluate("document.querySelectorAll('[onerror], main script, dialog script, img[src=x]').length") == 0
        )
        assert page.title() != "taken"
    page.goto(f"{server}/?q=a")  # a name that turns what follows around stays in its box
    page.locator("main .card[data-number='4']").click()
    assert page.locator(".file bdi").evaluate("of => getComputedStyle(of).unicodeBidi") == "isolate"


def test_hostile_uploads_are_one_sentence(chromium, server, tmp_path):  # noqa: F811
    (tmp_path / "<img src=x onerror=document.title='taken'>.png").write_bytes(b"no picture")
    (tmp_path / "large.png").write_bytes(b"\0" * 20_000_001)
    with watched_page(chromium) as page:
        page.goto(server)
        search(page, "a cat")
        before = shown(page)
        for path, says in zip(
            sorted(tmp_path.iterdir()), ("is not a picture that Pillow can open", "more than 20 MB"), strict=True
        ):
            page.locator("#file").set_input_files(path)
            page.get_by_role("alert").get_by_text(says).wait_for()
            assert shown(page) == before
        assert page.title() != "taken"


def test_queries_that_are_refused(page, server):
    page.goto(server)
    box = page.get_by_label("Query, in any language")
    for text, says in (("  ", "Type what is in a picture"), ("x" * 100_000, "A query has 100,000 characters")):
        box.fill(text)
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text(says).wait_for()
    search(page, "‮\u0007 abc")
    assert not page.get_by_role("alert").is_visible()


def test_what_is_shown_stays_when_the_server_is_gone(chromium, home):  # noqa: F811
    with watched_page(chromium) as page:
        with serving(home / "captioned.index") as address:
            page.goto(address)
            search(page, "a cat")
        before = shown(page)
        page.get_by_label("Query, in any language").fill("a dog")
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("The server does not answer: is ccr serve still running?").wait_for()
        assert shown(page) == before
        assert page.get_by_label("Query, in any language").input_value() == "a dog"


def test_the_keyboard_is_enough(page, server, order):
    page.goto(server)
    page.wait_for_selector(".welcome")
    page.locator("h1 a").focus()
    page.keyboard.press("/")
    page.keyboard.type(QUERIES["en"])
    page.keyboard.press("Enter")
    page.wait_for_selector("main .grid")
    assert page.evaluate("document.activeElement.value") == QUERIES["en"]
    page.keyboard.press("ArrowDown")

    def focused():
        return int(page.evaluate("document.activeElement.dataset.number"))

    assert focused() == order[0, 0]
    page.keyboard.press("ArrowRight")
    assert focused() == order[0, 1]
    across = page.evaluate("getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length")
    page.keyboard.press("ArrowDown")
    assert focused() == order[0, min(1 + across, 7)]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert focused() == order[0, 0]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog:not([open])", state="attached")
    assert focused() == order[0, 0]


def test_scripts_that_run_right_to_left(page, server):
    page.goto(f"{server}/?q=قطة&language=ar")
    page.wait_for_selector("main .grid")
    box = page.get_by_label("Query, in any language")
    assert box.evaluate("of => getComputedStyle(of).direction") == "rtl"
    assert box.get_attribute("lang") == "ar"
    page.locator("main .card[data-number='1']").click()
    caption = page.locator("dialog .captions [lang=ar]")
    assert caption.inner_text() == "قطة"
    assert caption.evaluate("of => getComputedStyle(of).direction") == "rtl"


ADDRESSES = ("/", "/?q=a cat", SIDE_BY_SIDE, "/?languages_of=0", "/?like=1", "/?q=قطة&language=ar")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_it_is_accessible_and_fits(chromium, server, width, scheme):  # noqa: F811
    with watched_page(chromium, width, 740, scheme) as page:
        for address in ADDRESSES:
            page.goto(server + address)
            page.wait_for_selector("main > *")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, address
            assert serious_violations(page) == [], address
        page.locator("main .card").first.click()
        page.get_by_role("dialog").wait_for()
        assert serious_violations(page) == []
        box = page.get_by_role("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (min(light) > 200) is (scheme == "light")
        assert page.faults == []


def test_what_is_not_accessible_is_found(page, server):
    page.goto(server)
    page.wait_for_selector("main > *")
    page.evaluate("document.querySelector('h2').style.color = 'rgb(200, 200, 200)'")
    assert "color-contrast: <h2" in " ".join(serious_violations(page))


def test_at_360_pixels_columns_are_swiped(chromium, server):  # noqa: F811
    with watched_page(chromium, 360, 740) as page:
        page.goto(server + SIDE_BY_SIDE)
        page.wait_for_selector(".columns")
        columns = page.locator(".columns")
        assert columns.evaluate("of => of.scrollWidth > of.clientWidth")
        last = page.locator(".column").last.locator(".card .by").first
        last.scroll_into_view_if_needed()
        box = last.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 360
        assert page.locator(".column .card").first.bounding_box()["height"] >= 44


def test_readmes_pictures_are_made(page, server, tmp_path):
    screenshots.side_by_side(page, f"{server}/", list(QUERIES.items()))
    assert page.locator(".lines .lit").count() == 2
    screenshots.save(page, tmp_path / "search.png", height=700)
    screenshots.languages(page, f"{server}/", "a cat")
    assert page.url.endswith("languages_of=1")
    assert Image.open(tmp_path / "search.png").size == (1280, 700)


def test_an_index_of_files_has_no_captions_to_show(chromium, home):  # noqa: F811
    with serving(home / "files.index") as address, watched_page(chromium) as page:
        page.goto(address)
        page.locator(".example").first.click()
        page.wait_for_selector(".queried")
        assert page.locator(".captions").count() == 0
        page.locator(".grid .card").first.click()
        dialog = page.get_by_role("dialog")
        assert dialog.get_by_role("button", name="Search with this picture").is_visible()
        assert not dialog.get_by_role("button", name="Compare").is_visible()
        assert page.faults == []
