"""`mqc chat` as a user drives it: a process on a terminal, and one that reads a pipe."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mqc as package
from mqc.runtime.program import Program
from tests import in_process
from tests.runtime.conftest import program, saved, talker  # noqa: F401  (fixtures)

SYSTEM = {"role": "system", "content": "be"}


class Terminal:
    """A terminal, 80 columns wide, with a program at its other end, which runs in a folder."""

    def __init__(self, *arguments: object, folder: Path | None = None) -> None:
        self._master, end = pty.openpty()

        def start() -> None:
            os.login_tty(end)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it

        self._process = subprocess.Popen(
            [sys.executable, "-m", "mqc", *map(str, arguments)],
            env={**os.environ, "TERM": "dumb"},
            cwd=folder,
            preexec_fn=start,
        )
        os.close(end)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str) -> str:
        """What appears up to a pattern, that included. Fails if it does not in a minute."""
        while not (found := re.search(pattern, self._seen)):
            assert self._more(60), f"no {pattern!r} in {self._seen!r}"
        text, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return text

    def interrupt(self) -> None:
        """Ctrl-C until there is a prompt. What was typed must have appeared.

        Python's readline does not notice one that comes before it waits for a key, and none at all as it
        reads a key that this Ctrl-C removed from the terminal.
        """
        for _ in range(60):
            self.type("\x03")
            while self._more(1):
                if "\n> " in self._seen:
                    self.until("\n> ")
                    return
        raise AssertionError(f"no prompt in {self._seen!r}")

    def _more(self, seconds: float) -> bool:
        """Whether something appeared."""
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # what Linux says when the other end is closed
            data = b""
        assert data, f"ended behind {self._seen!r}"
        self._seen += data.decode(errors="replace").replace("\r", "")
        return True

    def ask(self, line: str) -> str:
        """What is printed for a line, up to the next prompt."""
        self.type(f"{line}\n")
        self.until(re.escape(line) + "\n")
        return self.until("\n> ").removesuffix("> ")

    def status(self) -> int:
        """How the process ended."""
        return self._process.wait(60)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@contextmanager
def terminal(*arguments: object, folder: Path | None = None) -> Iterator[Terminal]:
    opened = Terminal(*arguments, folder=folder)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def talking(talker: Program, tmp_path: Path) -> Path:  # noqa: F811
    path = tmp_path / "talker.mqc"
    talker.save(path)
    return path


def test_a_conversation_on_a_terminal(talking: Path, tmp_path: Path) -> None:
    session = package.load(talking).session(messages=[SYSTEM])
    with terminal("chat", talking, "--system", "be", "--max-new-tokens", 5, folder=tmp_path) as user:
        assert "/help" in user.until("> ")
        for text in ("ab", "cd"):
            assert user.ask(text) == session.send(text, 5) + "\n"
        stats = user.ask("/stats")
        turn = session.turn
        assert f"{turn.kept} tokens kept, {turn.prefilled} prefilled" in stats
        assert "answer: 5 tokens, " in stats and "tokens/s" in stats
        assert f"context: {len(session.tokens)} of 318 tokens, 5 messages" in stats
        assert "saved 5 messages" in user.ask("/save held")
        after = session.fork()
        assert user.ask("ef") == after.send("ef", 5) + "\n"
        assert "loaded 5 messages" in user.ask("/load held")
        assert user.ask("ef") == after.messages[-1]["content"] + "\n"
        user.ask("/reset")
        session.reset()
        assert user.ask("ab") == session.send("ab", 5) + "\n"
        assert "there is a system message" in user.ask("/system no")
        session.messages[0] = {"role": "system", "content": "no"}
        assert user.ask("ab") == session.send("ab", 5) + "\n"
        assert "there is no system message" in user.ask("/system")
        del session.messages[0]
        assert user.ask("ab") == session.send("ab", 5) + "\n"
        assert "/stats" in user.ask("/help")
        assert "did you mean '/save'" in user.ask("/sav x")
        assert "/load needs a file" in user.ask("/load")
        assert "cannot read" in user.ask("/load .")
        user.type("\x04")
        assert user.status() == 0
    with terminal("chat", talking, "--load", tmp_path / "held", "--max-new-tokens", 5) as user:
        user.until("> ")
        assert user.ask("ef") == after.messages[-1]["content"] + "\n"
        user.type("/quit\n")
        assert user.status() == 0


def test_earlier_lines_come_back(talking: Path) -> None:
    with terminal("chat", talking, "--max-new-tokens", 5) as user:
        user.until("> ")
        user.ask("ab")
        user.type("\x1b[A\n")  # up
        assert "ab\n" in user.until("\n> ")
        assert "context: " in user.ask("/stats")
        assert "4 messages" in user.ask("/stats")


def test_an_interrupt_stops_the_answer_only(talking: Path) -> None:
    with terminal("chat", talking, "--max-new-tokens", 300, "--engine", "oracle") as user:
        user.until("> ")
        user.type("ab\n")
        user.until("ab\n..")
        user.type("\x03")
        user.until(r"\[stopped\]\n> ")
        answered = re.search(r"answer: (\d+) tokens", user.ask("/stats"))
        assert answered and 2 <= int(answered[1]) < 300
        user.type("xyz")
        user.until("xyz")
        user.interrupt()
        assert "2 messages" in user.ask("/stats")
        user.type("cd\n")
        user.until("cd\n..")
        user.type("\x03")
        user.until(r"\[stopped\]\n> ")
        assert "4 messages" in user.ask("/stats")


def test_lines_of_a_pipe_are_messages(talking: Path) -> None:
    session = package.load(talking).session()
    want = "".join(session.send(text, 5) + "\n" for text in ("ab", "cd"))
    run = in_process.mqc("chat", talking, "--max-new-tokens", 5, text="ab\n\ncd")
    assert (run.returncode, run.stdout, run.stderr) == (0, want, "")
    run = in_process.mqc("chat", talking, text="/save a\0b\n/load ~nobody-has-this-name/x\n/quit\nab")
    assert (run.returncode, run.stdout) == (0, "")
    assert "/save needs a file" in run.stderr and "cannot read ~nobody" in run.stderr
    assert in_process.mqc("chat", talking, text=b"\xff").returncode == 1


def test_a_full_context(talking: Path) -> None:
    lines = "\n".join(["a" * 60] * 5)
    run = in_process.mqc("chat", talking, "--max-new-tokens", 5, text=lines)
    assert run.returncode == 0 and "the 6 oldest messages were forgotten" in run.stderr.replace("\n", " ")
    run = in_process.mqc("chat", talking, "--max-new-tokens", 5, "--overflow", "refuse", text=lines)
    assert run.returncode == 0 and "do not fit the context" in run.stderr.replace("\n", " ")
    assert run.stdout.count("\n") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--overflow", "drop"), "overflow must be"),
        (("--temperature", "-1"), "temperature must be"),
        (("--load", "/nowhere"), "cannot read /nowhere"),
        (("--template-option", "x"), "takes NAME=VALUE"),
    ],
)
def test_refusals(saved: Path, options: tuple[str, ...], message: str) -> None:  # noqa: F811
    run = in_process.mqc("chat", saved, *options)
    assert run.returncode == 1 and message in run.stderr.replace("\n", " ")


def test_a_program_without_a_template(saved: Path) -> None:  # noqa: F811
    made = package.load(saved)
    files = {k: v for k, v in made.tokenizer.files.items() if not k.endswith(".jinja")}
    made.tokenizer = type(made.tokenizer)(files)
    made.save(saved.parent / "plain.mqc")
    run = in_process.mqc("chat", saved.parent / "plain.mqc")
    assert run.returncode == 1 and "no chat template" in run.stderr
