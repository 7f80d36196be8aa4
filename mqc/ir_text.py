"""Reading and writing modules as text."""

from __future__ import annotations

from pathlib import Path

from xdsl.dialects.builtin import ModuleOp
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError

from mqc.errors import IRError
from mqc.ir import CompilerContext
from mqc.verification import verify_module


def parse_module(text: str, name: str = "<text>", ctx: CompilerContext | None = None) -> ModuleOp:
    """Parse and verify IR text. Raises `IRError` with the place in the text."""
    _check_quotes(text, name)
    try:
        module = Parser(ctx or CompilerContext(), text, name).parse_module()
        verify_module(module)
    except IRError as error:
        raise IRError(f"{name}: {error}") from error
    except ParseError as error:
        raise IRError(f"{name}: {str(error).removeprefix(f'{name}:')}") from error
    except Exception as error:
        # Reading outside text must not end in a crash, whatever the parser trips over.
        raise IRError(f"{name}: malformed IR: {type(error).__name__}: {error}") from error
    return module


def _check_quotes(text: str, name: str) -> None:
    """Refuse strings that do not end on their line: xDSL's lexer takes exponential time on them."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("//") and (line.count('"') - line.count('\\"')) % 2:
            raise IRError(f"{name}:{number}: a string does not end on its line")


def print_module(module: ModuleOp) -> str:
    return str(module) + "\n"


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IRError(f"{path}: cannot be read: {error}") from error
