"""Rules of the house: which part may import which, and how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import networkx as nx
import pytest

from mqc import errors, plugin
from tests.import_graph import ROOMS, ROOT, edges, imports, room, sources, with_table


@pytest.mark.parametrize("name", sources())
def test_rooms_import_only_from_below(name: str) -> None:
    for other in imports(sources()[name]) & set(sources()):
        here, there = ROOMS.index(room(name)), ROOMS.index(room(other))
        assert here <= there, f"{name} imports {other}, which stands above it"


def test_passes_and_backends_are_reached_by_name_only() -> None:
    for name, other in edges():
        target = room(other)
        if target.startswith(("mqc.passes", "mqc.backends")):
            outer = ".".join(target.split(".")[:2])
            assert name.startswith(outer), f"{name} imports {other}: ask mqc.registry for it"


def test_no_circle_of_imports() -> None:
    graph = nx.DiGraph(edges())
    circles = [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]
    assert not circles


def test_messages_that_the_docs_explain_are_there() -> None:
    """Of each quoted message, what stands between its `…` is in a text of the code."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sources().values())
    texts = "\0".join(
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert len(quoted) > 25
    assert not [m for m in quoted for part in m.split("…") if part.strip() and part.strip() not in texts]


def test_the_table_of_rooms_is_up_to_date() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert page == with_table(page), "run make docs"


def test_the_runtime_needs_no_torch() -> None:
    for name, path in sources().items():
        if room(name) == "mqc.runtime":
            assert not any(n.startswith(("torch", "transformers")) for n in imports(path))


def test_the_plug_in_module_gives_what_it_lists() -> None:
    """Backends run programs where torch is not installed, and import from there."""
    code = """
import sys
sys.modules["torch"] = None
import mqc.plugin
known = set(mqc.plugin.__all__) - set(mqc.plugin._WITH_TORCH)
assert all(hasattr(mqc.plugin, name) for name in known)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(hasattr(plugin, name) for name in plugin.__all__)
    assert set(plugin._WITH_TORCH) <= set(plugin.__all__)
    told = set(re.findall(r"\w+", " ".join(re.findall("`(.+?)`", plugin.__doc__ or ""))))
    assert set(plugin.__all__) <= told | set(vars(errors)), "the docstring lists the names too"


def test_files_are_short() -> None:
    written = [*sources().values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "backends").rglob("*.[ch]")]
    for path in written:
        assert len(path.read_text().splitlines()) <= 600, f"{path} has more than 600 lines"
