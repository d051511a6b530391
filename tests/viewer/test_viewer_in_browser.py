"""The viewer as a reader meets it, in a real browser. Skipped where there is no Chromium or Chrome."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, find_browser, open_page
from run_with_rollouts import (
    HOSTILE,
    easy_group,
    refined_group,
    write_metrics,
    write_rollout_step,
    write_run,
    write_timeline_step,
)
from test_viewer_server import served

pytest.importorskip("websockets")
BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
READY = "document.querySelector('#view').dataset.shows === location.hash"
MANY = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps, and a fourth of two pages."""
    run = write_run(tmp_path_factory.mktemp("run"))
    groups = [easy_group(f"many-{number}", 4, f"What is {number}?") for number in range(MANY)]
    write_rollout_step(run, 4, [*groups, refined_group("hard-4", 4)])
    return run


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    with served(run) as address:
        yield address


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert BROWSER is not None
    with open_page(BROWSER, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def visit(page: Page, url: str, where: str = "", width: int = 1280, scheme: str = "light") -> None:
    page.open("about:blank", width)
    page.open(f"{url}#/{where}", width, scheme)
    page.wait_for(READY)


def go(page: Page, where: str) -> None:
    """Waits for a page that a key or click leads to."""
    page.wait_for(f"location.hash.startsWith('#/{where}') && {READY}")


def text(page: Page, selector: str) -> str:
    found: str = page.evaluate(f"document.querySelector({selector!r}).innerText")
    return found


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.evaluate(f"[...document.querySelectorAll({selector!r})].map(one => one.textContent)")
    return found


def focused(page: Page) -> str:
    name: str = page.evaluate("document.activeElement.id")
    return name


def test_the_steps_and_nothing_from_elsewhere(page: Page, url: str) -> None:
    visit(page, url)
    assert texts(page, "#steps tbody tr td:first-child") == ["4", "3", "2", "1"]
    cells = texts(page, "#steps tbody tr:nth-child(2) td")
    assert cells == ["3", "2", "1", "0.750", "75.0 %", "0.50", "10.0", "25.0 %", "12.5 %", "timeline"]
    heads = texts(page, "#steps th")[1:-1]
    assert heads == ["groups", "failed", "reward", "Pass@1", "staleness", "seconds", "idle", "engines idle"]
    assert "reward of responses: 0.250 to 0.750" in text(page, ".curves")
    assert page.complaints == []
    assert all(request.startswith((url, "data:", "about:")) for request in page.requests)


def test_texts_of_a_run_are_texts(page: Page, url: str) -> None:
    for where in ("step/2", "step/2/1", "step/2/1?diff=1", "step/2/timeline", "all?q=img"):
        visit(page, url, where)
        assert page.evaluate("document.images.length + document.querySelectorAll('main script').length") == 0, where
        assert page.evaluate("document.title") != "owned"
        assert page.complaints == [], where
    visit(page, url, "step/2/1")
    assert text(page, "#question") == f"What is 2 + 2? {HOSTILE}"


def test_a_group_reads_from_response_to_advantage(page: Page, url: str) -> None:
    visit(page, url, "step/2/1")
    rows = [[cell.strip() for cell in row.split("\t")] for row in text(page, "#samples tbody").splitlines()]
    assert rows == [
        ["response 1", "truncated", "0.00", "-0.250", "30", "length limit", "v1", "11"],
        ["response 2", "wrong", "0.00", "-0.250", "12", "itself", "v1", "11"],
        ["refinement 1 of response 2", "correct", "1.00", "0.750", "12", "itself", "v1 × 5, v2 × 7", "11"],
        ["refinement 2 of response 2", "no_answer", "0.00", "", "3", "itself", "v1", "11"],
    ]
    assert texts(page, "article h2") == ["Response 1", "Response 2"]
    assert page.evaluate("document.querySelectorAll('article')[0].querySelectorAll('.pair').length") == 0
    pair = text(page, "article:nth-of-type(2) .pair")
    assert "cot · concludes: wrong · 3 tokens · after failures: timeout" in pair
    assert "So 2 + 2 = 4. The answer is 4." in pair and "reward 1.00 · advantage 0.750 · 12 tokens" in pair
    assert "its steps lead there" in pair and "-2.50 given the question, -0.75 given the critique" in pair
    second = text(page, "article:nth-of-type(2) .pair:nth-of-type(3)")
    assert "does not train" in second and "leaked" in second
    assert "timeout 1; failed attempts at a critique: timeout 2" in text(page, "#lost")
    page.click("article .pair details summary")
    assert "refine: So 2 + 2 = 4." in text(page, "article .pair details pre")


def test_what_a_refinement_changed_is_marked(page: Page, url: str) -> None:
    visit(page, url, "step/2/1")
    page.click("#diff")
    page.wait_for(f"document.querySelector('.diff') && {READY}")
    assert texts(page, ".pair:nth-of-type(2) del") == ["5", "5"] and texts(page, ".pair:nth-of-type(2) ins") == [
        "4",
        "4",
    ]
    assert text(page, ".pair:nth-of-type(2) .diff") == "So 2 + 2 = 54. The answer is 54."
    assert focused(page) == "diff" and page.evaluate("document.activeElement.ariaPressed") == "true"
    page.press("d")
    page.wait_for(f"!document.querySelector('.diff') && {READY}")


def test_filters_and_search_choose_groups(page: Page, url: str) -> None:
    visit(page, url, "step/4")
    assert text(page, "#count") == "61 of 61 groups, shown: 1 to 50"
    page.click("#show-failed")
    go(page, "step/4?show=failed")
    assert texts(page, "#groups tbody td:first-child") == ["hard-4"] and focused(page) == "show-failed"
    assert page.evaluate("document.querySelector('#show-failed').ariaPressed") == "true"
    page.click("#show-failed")
    go(page, "step/4")
    page.evaluate("document.querySelector('#cause').value = 'no_answer'")
    page.evaluate("document.querySelector('#cause').dispatchEvent(new Event('change'))")
    go(page, "step/4?cause=no_answer")
    assert texts(page, "#groups tbody td:first-child") == ["hard-4"]
    visit(page, url, "step/4")
    page.press("/")
    assert focused(page) == "search"
    page.call("Input.insertText", text="IS 17?")
    page.press("Enter")
    go(page, "step/4?q=")
    assert texts(page, "#groups tbody td:first-child") == ["many-17"]
    assert texts(page, "#groups mark") == ["is 17?"]


def test_all_steps_are_searched_one_after_the_other(page: Page, url: str) -> None:
    visit(page, url, "all?show=refined")
    page.wait_for("document.querySelector('#count').textContent.startsWith('4 groups found in 4 of 4 steps')")
    assert texts(page, "#groups tbody td:nth-child(2)") == ["hard-4", "hard-3", "hard-2", "hard-1"]
    visit(page, url, "all")
    page.wait_for("document.querySelector('#count').textContent.startsWith('61 groups found in 1 of 4 steps')")
    page.press("m")
    page.wait_for("document.querySelector('#count').textContent.startsWith('67 groups found in 4 of 4 steps')")


def test_everything_can_be_reached_with_keys(page: Page, url: str) -> None:
    visit(page, url)
    for key, at in (("j", "step-4"), ("j", "step-3"), ("ArrowDown", "step-2"), ("k", "step-3")):
        page.press(key)
        assert focused(page) == at
    page.press("Enter")
    go(page, "step/3")
    page.press("j")
    assert focused(page) == "group-3-0"
    page.press("Enter")
    go(page, "step/3/0")
    page.press("n")
    go(page, "step/3/1")
    page.press("p")
    go(page, "step/3/0")
    page.press("u")
    go(page, "step/3")
    page.wait_for("document.querySelector('#groups')")
    page.press("t")
    go(page, "step/3/timeline")
    page.press("+")
    go(page, "step/3/timeline?zoom=2")
    page.press("u")
    page.wait_for("location.hash === '#/step/3' && document.querySelector('#groups')")
    page.press("?")
    assert page.evaluate("document.querySelector('#keys').open")
    assert "Timeline of this step" in text(page, "#keys")
    page.press("Escape")
    page.wait_for("!document.querySelector('#keys').open")
    page.press("u")
    page.wait_for("location.hash === '#/' && document.querySelector('#steps')")


def test_pages_of_a_step_lead_on_and_back(page: Page, url: str) -> None:
    visit(page, url, "step/4")
    page.press("n")
    go(page, "step/4?offset=50")
    assert text(page, "#count") == "61 of 61 groups, shown: 51 to 61"
    page.press("p")
    page.wait_for("document.querySelector('#count').textContent.endsWith('1 to 50')")


def test_the_timeline_shows_who_waited(page: Page, url: str) -> None:
    visit(page, url, "step/2/timeline")
    shares = [row.split("\t") for row in text(page, "#shares tbody").splitlines()]
    assert ["engine 0", "3", "generate 40.0 %, refine 20.0 %", "40.0 %"] in shares
    width = page.evaluate("document.querySelector('.chart svg').getBoundingClientRect().width")
    boxes = page.evaluate(
        "[...document.querySelectorAll('.chart rect')].map(one => ({title: one.textContent, box: one.getBBox()}))"
        ".map(({title, box}) => [title.split('\\n')[0], box.x, box.width, box.y])"
    )
    drawn = {title: (x / width, wide / width, y) for title, x, wide, y in boxes}
    generate, idle = drawn["engine 0: generate, 4.00 s"], drawn["engine 0: idle, 3.00 s"]
    assert generate[:2] == pytest.approx((0, 0.4), abs=0.002) and idle[:2] == pytest.approx((0.7, 0.3), abs=0.002)
    assert drawn["engine 0: generate, 2.00 s"][2] > generate[2]  # what overlaps has a lane of its own
    page.click(".chart a rect.refine")
    go(page, "step/2/1")


def test_it_follows_a_run_that_is_still_writing(page: Page, tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=1)
    with served(run) as url:
        visit(page, url)
        page.press("j")
        write_timeline_step(run, 2, "hard-2")
        path = write_rollout_step(run, 2, [easy_group("easy-2", 2), refined_group("hard-2", 2)])
        write_metrics(run, 2, 0.5)
        page.wait_for("document.querySelectorAll('#steps tbody tr').length === 2")
        assert focused(page) == "step-1"
        path.write_bytes(path.read_bytes()[:-30])
        visit(page, url, "step/2")
        assert texts(page, "#groups tbody td:first-child") == ["easy-2"]
        assert "1 lines cannot be read" in text(page, ".error")
        assert page.complaints == []


def test_what_is_not_there_is_said(page: Page, url: str) -> None:
    for where, said in (
        ("step/99", "step 99 has no rollouts"),
        ("step/2/77", "none on line 77"),
        ("nowhere", "no page"),
    ):
        visit(page, url, where)
        assert said in text(page, "[role=alert]")
    page.complaints.clear()  # the browser notes answers of 404


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("where", ["", "step/4", "step/2/1?diff=1", "step/2/timeline"])
def test_nothing_runs_over_the_edge(page: Page, url: str, where: str, width: int) -> None:
    visit(page, url, where, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_the_ground(page: Page, url: str, scheme: str) -> None:
    visit(page, url, "step/2/1?diff=1", scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    ratios = page.evaluate(CONTRASTS)
    assert len(ratios) > 30 and min(ratio for _, ratio in ratios) >= 4.5, sorted(ratios, key=lambda pair: pair[1])[:5]


CONTRASTS = """(() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parts(color).slice(0, 3).map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return (parts(color)[3] ?? 1) > 0 ? color : ground(node.parentElement);
  };
  const written = [...document.querySelectorAll("body *")].filter((node) => node.offsetParent &&
    [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()));
  return written.map((node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))];
    return [node.outerHTML.slice(0, 60), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
})()"""
