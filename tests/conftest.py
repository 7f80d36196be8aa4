"""What all tests share."""

from __future__ import annotations

import os

# As the command line sets it, before torch is imported: waiting threads leave the core to others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
