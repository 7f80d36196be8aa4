"""`mqc serve` as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests import in_process
from tests.runtime.conftest import program, saved  # noqa: F401  (fixtures)


def test_it_serves_until_ctrl_c(saved: Path) -> None:  # noqa: F811
    """With the key from the environment, at a free port; the model has the folder's name."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mqc", "serve", saved, "--port", "0", "--sessions", "2"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "MQC_API_KEY": "secret"},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        told = process.stderr.readline()
        found = re.fullmatch(r"serving tiny at (http://127\.0\.0\.1:\d+) \(API at /v1\)\n", told)
        assert found, told
        request = Request(f"{found[1]}/v1/models", headers={"Authorization": "Bearer secret"})
        with urlopen(request, timeout=60) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


def test_a_port_that_is_taken(saved: Path) -> None:  # noqa: F811
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = in_process.mqc("serve", saved, "--port", port)
    assert result.returncode == 1
    assert f"cannot listen at 127.0.0.1, port {port}" in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [("--host", "no such host", "cannot listen at no such host"), ("--api-key", "", "the API key is empty")],
)
def test_what_cannot_be_served(saved: Path, option: str, value: str, told: str) -> None:  # noqa: F811
    result = in_process.mqc("serve", saved, option, value)
    assert (result.returncode == 1 and "Error" in result.stderr) or "error" in result.stderr
