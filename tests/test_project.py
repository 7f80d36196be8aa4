"""Rules of the house: which part may import which, and how long a file may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [p for folder in ("mqc", "passes", "backends") for p in sorted((ROOT / folder).rglob("*.py"))]
FORBIDDEN = {
    "mqc": ("mqc.passes", "mqc.backends"),
    "passes": ("mqc.backends",),
    "backends": ("mqc.passes",),
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        assert not name.startswith(FORBIDDEN[folder]), f"{path} imports {name}"


def test_dialects_and_runtime_need_no_compiler_parts() -> None:
    for folder in ("mqc/dialects", "mqc/runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            names = imports(path)
            assert not any(n.startswith(("mqc.frontend", "mqc.api", "mqc.pass_manager")) for n in names)
            assert "runtime" not in folder or not any(n.startswith(("torch", "transformers")) for n in names)


def test_files_are_short() -> None:
    sources = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "backends").rglob("*.[ch]")]
    for path in sources:
        assert len(path.read_text().splitlines()) <= 600, f"{path} has more than 600 lines"
