"""The report page: what it says, and what it does in a browser."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hotswap.cli.main import main
from hotswap.report.document import derive, dumps
from hotswap.report.laws import CONTROL_REMEDY, LAWS, REMEDIES
from tests.support.reports import FINDING, adapter, gathered

pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")

from hotswap.report import charts
from hotswap.report.html import html

NAMES = [f"adapter-{number:02}" for number in range(12)]
MANY = [f"customer-{number:03}" for number in range(300)]


def failing(names: Sequence[str] = NAMES, number: int = 5) -> dict[str, Any]:
    """A fleet with an adapter that breaks a law and one that is refused."""
    told = gathered(names)
    told["adapters"].append(adapter("broken", 3, FINDING))
    at = next(
        n
        for n, r in enumerate(told["tests"])
        if r["adapter"] == names[number] and r["law"] == "swap-equals-load"
    )
    told["tests"][at] |= {"outcome": "failed", "message": "q_proj differs: 3.1e-02, not 1.0e-04"}
    return derive(told)


@pytest.fixture(scope="module")
def page() -> str:
    return html(failing())


class References(HTMLParser):
    """Every attribute that makes a browser fetch something, and every id."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data") and tag != "a":
                self.fetched.append(str(value))
            if name == "href" and tag == "a":
                self.links.append(str(value))
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

    def test_links_lead_from_verdict_to_law_to_adapter_and_back(self, page: str) -> None:
        found = References()
        found.feed(page)
        assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
        refused, law, failed, *rest = found.links
        assert (refused, law[:5], failed) == ("#adapter-12", "#law-", "#adapter-5")
        assert rest == [law]  # from the adapter's row

    def test_tells_laws_before_the_fleet_when_one_failed(self, page: str) -> None:
        ready = html(derive(gathered(NAMES)))
        assert page.index('id="laws"') < page.index('id="fleet"')
        assert ready.index('id="laws"') > ready.index('id="fleet"')
        assert [one.count('id="laws"') for one in (page, ready)] == [1, 1]

    def test_says_what_to_do_about_a_law_that_failed(self, page: str) -> None:
        assert page.count(REMEDIES["swap-equals-load"]) == 1
        assert not any(REMEDIES[law] in page for law in LAWS if law != "swap-equals-load")

    def test_says_what_to_do_about_a_control_that_failed(self) -> None:
        told = gathered(NAMES)
        told["tests"][1] |= {"outcome": "failed", "message": "did not see it"}
        assert html(derive(told)).count(CONTROL_REMEDY) == 1

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

    def test_of_many_adapters_the_picture_counts_ranks_by_family(self) -> None:
        fleet = [adapter(f"adapter-{number}", number % 3 + 1) for number in range(1000)]
        drawn = charts.ranks(fleet)
        assert len(drawn) < 50_000
        assert {"334", "333"} <= set(re.findall(r">(\d+)</text>", drawn))
        assert "layers.*.q_proj" in drawn
        assert "adapter-" not in drawn

    def test_of_many_modules_the_picture_joins_families(self) -> None:
        wide = adapter("a")
        wide["module_ranks"] = {f"block{n}.layers.{m}.q": 4 for n in range(30) for m in range(9)}
        assert charts.ranks([wide]).count(".layers.*.q") == 30
        wide["module_ranks"] = {f"block{n}.layers.{m}.q": 4 for n in range(90) for m in range(9)}
        assert charts.ranks([wide]).count(">…q<") == 1

    def test_layers_are_in_the_order_of_their_numbers(self) -> None:
        two = adapter("a")
        two["module_ranks"] = {"layers.10.q": 1, "layers.2.q": 2}
        drawn = charts.ranks([two])
        assert drawn.index("layers.2.q") < drawn.index("layers.10.q")


def test_without_the_extra_there_is_no_page_and_a_sentence_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    shard = tmp_path / "1.json"
    shard.write_text(dumps(derive(gathered(shards=[{"index": 1, "count": 1}]))), encoding="utf-8")
    assert main(["report", "merge", str(shard), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.endswith(
        "and no report.html: an HTML report needs jinja2, which is not installed; "
        "run: pip install 'pytest-hotswap[report]'\n"
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "junit.xml"}


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


def test_every_law_has_a_remedy() -> None:
    assert list(REMEDIES) == list(LAWS)


@pytest.mark.filterwarnings("error")  # matplotlib's, of glyphs and of rooms that are too small
def test_any_name_is_a_name() -> None:
    names = ["$$", "$x^2$", "a_{", "bell\x07 and\ttab", "one-word-" * 30]
    told = html(derive(gathered(names)))
    assert "$x^2$" in told
    assert "bell\ufffd and\ufffdtab" in told
    assert "mathdefault" not in told  # ticks, too, are text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", told)


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
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Open a page that is given as text, at the width of a phone."""
    path = tmp_path_factory.mktemp("pages") / "report.html"

    def show(text: str) -> Any:
        path.write_text(text, encoding="utf-8")
        tab = browser.new_page(viewport={"width": 390, "height": 900})
        tab.goto(path.as_uri())
        return tab

    return show


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
    cells = tab.locator("#adapters tbody:visible th")
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
        for _ in range(16):
            tab.keyboard.press("Tab")
            reached.append(tab.evaluate("document.activeElement.tagName"))
        way = [*"AA", "DIV", "A", "INPUT", "SELECT", "DIV", *["BUTTON"] * 9]  # links, laws, fleet
        assert reached == way
        tab.get_by_role("columnheader", name="Adapter").get_by_role("button").focus()
        tab.keyboard.press("Enter")
        tab.keyboard.press("Enter")
        assert names(tab)[0] == "broken"

    @pytest.mark.parametrize("width", [320, 390, 768])
    def test_on_a_narrow_screen_nothing_is_scrolled_sideways(self, tab: Any, width: int) -> None:
        tab.set_viewport_size({"width": width, "height": 800})
        wide = "all => all.filter(e => e.scrollWidth > e.clientWidth).length"
        assert tab.locator("html, .scroll").evaluate_all(wide) == 0

    def test_a_reason_is_below_its_row(self, tab: Any) -> None:
        for width in (390, 1280):
            tab.set_viewport_size({"width": width, "height": 800})
            row, why = (tab.locator("#adapters tbody:last-child tr").nth(n) for n in (0, 1))
            assert why.bounding_box()["y"] >= row.bounding_box()["y"] + row.bounding_box()["height"]

    def test_a_large_fleet_shows_what_did_not_pass_and_links_lead_to_the_rest(
        self, opened: Callable[[str], Any]
    ) -> None:
        tab = opened(html(failing(MANY, 100)))
        assert names(tab) == ["customer-100", "broken"]
        assert tab.get_by_role("status").text_content() == "2 of 301 shown"
        place = tab.locator("#adapters tbody").nth(200).get_attribute("id")
        tab.evaluate("place => { location.hash = place }", place)
        tab.wait_for_function("() => !document.querySelector(':target').hidden")
        assert len(names(tab)) == 301

    def test_six_adapters_are_six_printed_pages_at_most(self, opened: Callable[[str], Any]) -> None:
        for one, most in ((failing(NAMES[:6]), 6), (failing(MANY), 6)):
            printed = opened(html(one)).pdf(format="A4")
            assert 1 < len(re.findall(rb"/Type /Page\b", printed)) <= most

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
