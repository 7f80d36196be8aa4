"""Packaged text: WikiText-2 (raw), for calibration and evaluation. See NOTICE."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from importlib.resources import files
from typing import Literal

from mqc.errors import ArtifactError

_SHA256 = {
    "calibration": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
}


def text(name: Literal["calibration", "test"]) -> str:
    """WikiText-2's validation split (`calibration`) or test split, the official bytes.

    Never calibrate on `test`. Raises `ArtifactError` if the packaged file was altered.
    """
    packed = (files(__package__) / f"wikitext2-{name}.txt.gz").read_bytes()
    try:
        data = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"packaged text {name!r} was altered; reinstall mqc") from error
    if hashlib.sha256(data).hexdigest() != _SHA256[name]:
        raise ArtifactError(f"packaged text {name!r} was altered; reinstall mqc")
    return data.decode("utf-8")
