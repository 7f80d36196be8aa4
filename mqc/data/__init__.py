"""Packaged text, for calibration and evaluation: WikiText-2, questions with answers, and code. See NOTICE."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from importlib.resources import files
from typing import Literal

from mqc.errors import ArtifactError

#: Never calibrate on `test`.
Part = Literal["calibration", "test"]

_SHA256 = {
    "text-calibration.txt": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    "text-test.txt": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    "questions-calibration.jsonl": "d3b1f8c68e0436ae66eee8e4660b2d4b7cfb67456431714851b94ce5f262d8c5",
    "questions-test.jsonl": "c560834ce8653ede98114da06406ba8e12b26fb1cc3a309a2f7707de5e8125dd",
    "code-calibration.txt": "8de12692b4e0e28e4dceb1cdc6c8128efbbdb4805063246713623327eda71d34",
    "code-test.txt": "baa8285caa21738d75b82e5bf1b0773fc6b9a5c6736c3254d5bfb116d636d40e",
}


def text(part: Part) -> str:
    """WikiText-2's validation split (`calibration`) or test split, the official bytes.

    Raises `ArtifactError` if the packaged file was altered.
    """
    return _content(f"text-{part}.txt")


def code(part: Part) -> str:
    """Modules of Python's standard library. Raises `ArtifactError` if the packaged file was altered."""
    return _content(f"code-{part}.txt")


def questions(part: Part) -> list[tuple[str, str]]:
    """Questions of ARC-Easy's test split with the right answer: rows 1,200 to 1,699 (`calibration`), or 1,800
    to 2,199. The first 1,200 are left for the task itself.

    Raises `ArtifactError` if the packaged file was altered.
    """
    rows = map(json.loads, _content(f"questions-{part}.jsonl").splitlines())
    return [(row["question"], row["answer"]) for row in rows]


def _content(name: str) -> str:
    packed = (files(__package__) / f"{name}.gz").read_bytes()
    try:
        data = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"packaged file {name!r} was altered; reinstall mqc") from error
    if hashlib.sha256(data).hexdigest() != _SHA256[name]:
        raise ArtifactError(f"packaged file {name!r} was altered; reinstall mqc")
    return data.decode("utf-8")
