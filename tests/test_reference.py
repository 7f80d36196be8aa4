"""docs/ops.md and docs/passes.md say what the declarations say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mqc.dialects.int_ops import Int
from mqc.dialects.llm import Llm
from mqc.reference import PAGES

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run make docs"


@pytest.mark.parametrize("op", [*Llm.operations, *Int.operations], ids=lambda op: op.name)
def test_every_op_has_a_formula(op: type) -> None:
    assert re.search(r"`.+`$", (op.__doc__ or "").strip())


def test_links_between_documents_hold() -> None:
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
