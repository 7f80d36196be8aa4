"""Documents: reference pages say what the declarations say, links hold, figures have their place."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from mqc.dialects.int_ops import Int
from mqc.dialects.llm import Llm
from mqc.reference import PAGES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WRITTEN = [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def anchors(page: Path) -> set[str]:
    """What `#…` may name in a page: its headings, as GitHub spells them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run make docs"


@pytest.mark.parametrize("op", [*Llm.operations, *Int.operations], ids=lambda op: op.name)
def test_every_op_has_a_formula(op: type) -> None:
    assert re.search(r"`.+`$", (op.__doc__ or "").strip())


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_links_between_documents_hold(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {target}#{anchor}"


def test_measured_sections_have_their_place() -> None:
    figures = runpy.run_path(str(ROOT / "benchmarks" / "figures.py"))
    page = DOCS / "measurements.md"
    for name in figures["SECTIONS"]:
        assert name in anchors(page) and figures["section"](page.read_text(), name)
