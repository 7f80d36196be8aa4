"""What changed between two modules, op by op, aligned by value names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Attribute

from mqc.ir.module import main_function, ops_by_name
from mqc.ir.op import MqcOp, WeightAttr


@dataclass(frozen=True)
class Change:
    """One difference. kind: `added`, `removed` or `changed`.

    value: name of the op's result, or `module`. op: the op's kind, the new one if it changed.
    fields: `(field, before, after)` for what changed; all fields of an op that is added or removed.
    """

    kind: str
    value: str
    op: str
    fields: tuple[tuple[str, str, str], ...]


def diff(before: ModuleOp, after: ModuleOp) -> list[Change]:
    """Differences in program order: removed ops stand where they were. Linear in the number of ops."""
    changes = []
    header = _fields(_module(before), _module(after))
    if header:
        changes.append(Change("changed", "module", "builtin.module", header))
    old = ops_by_name(before)
    new = ops_by_name(after)
    removed = [(i, name) for i, name in enumerate(old) if name not in new]
    place = {name: i for i, name in enumerate(old)}
    for name, op in new.items():
        while removed and name in place and removed[0][0] < place[name]:
            changes.append(_one("removed", removed.pop(0)[1], old))
        if name not in old:
            changes.append(_one("added", name, new))
            continue
        fields = _fields(_describe(old[name]), _describe(op))
        if fields:
            changes.append(Change("changed", name, op.name, fields))
    return changes + [_one("removed", name, old) for _, name in removed]


def render(changes: list[Change]) -> str:
    """Lines for people: `+` added, `-` removed, `~` changed, each changed field below."""
    sign = {"added": "+", "removed": "-", "changed": "~"}
    lines = []
    for change in changes:
        lines.append(f"{sign[change.kind]} %{change.value}  {change.op}")
        for field, before, after in change.fields:
            if change.kind == "changed":
                lines.append(f"    {field}: {before or '(none)'} -> {after or '(none)'}")
    count = {kind: sum(change.kind == kind for change in changes) for kind in sign}
    lines.append(", ".join(f"{n} {kind}" for kind, n in count.items()))
    return "\n".join(lines)


def _one(kind: str, name: str, ops: dict[str, MqcOp]) -> Change:
    fields = _describe(ops[name])
    shown = ((k, "", v) if kind == "added" else (k, v, "") for k, v in fields.items())
    return Change(kind, name, ops[name].name, tuple(shown))


def _fields(before: dict[str, str], after: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    names = dict.fromkeys([*before, *after])
    return tuple(
        (name, before.get(name, ""), after.get(name, ""))
        for name in names
        if before.get(name) != after.get(name)
    )


def _module(module: ModuleOp) -> dict[str, str]:
    signature = str(main_function(module).function_type)
    return {"@main": signature, **{k: _text(v) for k, v in sorted(module.attributes.items())}}


def _describe(op: MqcOp) -> dict[str, str]:
    operands = ", ".join(f"%{operand.name_hint}" for operand in op.operands)
    stated: dict[str, Any] = dict(sorted((op.properties | op.attributes).items()))
    return {
        "op": op.name,
        "operands": operands,
        "type": str(op.results[0].type),
        **{name: _text(value) for name, value in stated.items()},
    }


def _text(value: Attribute) -> str:
    if isinstance(value, WeightAttr):
        shape = "x".join(map(str, value.shape))
        return f"{value.key.data}@{value.hash.data} [{shape}] {value.type.get_element_type()}"
    return str(value)
