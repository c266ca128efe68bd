"""The report page: what it says, and what it does in a browser."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hotswap.cli.main import main
from hotswap.report.document import derive, dumps
from tests.support.reports import FINDING, adapter, gathered

pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")

from hotswap.report import charts
from hotswap.report.html import html

NAMES = [f"adapter-{number:02}" for number in range(12)]


def document() -> dict[str, Any]:
    fleet = [*gathered(NAMES)["adapters"], adapter("broken", 3, FINDING)]
    return derive(gathered(NAMES, adapters=fleet))


@pytest.fixture(scope="module")
def page() -> str:
    return html(document())


class References(HTMLParser):
    """Every attribute that makes a browser fetch something, and every id."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data") and tag != "a":
                self.fetched.append(str(value))
            if name == "id":
                self.ids.append(str(value))


class TestThePage:
    def test_begins_with_the_verdict_and_its_reasons(self, page: str) -> None:
        body = page[page.index("<main>") :]
        heading, why, table = (body.index(word) for word in ("Not ready", "HSW005", "<table"))
        assert heading < why < table
        assert "save it again" in body[why:table]

    def test_needs_no_other_resource(self, page: str) -> None:
        found = References()
        found.feed(page)
        assert all(re.match(r"#|data:", target) for target in found.fetched), found.fetched
        assert not re.search(r"@import|url\((?!#|data:)", page)

    def test_has_no_id_twice(self, page: str) -> None:
        found = References()
        found.feed(page)
        assert sorted(set(found.ids)) == sorted(found.ids)

    def test_escapes_what_adapters_say(self, page: str) -> None:
        assert "the file is &lt;b&gt;truncated&lt;/b&gt;" in page
        assert "<b>truncated" not in page

    def test_has_the_four_pictures_in_the_colours_of_the_page(self, page: str) -> None:
        pictures = re.findall(r"<svg .*?</svg>", page, re.S)
        assert len(pictures) == 4
        assert all('role="img" aria-label="' in picture for picture in pictures)
        assert all("var(--ink)" in picture for picture in pictures)
        assert not any(stand_in in page for stand_in in ("#010101", "#020202", "#030303"))

    def test_of_a_run_that_was_cut_short_can_be_drawn(self) -> None:
        nothing = {"plan": None, "curve": [], "timing": None, "tests": [], "adapters": []}
        cut = html(derive(gathered(**nothing, interrupted=True, exitstatus=None)))
        assert "Incomplete (partial report)" in " ".join(cut.split())
        assert "<svg" not in cut

    def test_a_thousand_adapters_are_a_picture_of_bounded_size(self) -> None:
        fleet = [adapter(f"adapter-{number}", number % 64 + 1) for number in range(1000)]
        assert len(charts.rank_map(fleet)) < 400_000

    def test_layers_are_in_the_order_of_their_numbers(self) -> None:
        two = adapter("a")
        two["module_ranks"] = {"layers.10.q": 1, "layers.2.q": 2}
        drawn = charts.rank_map([two])
        assert drawn.index("layers.2.q") < drawn.index("layers.10.q")


def test_a_missing_extra_is_one_sentence_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["verify", "--demo", "--report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "hotswap verify: an HTML report needs jinja2, which is not installed; "
        "run: pip install 'pytest-hotswap[report]'\n"
    )


def test_merge_writes_the_whole_and_exits_as_verify_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (1, 2):
        names = NAMES[part - 1 :: 2]
        whole_fleet = {key: gathered(NAMES)[key] for key in ("plan", "fleet")}
        told = gathered(names, **whole_fleet, shards=[{"index": part, "count": 2}])
        (tmp_path / f"{part}.json").write_text(dumps(derive(told)), encoding="utf-8")
    parts = [str(tmp_path / f"{part}.json") for part in (1, 2)]
    whole = tmp_path / "whole"
    assert main(["report", "merge", *parts, "-o", str(whole)]) == 0
    assert capsys.readouterr().out.startswith("ready to hot-swap: 12 adapters, target rank 48")
    written = {path.name for path in whole.iterdir()}
    assert written == {"report.html", "report.json", "junit.xml"}
    assert main(["report", "merge", parts[0], parts[0], "-o", str(whole)]) == 1
    assert capsys.readouterr().err == "hotswap: shard 1 is given twice\n"


def test_a_name_that_looks_like_mathematics_is_a_name() -> None:
    document = derive(gathered(["$$", "$x^2$", "a_{"]))
    assert "$x^2$" in html(document)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright."""
    if CHROMIUM is None:
        pytest.skip("not run: there is no chromium")
    api = pytest.importorskip("playwright.sync_api", reason="not run: there is no playwright")
    with api.sync_playwright() as started:
        shown = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield shown
        shown.close()


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def tab(browser: Any, file: str) -> Iterator[Any]:
    """The page in a tab that must report no error to its console."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda m: errors.append(m.text) if m.type != "log" else None)
    opened.on(
        "request", lambda r: errors.append(r.url) if r.url[:5] not in ("file:", "data:") else 0
    )
    opened.goto(file)
    yield opened
    opened.close()
    assert errors == []


def names(tab: Any) -> list[str]:
    cells = tab.locator("#adapters tbody tr:visible th")
    return [str(text) for text in cells.all_text_contents()]


class TestInABrowser:
    def test_the_verdict_is_seen_without_scrolling(self, tab: Any) -> None:
        box = tab.locator("h1").bounding_box()
        assert box["y"] + box["height"] < 200

    def test_a_click_sorts_by_number_and_a_second_turns_the_order(self, tab: Any) -> None:
        head = tab.get_by_role("columnheader", name="Rank")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert names(tab) == ["broken", *NAMES]  # ranks 3, 4, 8, 12: not in the order of text
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert names(tab) == [*reversed(NAMES), "broken"]

    def test_cells_without_a_value_stay_last(self, tab: Any) -> None:
        button = tab.get_by_role("columnheader", name="Swap time").get_by_role("button")
        for _ in range(2):
            button.click()
            assert names(tab)[-1] == "broken"

    def test_words_and_verdict_filter_together(self, tab: Any) -> None:
        tab.get_by_label("Filter").fill("ADAPTER-0")
        assert names(tab) == NAMES[:10]
        assert tab.get_by_role("status").text_content() == "10 of 13 shown"
        tab.get_by_label("Verdict").select_option("refused")
        assert names(tab) == []
        tab.get_by_label("Filter").fill("")
        assert names(tab) == ["broken"]

    def test_the_keyboard_reaches_the_filter_the_heads_and_the_tables(self, tab: Any) -> None:
        reached = []
        for _ in range(14):
            tab.keyboard.press("Tab")
            reached.append(tab.evaluate("document.activeElement.tagName"))
        assert reached == ["INPUT", "SELECT", "DIV", *["BUTTON"] * 10, "DIV"]
        tab.get_by_role("columnheader", name="Adapter").get_by_role("button").focus()
        tab.keyboard.press("Enter")
        tab.keyboard.press("Enter")
        assert names(tab)[0] == "broken"

    @pytest.mark.parametrize("width", [320, 390, 768])
    def test_a_narrow_screen_is_not_scrolled_sideways(self, tab: Any, width: int) -> None:
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width

    def test_text_stands_out_in_light_in_dark_and_on_paper(self, tab: Any) -> None:
        for media in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"media": "print"}):
            tab.emulate_media(**media)
            for place in ("h1", "p", "td .state", "dt", "#adapters thead button"):
                assert contrast(tab, place) >= 4.5, (media, place)


def contrast(tab: Any, selector: str) -> float:
    """WCAG's contrast of an element's text with the page."""
    colours = tab.evaluate(
        """selector => [getComputedStyle(document.querySelector(selector)).color,
                        getComputedStyle(document.body).backgroundColor]""",
        selector,
    )
    light, dark = sorted((_luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
