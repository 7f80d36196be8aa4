"""Two files of AIMET encodings: what one quantizes otherwise than the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mqc.analysis.aimet import Encoding, Named
from mqc.debugging.tensor_dumps import plain_name


@dataclass(frozen=True)
class Difference:
    """A tensor that both files have, and not alike.

    bits, zeros, channels: of the first and of the second file; channels counts scales. ratio: of the second
    file's scale to the first's, of the channel where it is farthest from 1; None if they have other channels.
    """

    name: str
    part: str
    bits: tuple[int, int]
    zeros: tuple[int, int]
    channels: tuple[int, int]
    ratio: float | None


@dataclass(frozen=True)
class Differences:
    """equal: number of tensors that are alike. only_first, only_second: names that one file has alone, or has
    as integers alone."""

    differing: list[Difference]
    equal: int
    only_first: list[str]
    only_second: list[str]


def differences(first: Sequence[Named], second: Sequence[Named], tolerance: float) -> Differences:
    """Compare entries by name, in which signs that are no letters or digits do not count.

    tolerance: how far from 1 a ratio of scales may be, and they count as alike.
    """
    one, two = _by_name(first), _by_name(second)
    differing, equal = [], 0
    for key, entry in one.items():
        if key in two and (found := _difference(key[0], entry, two[key], tolerance)) is not None:
            differing.append(found)
        equal += key in two
    return Differences(
        differing,
        equal - len(differing),
        [entry.name for key, entry in one.items() if key not in two],
        [entry.name for key, entry in two.items() if key not in one],
    )


def _by_name(entries: Sequence[Named]) -> dict[tuple[str, str], Encoding]:
    return {(e.part, plain_name(e.name)): e.encoding for e in entries if e.encoding is not None}


def _difference(part: str, one: Encoding, two: Encoding, tolerance: float) -> Difference | None:
    channels = len(one.scale), len(two.scale)
    ratio = None
    if channels[0] == channels[1] or 1 in channels:
        most = max(channels)
        scales = zip(one.scale * (most // channels[0]), two.scale * (most // channels[1]), strict=True)
        ratio = max((b / a for a, b in scales), key=lambda r: abs(math.log(r)))
    bits, zeros = (one.bits, two.bits), (one.zero, two.zero)
    if ratio is not None and abs(ratio - 1) <= tolerance and bits[0] == bits[1] and zeros[0] == zeros[1]:
        return None
    return Difference(one.name, part, bits, zeros, channels, ratio)
