"""The error hierarchy: every failure a user can cause is an `MqcError`.

```
MqcError
├── ModelError            the model cannot be compiled
│   └── UnsupportedOpError    an op that has no form at the level it must enter
├── CalibrationError      calibration text missing, empty or too short
├── IRError               IR text or a module that does not parse or verify
│   └── PassError             a pass failed or left an invalid module
├── RecipeError           a recipe that cannot be read or does not apply
├── TargetError           unknown target, or an op that no kernel of it takes
│   └── ToolchainError        no C compiler, or it failed
├── ArtifactError         a saved program or checkpoint that is truncated, altered or of another format
├── StorageError          the disk is full, read-only or not writable
└── InputError            a prompt, token id or option out of range
```
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MqcError(Exception):
    """Base of all errors raised by mqc on purpose. Exit code 1 on the command line.

    Notes (`add_note`) say what to do next; the command line prints them below the message.
    """


class ModelError(MqcError):
    """The model cannot be compiled: wrong kind, unknown structure, NaN or infinite weights."""


def choices(name: str, names: Iterable[str]) -> str:
    """What to say of a name that does not exist: the nearest that does, and all."""
    there = list(names)
    near = get_close_matches(name, there, 1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(there)}"


def whole(error: Exception) -> str:
    """All that another library's error says: lines behind the first are indented."""
    return "\n  ".join(line for line in str(error).splitlines() if line.strip()) or type(error).__name__


class UnsupportedOpError(ModelError):
    """An op has no form at the level it must enter.

    Args:
        where: module path (front end) or value name (passes).
        what: the op that has no form.
        why: what was expected.
        source: source line that produced it, if known.
        known: what is supported.
    """

    def __init__(
        self, where: str, what: str, why: str, source: str = "", known: list[str] | None = None
    ) -> None:
        lines = [f"{where}: {what} {why}"]
        if source:
            lines.append(f"  traced at {source}")
        if known:
            lines.append(f"  known: {', '.join(known)}")
            lines.append("  to add one: docs/adding-an-op.md")
        super().__init__("\n".join(lines))
        self.where, self.what = where, what


class CalibrationError(MqcError):
    """Calibration text is missing, empty or too short."""


class IRError(MqcError):
    """IR text does not parse, or a module does not verify."""


class PassError(IRError):
    """A pass failed, or left a module that does not verify."""


class RecipeError(MqcError):
    """A recipe cannot be read, or names what does not exist."""


class TargetError(MqcError):
    """Unknown target, or an op that no kernel of the target takes."""


class ToolchainError(TargetError):
    """The C compiler is missing or failed."""


class ArtifactError(MqcError):
    """A saved program or checkpoint is truncated, altered, or of a format version this mqc does not read."""


class StorageError(MqcError):
    """A file could not be written: full disk, read-only folder, missing permission."""


class InputError(MqcError):
    """A prompt, token id or option is out of range."""
