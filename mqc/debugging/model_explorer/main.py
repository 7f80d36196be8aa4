"""The extension that Model Explorer loads: a graph for each function of IR text.

Nodes are values, grouped by the modules that their names state: `layers.3.mlp.act_fn` stands in
`layers/3/mlp`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_explorer import Adapter, AdapterMetadata, ModelExplorerGraphs
from model_explorer.graph_builder import Graph, GraphNode, IncomingEdge, KeyValue, MetadataItem
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue

from mqc.analysis.ir_text import parse_file
from mqc.debugging.model_explorer import ADAPTER
from mqc.ir.module import named_ops


class IRAdapter(Adapter):
    """Reads the IR text of dumps and programs."""

    metadata = AdapterMetadata(
        id=ADAPTER,
        name="mqc IR",
        description="IR text of mqc: dumps (NN-pass.mlir), program.mlir",
        fileExts=["mlir"],
    )

    def convert(self, model_path: str, settings: dict[str, Any]) -> ModelExplorerGraphs:
        """A graph for each function, called as it. Raises `IRError` for text that is no module."""
        module = parse_file(Path(model_path))
        return {"graphs": [_graph(op) for op in module.ops if isinstance(op, FuncOp)]}


def _graph(function: FuncOp) -> Graph:
    block = function.body.block
    names: dict[SSAValue, str] = {}
    nodes = []
    for argument in block.args:
        names[argument] = argument.name_hint or f"argument{argument.index}"
        nodes.append(GraphNode(names[argument], "argument"))
        nodes[-1].outputsMetadata = _outputs(argument, names[argument])
    for name, op in named_ops(function).items():
        names[op.results[0]] = name
        nodes.append(_node(name, op, names, "/".join(name.split(".")[:-1])))
        nodes[-1].outputsMetadata = _outputs(op.results[0], name)
    if block.last_op is not None:
        nodes.append(_node("return", block.last_op, names))
    return Graph(function.sym_name.data, nodes)


def _node(name: str, op: Operation, names: dict[SSAValue, str], namespace: str = "") -> GraphNode:
    node = GraphNode(name, op.name, namespace)
    node.attrs = [KeyValue(key, text) for key, text in _attributes(op).items()]
    node.incomingEdges = [
        IncomingEdge(names[operand], targetNodeInputId=str(i)) for i, operand in enumerate(op.operands)
    ]
    return node


def _outputs(value: SSAValue, name: str) -> list[MetadataItem]:
    return [MetadataItem("0", [KeyValue("__tensor_tag", name), KeyValue("type", str(value.type))])]


def _attributes(op: Operation) -> dict[str, str]:
    return {name: str(value).strip('"') for name, value in {**op.properties, **op.attributes}.items()}
