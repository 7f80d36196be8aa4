"""A tiny program with a real tokenizer, compiled once."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.runtime.program import Program
from mqc.runtime.tokenizer import CONFIG, TOKENIZER, Tokenizer
from tests.compiled import CONTEXT, lower_for_cpu, lower_for_onnx, quantized
from tests.models import tiny_model

TEMPLATE = "".join(
    [
        "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}",
        "{% if add_generation_prompt %}<a>{% endif %}",
    ]
)


def byte_tokenizer() -> Tokenizer:
    """62 single bytes and the unknown one: every printable letter in a vocabulary of 64."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [c for c in alphabet if c.isascii() and (c.isalnum() or c in "<>?.")][:60]
    vocabulary = {c: i for i, c in enumerate(["<unk>", "<eos>", "Ã", "©", *letters][:64])}
    raw = RawTokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    config = json.dumps({"bos_token": "<unk>", "eos_token": "<eos>"})
    return Tokenizer({TOKENIZER: raw.to_str(), CONFIG: config, "chat_template.jinja": TEMPLATE})


def letter_tokenizer() -> Tokenizer:
    """64 letters and nothing else: every answer is a text that gives its tokens back, and none ends early."""
    vocabulary = {c: i for i, c in enumerate(f"{string.ascii_letters}{string.digits}<>")}
    raw = RawTokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return Tokenizer({TOKENIZER: raw.to_str(), CONFIG: "{}", "chat_template.jinja": TEMPLATE})


def compiled(
    target: str,
    lower: Callable[[CompilerContext, ModuleOp], None],
    tokenizer: Tokenizer | None = None,
    context: int = CONTEXT,
    architecture: str = "llama",
    **changes: Any,
) -> Program:
    model = tiny_model(architecture, max_position_embeddings=context, **changes)
    ctx, module = quantized(model, context=context)
    lower(ctx, module)
    manifest = {"target": target, "recipe": "w8a8", "source": {"kind": "object"}, "mac_share_8bit": 0.8}
    return Program(module, ctx.weights, tokenizer or byte_tokenizer(), manifest)


@pytest.fixture(scope="session")
def program() -> Program:
    return compiled("cpu-int8", lower_for_cpu)


@pytest.fixture(scope="session")
def onnx_program() -> Program:
    return compiled("onnx-int8", lower_for_onnx)


@pytest.fixture(scope="session")
def talker() -> Program:
    """Room for a conversation of many turns, in letters."""
    return compiled("cpu-int8", lower_for_cpu, letter_tokenizer(), context=320)


@pytest.fixture
def saved(program: Program, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.mqc"
    program.save(path)
    return path
