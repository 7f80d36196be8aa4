"""The packages that mqc asks for, by extra."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

#: A requirement of `importlib.metadata`: the package's name, and the extra that asks for it.
_REQUIREMENT = re.compile(r"([\w.-]+)[^;]*(?:;.*extra == [\"'](.+)[\"'])?")


def packages() -> dict[str, list[str]]:
    """Names of packages by the extra that brings them; those that are always there under the empty name."""
    found: dict[str, list[str]] = {}
    for text in requires("mqc") or ():
        if named := _REQUIREMENT.match(text):
            found.setdefault(named[2] or "", []).append(named[1])
    return found


def extra_of(module: str) -> str | None:
    """The extra that brings the package of a module of this name."""
    return next(
        (extra for extra, names in packages().items() for name in names if _is(name, module) and extra), None
    )


def installed(package: str) -> str | None:
    """The version of a package that is there, None if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is(package: str, module: str) -> bool:
    return package.replace("-", "_") == module
