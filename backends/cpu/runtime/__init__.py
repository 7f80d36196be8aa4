"""C sources around the kernels. The engine serves Python too; the rest is for exported projects."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files(__package__)))
#: Where an app looks for headers.
INCLUDE = FOLDER / "include"
#: What a program's library for Python holds besides the kernels, and the headers of that.
ENGINE = "engine.c"
ENGINE_HEADERS = ("engine.h", "memory.h", "include/mqc_common.h")
