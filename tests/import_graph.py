"""Who imports whom: the rooms of the house, read from the sources, and the table of them in the documents.

`python -m tests.import_graph docs/architecture.md` writes the table anew.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"mqc": "mqc", "passes": "mqc.passes", "backends": "mqc.backends"}

#: From top to bottom: each imports only from those further down. Modules of the top folder stand by
#: themselves: they are the API and what plug-ins are made from.
ROOMS = (
    "mqc.__main__", "mqc.cli", "mqc.reference", "mqc.plugin", "mqc", "mqc.api", "mqc.passes",
    "mqc.backends.npu", "mqc.backends.onnx", "mqc.backends.cpu", "mqc.backends", "mqc.debugging",
    "mqc.frontend", "mqc.serving", "mqc.runtime", "mqc.learning", "mqc.data", "mqc.compiler", "mqc.registry",
    "mqc.pass_base", "mqc.costs", "mqc.backend", "mqc.c_kernels", "mqc.analysis", "mqc.calibration",
    "mqc.dialects", "mqc.ir", "mqc.numerics", "mqc.tokens", "mqc.files", "mqc.arrays", "mqc.errors",
)  # fmt: skip
_BEGIN, _END = "<!-- made by make docs -->\n", "<!-- end -->"


@cache
def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere: in functions and under `TYPE_CHECKING` too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import name`: the module of that name, if there is one.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in sources() else node.module for name in names}
    return found


def room(module: str) -> str:
    """The room that a module stands in: the longest entry of `ROOMS` that its name begins with."""
    fitting = [name for name in ROOMS if module == name or module.startswith(f"{name}.")]
    found = max(fitting, key=len)
    if found == "mqc" and module != "mqc":
        raise AssertionError(f"{module} stands in no room: add it to ROOMS")
    return found


def edges() -> set[tuple[str, str]]:
    """Pairs of modules of the package, the first of which imports the second."""
    known = sources()
    return {(name, other) for name, path in known.items() for other in imports(path) & set(known)}


def table() -> str:
    """The rooms, what each holds by its docstring, and what it imports, as Markdown."""
    needs: dict[str, set[str]] = {name: set() for name in ROOMS}
    for module, other in edges():
        if room(module) != room(other):
            needs[room(module)].add(room(other))
    lines = ["| room | what it holds | imports |", "|---|---|---|"]
    for name in ROOMS:
        if name not in sources():
            continue
        text = ast.get_docstring(ast.parse(sources()[name].read_text(encoding="utf-8"))) or ""
        first = " ".join(text.split("\n\n")[0].split())
        used = ", ".join(f"`{n}`" for n in ROOMS if n in needs[name])
        lines.append(f"| `{name}` | {first} | {used or 'nothing'} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """A page with the table between its marks replaced."""
    return re.sub(f"(?<={re.escape(_BEGIN)}).*?(?={_END})", lambda _: table(), page, flags=re.S)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(with_table(target.read_text(encoding="utf-8")), encoding="utf-8")
