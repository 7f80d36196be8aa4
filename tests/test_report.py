"""The HTML report, in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from mqc.compiler.recipe import Recipe, load_recipe
from tests.compiled import dumped

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = dumped(tmp_path_factory.mktemp("dumps"))
    out = folder / "report.html"
    done = subprocess.run(
        [sys.executable, "-m", "mqc", "debug", "report", folder, "-o", out, "--length", "24"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def data(report: Path) -> dict[str, list[dict[str, object]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.read_text(), re.S)
    assert found is not None
    return json.loads(found[1])


def test_it_is_one_file_that_needs_no_network(report: Path) -> None:
    text = report.read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text) and "@import" not in text
    assert not [m for m in re.findall(r"https?://[^\s\"'<]+", text) if m != "http://www.w3.org/2000/svg"]


def test_what_it_holds(report: Path, tmp_path: Path) -> None:
    content = data(report)
    names = [v["name"] for v in content["values"]]
    assert "layers.1.mlp.up_proj" in names and set(content["histograms"]) == set(names)
    for histogram in content["histograms"].values():  # type: ignore[attr-defined]
        assert sum(histogram["before"]) == sum(histogram["after"]) > 0
    ran = [str(p["name"]).partition("-")[2] for p in content["passes"]]
    assert ran == [p.name for p in Recipe().pipeline("cpu")]
    assert sum(c["macs"] for c in content["costs"]) > 0  # type: ignore[misc]
    (tmp_path / "plan.toml").write_text(content["plan"]["recipe"])  # type: ignore[call-overload]
    assert load_recipe(tmp_path / "plan.toml").prefix == (9,)


def test_a_plan_is_written_or_missed(report: Path, tmp_path: Path) -> None:
    """By `debug compare`, on the same dumps."""
    plan, last = tmp_path / "plan.toml", report.parent / "11-plan-memory.mlir"
    command = [sys.executable, "-m", "mqc", "debug", "compare", "--length", "24", "--plan", plan]
    none = subprocess.run([*command, last, last], capture_output=True, text=True, check=True)
    assert "was not written: precision mends nothing here" in none.stderr
    assert not plan.exists()
    subprocess.run([*command, report.parent], capture_output=True, check=True)
    assert load_recipe(plan).precision


@pytest.fixture
def page(report: Path) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (CI installs one)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        complaints: list[str] = []
        opened.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(report.as_uri())
        yield opened
        assert complaints == []
        browser.close()


def test_plots_are_drawn(page: Page, report: Path) -> None:
    values = data(report)["values"]
    assert page.locator("#sqnr circle").count() == 2 * len(values)
    assert page.locator("#layers rect").count() == len({v["layer"] for v in values} - {None})
    assert page.locator("#range rect.dot").count() == len(values)
    for chart in ("sqnr", "layers", "range"):
        box = page.locator(f"#{chart} svg").bounding_box()
        assert box is not None and box["width"] >= 700 and box["height"] > 100
        for shape in page.locator(f"#{chart} .dot").all()[:20]:
            place = shape.bounding_box()
            assert place is not None and place["y"] >= box["y"] - 1
    assert page.locator("#summary tr").count() >= 10


def test_filter_sort_and_drill_down(page: Page, report: Path) -> None:
    values = data(report)["values"]
    assert page.locator("#table tbody tr").count() == len(values)
    page.locator("#filter").fill("layers.1.MLP")
    expected = [v["name"] for v in values if "layers.1.mlp" in str(v["name"])]
    assert page.locator("#table tbody tr").count() == len(expected) > 3
    assert page.locator("#count").inner_text() == f"{len(expected)} of {len(values)} values"
    page.locator("#table th", has_text="value").click()
    shown = page.locator("#table tbody td:first-child").all_inner_texts()
    assert shown == sorted(f"%{n}" for n in expected)
    page.locator("#table tbody tr", has_text="up_proj").click()
    assert page.locator("#detail h3").inner_text() == "%layers.1.mlp.up_proj"
    assert page.locator("#detail .histogram rect").count() == 96
    page.locator("#filter").fill("")
    page.locator("#bits").select_option("16")
    assert page.locator("#table tbody tr").count() == sum(v["bits"] == 16 for v in values) > 0
    page.locator("#sqnr circle").nth(5).click(force=True)
    assert page.locator("#detail h3").inner_text() == f"%{values[2]['name']}"


def test_tokens_that_carry_the_error(page: Page, report: Path) -> None:
    windows = data(report)["windows"]
    assert len(windows) == 1 and len(windows[0]) == 24
    spans = page.locator("#tokens .tokens span")
    assert spans.all_inner_texts() == [text for text, _ in windows[0]]  # type: ignore[has-type]
    worst = max(windows[0], key=lambda entry: entry[1])  # type: ignore[has-type]
    cells = page.locator("#worst tbody tr").first.locator("td").all_inner_texts()
    assert cells == [json.dumps(worst[0]), str(windows[0].index(worst)), f"{worst[1]:.4f}"]  # type: ignore[attr-defined]
    assert page.locator("#worst tbody tr").count() == 10


@pytest.mark.parametrize("how", ["dark", "print", "phone"])
def test_in_the_dark_on_paper_and_on_a_phone(page: Page, how: str, tmp_path: Path) -> None:
    """Text is to be read against its ground, and nothing is wider than the page but what scrolls."""
    if how == "dark":
        page.emulate_media(color_scheme="dark")
    elif how == "print":
        page.emulate_media(media="print", color_scheme="dark")
        assert not page.locator("nav").is_visible()
    else:
        page.set_viewport_size({"width": 390, "height": 800})
    page.screenshot(path=tmp_path / f"{how}.png", full_page=True)
    for place in ("body", "#summary td", "#values p"):
        ink = page.locator(place).first.evaluate("e => getComputedStyle(e).color")
        ground = page.locator(place).first.evaluate(
            """e => {
                while (getComputedStyle(e).backgroundColor == 'rgba(0, 0, 0, 0)') e = e.parentElement;
                return getComputedStyle(e).backgroundColor;
            }"""
        )
        light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, ground))
        assert abs(light - dark) > 250, (place, ink, ground)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")


def test_layers_and_passes_unfold(page: Page) -> None:
    page.locator("#layer").select_option("layers.1")
    shown = page.locator(".drawing:visible")
    assert shown.count() == 1 and "layers.1.mlp.up_proj" in shown.inner_html()
    entry = page.locator("#passes details", has_text="02-fold-norm")
    assert not entry.locator(".change").first.is_visible()
    entry.locator("summary").click()
    assert "gain:" in entry.locator(".change").first.inner_text()
