"""The type of NumPy arrays whose dtype the text around them states."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
