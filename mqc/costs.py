"""What a pass has to do for a model of some size, in counts, before there is a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """The size of a decoder LLM, by its config.

    matrices: `(outputs, inputs)` of the linears but the one that gives the logits.
    layers: decoder layers; hidden: width of the residual stream; vocabulary: rows of the table.
    parameters: elements of all tensors, each of the shared ones once; tied: whether the table gives the
        logits too.
    positions: most positions that the model was made for, None if the config does not say.
    mapped: whether the weights stay in the files they come from, so that loading does not read them.
    """

    matrices: tuple[tuple[int, int], ...]
    layers: int
    hidden: int
    vocabulary: int
    parameters: int
    tied: bool
    positions: int | None
    mapped: bool

    @property
    def weights(self) -> int:
        """Weights of the linears but the one that gives the logits."""
        return sum(n * k for n, k in self.matrices)

    @property
    def logits(self) -> int:
        """Weights of the linear that gives the logits."""
        return self.vocabulary * self.hidden

    @property
    def outputs(self) -> int:
        """What all linears but the last give for a token."""
        return sum(n for n, _ in self.matrices)

    @property
    def widest(self) -> int:
        """Most channels that a linear reads."""
        return max((k for _, k in self.matrices), default=self.hidden)


@dataclass(frozen=True)
class Work:
    """Counts of what takes time. Those of elementwise steps, and of calls, are what timings of three shapes
    come to (docs/measurements.md, sizes), and not each step counted by hand.

    products: multiply-accumulates of calibration's float products.
    elements: values that are put into a histogram, or steps that take as long.
    written: weights that are computed and written to temporary files.
    calls: calls of small ops, one after the other.
    """

    products: float = 0.0
    elements: float = 0.0
    written: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products, self.elements + other.elements,
            self.written + other.written, self.calls + other.calls,
        )  # fmt: skip


def walk(size: ModelSize, tokens: int, logits: bool = False) -> Work:
    """A float forward pass over calibration tokens, op by op (`mqc.compiler.observation.observe`)."""
    macs = size.weights + (size.logits if logits else 0)
    return Work(products=tokens * macs, elements=tokens * 2 * size.outputs, calls=size.layers * tokens / 32)
