"""The command that answers the OpenAI API by a program."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from typing import Annotated

import typer

from mqc.backend import thread_count
from mqc.cli.common import Options, app, errors, number, say
from mqc.cli.generation import ProgramPath, configured
from mqc.errors import InputError

_ANYWHERE = ("0.0.0.0", "::")


@app.command()
def serve(
    path: ProgramPath,
    host: Annotated[
        str, typer.Option(help="address to listen at; 0.0.0.0 for all of the machine's")
    ] = "127.0.0.1",
    port: Annotated[int, number("port to listen at; 0 for a free one", least=0, most=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="of the model; by default that of the folder")] = None,
    sessions: Annotated[
        int,
        number("requests that are answered at once, each with a cache of its own; they share the threads"),
    ] = 1,
    queue: Annotated[int, number("requests that may wait; further ones are refused", least=0)] = 64,
    api_key: Annotated[
        str | None, typer.Option(envvar="MQC_API_KEY", help="what clients must send as bearer token")
    ] = None,
    threads: Annotated[
        int | None, number("threads of a session; all cores by default, divided by the sessions")
    ] = None,
    option: Options = None,
) -> None:
    """Answer the OpenAI API by a program: chats, completions, and a page to talk with it.

    Ctrl-C ends it.
    """
    import uvicorn

    from mqc.serving.app import Settings, create_app

    if api_key == "":
        raise InputError("the API key is empty")
    hosts = _names(host)
    listening = _listen(host, port)  # before the program is read, which takes seconds
    with listening:
        program = configured(path, threads or max(thread_count(None) // sessions, 1), option)
        settings = Settings(name or path.resolve().name.removesuffix(".mqc"), sessions, queue, hosts, api_key)
        served = create_app(program, settings)
        address, taken = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        say(f"serving {settings.name} at http://{shown}:{taken} (API at /v1)", errors)
        if not _is_local(address) and api_key is None:
            say("anyone who reaches this machine may use it: --api-key asks for a key", errors, "yellow")
        config = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=5, server_header=False)
        with suppress(KeyboardInterrupt):  # raised again once the server has ended
            uvicorn.Server(config).run(sockets=[listening])


def _names(host: str) -> tuple[str, ...]:
    """Names by which clients may call the server: pages of other sites cannot, by a name that they chose."""
    if host in _ANYWHERE:
        return ("*",)
    return ("127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host)


def _is_local(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises `InputError` if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
        except BaseException:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot listen at {host}, port {port}: {error}; another one: --port") from error
    return listening
