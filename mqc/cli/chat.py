"""The command for conversations on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from mqc.cli.common import Options, app, errors, number, say
from mqc.cli.generation import (
    EngineKind,
    MinP,
    ParseSpecial,
    ProgramPath,
    RepetitionPenalty,
    Seed,
    Stop,
    System,
    Temperature,
    TemplateOption,
    Threads,
    TopK,
    TopP,
    chat_options,
    configured,
    shown,
)
from mqc.errors import InputError, MqcError, choices
from mqc.files import TEXT_BYTES
from mqc.runtime.sampling import Sampling
from mqc.runtime.session import DROP_OLDEST, Session

#: Most tokens of an answer by default; no more than a quarter of the context.
_NEW_TOKENS = 512
_PROMPT = "> "


@app.command()
def chat(
    path: ProgramPath,
    system: System = None,
    load: Annotated[Path | None, typer.Option(help="file of /save to go on from")] = None,
    overflow: Annotated[
        str, typer.Option(help="when the context is full: drop-oldest forgets the oldest turns, or refuse")
    ] = DROP_OLDEST,
    max_new_tokens: Annotated[
        int | None, number("most tokens of an answer; 512, or a quarter of the context")
    ] = None,
    stop: Stop = None,
    parse_special: ParseSpecial = False,
    template_option: TemplateOption = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    threads: Threads = None,
    option: Options = None,
    engine: EngineKind = "target",
) -> None:
    """Talk with a program. A line is a message; /help lists what else there is.

    Ctrl-C stops an answer, Ctrl-D ends the conversation. Without a terminal each line of standard input is
    a message.
    """
    program = configured(path, threads, option)
    if not program.tokenizer.has_template:
        raise InputError("the tokenizer has no chat template: mqc run --prompt completes texts")
    sampling = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "seed": seed,
    }  # fmt: skip
    Sampling.of_model(program.tokenizer.generation, **sampling)
    session = program.session(
        load, overflow=overflow, chat_options=chat_options(template_option, parse_special), engine=engine
    )
    talk = _Talk(session, max_new_tokens or min(_NEW_TOKENS, max(session.room // 4, 1)), stop or [], sampling)
    if system is not None:
        talk.set_system(system)
    talk.run()


class _Talk:
    """A session, and what a user types. most: tokens of an answer."""

    def __init__(self, session: Session, most: int, stop: list[str], sampling: dict[str, Any]) -> None:
        self.session, self.most, self.stop, self.sampling = session, most, stop, sampling
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/reset": (self.reset, "forget the conversation, but not the system message"),
            "/system": (self.system, "TEXT: replace the system message; without TEXT: remove it"),
            "/save": (self.save, "FILE: write the conversation and its cache"),
            "/load": (self.load, "FILE: go on from what /save wrote"),
            "/stats": (self.stats, "tokens of the last turn, and how full the context is"),
            "/help": (self.help, "this list"),
            "/quit": (self.quit, "end; so does Ctrl-D"),
        }

    def run(self) -> None:
        for line in _lines():
            try:
                if line.startswith("/"):
                    self.command(line)
                elif line.strip():
                    self.answer(line)
            except MqcError as error:
                say(f"error: {error}", errors, "red")
            except KeyboardInterrupt:  # as a command was at work
                print()

    def command(self, line: str) -> None:
        name, _, text = line.strip().partition(" ")
        if name not in self.commands:
            raise InputError(
                f"there is no {name}; {choices(name, self.commands)}. A message may begin with a space"
            )
        self.commands[name][0](text.strip())

    def answer(self, text: str) -> None:
        dropped = self.session.dropped
        pieces = self.session.stream(text, self.most, stop=self.stop, **self.sampling)
        try:
            for piece in pieces:
                print(shown(piece), end="", flush=True)
        except KeyboardInterrupt:
            pieces.close()
            print(" [stopped]", end="")
        print()
        if self.session.dropped > dropped:
            count = self.session.dropped - dropped
            say(f"(the context was full: the {count} oldest messages were forgotten)", errors)

    # ---- commands

    def reset(self, _: str) -> None:
        self.session.reset()
        say("(the conversation begins anew)", errors)

    def system(self, text: str) -> None:
        self.set_system(text)
        say(f"(there is {'a' if text else 'no'} system message now)", errors)

    def set_system(self, text: str) -> None:
        messages = self.session.messages
        if messages and messages[0].get("role") == "system":
            del messages[0]
        if text:
            messages.insert(0, {"role": "system", "content": text})

    def save(self, name: str) -> None:
        self.session.save(_file(name, "/save"))
        say(f"(saved {len(self.session.messages)} messages in {name})", errors)

    def load(self, name: str) -> None:
        self.session.restore(_file(name, "/load"))
        say(f"(loaded {len(self.session.messages)} messages from {name})", errors)

    def stats(self, _: str) -> None:
        turn, session = self.session.turn, self.session
        lines = [
            f"prompt: {turn.kept} tokens kept, {turn.prefilled} prefilled"
            + _rate(turn.prefilled, turn.prefill_seconds),
            f"answer: {turn.generated} tokens" + _rate(turn.generated - 1, turn.decode_seconds),
            f"context: {len(session.tokens)} of {session.room} tokens, {len(session.messages)} messages"
            + (f", {session.dropped} forgotten" if session.dropped else ""),
        ]
        say("\n".join(lines))

    def help(self, _: str) -> None:
        say("\n".join(f"{name:9}{told}" for name, (_, told) in self.commands.items()))

    def quit(self, _: str) -> None:
        raise typer.Exit


def _rate(tokens: int, seconds: float) -> str:
    return f", {tokens / seconds:.1f} tokens/s" if tokens > 0 and seconds else ""


def _file(name: str, command: str) -> Path:
    if not name or "\0" in name:
        raise InputError(f"{command} needs a file: {command} FILE")
    return Path(os.path.expanduser(name))


def _lines() -> Iterator[str]:
    """What a user types, line by line: with editing and earlier lines on a terminal."""
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):  # Python may be built without; lines can be typed all the same
            import readline  # noqa: F401
        say("(/help lists commands; Ctrl-C stops an answer, Ctrl-D ends)", errors)
    while True:
        try:
            line = input(_PROMPT) if terminal else sys.stdin.readline(TEXT_BYTES)
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            raise InputError(f"what was typed is no UTF-8 text: {error}") from error
        if not line and not terminal:
            return
        yield line.removesuffix("\n")
