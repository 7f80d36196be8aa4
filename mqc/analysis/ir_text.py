"""Reading and writing modules as text."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError

from mqc.analysis.context import CompilerContext
from mqc.analysis.ir_parser import CachingParser
from mqc.analysis.verification import verify_module
from mqc.errors import IRError
from mqc.files import read_text

# An integer type of 1000 bits or more, in a line without strings and names.
_WIDE_TYPE = re.compile(r"(?:\b|(?<=x))[su]?i\d{4,}")
_NAME = re.compile(r"[%@#^][\w.$-]*")
# A string literal as MLIR's lexer takes it, or a comment.
_STRING_OR_COMMENT = re.compile(r'"(?:[^"\\\n\v\f]|\\(?:["nt\\]|[0-9A-Fa-f]{2}))*"|//[^\n]*')


def parse_module(text: str, name: str = "<text>", ctx: CompilerContext | None = None) -> ModuleOp:
    """Parse and verify IR text. Raises `IRError` with the place in the text."""
    _check_lines(text, name)
    try:
        module = CachingParser(ctx or CompilerContext(), text, name).parse_module()
        verify_module(module)
    except IRError as error:
        raise IRError(f"{name}: {error}") from error
    except ParseError as error:
        hint = ""
        if "is not registered" in str(error):
            hint = "\na dialect of one's own is known by the entry-point group mqc.dialects of its package"
        raise IRError(f"{error}{hint}") from error  # starts with name:line:column
    except (MemoryError, ModuleNotFoundError):  # no fault of the text
        raise
    except Exception as error:
        # Reading outside text must not end in a crash, whatever the parser trips over.
        raise IRError(f"{name}: malformed IR: {type(error).__name__}: {error}") from error
    return module


def _check_lines(text: str, name: str) -> None:
    """Refuse what xDSL takes without a bound: time for strings that do not end as they should, memory for
    integers of many bits."""
    for number, line in enumerate(text.split("\n"), 1):
        bare = _STRING_OR_COMMENT.sub("", line)
        if '"' in bare:
            raise IRError(f"{name}:{number}: a string does not end on its line, or holds a bad escape")
        if (wide := _WIDE_TYPE.search(_NAME.sub("", bare))) is not None:
            raise IRError(f"{name}:{number}: {wide[0]} has more bits than any type of mqc")


def print_module(module: ModuleOp, generic: bool = False) -> str:
    """IR text of a module. generic: every op in MLIR's generic form, which upstream's `mlir-opt
    --allow-unregistered-dialect` reads."""
    text = StringIO()
    Printer(text, print_generic_format=generic).print_op(module)
    return text.getvalue() + "\n"


def parse_file(path: Path) -> ModuleOp:
    """Parse and verify the IR text of a file. Raises `IRError`."""
    return parse_module(read_text(path, IRError), str(path))
