"""Runs op lists on the HVX runtime under QEMU, a process that answers requests by pipes."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from mqc.arrays import Array
from mqc.backends.npu import op_list, toolchain
from mqc.errors import TargetError

#: After a command, bytes of VTCM: (index of the command, address, bytes).
Trace = tuple[int, int, int]


@dataclass(frozen=True)
class Answer:
    """What a run gives. logits: s32 [rows, vocabulary]. traces: in the order asked for. packets: of each
    command, None if not asked for."""

    logits: Array
    traces: list[bytes]
    packets: Array | None = None


class Simulator:
    """A started runtime. Its KV cache starts zeroed and lives as long as it does."""

    def __init__(self, op_list_file: Path, weights_file: Path) -> None:
        ops = op_list.read(op_list_file)
        self._vocabulary = ops.vocabulary
        self._lists = [(item.tokens, len(item.commands)) for item in ops.lists]
        # A file, because nobody would read a pipe while the process works.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [*toolchain.qemu(), str(toolchain.build()), str(op_list_file), str(weights_file)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._opened_by = os.getpid()

    def run(
        self,
        list_index: int,
        position: int,
        ids: Sequence[int] | Array,
        rows: tuple[int, int] = (0, 0),
        traces: Sequence[Trace] = (),
        packets: bool = False,
    ) -> Answer:
        """Execute a list for tokens `ids` from `position` on.

        Args:
            rows: first row of the logits that are returned, and how many.
            traces: sorted by command.

        Raises `TargetError` with the process' status and messages if it ends.
        """
        tokens, commands = self._lists[list_index]
        assert len(ids) == tokens, f"list {list_index} takes {tokens} tokens, got {len(ids)}"
        request = [list_index, position, *rows, int(packets), len(traces), *ids]
        request += [number for trace in traces for number in trace]
        try:
            self._send(np.array(request, "<i4").tobytes())
            traced = [self._receive(count) for _, _, count in traces]
            logits = np.frombuffer(self._receive(4 * rows[1] * self._vocabulary), "<i4")
            counts = np.frombuffer(self._receive(4 * commands), "<u4") if packets else None
            executed = int.from_bytes(self._receive(4), "little")
            assert executed == commands, f"{executed} of {commands} commands were executed"
        except BaseException:
            self.close()  # an answer half read would be taken for the next one
            raise
        return Answer(logits.reshape(rows[1], self._vocabulary), traced, counts)

    def close(self) -> None:
        """End the process; harmless when it has ended, and in a fork, whose parent it still serves."""
        if self._errors.closed:
            return
        if self._opened_by == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # bytes that the process did not take
                pipe.close()
        self._errors.close()

    @property
    def closed(self) -> bool:
        """Whether the process was ended."""
        return self._errors.closed

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        if self._errors.closed:
            raise TargetError("the NPU simulator is closed")
        if self._opened_by != os.getpid():
            raise TargetError("the NPU simulator was started before a fork; start one in each process")
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            self._fail()

    def _receive(self, count: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) < count:
            self._fail()
        return data

    def _fail(self) -> None:
        """The process has closed its pipes: say why it ended."""
        status = self._process.wait()
        self._errors.seek(0)
        message = self._errors.read().decode(errors="replace").strip()
        raise TargetError(f"the NPU simulator ended with status {status}: {message or 'no message'}")
