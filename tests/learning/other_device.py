"""A second device for torch, made of the CPU's tensors and kernels, that refuses tensors of the CPU: for code
that is to run on CUDA, on machines without.

python -m tests.learning.other_device FOLDER    runs `CASES` on the CPU and on it
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from mqc.analysis.ir_text import print_module
from mqc.compiler.pass_manager import Pipeline
from mqc.learning import sensitivity, student
from mqc.passes import learn_ranges
from tests.compiled import imported
from tests.learning.test_student import CLOSED_FORM, evaluated
from tests.models import tiny_model

DEVICE = "other"
#: No SiLU among its ops: its gradient is another formula on a device without a kernel for it.
ARCHITECTURE = "gemma"

LEARN = ",learn-ranges{steps=4 length=32 lr_ranges=0.01 "
#: What follows `CLOSED_FORM`, which ends with assign-precision.
CASES = {
    "kl": LEARN + "lr_scales=0.01 lr_zeros=0.01 lr_biases=0.01}",
    "recomputed": LEARN + "lr_scales=0.01 memory=0}",
    "features": LEARN + 'loss="features" lr_clipping=0.01 weight_bits=4 group=16}',
    "hidden": LEARN + 'loss="hidden" lr_scales=0.01 lr_clipping=0.01 weight_bits=8}',
    "layer-wise": LEARN + 'method="layer-wise" lr_scales=0.01 lr_clipping=0.01 weight_bits=4}',
    "integers": ",quantize-weights{bits=4 keep_reference=true}"
    + LEARN
    + "lr_weights=0.01 lr_rounding=0.01 lr_biases=0.01}",
    "mse-grid": ',learn-ranges{method="mse-grid"}',
    "search": "{share=0.9 weights8=0.2}",
}

aten = torch.ops.aten
#: Indices may be tensors of the CPU, as on CUDA.
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class OtherTensor(torch.Tensor):
    """A tensor on the second device; `on_cpu` has its numbers. `computed` counts the ops on such tensors."""

    on_cpu: torch.Tensor
    computed = 0

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> OtherTensor:
        device, strides = torch.device(DEVICE, 0), on_cpu.stride()
        made: OtherTensor = torch.Tensor._make_wrapper_subclass(
            cls, on_cpu.shape, strides=strides, dtype=on_cpu.dtype, device=device
        )
        made.on_cpu = on_cpu
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.computed += 1
        kwargs = dict(kwargs or {})
        if func is aten.copy_.default:
            return copy(*args)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        strays = [list(t.shape) for t in tensors if not isinstance(t, cls) and t.dim()]
        if strays and func not in INDEXING:
            raise RuntimeError(f"{func}: tensors {strays} are on the CPU, others are not")
        result_device = torch.device(kwargs.get("device") or DEVICE)
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        args, kwargs = pytree.tree_map(numbers, (args, kwargs))
        result = func(*args, **kwargs)
        if result_device.type == "cpu":
            return result
        given = {id(t.on_cpu): t for t in tensors if isinstance(t, cls)}
        return pytree.tree_map_only(
            torch.Tensor, lambda t: given[id(t)] if id(t) in given else cls(t), result
        )


def numbers(leaf: Any) -> Any:
    return leaf.on_cpu if isinstance(leaf, OtherTensor) else leaf


def copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    numbers(target).copy_(numbers(source))
    return target


def create(function: Any, *sizes: Any, dtype: torch.dtype | None = None, **_: Any) -> OtherTensor:
    return OtherTensor(function(*sizes, dtype=dtype))


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []


def learned(passes: str) -> str:
    """The module after learning, and its logits."""
    ctx, module = imported(tiny_model(ARCHITECTURE))
    Pipeline.parse(CLOSED_FORM + passes).run(ctx, module)
    return f"{print_module(module)}\n{evaluated(ctx, module).tolist()}\n"


def main() -> None:
    _setup_privateuseone_for_python_backend(DEVICE, Backend())
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("copy_", copy, "PrivateUse1")
    for name in ("empty.memory_format", "empty_strided", "arange.start_step"):
        kernels.impl(name, partial(create, getattr(torch, name.partition(".")[0])), "PrivateUse1")
    # oneDNN and gradients in bfloat16 are the CPU's alone.
    student.product = student.product_of_integers = F.linear
    for device in ("cpu", DEVICE):
        learn_ranges.own_device = sensitivity.own_device = partial(torch.device, device)
        for name, passes in CASES.items():
            OtherTensor.computed = 0
            Path(sys.argv[1], f"{name}-{device}").write_text(learned(passes))
            assert (OtherTensor.computed > 100) == (device == DEVICE), f"{name} was not on {device}"


if __name__ == "__main__":
    # The CPU's fused attention adds in another order than the ops that another device's falls back to.
    with sdpa_kernel(SDPBackend.MATH):
        main()
