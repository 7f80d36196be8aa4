"""Programs as lm-eval's models: the numbers are those of a plain computation from the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from mqc.errors import InputError
from mqc.runtime.lm_eval import ProgramLM
from mqc.runtime.program import Program
from mqc.runtime.tokenizer import TOKENIZER, Tokenizer
from tests.compiled import CONTEXT, lower_for_cpu
from tests.models import sqnr, tiny_model, tokens
from tests.runtime.conftest import compiled


def log_probabilities(program: Program, ids: list[int]) -> npt.NDArray[np.float64]:
    """`[tokens, vocabulary]`, from the program's logits of all tokens."""
    logits = program.logits(ids).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def likelihood(program: Program, context: list[int], scored: list[int]) -> tuple[float, bool]:
    """Log-likelihood of `scored` after `context`, and whether greedy decoding gives it."""
    rows = log_probabilities(program, [*context, *scored[:-1]])[len(context) - 1 :]
    greedy = [int(row.argmax()) for row in rows] == scored
    return sum(float(row[token]) for row, token in zip(rows, scored, strict=True)), greedy


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=0) for a in arguments]


def without_special_tokens(program: Program) -> Program:
    tokenizer = Tokenizer({TOKENIZER: program.tokenizer.files[TOKENIZER]})
    return Program(program.module, program.weights, tokenizer, program.manifest)


def test_loglikelihood_equals_a_plain_computation(program: Program) -> None:
    encode = program.tokenizer.encode
    greedy = program.generate("hello", 3)
    room = program.context - len(program.prefix)
    cases = {
        ("hello", "world"): (encode("hello"), encode("world")),
        ("hello", greedy): (encode("hello"), encode(greedy)),
        ("hello ", "world"): (encode("hello"), encode(" world")),  # the space belongs to the answer
        ("", "help"): ([0], encode("help")),  # 0 starts a text,
        ("  ", "help"): ([0], encode("  help")[1:]),  # and is what this tokenizer makes of a space
        # The last token is scored, not given: there is room for one more.
        ("h" * 80, "world"): (encode("h" * (room + 1 - 5)), encode("world")),
    }
    scores = ProgramLM(program).loglikelihood(requests("loglikelihood", *cases))
    for (got, is_greedy), pair, arguments in zip(scores, cases.values(), cases, strict=True):
        want = likelihood(program, *pair)
        assert got == pytest.approx(want[0], rel=1e-5), arguments
        assert is_greedy == want[1], arguments
    assert [s[1] for s in scores][:2] == [False, True]


def test_logits_are_taken_after_a_softcap() -> None:
    """As the model gives them, and as everything that makes probabilities of them takes them."""
    model = tiny_model("gemma2", final_logit_softcapping=2.0)
    program = compiled("cpu-int8", lower_for_cpu, None, CONTEXT, "gemma2", final_logit_softcapping=2.0)
    ids = tokens(20)
    with torch.no_grad():
        want = (
            model(torch.tensor([[*program.prefix, *ids.tolist()]])).logits[0, len(program.prefix) :].numpy()
        )
    got = program.logits(ids.tolist())
    assert np.abs(got).max() <= 2 < np.abs(program.integer_logits(ids.tolist())).max() * program.logit_scale
    assert sqnr(got, want) > 15
    log_p = torch.tensor(got).double().log_softmax(-1)
    scored = ids[5:].tolist()
    (found,) = ProgramLM(program)._loglikelihood_tokens([(("", ""), ids[:5].tolist(), scored)])
    total = sum(float(row[token]) for row, token in zip(log_p[4:-1], scored, strict=True))
    assert found[0] == pytest.approx(total, rel=1e-5)


def test_tokens_are_split_where_the_context_ends(program: Program) -> None:
    raw = RawTokenizer(models.BPE({"h": 2, "e": 3, "l": 4, "he": 5}, [("h", "e")]))
    model = ProgramLM(Program(program.module, program.weights, Tokenizer({TOKENIZER: raw.to_str()}), {}))
    assert model._encoded("l", "hel") == ([4], [5, 4])
    assert model._encoded("h", "el") == ([2], [4])  # "he" is one token: what lm-eval does everywhere


def test_a_text_without_a_start_token_gives_its_first(program: Program) -> None:
    bare = without_special_tokens(program)
    ids = bare.tokenizer.encode("world")
    model = ProgramLM(bare)
    scores = model.loglikelihood(requests("loglikelihood", ("", "world"), ("", "w"), ("a", "")))
    assert scores[0][0] == pytest.approx(likelihood(bare, ids[:1], ids[1:])[0], rel=1e-5)
    assert scores[1:] == [(0.0, True), (0.0, True)]
    assert model.loglikelihood_rolling(requests("loglikelihood_rolling", ("",), ("w",))) == [0.0, 0.0]


def test_single_token_answers_share_an_evaluation(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, lengths = program.engine(), []
    forward = engine.forward
    monkeypatch.setattr(
        engine, "forward", lambda ids, rows=None: lengths.append(len(ids)) or forward(ids, rows)
    )
    steps: list[tuple[str, float]] = []
    model = ProgramLM(program, lambda message, share: steps.append((message, share)))
    asked = requests("loglikelihood", *(("hello", c) for c in "abc"), ("hell", "o"), ("hell", "oa"))
    scores = model.loglikelihood(asked)
    assert sorted(lengths) == [4, 5] and steps == [("scoring", 0.5), ("scoring", 1.0)]
    table = log_probabilities(program, program.tokenizer.encode("hello"))[-1]
    for (got, _), letter in zip(scores, "abc", strict=False):
        assert got == pytest.approx(table[program.tokenizer.encode(letter)[0]], rel=1e-5)
    assert scores[4][0] == pytest.approx(scores[3][0] + scores[0][0], rel=1e-9)
    steps.clear()
    assert model.loglikelihood(asked, disable_tqdm=True) == scores and not steps


def test_rolling_is_perplexity(program: Program) -> None:
    """Without a start token both definitions score all tokens but the first."""
    bare = without_special_tokens(program)
    [total] = ProgramLM(bare).loglikelihood_rolling(requests("loglikelihood_rolling", ("helloworld",)))
    assert np.exp(-total / 9) == pytest.approx(bare.perplexity("helloworld", 1, length=10), rel=1e-5)


def test_rolling_scores_each_token_once(program: Program) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 5
    ids = program.tokenizer.encode(text)
    room = program.context - len(program.prefix)
    assert len(ids) > 3 * room
    padded = [0, *ids]  # token i of the text is padded[i + 1]
    want = likelihood(program, padded[:1], ids[:room])[0]
    for end in range(2 * room, len(ids) + room, room):
        end, first = min(end, len(ids)), end - room
        # A last window that is short has more before what it scores.
        given = padded[end - room : end]
        want += likelihood(program, given[: room - (end - first) + 1], ids[first:end])[0]
    got = ProgramLM(program).loglikelihood_rolling(requests("loglikelihood_rolling", (text,), ("hi",)))
    assert got[0] == pytest.approx(want, rel=1e-5)
    assert got[1] == pytest.approx(likelihood(program, [0], program.tokenizer.encode("hi"))[0], rel=1e-5)


def test_generate_until(program: Program) -> None:
    model = ProgramLM(program)
    whole = program.generate("hello", 12)
    stop = whole[4:6]

    def generate(context: str, **options: Any) -> str:
        [text] = model.generate_until(requests("generate_until", (context, {"max_gen_toks": 12, **options})))
        return text

    assert generate("hello") == whole
    assert generate("hello", until=[stop]) == whole[: whole.index(stop)]
    assert generate("hello", until=["<eos>", ""]) == whole
    room = program.context - len(program.prefix)
    assert generate("x" * 99 + "hello") == program.generate(("x" * 99 + "hello")[12 - room :], 12)
    assert generate("") == program.generate([0], 12)
    sampled = {"do_sample": True, "temperature": 1.5, "top_k": 20}
    assert generate("hello", **sampled) == generate("hello", **sampled)
    twice = requests("generate_until", *[("hello", {"max_gen_toks": 12, **sampled})] * 2)
    assert len(set(model.generate_until(twice))) == 2


def test_a_special_token_stops(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text never appears in what is generated."""
    model, stops = ProgramLM(program), []
    tokenizer = program.tokenizer
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids: "" if list(ids) == [3] else Tokenizer.decode(tokenizer, ids)
    )
    monkeypatch.setattr(
        tokenizer,
        "encode",
        lambda text, start: [3] if text == "<end>" else Tokenizer.encode(tokenizer, text, start),
    )
    monkeypatch.setattr(
        program, "generate_tokens", lambda ids, n, sampling, stop: stops.append(stop) or iter(())
    )
    options = {"until": ["<end>", "e", "no"], "max_gen_toks": 5}
    assert model.generate_until(requests("generate_until", ("hello", options))) == [""]
    assert stops == [[3]]


def test_what_does_not_fit(program: Program) -> None:
    model = ProgramLM(program)
    with pytest.raises(InputError, match="80 tokens are to be scored in a context of"):
        model.loglikelihood(requests("loglikelihood", ("hello", "x" * 80)))
    with pytest.raises(InputError, match="asks for 256 new tokens"):
        model.generate_until(requests("generate_until", ("hello", {"until": ["."]})))
