"""Drafts from the prompt: tokens per second with them and without, in one run, by kind of text.

    python benchmarks/speculation.py PROGRAM

Each prompt is answered with drafts and without, in turn; the answers must be equal. Prints a Markdown table:
tokens per second in decode, their ratio, and tokens per step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mqc
from mqc.runtime.session import Session

TOKENS, REPEATS = 128, 3
_TEXT = (
    "The old harbour of the town was built in 1823, when the river was still deep enough for large ships. "
    "Salt, timber and wool were traded there. In 1861 the railway came, and the ships went to the larger "
    "harbour further down the river. The warehouses stood empty for a hundred years. Today they hold a "
    "museum, two theatres and a market, and three hundred thousand people visit the old harbour each year."
)
_CODE = """def total(prices, rates):
    result = 0
    for price, rate in zip(prices, rates):
        tax = price * rate
        result = result + price + tax
    return result

def mean(prices, rates):
    result = 0
    for price, rate in zip(prices, rates):
        tax = price * rate
        result = result + price + tax
    return result / len(prices)
"""
#: Prompts by kind.
KINDS = {
    "summarizing": [
        f"Summarize this text:\n\n{_TEXT}",
        f"{_TEXT}\n\nRepeat the facts of the text as a list.",
    ],
    "code editing": [
        f"Rename `result` to `total` in this code, and write it again:\n\n{_CODE}",
        f"Write this code again with type hints:\n\n{_CODE}",
    ],
    "free chat": ["Tell me a story about a fox.", "How do I cook rice?", "Why do people climb mountains?"],
}


def measured(session: Session, prompt: list[int], drafts: bool) -> tuple[list[int], float, int]:
    """Tokens, seconds in decode, and steps."""
    session.speculates, steps = drafts, 0
    forward = session.engine.forward

    def counted(*arguments: object, **named: object) -> object:
        nonlocal steps
        steps += 1
        return forward(*arguments, **named)

    session.engine.forward = counted
    try:
        tokens = list(session.complete(prompt, TOKENS))
    finally:
        session.engine.forward = forward
    return tokens, session.turn.decode_seconds, steps - 1


def main(path: Path) -> None:
    program = mqc.load(path)
    session = program.session()
    print("| text | tokens/s without | with | ratio | tokens a step |")
    print("|---|---|---|---|---|")
    for kind, prompts in KINDS.items():
        seconds, tokens, steps = {False: 0.0, True: 0.0}, 0, 0
        for prompt in prompts * REPEATS:
            ids = program.tokenizer.chat(prompt)
            answers = []
            for drafts in (False, True):
                given, took, count = measured(session, ids, drafts)
                answers.append(given)
                seconds[drafts] += took
                steps += count if drafts else 0
            if answers[0] != answers[1]:
                raise SystemExit(f"other tokens with drafts: {prompt!r}")
            tokens += len(answers[0]) - 1
        without, drafted = (tokens / seconds[drafts] for drafts in (False, True))
        ratio = f"{drafted / without:.2f} | {tokens / steps:.2f}"
        print(f"| {kind} | {without:.1f} | {drafted:.1f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
