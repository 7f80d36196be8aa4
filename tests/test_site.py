"""The site of the documents: it builds, and its links lead somewhere."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import mqc.plugin
from tests.import_graph import ROOT, sources

SITE = runpy.run_path(str(ROOT / "docs" / "site.py"))


@pytest.mark.slow
def test_every_link_leads_somewhere(tmp_path: Path) -> None:
    assert SITE["build"](tmp_path / "site") == []
    api = tmp_path / "site" / "api"
    modules = [name for name in sources() if name != "mqc.__main__"]
    missing = [name for name in modules if not (api / f"{name.replace('.', '/')}.html").is_file()]
    assert missing == []
    page = (api / "mqc" / "plugin.html").read_text(encoding="utf-8")
    assert all(
        f'id="{name}"' in page for name in mqc.plugin.__all__ if name not in ("arithmetic", "int_ops", "llm")
    )


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html">b</a><a href="#here">x</a><h2 id="there">y</h2>')
    (tmp_path / "c.html").write_text('<a href="a.html#there">a</a><a href="https://example.org/">e</a>')
    assert SITE["dead_links"](tmp_path) == ["a.html: #here", "a.html: b.html"]
