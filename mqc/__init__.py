"""mqc: a compiler from Hugging Face decoder LLMs to integer-only programs.

```python
import mqc

program = mqc.compile("demo", target="cpu-int8")
print(program.generate("The capital of France is", max_new_tokens=20))
program.save("smollm2.mqc")
```

`mqc.load` and the program it returns need neither torch nor transformers; `mqc.compile` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqc.errors import MqcError

if TYPE_CHECKING:
    from pathlib import Path

    from mqc.api import compile, estimate, pipeline
    from mqc.compiler.recipe import Recipe
    from mqc.pass_base import Pass
    from mqc.runtime.program import Program
    from mqc.runtime.session import Session

_HOME = {
    "compile": "mqc.api",
    "estimate": "mqc.api",
    "pipeline": "mqc.api",
    "Pass": "mqc.pass_base",
    "Recipe": "mqc.compiler.recipe",
    "Program": "mqc.runtime.program",
    "Session": "mqc.runtime.session",
}

__all__ = ["MqcError", "Pass", "Program", "Recipe", "Session", "compile", "estimate", "load", "pipeline"]


def load(path: str | Path) -> Program:
    """Read a program that `Program.save` or `mqc compile` wrote.

    Raises `ArtifactError` if a file is missing, truncated or altered, or of another format version.
    """
    from mqc.runtime.program import Program

    return Program.load(path)


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import mqc` is quick and does without torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("mqc")
    if name not in _HOME:
        raise AttributeError(f"module 'mqc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
