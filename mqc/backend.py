"""What a backend is: which ops it takes, and how it runs a program here."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from xdsl.dialects.builtin import ModuleOp

from mqc.arrays import Array
from mqc.errors import InputError, TargetError
from mqc.ir.op import MqcOp, State, WeightAttr
from mqc.ir.weight_store import WeightStore, numpy_dtype
from mqc.tokens import token_ids

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Kernel:
    """How a backend carries out an op.

    name: the kernel; stands in the IR as `kernel` and names the function that runs.
    layout: weight layout it reads (`mqc.numerics.layouts`), None for ops without a packed weight.
    fused_into: name of the user op kind that carries this op out as its first step, so that the
        result never reaches memory.
    row_sums: whether it wants the sums of a product's weights beside them.
    """

    name: str
    layout: str | None = None
    fused_into: str | None = None
    row_sums: bool = False


@dataclass(frozen=True)
class Limits:
    """Measured bounds of a machine: decode cannot be faster than its memory, prefill than its
    multipliers."""

    read_bandwidth_bytes_s: float
    int8_peak_mac_s: float
    threads: int


@dataclass(frozen=True)
class ModelledRun:
    """Figures of a model, not measured, for a prompt or for decoding; per token.

    bound: the unit that works longest. on_chip_bytes: on-chip memory in use at most. seconds_by_op: by
    kind of op.
    """

    tokens_per_s: float
    joules_per_token: float
    memory_bytes_per_token: float
    bound: str
    on_chip_bytes: int
    seconds_by_op: Mapping[str, float]


@dataclass(frozen=True)
class Modelled:
    """What a model says of a program on a chip that is not here."""

    chip: str
    prefill: ModelledRun
    decode: ModelledRun


@dataclass(frozen=True)
class Span:
    """An op at work.

    unit: what carries it out, such as a DMA queue. value: the name of its result. kind: the op. begin,
    seconds: s, from the begin of the run. facts: what else there is to say, by name.
    """

    unit: str
    value: str
    kind: str
    begin: float
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Timeline:
    """A prompt and some tokens behind it, op by op, as measured or as a model has it. title: on what."""

    title: str
    measured: bool
    spans: Sequence[Span]


class Engine(ABC):
    """One sequence running through an integer program.

    vocabulary: number of logits. context: positions in all, the prefix included.
    prefix_length: positions taken by the prefix. position: of the next token.
    """

    vocabulary: int
    context: int
    prefix_length: int
    position: int

    @abstractmethod
    def reset(self) -> None:
        """Forget the sequence; `position` is `prefix_length` again."""

    @abstractmethod
    def forward(self, ids: Ids, rows: int | None = None) -> Logits:
        """Append `ids` `[tokens]` to the sequence.

        Returns s32 logits `[rows, vocabulary]` of the last `rows` tokens, all of them if None.
        Raises `InputError` if a token id is out of range or the cache has no room.
        """

    # What sessions take besides. An engine without it still runs one sequence after another.

    def rewind(self, position: int) -> None:
        """Forget what the sequence has at `position` and behind it.

        Raises `InputError` as `check_rewind` does, `TargetError` by default: an engine need not be able to.
        """
        raise TargetError(f"{type(self).__name__} cannot go back to an earlier position")

    def read_state(self) -> dict[str, Array]:
        """A copy of what ops keep of the sequence, by the state's name, in its element type: rows
        `[position - prefix_length, *shape]` of one that grows, else the whole.

        Raises `TargetError` by default.
        """
        raise TargetError(f"{type(self).__name__} does not give its state: no fork, and nothing to save")

    def write_state(self, position: int, state: Mapping[str, Array]) -> None:
        """Be at `position` of a sequence with a state that `read_state` gave there.

        Raises `InputError` as `check_state` does, `TargetError` by default.
        """
        raise TargetError(f"{type(self).__name__} does not take a state")


def check_rewind(engine: Engine, states: Iterable[State], position: int) -> None:
    """Raise `InputError` unless a sequence that keeps `states` can go back to a position.

    A state that grows has a row for each position. One of fixed size is that of the last position alone.
    """
    if not engine.prefix_length <= position <= engine.position:
        raise InputError(f"position must be in [{engine.prefix_length}, {engine.position}], got {position}")
    fixed = [state.name for state in states if not state.grows]
    if fixed and position != engine.position:
        raise InputError(
            f"state {fixed[0]} is that of the last position alone and cannot go back; fork the session "
            "before, and go on with the copy"
        )


def check_state(engine: Engine, states: Iterable[State], position: int, given: Mapping[str, Array]) -> None:
    """Raise `InputError` unless `given` is `states` at a position: names, shapes and element types."""
    if not engine.prefix_length <= position <= engine.context:
        raise InputError(f"position must be in [{engine.prefix_length}, {engine.context}], got {position}")
    rows = position - engine.prefix_length
    wanted = {
        state.name: ((rows, *state.shape) if state.grows else state.shape, numpy_dtype(state.element))
        for state in states
    }
    if set(given) != set(wanted):
        raise InputError(f"the program keeps {sorted(wanted)}, and the state has {sorted(given)}")
    for name, (shape, dtype) in wanted.items():
        array = given[name]
        if array.shape != shape or array.dtype != dtype:
            raise InputError(f"state {name} is {array.dtype}{list(array.shape)}, not {dtype}{list(shape)}")


def check_ids(engine: Engine, ids: Ids) -> Ids:
    """`ids` as contiguous s32, if they are in the vocabulary and fit the engine's context.

    Raises `InputError` otherwise.
    """
    return token_ids(ids, engine.vocabulary, engine.context - engine.position)


def thread_count(threads: int | None) -> int:
    """`threads`, or one for each core that this process may run on: more would wait for each other.

    Raises `InputError` unless it is in [1, 256].
    """
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= threads <= 256:
        raise InputError(f"threads must be in [1, 256], got {threads}")
    return threads


def check_options(target: str, known: Mapping[str, type], given: Mapping[str, Any]) -> None:
    """Raise `InputError` for an option that the target does not have, or of another type."""
    for name, value in given.items():
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise InputError(f"target {target} has no option {name!r} here; it has {listed}")
        if not isinstance(value, known[name]):
            raise InputError(f"option {name} must be {known[name].__name__}, got {value!r}")


def parse_options(target: str, known: Mapping[str, type], texts: Sequence[str]) -> dict[str, Any]:
    """Options from `name=value` texts; a tuple is integers with commas, a bool `true` or `false`.

    Raises `InputError`.
    """
    read: dict[type, Callable[[str], Any]] = {
        tuple: lambda text: tuple(map(int, text.split(","))),
        bool: lambda text: ("false", "true").index(text) == 1,
    }
    found: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        kind = known.get(name, str)
        try:
            found[name] = read.get(kind, kind)(value)
        except ValueError as error:
            raise InputError(f"option {name} must be {kind.__name__}, got {value!r}") from error
    check_options(target, known, found)
    return found


class Backend(ABC):
    """Base of the backends, registered by target name in the entry-point group `mqc.backends`."""

    #: Name in `choose-kernels{backend=…}`.
    name: ClassVar[str]
    #: Targets of `mqc.compile` that it serves.
    targets: ClassVar[Sequence[str]]
    #: Passes that it wants after `choose-kernels`.
    passes: ClassVar[Sequence[str]] = ()
    #: Options of `engine`, `export` and `accompany`, each with its type; `tuple` is one of integers.
    options: ClassVar[Mapping[str, type]] = {}
    export_options: ClassVar[Mapping[str, type]] = {}
    save_options: ClassVar[Mapping[str, type]] = {}

    @abstractmethod
    def select(self, op: MqcOp) -> Kernel | None:
        """Kernel for an `int` op, None if no kernel takes it with these types."""

    def refuses(self, op: MqcOp) -> str | None:
        """Why no kernel takes what an `llm` op becomes, if its kind alone says so. `choose-kernels` asks
        before anything is calibrated. None by default."""
        return None

    @abstractmethod
    def engine(self, module: ModuleOp, weights: WeightStore, **options: Any) -> Engine:
        """An engine for a module that went through `choose-kernels` and `passes`."""

    def export(
        self,
        module: ModuleOp,
        weights: WeightStore,
        folder: Path,
        metadata: Mapping[str, str],
        **options: Any,
    ) -> None:
        """Write the files that a user takes to the target into a folder that holds the tokenizer's alone.

        `metadata` says where the program comes from: mqc_version, recipe, pipeline, source and prefix.

        Raises `TargetError` by default: what the backend runs may not be of use elsewhere.
        """
        raise TargetError(f"backend {self.name} exports no files")

    def accompany(
        self,
        module: ModuleOp,
        weights: WeightStore,
        offsets: Mapping[WeightAttr, int],
        folder: Path,
        metadata: Mapping[str, str],
        **options: Any,
    ) -> None:
        """Write into the folder of a saved program what else a user of the target wants there.

        offsets: where each constant begins in the folder's `weights.safetensors`. Nothing by default.
        """
        return None

    def values(self, module: ModuleOp, weights: WeightStore, ids: Ids, **options: Any) -> dict[str, Any]:
        """Every value that the engine computes for token ids `[tokens]`, by name (`ops_by_name`), as stored
        `[tokens, channels]`; what a kernel fuses away is not there. For debugging.

        Raises `TargetError` by default: a backend need not be able to.
        """
        raise TargetError(f"backend {self.name} does not give its values; compare its logits")

    def modelled(self, module: ModuleOp, prompt_tokens: int, new_tokens: int) -> Sequence[Modelled] | None:
        """Speed, energy and traffic by chip, where a program runs only on chips that are not here.

        None by default: what runs here is measured. Raises `InputError` if the tokens do not fit.
        """
        return None

    def timelines(
        self, module: ModuleOp, weights: WeightStore, prompt_tokens: int, new_tokens: int, **options: Any
    ) -> Sequence[Timeline]:
        """When each op runs: measured here, or for each chip that a model knows.

        Raises `TargetError` by default: a backend need not know; `InputError` if the tokens do not fit.
        """
        raise TargetError(f"backend {self.name} has no time line of its ops")

    def checks(self) -> Mapping[str, Callable[[], str]]:
        """What building and running for its targets takes of a machine, by name, for `mqc doctor`.

        A check says what is found here, and raises an `MqcError` that says how to get what is not. None by
        default.
        """
        return {}

    @abstractmethod
    def limits(self, **options: Any) -> Limits:
        """What this machine can do at most, measured now, for the engine's options."""
