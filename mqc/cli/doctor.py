"""The command that says what is there on a machine, and how to get what is not."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable

from mqc.backend import thread_count
from mqc.cli.common import AsJson, app, say, show
from mqc.cli.packages import installed, packages
from mqc.errors import MqcError
from mqc.ir.spill import folder
from mqc.registry import backends


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What is installed and found here: packages by extra, instruction set, compilers, simulators."""
    machine = {
        "mqc": str(installed("mqc")),
        "Python": f"{platform.python_version()}, {platform.python_implementation()}",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": str(thread_count(None)),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "temporary files": f"{folder()}, {shutil.disk_usage(folder()).free / 2**30:.1f} GiB free",
    }
    there = {extra: {name: installed(name) for name in names} for extra, names in packages().items()}
    tools = {
        name: {what: _found(check) for what, check in backend.checks().items()}
        for name, backend in sorted(backends().items())
    }
    data = {
        "machine": machine,
        "packages": {extra or "mqc": found for extra, found in there.items()},
        "backends": {
            name: {what: {"ok": ok, "found": told} for what, (ok, told) in found.items()}
            for name, found in tools.items()
        },
    }
    rows = [*machine.items(), *((_title(extra), _told(extra, found)) for extra, found in there.items())]
    rows += [
        (f"{name}: {what}", told if ok else f"missing: {told}")
        for name, found in tools.items()
        for what, (ok, told) in found.items()
    ]
    show(data, as_json, ("found here",), rows)
    if not as_json and any(not ok for found in tools.values() for ok, _ in found.values()):
        say("What is missing is needed for these backends only.")


def _found(check: Callable[[], str]) -> tuple[bool, str]:
    """Whether a check succeeds, and what it says."""
    try:
        return True, check()
    except MqcError as error:
        return False, str(error)


def _title(extra: str) -> str:
    return f"packages of mqc[{extra}]" if extra else "packages"


def _told(extra: str, found: dict[str, str | None]) -> str:
    there = [f"{name} {version}" for name, version in found.items() if version]
    lacking = [name for name, version in found.items() if not version]
    if lacking:
        how = f"pip install 'mqc[{extra}]'" if extra else "pip install mqc"
        there.append(f"missing: {', '.join(lacking)} ({how})")
    return ", ".join(there)
