"""Which of the decoders that transformers registers compile: docs/models.md.

    python benchmarks/architectures.py              # all, and the page: a quarter of an hour on two cores
    python benchmarks/architectures.py llama gemma2+nocap   # these, printed

A model of each architecture, tiny and with random weights, is compiled for cpu-int8, in a process of its own.
Compiling compares the float program with the model, at two lengths and token by token. Then the program's
logits must be those of the oracle, bit for bit, of a prompt at once and token by token.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import string
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import tiny_models

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
SECONDS = 240
#: A program whose logits are no nearer to the model's, in dB, is taken for wrong.
LEAST_SQNR = 6.0
_PROMPT = 24


@dataclass(frozen=True)
class Outcome:
    """state: compiles, refused, wrong, fails (an error that is not mqc's), or no model (transformers makes
    none of the config). why: what the error says. sqnr: of the logits to the model's, in dB."""

    name: str
    state: str
    why: str = ""
    sqnr: float | None = None


def outcome(name: str) -> Outcome:
    """What becomes of one architecture."""
    from mqc.errors import MqcError

    try:
        model = tiny_models.tiny_model(name)
    except Exception as error:
        return Outcome(name, "no model", f"{type(error).__name__}: {error}")
    try:
        return _compiled(name, model)
    except MqcError as error:
        return Outcome(name, "refused", str(error))
    except Exception as error:
        return Outcome(name, "fails", f"{type(error).__name__}: {error}")


def _compiled(name: str, model: Any) -> Outcome:
    import numpy as np
    import torch

    import mqc

    letters = random.Random(0).choices(string.ascii_letters + string.digits, k=4000)
    program = mqc.compile(model, tokenizer=_tokenizer(), calibration="".join(letters))
    ids = np.asarray(program.tokenizer.encode("".join(letters[1000:1100]))[:_PROMPT], np.int32)
    want = _logits(program.engine("oracle"), ids)
    for result in (want, _logits(program.engine("target"), ids)):
        if not all(np.array_equal(logits, want[0]) for logits in result):
            return Outcome(name, "wrong", "the program's logits are not those of the oracle")
    with torch.no_grad():
        exact = model(torch.tensor([[*program.prefix, *ids.tolist()]])).logits[0, len(program.prefix) :]
    error = exact.double().numpy() - want[0] * program.logit_scale
    sqnr = float(10 * np.log10((exact.double() ** 2).sum() / (error**2).sum()))
    if sqnr < LEAST_SQNR:
        return Outcome(name, "wrong", f"the logits are {sqnr:.1f} dB from the model's", sqnr)
    return Outcome(name, "compiles", sqnr=sqnr)


def _logits(engine: Any, ids: Any) -> list[Any]:
    """Of all tokens at once, and of half of them and then one after the other."""
    import numpy as np

    engine.reset()
    whole = engine.forward(ids)
    engine.reset()
    half = len(ids) // 2
    steps = [engine.forward(ids[:half]), *(engine.forward(ids[i : i + 1]) for i in range(half, len(ids)))]
    return [whole, np.concatenate(steps)]


def _tokenizer() -> Any:
    """One token for each printable character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<eos>", *string.printable]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<eos>")


def outcomes(names: Iterable[str]) -> Iterable[Outcome]:
    """One after the other as they come, each in a process of its own, as many at once as there are cores."""
    import torch

    for name in ("mqc.frontend.fidelity", "mqc.frontend.raising"):
        import_module(name)  # for all children at once

    torch.set_num_threads(1)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(_apart, names)


def _apart(name: str) -> Outcome:
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(name, send))
    process.start()
    send.close()
    try:
        late = Outcome(name, "fails", f"no end in {SECONDS} s")
        found: Outcome = receive.recv() if receive.poll(SECONDS) else late
    except EOFError:
        found = Outcome(name, "fails", "the process died")
    process.kill()
    process.join()
    return found


def _send(name: str, to: Connection) -> None:
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    to.send(outcome(name))


_HEAD = """\
# Models

<!-- made by python benchmarks/architectures.py -->
transformers {version} registers {count} text decoders as causal language models. mqc compiles {good} of
them. `python benchmarks/architectures.py` makes this page. It compiles a model of each for `cpu-int8`, tiny
and with random weights. Two things must hold: the float program equals the model, whole and token by token;
the integer program equals the oracle, bit for bit.

No pass asks for a name: a model of your own compiles if its ops do. If not, the error names the op and the
module.

The name is `model_type` in config.json. A name with `+` is another form of an architecture. dB is the
signal-to-noise ratio of the logits. The weights are random, so it shows only that nothing is broken.

| model | state |
|---|---|
"""


def page(found: list[Outcome]) -> str:
    """docs/models.md."""
    from importlib.metadata import version

    own = [o for o in found if o.name not in tiny_models.VARIANTS]
    good = sum(o.state == "compiles" for o in own)
    lines = _HEAD.format(version=version("transformers"), count=len(own), good=good).splitlines()
    order = ("compiles", "refused", "wrong", "fails", "no model")
    for o in sorted(found, key=lambda o: (order.index(o.state), o.name)):
        told = f"compiles ({o.sqnr:.0f} dB)" if o.state == "compiles" else f"{o.state}: {_short(o.why)}"
        lines.append(f"| `{o.name}` | {told} |")
    others = tiny_models.TAKE_MORE_THAN_TEXT, tiny_models.ENCODERS, tiny_models.ENCODER_DECODERS
    for names, what in zip(
        others,
        ("Models that take more than text: their [language model alone](text-models.md) may compile",
         "Encoders with a head for language modelling: refused",
         "Models with an encoder and a decoder: refused"),
        strict=True,
    ):  # fmt: skip
        known = sorted(set(tiny_models.registered()) & names)
        lines += ["", f"{what}: {', '.join(f'`{n}`' for n in known)}."]
    return "\n".join([*lines, ""])


def _short(why: str) -> str:
    """What an error says first, for a cell of a table."""
    first, *rest = why.splitlines() or [""]
    place = next((f" ({line.strip()})" for line in rest if line.strip().startswith("traced at")), "")
    line = (first + place).replace("|", "\\|")
    return line if len(line) <= 240 else line[:240].rsplit(" ", 1)[0] + " …"


def main(names: list[str]) -> None:
    chosen = names or [*tiny_models.decoders(), *tiny_models.VARIANTS]
    found = []
    for o in outcomes(chosen):
        print(json.dumps(asdict(o)), flush=True)
        found.append(o)
    states = {state: sum(o.state == state for o in found) for state in sorted({o.state for o in found})}
    print(states, file=sys.stderr)
    if not names:
        PAGE.write_text(page(found))
    if any(o.state == "wrong" for o in found):
        raise SystemExit("a program computes something else than its model")


if __name__ == "__main__":
    main(sys.argv[1:])
