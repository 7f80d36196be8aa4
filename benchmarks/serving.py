"""A server under load: clients that talk, stream, and now and then go away in the middle of an answer.

    python benchmarks/serving.py PROGRAM [--clients 8] [--seconds 600] [--sessions 2]

Prints a Markdown table: requests, errors, tokens per second, the seconds of a request, and the memory of the
server (RssAnon) after a tenth of the time and at the end.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import openai

QUESTIONS = (
    "What is the capital of France?", "Name three animals.", "Why is the sky blue?", "Write about rain.",
    "What is 7 times 8?", "Who wrote Hamlet?", "Say it in other words.", "Tell me more.",
)  # fmt: skip
#: One answer of so many is left in the middle.
LEFT = 10


class Load:
    """What clients did, together."""

    def __init__(self, address: str, model: str, end: float) -> None:
        self.address, self.model, self.end = address, model, end
        self.seconds: list[float] = []
        self.tokens = self.left = 0
        self.errors: list[str] = []
        self._lock = threading.Lock()

    def client(self, number: int) -> None:
        """Conversations of up to four turns, one after the other, until the end."""
        choose = random.Random(number)
        with openai.OpenAI(base_url=f"{self.address}/v1", api_key="any", max_retries=0, timeout=600) as api:
            while time.time() < self.end:
                messages: list[dict[str, str]] = []
                for _ in range(choose.randint(1, 4)):
                    messages.append({"role": "user", "content": choose.choice(QUESTIONS)})
                    try:
                        said = self.ask(api, messages, choose)
                    except openai.OpenAIError as error:
                        with self._lock:
                            self.errors.append(repr(error))
                        break
                    if said is None or time.time() >= self.end:
                        break
                    messages.append({"role": "assistant", "content": said})

    def ask(self, api: openai.OpenAI, messages: list[dict[str, str]], choose: random.Random) -> str | None:
        """An answer; None if this client goes away in the middle of it."""
        began, said, count = time.perf_counter(), "", 0
        leaves = choose.randrange(LEFT) == 0
        stream = api.chat.completions.create(
            model=self.model, messages=messages, stream=True, max_tokens=choose.randint(8, 64),
            temperature=0.7, stream_options={"include_usage": True},
        )  # fmt: skip
        for chunk in stream:
            if chunk.choices:
                said += chunk.choices[0].delta.content or ""
            elif chunk.usage:
                count = chunk.usage.completion_tokens
            if leaves and said:
                stream.close()
                with self._lock:
                    self.left += 1
                return None
        with self._lock:
            self.seconds.append(time.perf_counter() - began)
            self.tokens += count
        return said


def anonymous(process: int) -> int:
    """Bytes of a process that no file has."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    for name, number in {"clients": 8, "seconds": 600, "sessions": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    given = parser.parse_args()
    command = [sys.executable, "-m", "mqc", "serve", given.program, "--port", "0", "--name", "model"]
    server = subprocess.Popen(
        [*map(str, command), "--sessions", str(given.sessions)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        found = re.search(r"http://\S+", server.stderr.readline())
        assert found is not None
        load = Load(found[0], "model", time.time() + given.seconds)
        began = time.perf_counter()
        clients = [threading.Thread(target=load.client, args=(n,)) for n in range(given.clients)]
        for client in clients:
            client.start()
        time.sleep(given.seconds / 10)
        early = anonymous(server.pid)
        for client in clients:
            client.join()
        took = time.perf_counter() - began
        late = anonymous(server.pid)
        with urlopen(f"{load.address}/metrics") as answer:
            busy = re.findall(r"^mqc_(?:running|waiting)_requests (\S+)$", answer.read().decode(), re.M)
    finally:
        server.terminate()
        server.wait()
    print("| requests | left | errors | tokens/s | median s | 99 % s | RssAnon, early | late | busy |")
    print("|---|---|---|---|---|---|---|---|---|")
    median, most = np.percentile(load.seconds, [50, 99])
    print(
        f"| {len(load.seconds)} | {load.left} | {len(load.errors)} | {load.tokens / took:.1f} | {median:.1f} "
        f"| {most:.1f} | {early / 2**20:.1f} MiB | {late / 2**20:.1f} MiB | {busy} |"
    )
    for error in load.errors[:10]:
        print(error)


if __name__ == "__main__":
    main()
