"""Where a traced node came from: module path and source line."""

from __future__ import annotations

import re

from torch.fx import Node


def module_path(node: Node) -> str:
    """Path of the module that the node was traced in, without wrapper and base-model prefix."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return without_base(re.sub(r"^model\.?", "", path))


def without_base(path: str) -> str:
    """A module's path in a transformers model, without the base model's name in front."""
    return re.sub(r"^(model|transformer|gpt_neox)(\.|$)", "", path)


def source_line(node: Node) -> str:
    """`file.py:line` of the model's statement that produced the node; empty if unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    # A layer of torch.nn says less than the line that calls it.
    found = [frame for frame in frames if "/torch/nn/" not in frame[0]] or frames
    place = f"{found[-1][0].rsplit('/', 1)[-1]}:{found[-1][1]}" if found else ""
    return place.encode("ascii", "replace").decode()
