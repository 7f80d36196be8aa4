"""IR text and comparisons in Google's Model Explorer: its own extension loader, server and page."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from model_explorer.extension_manager import ExtensionManager
from playwright.sync_api import sync_playwright

from mqc.analysis.ir_text import parse_file
from mqc.debugging import model_explorer
from mqc.debugging.model_explorer import METRICS
from mqc.ir.module import ops_by_name, static_functions
from tests.compiled import dumped
from tests.in_process import mqc

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dumped(tmp_path_factory.mktemp("dumps"), "npu")


def test_graphs_of_a_dump(dumps: Path) -> None:
    """As Model Explorer's own runner has them: every function, op and edge."""
    path = next(dumps.glob("*-allocate-vtcm.mlir"))
    manager = ExtensionManager([model_explorer.__name__])
    manager.load_extensions()
    command = {"extensionId": "mqc", "cmdId": "convert", "modelPath": str(path), "settings": {},
               "deleteAfterConversion": False}  # fmt: skip
    graphs = {graph["id"]: graph for graph in manager.run_cmd(command)["graphs"]}
    module = parse_file(path)
    assert graphs.keys() == {"main", *static_functions(module)}
    ops, nodes = ops_by_name(module), {node["id"]: node for node in graphs["main"]["nodes"]}
    assert nodes.keys() - ops.keys() == {"ids", "positions", "return"} and not ops.keys() - nodes.keys()
    for name, op in ops.items():
        assert nodes[name]["label"] == op.name
        assert nodes[name]["namespace"] == "/".join(name.split(".")[:-1])
        assert len(nodes[name]["incomingEdges"]) == len(op.operands)
        assert {edge["sourceNodeId"] for edge in nodes[name]["incomingEdges"]} <= nodes.keys()
    attention = next(node for node in nodes.values() if node["label"] == "int.attention")
    assert {"loc", "heads"} <= {entry["key"] for entry in attention["attrs"]}
    for graph in graphs.values():
        assert len({node["id"] for node in graph["nodes"]}) == len(graph["nodes"])


def test_figures_at_nodes_in_the_page(dumps: Path, tmp_path: Path) -> None:
    """The page shows the graph, coloured by the file of figures."""
    figures = tmp_path / "figures"
    done = mqc("debug", "compare", dumps, "--length", 16, "--node-data", figures)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in figures.iterdir()} == set(METRICS)
    path = next(dumps.glob("*-choose-kernels.mlir"))
    found = json.loads((figures / "local_db.json").read_text())["main"]
    assert found["results"].keys() <= ops_by_name(parse_file(path)).keys() and len(found["results"]) > 20
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mqc", "debug", "explore", path, "--port", port, "--no-browser",
               "--node-data", figures / "local_db.json"]  # fmt: skip
    log = tmp_path / "log"
    told = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with open(log, "w") as out:
        server = subprocess.Popen([*map(str, command)], stdout=out, stderr=out, env=told)
    try:
        if CHROMIUM is None:
            pytest.skip("no Chromium")
        with sync_playwright() as playwright:
            # Graphs are drawn by WebGL.
            options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.goto(_address(log, server))
            page.get_by_text("local error, dB").first.wait_for(timeout=60_000)
            page.screenshot(path=tmp_path / "page.png")
            browser.close()
    finally:
        server.terminate()
        server.wait(20)
    assert "Traceback" not in log.read_text()


def _address(log: Path, server: subprocess.Popen[bytes]) -> str:
    """Where the server says that the page is."""
    for _ in range(600):
        if found := re.search(r"http://\S+", log.read_text()):
            return found[0]
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_what_cannot_be_shown(dumps: Path, tmp_path: Path) -> None:
    (tmp_path / "x.mlir").write_text("no module")
    done = mqc("debug", "explore", tmp_path / "x.mlir")
    assert done.returncode == 1 and "x.mlir:1:4" in done.stderr
    file = next(dumps.glob("00-*.mlir"))
    done = mqc("debug", "explore", file, "--node-data", tmp_path / "nothing.json")
    assert done.returncode == 1 and "no file of node data" in done.stderr
