"""Running the op list of an `htp` module on the HVX runtime under QEMU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.htp_schedule import homes
from mqc.arrays import Array
from mqc.backend import Ids, Logits
from mqc.backends.npu.emit import SILENT, emit
from mqc.backends.npu.op_list import OpList
from mqc.backends.npu.runner import Observer, Runner, finals
from mqc.backends.npu.simulator import Simulator, Trace
from mqc.dialects.htp_core import tensor_bytes
from mqc.ir.module import function_ops, static_functions, weight_refs
from mqc.ir.op import channels, element_type, plain
from mqc.ir.weight_store import WeightStore, numpy_dtype

OP_LIST_FILE, WEIGHTS_FILE = "program.oplist", "weights.safetensors"


class QemuRunner(Runner):
    """A process that holds VTCM and cache. The weights are written to the temporary folder once."""

    def __init__(self, module: ModuleOp, weights: WeightStore) -> None:
        self._module = module
        self._index = {name: i for i, name in enumerate(static_functions(module))}
        self._folder = tempfile.TemporaryDirectory(prefix="mqc-npu-")
        try:
            self.ops = write(module, weights, Path(self._folder.name))
            self._simulator = self._start()
        except BaseException:
            self._folder.cleanup()
            raise

    def _start(self) -> Simulator:
        folder = Path(self._folder.name)
        return Simulator(folder / OP_LIST_FILE, folder / WEIGHTS_FILE)

    def begin(self, clear: bool) -> None:
        """A process that has ended, as after an interrupt, is started again; one with states to clear too."""
        if clear:
            self._simulator.close()
        if self._simulator.closed:
            self._simulator = self._start()

    def run(
        self, name: str, position: int, ids: Ids, first: int, count: int, observe: Observer | None = None
    ) -> Logits:
        index = self._index[name]
        watched = self._watched(name) if observe is not None else {}
        traces = sorted((trace, value) for value, trace in watched.items())
        answer = self._simulator.run(index, position, ids, (first, count), [trace for trace, _ in traces])
        wanted = finals(self._module, name)
        for (_, value), data in zip(traces, answer.traces, strict=True):
            result = wanted[value].results[0]
            assert observe is not None
            rows = np.frombuffer(data, numpy_dtype(element_type(result)))
            observe(value, rows.reshape(-1, channels(result)))
        return answer.logits

    def packets(self, name: str, position: int, ids: Ids) -> Array:
        """Packets that each command of a function takes, u32 `[commands]`."""
        answer = self._simulator.run(self._index[name], position, ids, packets=True)
        assert answer.packets is not None
        return answer.packets

    def _watched(self, name: str) -> dict[str, Trace]:
        """By value: the last command that writes it, and where it lies."""
        function = static_functions(self._module)[name]
        number = iter(range(len(self.ops.lists[self._index[name]].commands)))
        commands = {op: next(number) for op in function_ops(function) if not isinstance(op, SILENT)}
        home = homes(function)
        return {
            value: (
                commands[op],
                int(plain(home[op.results[0]].attributes["offset"])),
                tensor_bytes(op.results[0].type),
            )
            for value, op in finals(self._module, name).items()
        }

    def close(self) -> None:
        self._simulator.close()
        self._folder.cleanup()


def write(module: ModuleOp, weights: WeightStore, folder: Path) -> OpList:
    """Write the op list and the weights of a module into a folder; return the op list."""
    offsets = weights.save(folder / WEIGHTS_FILE, weight_refs(module))
    ops = emit(module, offsets.__getitem__)
    ops.write(folder / OP_LIST_FILE)
    return ops
