"""The page as a reader meets it, in a real browser. Skipped where there is no Chromium or Chrome."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Page, find_browser, open_page
from run_dirs import write_run

from megatron_cgrpo.observe.atomic import write_text
from megatron_cgrpo.report.gather import gather
from megatron_cgrpo.report.page import build_page
from megatron_cgrpo.report.write import write_report

pytest.importorskip("websockets")
BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
HOSTILE = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    runs = [
        write_run(folder / "ours" / f"seed_{seed}", seed=seed, pass_at_1=(0.5, 0.6, final))
        for seed, final in ((0, 0.75), (1, 0.95))
    ]
    runs.append(write_run(folder / "ours" / "seed_2", seed=2, steps=2))
    runs.append(write_run(folder / "plain", "algorithm.preset=r1_drgrpo", pass_at_1=(0.5, 0.1, 0.09)))
    runs.append(write_run(folder / "hostile" / "run", "optimizer.lr=1e-3", pass_at_1=(0.5, 0.1, 1.0)))
    write_text(folder / "hostile" / "label", HOSTILE)
    write_report(folder / "out", build_page(f"Title {HOSTILE}", gather(runs)))
    return (folder / "out" / "index.html").as_uri()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert BROWSER is not None
    with open_page(BROWSER, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def cells(page: Page, column: int) -> list[str]:
    rows = "[...document.querySelectorAll('#results tbody tr')]"
    found: list[str] = page.evaluate(f"{rows}.map(row => row.cells[{column}].textContent)")
    return found


def test_it_renders_without_complaints_or_network(page: Page, url: str) -> None:
    page.open(url, width=1200)
    assert page.evaluate("document.querySelectorAll('section').length") >= 6
    assert "unfinished: step 2 of 4" in page.evaluate("document.querySelector('.notices').innerText")
    assert page.complaints == []
    assert set(page.requests) <= {url, "data:,"}


def test_texts_from_runs_are_texts(page: Page, url: str) -> None:
    page.open(url, width=1200)
    assert page.evaluate("document.title") == f"Title {HOSTILE}"
    assert page.evaluate("document.querySelector('h1').textContent") == f"Title {HOSTILE}"
    assert page.evaluate("document.images.length") == 0
    assert any(HOSTILE in cell for cell in cells(page, 0))


def test_a_click_sorts_by_value_and_a_second_one_turns_it_around(page: Page, url: str) -> None:
    page.open(url, width=1200)
    head = "#results th:nth-child(4) button"
    assert page.evaluate(f"document.querySelector({head!r}).textContent") == "final Pass@1"
    page.click(head)
    assert cells(page, 3) == ["9.0", "85.0 ± 14.1", "100.0"]  # as texts, 100.0 would come first
    assert page.evaluate("document.querySelector('#results th:nth-child(4)').ariaSort") == "ascending"
    page.click(head)
    assert cells(page, 3) == ["100.0", "85.0 ± 14.1", "9.0"]
    page.click("#results th:nth-child(1) button")
    names = cells(page, 0)
    assert len(set(names)) == 3 and names[1].startswith("critique_grpo") and names[2].startswith("r1_drgrpo")


def test_empty_cells_stay_at_the_end(page: Page, url: str) -> None:
    page.open(url, width=1200)
    head = "#refinement th:nth-child(3) button"
    for expected in ("ascending", "descending"):
        page.click(head)
        assert page.evaluate("document.querySelector('#refinement th:nth-child(3)').ariaSort") == expected
        order = page.evaluate(
            "[...document.querySelector('#refinement tbody').rows].map(row => row.cells[2].textContent)"
        )
        assert "–" not in order or order.index("–") == len(order) - order.count("–")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_plots_can_be_seen(page: Page, url: str, scheme: str) -> None:
    page.open(url, width=1200, scheme=scheme)
    plots = page.evaluate(
        "[...document.querySelectorAll('figure > svg')].map(svg => {"
        " const r = svg.getBoundingClientRect();"
        " const drawn = [...svg.querySelectorAll('polyline')];"
        " const lines = drawn.map(line => [line.getTotalLength(), getComputedStyle(line).stroke]);"
        " return {width: r.width, height: r.height, lines}; })"
    )
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert len(plots) >= 5 and ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    for plot in plots:
        assert plot["width"] > 300 and plot["height"] > 150 and plot["lines"]
        assert all(length > 10 and stroke not in ("none", ground) for length, stroke in plot["lines"])


@pytest.mark.parametrize("width", [400, 320, 1200])
def test_nothing_runs_over_the_edge(page: Page, url: str, width: int) -> None:
    page.open(url, width=width)
    for opened in ("false", "true"):
        page.evaluate(f"document.querySelectorAll('details').forEach(d => d.open = {opened})")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    text = page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)")
    assert text >= 13  # pixels: readable on a phone
