"""What passes calibrate on: texts, conversations by a template, and parts of several kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqc.calibration import Calibration
from mqc.data import code, questions, text
from mqc.errors import CalibrationError, InputError
from mqc.runtime.calibration_text import (
    calibration_from,
    conversation_windows,
    conversations_of,
    packaged_calibration,
    packaged_conversations,
)
from mqc.runtime.tokenizer import TEMPLATE, Tokenizer
from tests.runtime.conftest import byte_tokenizer

VOCABULARY = 64
TURNS = "{% for m in messages %}<{{ m.role[0] | upper }}>{{ m.content }}{% endfor %}"


def with_template(template: str) -> Tokenizer:
    return Tokenizer({**byte_tokenizer().files, TEMPLATE: template})


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 140))
def test_a_part_has_half_of_the_first_kind(sizes: list[int], count: int) -> None:
    """Each kind has its share as long as it has windows; none is taken twice; the others are what is left."""
    windows = np.arange(sum(sizes))[:, None]
    calibration = Calibration(windows, sections=tuple(sizes))
    chosen = calibration.part(count, 1)[:, 0]
    assert len(chosen) == len(set(chosen.tolist())) == min(count, sum(sizes))
    kind = np.repeat(np.arange(len(sizes)), sizes)
    taken = np.bincount(kind[chosen], minlength=len(sizes))
    total = min(count, sum(sizes))
    assert taken[0] == min(sizes[0], max((total + 1) // 2, total - sum(sizes[1:])))
    assert max(taken[1:], default=0) - min(taken[1:][taken[1:] < sizes[1:]], default=99) <= 1
    others = calibration.others(count, 1000, 1)[:, 0]
    left = set(range(sum(sizes))) - set(chosen.tolist())
    assert set(others.tolist()) == (left or set(range(sum(sizes))))


def test_sections_survive_a_file(tmp_path: Path) -> None:
    given = Calibration(np.arange(12).reshape(6, 2), bos=1, start=(1, 2), sections=(3, 2, 1))
    given.save(tmp_path / "c")
    found = Calibration.load(tmp_path / "c")
    assert (found.bos, found.start, found.sections) == (1, (1, 2), (3, 2, 1))
    assert (found.windows == given.windows).all()
    replaced = Calibration(given.windows, sections=(3, 2))
    replaced.save(tmp_path / "c")
    with pytest.raises(CalibrationError, match="sections must be of 6 windows"):
        Calibration.load(tmp_path / "c")


def test_the_packaged_mixture() -> None:
    """Text, conversations where there is a template, code: parts for calibration and for tests are apart."""
    tokenizer = byte_tokenizer()
    mixture = packaged_calibration(tokenizer, VOCABULARY, 100)
    assert len(mixture.sections) == 3 and sum(mixture.sections) == len(mixture.windows)
    plain = Tokenizer({k: v for k, v in tokenizer.files.items() if k != TEMPLATE})
    assert not plain.has_template
    assert packaged_calibration(plain, VOCABULARY, 100).sections == (mixture.sections[0], mixture.sections[2])
    assert not set(questions("calibration")) & set(questions("test"))
    assert text("calibration") != text("test") and code("calibration") != code("test")


def test_windows_begin_with_conversations() -> None:
    tokenizer = with_template(TURNS)
    windows = packaged_conversations(tokenizer, "test", 200)
    decoded = [tokenizer.decode(window.tolist()) for window in windows]
    assert len(windows) > 50 and all(t.startswith(("<U>", "<S>")) for t in decoded)
    assert any(t.startswith("<S>") for t in decoded), "some have a system message"
    assert sum("<A>" in t for t in decoded) > len(decoded) / 2


def test_templates_that_refuse_a_system_message_or_tools() -> None:
    refusing = with_template(
        "{% if messages[0].role == 'system' or tools %}{{ raise_exception('no') }}{% endif %}" + TURNS
    )
    windows = packaged_conversations(refusing, "test", 200)
    assert all(refusing.decode(w.tolist()).startswith("<U>") for w in windows)
    with pytest.raises(InputError, match="refused the messages"):
        packaged_conversations(with_template("{{ raise_exception('no') }}"), "test", 200)
    with pytest.raises(InputError) as caught:
        packaged_calibration(with_template("{{ raise_exception('no') }}"), VOCABULARY, 200)
    assert "calibrate on a text of your own" in caught.value.__notes__[0]


def test_conversations_of_a_user() -> None:
    rows = [[{"role": "user", "content": "abc"}, {"role": "assistant", "content": "defg"}]] * 3
    content = "\n".join(json.dumps({"messages": messages, "id": 3}) for messages in rows) + "\n\n"
    assert conversations_of(content) == rows
    tokenizer = with_template(TURNS)
    windows = conversation_windows(tokenizer, rows, 20)
    assert tokenizer.decode(windows[0].tolist()) == "<U>abc<A>defg<U>abc<"
    assert len(windows) == 1, "what is over is dropped"
    assert calibration_from(tokenizer, rows, VOCABULARY, 20).sections == (1,)
    with pytest.raises(CalibrationError, match="at least 200 tokens, got 39"):
        calibration_from(tokenizer, rows, VOCABULARY, 200)


@pytest.mark.parametrize(
    "line",
    ["no json", "[1]", '{"messages": "text"}', '{"messages": [3]}', '{"messages": [{"content": "x"}]}'],
)
def test_lines_that_are_no_conversations(line: str) -> None:
    with pytest.raises(InputError, match="line 2"):
        conversations_of('{"messages": []}\n' + line)


def test_control_tokens_that_were_not_seen() -> None:
    tokenizer = byte_tokenizer()
    raw = json.loads(tokenizer.files["tokenizer.json"])
    raw["added_tokens"] = [
        {"id": i, "content": t, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for i, t in ((0, "<unk>"), (1, "<eos>"))
    ]  # fmt: skip
    other = Tokenizer({**tokenizer.files, "tokenizer.json": json.dumps(raw)})
    assert other.control_not_in(np.array([[0, 5]])) == ["<eos>"]
    assert other.control_not_in(np.array([[4, 5]])) == ["<unk>", "<eos>"]
