"""What nodes of an FX graph of aten ops say: names, arguments, shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mqc.frontend.lanes import SHORT, Length, Table

aten = torch.ops.aten

#: Ops that change nothing in a model in evaluation mode, in f32.
IDENTITY = {
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.alias.default, aten.clone.default,
    aten.contiguous.default, aten.dropout.default, aten.type_as.default, aten.detach.default,
    aten.expand.default, aten._to_copy.default, aten.detach_.default, aten.lift_fresh_copy.default,
}  # fmt: skip


def live_nodes(graph: torch.fx.Graph) -> list[Node]:
    """Nodes the output depends on, in order."""
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op in ("output", "placeholder") or node in live or writes(node):
            live.update(node.all_input_nodes)
            live.add(node)
    return [n for n in graph.nodes if n in live]


def writes(node: Node) -> bool:
    """Whether an op writes to its first argument, which later ops may read."""
    return hasattr(node.target, "_schema") and node.target._schema.is_mutable


def op_name(target: Any) -> str:
    """An aten op's name without overload."""
    return target._schema.name.split("::")[-1] if hasattr(target, "_schema") else str(target)


def flattened(values: list[Any]) -> list[Any]:
    """Arguments, those inside lists too."""
    return [v for x in values for v in (flattened(x) if isinstance(x, list) else [x])]


def concrete(value: Any, context: int, short: bool) -> Any:
    """An argument with tables and lengths as numbers, of the whole context or of a few positions."""
    match value:
        case list():
            return [concrete(v, context, short) for v in value]
        case Length():
            found, number = (value.short, SHORT) if short else (value.value, context)
            return number if found is None else found
        case Table():
            return value.short if short else value.value
    return value


def is_number(value: Any) -> bool:
    """Whether an argument is no tensor."""
    return value is None or isinstance(
        value, int | float | bool | str | torch.dtype | torch.device | torch.layout
    )


def number_of(value: Any) -> float | None:
    """The one number that an argument is, if it is one."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, int | float) else None


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of an FX value for one token: the token axis has size 1, or what each token has of it, which
    follows token by token. Empty if the node is a list of values."""
    sizes = getattr(node.meta["val"], "shape", ())
    return tuple(d if isinstance(d, int) else _of_one_token(d) for d in sizes)


def _of_one_token(size: torch.SymInt) -> int:
    factor, rest = size.node.expr.as_coeff_Mul()
    return int(factor) if rest.is_Symbol and factor.is_Integer and factor > 0 else 1


def token_axis(node: Node) -> int | None:
    """The axis of an FX value whose size is the number of tokens, if it is one axis."""
    value = node.meta.get("val")
    axes = [i for i, d in enumerate(getattr(value, "shape", ())) if not isinstance(d, int)]
    return axes[0] if len(axes) == 1 else None
