"""Passes and backends by name, through the entry-point groups `mqc.passes` and `mqc.backends`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from mqc.errors import RecipeError, TargetError, choices

if TYPE_CHECKING:
    from mqc.backend import Backend
    from mqc.pass_base import Pass


def pass_names() -> list[str]:
    """Names of all registered passes."""
    return sorted({entry.name for entry in entry_points(group="mqc.passes")})


@cache
def pass_class(name: str) -> type[Pass]:
    """The pass registered under a kebab-case name. Raises `RecipeError` for an unknown one."""
    for entry in entry_points(group="mqc.passes", name=name):
        loaded: type[Pass] = entry.load()
        return loaded
    raise RecipeError(f"there is no pass {name!r}; {choices(name, pass_names())}")


@cache
def backends() -> dict[str, Backend]:
    """One instance of each registered backend, by name."""
    return {entry.name: entry.load()() for entry in entry_points(group="mqc.backends")}


def backend(name: str) -> Backend:
    """The backend registered under `name`. Raises `TargetError` for an unknown one."""
    found = backends().get(name)
    if found is None:
        raise TargetError(f"there is no backend {name!r}; {choices(name, sorted(backends()))}")
    return found


def backend_for(target: str) -> Backend:
    """The backend that serves a target. Raises `TargetError` for an unknown one."""
    for found in backends().values():
        if target in found.targets:
            return found
    raise TargetError(f"unknown target {target!r}; {choices(target, target_names())}")


def target_names() -> list[str]:
    return sorted(target for found in backends().values() for target in found.targets)
