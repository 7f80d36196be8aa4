"""The simulated NPU: its protocol, its errors, op lists as files, and the tools it needs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mqc.backends.npu import op_list, toolchain
from mqc.backends.npu.commands import FIELDS, Command
from mqc.backends.npu.op_list import CommandList, OpList
from mqc.backends.npu.simulator import Simulator
from mqc.errors import ArtifactError, TargetError, ToolchainError


def write(folder: Path, commands: list[Command]) -> tuple[Path, Path]:
    OpList(4096, 0, 3, [CommandList(2, commands)]).write(folder / "ops")
    (folder / "weights").write_bytes(bytes(range(24)))
    return folder / "ops", folder / "weights"


def test_logits_are_written_when_waited_for(tmp_path: Path) -> None:
    load = Command("load_weights", 0, {"transfer": 0, "bytes": 24, "source": 0})
    fields = {"transfer": 1, "a": 0, "rows": 2, "row_bytes": 8, "column": 4, "logits_row_bytes": 12}
    waits = [Command("wait", 0, {"transfer": i}) for i in range(2)]
    commands = [load, waits[0], Command("store_logits", 0, fields), waits[1]]
    with Simulator(*write(tmp_path, commands)) as simulator:
        for _ in range(2):
            answer = simulator.run(0, 0, [0, 0], rows=(0, 2), traces=[(0, 0, 4), (1, 4, 4)])
            want = np.frombuffer(bytes(range(16)), np.int32).reshape(2, 2)
            np.testing.assert_array_equal(answer.logits, np.pad(want, ((0, 0), (1, 0))))
        assert answer.traces[1] == bytes([4, 5, 6, 7])
        np.testing.assert_array_equal(simulator.run(0, 0, [0, 0], rows=(1, 1)).logits[0, 1:], want[1])


def test_a_fork_leaves_the_process_to_its_parent(tmp_path: Path) -> None:
    with Simulator(*write(tmp_path, [])) as simulator:
        simulator.run(0, 0, [0, 0])
        child = os.fork()
        if child == 0:
            try:
                simulator.run(0, 0, [0, 0])
            except TargetError as error:
                simulator.close()
                os._exit("before a fork" in str(error))
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        simulator.run(0, 0, [0, 0])


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    wait = Command("wait", 0, {"transfer": 5})
    simulator = Simulator(*write(tmp_path, [wait]))
    with pytest.raises(TargetError, match="status 1: no such transfer is under way: 5"):
        simulator.run(0, 0, [0, 0])
    with pytest.raises(TargetError, match="closed"):
        simulator.run(0, 0, [0, 0])
    start = Command("load_weights", 0, {"transfer": 5, "bytes": 4, "source": 0})
    with Simulator(*write(tmp_path, [start])) as simulator, pytest.raises(TargetError, match="before a wait"):
        simulator.run(0, 0, [0, 0])
    files = write(tmp_path, [wait])
    with Simulator(*files) as simulator, pytest.raises(TargetError, match="no such op list"):
        simulator._lists.append((0, 0))
        simulator.run(1, 0, [])
    data = bytearray(files[0].read_bytes())
    data[32] = 99  # the first command's opcode
    with Simulator(*files) as simulator:
        files[0].write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="no command at word 0"):
        op_list.read(files[0])


def test_weights_beyond_32_bit_addresses_are_refused(tmp_path: Path) -> None:
    files = write(tmp_path, [])
    for size, fits in ((3 << 29, True), ((3 << 29) + 1, False)):
        os.truncate(files[1], size)  # sparse
        with Simulator(*files) as simulator:
            if fits:
                assert simulator.run(0, 0, [0, 0], rows=(0, 2)).logits.shape == (2, 3)
                continue
            with pytest.raises(TargetError, match="too large for 32-bit addresses"):
                simulator.run(0, 0, [0, 0])


def test_op_lists_are_read_as_written(tmp_path: Path) -> None:
    fields = {name: 5 - i for i, name in enumerate(FIELDS["norm"])}
    commands = [Command("norm", 256, fields | {"epsilon": 2**40 + 1})]
    ops = OpList(4096, 64, 7, [CommandList(3, commands), CommandList(1, [])])
    ops.write(tmp_path / "ops")
    assert op_list.read(tmp_path / "ops") == ops
    assert "norm out=" in str(ops)
    (tmp_path / "ops").write_bytes(ops.to_bytes()[:-12])
    with pytest.raises(ArtifactError, match="cut off"):
        op_list.read(tmp_path / "ops")


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolchainError, match=r"qemu-hexagon is not found.*qemu-user"):
        toolchain.qemu()


def test_objects_can_be_taken_away(tmp_path: Path) -> None:
    assert {path.suffix for path in toolchain.objects(tmp_path)} == {".o"}
    assert (tmp_path / "commands.h").read_text().count("typedef struct") == len(FIELDS)
