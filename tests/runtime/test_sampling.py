"""The next token is chosen as transformers' processors of logits would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mqc.runtime.program import Program
from mqc.runtime.sampling import Sampling

SCALE = 0.01


class Asked:
    """In place of a random generator: keeps what it is asked to choose from."""

    def choice(self, tokens: Any, p: Any) -> int:
        self.chances = dict(zip(tokens.tolist(), p.tolist(), strict=True))
        return int(tokens[0])


@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=30, unique=True), st.data(), st.floats(0.2, 3),
    st.integers(1, 10), st.floats(0.05, 0.95), st.floats(0.0, 1), st.floats(0.5, 2),
    st.none() | st.floats(1, 30),
)  # fmt: skip
def test_the_chances_are_those_of_transformers(
    logits: list[int], data: st.DataObject, temperature: float, k: int, p: float, least: float,
    penalty: float, cap: float | None,
) -> None:  # fmt: skip
    text = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=8))
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(k), TopPLogitsWarper(p), MinPLogitsWarper(least),
        ]
    )  # fmt: skip
    scores = torch.tensor([logits], dtype=torch.float64) * SCALE
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    want = torch.softmax(processors(torch.tensor([text], dtype=torch.long), scores.clone()), -1)[0]
    asked, array = Asked(), np.array(logits, np.int32)
    Sampling(temperature, k, p, 0, least, penalty).choose(array, SCALE, asked, text, cap)  # type: ignore[arg-type]
    got = torch.zeros(len(logits), dtype=torch.float64)
    for token, chance in asked.chances.items():
        got[token] = chance
    assume(_clear((scores[0] / SCALE).tolist(), text, temperature, k, p, least, penalty))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def _clear(
    logits: Sequence[float], text: Sequence[int], temperature: float, k: int, p: float, least: float,
    penalty: float,
) -> bool:  # fmt: skip
    """Whether no limit is met so nearly that rounding decides."""
    real = torch.tensor(logits, dtype=torch.float64) * SCALE
    for token in set(text):
        real[token] *= penalty if real[token] < 0 else 1 / penalty
    x = (real / temperature).sort(descending=True).values
    ties = bool((x.diff().abs() < 1e-9).any())
    chances = torch.softmax(x[:k], 0)
    near_p = bool(((chances.cumsum(0) - p).abs() < 1e-6).any())
    near_least = bool(((chances / chances[0] - least).abs() < 1e-6).any())
    return not (ties or near_p or near_least)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30, unique=True), st.data(), st.floats(0.5, 2))
def test_greedy_with_a_penalty(logits: list[int], data: st.DataObject, penalty: float) -> None:
    text = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=8))
    scores = torch.tensor([logits], dtype=torch.float64)
    want = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([text], dtype=torch.long), scores)[0]
    array, generator = np.array(logits, np.int32), np.random.default_rng(0)
    token = Sampling(repetition_penalty=penalty).choose(array, SCALE, generator, text)
    assert float(want[token]) == pytest.approx(float(want.max()), rel=1e-12)


def test_a_penalty_counts_the_prompt_and_the_answer(program: Program) -> None:
    prompt = program.tokenizer.encode("hello")
    tokens = list(program.generate_tokens(prompt, 12, Sampling(repetition_penalty=1e9)))
    positive = program.integer_logits([*prompt, *tokens]).max(-1) > 0
    assert positive.any() and len(set(tokens)) == len(tokens) and not set(tokens) & set(prompt)


def test_the_smallest_temperature_is_greedy() -> None:
    logits = np.array([3, 9, 7], np.int32)
    assert Sampling(5e-324, seed=0).choose(logits, 0.5, np.random.default_rng(0)) == 1


@pytest.mark.parametrize(
    ("stated", "given", "want"),
    [
        ({}, {}, Sampling()),
        ({"temperature": 0.6}, {}, Sampling()),  # without do_sample it is greedy
        ({"do_sample": True}, {}, Sampling(1.0)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"top_k": 5}, Sampling(0.6, 5, 0.9)),
        ({"do_sample": True, "temperature": 0.6}, {"temperature": 0.0}, Sampling()),
        ({"do_sample": True, "min_p": 0.1}, {"seed": 3}, Sampling(1.0, min_p=0.1, seed=3)),
        ({"repetition_penalty": 1.1, "top_k": 3}, {}, Sampling(repetition_penalty=1.1)),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.0}, Sampling()),
    ],
)
def test_sampling_is_what_the_model_states(
    stated: dict[str, Any], given: dict[str, Any], want: Sampling
) -> None:
    assert Sampling.of_model(json.loads(json.dumps(stated)), **given) == want
