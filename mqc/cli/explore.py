"""`mqc debug explore`: IR text in Google's Model Explorer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mqc.cli.common import number
from mqc.cli.debug import debug
from mqc.errors import InputError


@debug.command("explore")
def explore_command(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="IR text: dumps, program.mlir")],
    node_data: Annotated[
        list[Path] | None, typer.Option(help="file of node data, of mqc debug compare --node-data")
    ] = None,
    port: Annotated[int, number("port on this machine", least=0)] = 8080,
    browser: Annotated[bool, typer.Option(help="open a browser")] = True,
) -> None:
    """Open IR text in Google's Model Explorer, until Ctrl-C: layers that unfold, with figures at their nodes.

    A second file stands beside the first in the same page.
    """
    from mqc.analysis.ir_text import parse_file

    try:
        from model_explorer import config, visualize_from_config
    except ModuleNotFoundError as error:
        raise InputError("Model Explorer is not installed: pip install 'mqc[explore]'") from error
    for path in paths:
        parse_file(path)
    for path in node_data or []:
        if not path.is_file():
            raise InputError(f"{path} is no file of node data; mqc debug compare --node-data DIR writes them")
    from mqc.debugging import model_explorer

    shown = config()
    for path in paths:
        shown.add_model_from_path(str(path), model_explorer.ADAPTER)
    for path in node_data or []:
        shown.add_node_data_from_path(str(path))
    extensions = [model_explorer.__name__]
    visualize_from_config(shown, port=port, extensions=extensions, no_open_in_browser=not browser)
