"""Generating, sampling, scoring; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mqc.errors import ArtifactError, InputError
from mqc.runtime.perplexity import divergences, log_probabilities, perplexity, text_windows
from mqc.runtime.program import Program
from mqc.runtime.tokenizer import CONFIG, GENERATION, TOKENIZER, Tokenizer
from tests.runtime.conftest import byte_tokenizer


def test_greedy_equals_the_oracle_and_stepwise_argmax(program: Program) -> None:
    prompt = program.tokenizer.encode("hello")
    tokens = list(program.generate_tokens(prompt, 12))
    assert tokens == list(program.generate_tokens(prompt, 12, engine="oracle"))
    logits = program.integer_logits([*prompt, *tokens])
    assert [int(row.argmax()) for row in logits[len(prompt) - 1 : -1]] == tokens


def test_streams_what_it_returns(program: Program) -> None:
    pieces: list[str] = []
    assert program.generate("hello", 12, stream=pieces.append) == "".join(pieces)
    assert "".join(program.stream("hello", max_new_tokens=12)) == "".join(pieces)


def test_sampling_is_repeatable(program: Program) -> None:
    options = {"temperature": 1.5, "top_k": 20, "top_p": 0.95}
    first = program.generate("hello", 20, seed=7, **options)
    assert first == program.generate("hello", 20, seed=7, **options)
    others = {program.generate("hello", 20, seed=s, **options) for s in range(5)}
    assert len(others) > 1


def test_stop_tokens(program: Program) -> None:
    prompt = program.tokenizer.encode("hello")
    tokens = list(program.generate_tokens(prompt, 12))
    stop = tokens[4]
    assert list(program.generate_tokens(prompt, 12, stop=[stop])) == tokens[: tokens.index(stop)]


def test_chat_uses_the_template(program: Program) -> None:
    assert program.tokenizer.chat("hi") == program.tokenizer.encode("<u>hi<a>")
    assert program.generate("hi", 5, chat=True) == program.generate("<u>hi<a>", 5)


def with_template(template: str) -> Tokenizer:
    return Tokenizer({**byte_tokenizer().files, "chat_template.jinja": template})


def test_chat_template_is_sandboxed() -> None:
    for template in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for",
        # Work without an end, or without a bound.
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 10**9 }}",
        "{{ 10 ** 10 ** 9 }}",
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(99) %}{{ 'xyzxyzxyzxyz' }}{% endfor %}{% endfor %}",
    ):
        tokenizer = with_template(template)
        with pytest.raises(InputError, match="chat template refused"):
            tokenizer.chat("x")
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer({TOKENIZER: byte_tokenizer().files[TOKENIZER]}).chat("x")


def test_chat_templates_find_what_transformers_gives_them() -> None:
    raw = byte_tokenizer()
    for template, text in (
        ("{{ [messages[0].content] | tojson(ensure_ascii=False, indent=None) }}", '["x"]'),
        ("{% if tools is not none %}{{ raise_exception('tools') }}{% endif %}x", "x"),
        ("{% generation %}x{% endgeneration %}", "x"),
    ):
        assert with_template(template).chat("x") == raw.encode(text)


def test_two_sequences_on_one_program_are_refused(program: Program) -> None:
    first, second = program.stream("hello", max_new_tokens=9), program.stream("world", max_new_tokens=9)
    next(first)
    next(second)
    with pytest.raises(InputError, match="another sequence was started"):
        list(first)


def test_streaming_holds_back_half_characters() -> None:
    tokenizer = byte_tokenizer()
    ids = [tokenizer.encode("h")[0], 2, 3, tokenizer.encode("i")[0]]  # h, é in two bytes, i
    assert list(tokenizer.decode_stream(ids)) == ["h", "é", "i"]


def test_tokenizer_file_that_is_none() -> None:
    good = byte_tokenizer().files
    for files in (
        {}, {TOKENIZER: "{"}, {TOKENIZER: "[]"}, {**good, CONFIG: "[]"}, {**good, CONFIG: '{"start": [64]}'},
        {**good, CONFIG: '{"start": ["a"]}'}, {**good, GENERATION: '{"eos_token_id": [-1]}'},
    ):  # fmt: skip
        with pytest.raises(ArtifactError):
            Tokenizer(files)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.generate("h" * 70, 5), "do not fit the context"),
        (lambda p: p.generate([64], 5), "outside"),
        (lambda p: p.generate([-1], 5), "outside"),
        (lambda p: p.generate([2**40], 5), "outside"),
        (lambda p: p.logits([2**70]), "must be integers"),
        (lambda p: p.generate([1.5], 5), "must be integers"),
        (lambda p: p.generate([[1], [2, 3]], 5), "flat list"),
        (lambda p: p.generate("", 5), "prompt is empty"),
        (lambda p: p.generate("h", 0), "max_new_tokens"),
        (lambda p: p.generate("h", 5, temperature=-1), "temperature"),
        (lambda p: p.generate("h", 5, temperature=float("nan")), "temperature"),
        (lambda p: p.generate("h", 5, top_k=0), "top_k"),
        (lambda p: p.generate("h", 5, top_p=1.5), "top_p"),
        (lambda p: p.generate("h", 5, min_p=-0.1), "min_p"),
        (lambda p: p.generate("h", 5, repetition_penalty=0), "repetition_penalty"),
        (lambda p: p.generate("h", 5, repetition_penalty=float("nan")), "repetition_penalty"),
        (lambda p: p.generate("h", 5, seed=-1), "seed"),
        (lambda p: p.generate("h", 5, stop=[""]), "stop text"),
        (lambda p: p.generate("h", 5, engine="gpu"), "engine must be"),
        (lambda p: p.perplexity("short"), "need 15360 tokens"),
        (lambda p: p.perplexity("short", length=1), "length >= 2"),
        (lambda p: p.logits([64]), "outside"),
    ],
)
@pytest.mark.parametrize("engine", ["target"])
def test_refusals(program: Program, call, message: str, engine: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call(program)


def test_perplexity_is_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, 50)).astype(np.float32) * 3
    ids = rng.integers(0, 50, 400).tolist()
    windows = text_windows(ids, 100, 3, skip=1)
    assert [w.tolist() for w in windows] == [ids[100:200], ids[200:300], ids[300:400]]
    got = perplexity(lambda w: table[w], windows)
    x = torch.cat([torch.tensor(table[w[:-1]]) for w in windows])
    y = torch.cat([torch.tensor(w[1:]).long() for w in windows])
    assert got == pytest.approx(float(torch.nn.functional.cross_entropy(x, y).exp()), rel=1e-5)


def test_divergence_is_that_of_torch() -> None:
    rng = np.random.default_rng(1)
    p, q = (rng.normal(size=(150, 40)).astype(np.float32) * 4 for _ in range(2))
    q[:75] = p[:75] + rng.normal(size=(75, 40)).astype(np.float32) / 100
    kl, equal = divergences(log_probabilities(p), log_probabilities(q))
    logs = [torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (q, p)]
    want = torch.nn.functional.kl_div(*logs, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(kl, want.numpy(), rtol=1e-3, atol=1e-6)
    assert equal.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist() and 75 < equal.sum() + 5 < 100


def test_a_program_says_what_it_is(program: Program) -> None:
    assert repr(program) == "<Program cpu-int8 recipe='w8a8' context=64 prefix=[39, 33]>"
    for source in (None, "text", {"id": "\x1b[31m"}):
        manifest = {"target": "cpu-int8", "source": source}
        assert repr(Program(program.module, program.weights, program.tokenizer, manifest)).isprintable()


def test_a_program_in_a_notebook_is_a_table(program: Program) -> None:
    manifest = {**program.manifest, "source": {"id": "<script>"}, "recipe": "a & b"}
    shown = Program(program.module, program.weights, program.tokenizer, manifest)._repr_html_()
    assert "<td>&lt;script&gt;</td>" in shown and "<td>a &amp; b</td>" in shown
    assert "<tr><th>context</th><td>64 positions, 64 bytes each</td></tr>" in shown
