"""Sessions: what is new is prefilled, and every answer is that of a fresh run, bit for bit."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from xdsl.dialects.builtin import TensorType
from xdsl.irdl import irdl_op_definition, operand_def, result_def

from mqc.errors import ArtifactError, InputError, StorageError, TargetError
from mqc.ir.module import mqc_ops, states
from mqc.ir.op import MqcOp, State, channels, u8
from mqc.runtime import session_file
from mqc.runtime.oracle import OracleEngine
from mqc.runtime.program import Program
from mqc.runtime.session import Session
from tests.compiled import lower_for_cpu, lower_for_npu, lower_for_onnx, quantized
from tests.models import tiny_model
from tests.runtime.conftest import compiled, letter_tokenizer
from tests.runtime.test_forks import in_a_fork

NEW = 4
SYSTEM = {"role": "system", "content": "be"}


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefgh", k=2)) for _ in range(count)]


def same_cache(session: Session, program: Program, engine: str = "target") -> None:
    """The session's cache is the one that its tokens leave when they run by themselves."""
    program.integer_logits(session.tokens[: session.cached], engine)
    fresh = program.engine(engine).read_state()
    kept = session.engine.read_state()
    assert set(fresh) == set(kept) == {state.name for state in states(program.module)}
    assert all(np.array_equal(kept[name], fresh[name]) for name in fresh)


@pytest.mark.parametrize("engine", ["target", "oracle"])
def test_twenty_turns_prefill_only_what_is_new(talker: Program, engine: str) -> None:
    session = talker.session(messages=[SYSTEM], engine=engine)
    for number, text in enumerate(texts(20)):
        asked = [*session.messages, {"role": "user", "content": text}]
        held = len(session.tokens)
        answer = session.send(text, NEW)
        assert answer == talker.generate(asked, NEW, chat=True)
        assert session.messages == [*asked, {"role": "assistant", "content": answer}]
        # Template and text of the turn, and the token before that was not in the cache; system message first.
        new = len("<u>") + len(text) + len("<a>") + (1 if number else len("<s>be"))
        assert session.turn.prefilled == new
        assert session.turn.kept + new == len(session.tokens) - NEW == held + new - bool(number)
        assert session.turn.generated == NEW
    same_cache(session, talker, engine)


def test_an_answer_that_is_tokenized_otherwise_is_prefilled_again(program: Program) -> None:
    """The tokens of an answer need not be those of its text: from there on the cache is not used."""
    session = program.session()
    for text in ("hi", "yo"):
        before = session.tokens.copy()
        asked = [*session.messages, {"role": "user", "content": text}]
        assert session.send(text, 5, temperature=9.0, seed=4) == program.generate(
            asked, 5, chat=True, temperature=9.0, seed=4
        )
        ids = program.tokenizer.chat(asked)
        same = next((n for n, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
        assert session.turn.kept == min(same, max(len(before) - 1, 0))
        same_cache(session, program)


def test_tokens_go_on(talker: Program) -> None:
    ids = talker.tokenizer.encode("hello")
    whole = list(talker.generate_tokens(ids, 12))
    session = talker.session()
    first = list(session.generate_tokens(ids, 5))
    assert first == whole[:5] and session.tokens == [*ids, *first] and session.cached == len(ids) + 4
    assert list(session.generate_tokens([], 7)) == whole[5:]
    assert (session.turn.kept, session.turn.prefilled) == (len(ids) + 4, 1)
    more = list(session.generate_tokens(ids, 3))
    assert more == list(talker.generate_tokens([*ids, *whole, *ids], 3))
    assert session.turn.prefilled == len(ids) + 1
    assert talker.session().messages == session.messages == []


def test_saved_and_gone_on_with_in_another_process(talker: Program, tmp_path: Path) -> None:
    talker.save(tmp_path / "p.mqc")
    session = talker.session(messages=[SYSTEM])
    for text in texts(3):
        session.send(text, NEW)
    session.save(tmp_path / "s")
    said = [session.send(text, 6, temperature=2.0, seed=3) for text in ("ab", "cd")]
    code = """
import json, sys, mqc
session = mqc.load("p.mqc").session("s")
found = []
for text in ("ab", "cd"):
    answer = session.send(text, 6, temperature=2.0, seed=3)
    found.append((answer, session.turn.prefilled))
print(json.dumps([found, session.tokens, session.messages]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found, tokens, messages = json.loads(run.stdout)
    assert [answer for answer, _ in found] == said
    assert [prefilled for _, prefilled in found] == [9, 9]
    assert (tokens, messages) == (session.tokens, session.messages)


@pytest.mark.parametrize("engine", ["target", "oracle"])
def test_a_fork_goes_on_by_itself(talker: Program, engine: str) -> None:
    session = talker.session(engine=engine)
    session.send("ab", NEW)
    other = session.fork()
    both = [s.send("cd", NEW) for s in (session, other)]
    assert both[0] == both[1] and other.turn.prefilled == 9 and other.messages == session.messages
    other.send("ef", NEW)
    assert len(session.messages) == 4 and len(other.messages) == 6
    for one in (session, other):
        same_cache(one, talker, engine)


@pytest.mark.parametrize("engine", ["target", "oracle"])
def test_rewind(talker: Program, engine: str) -> None:
    session = talker.session(messages=[SYSTEM], engine=engine)
    marks, answers = [], []
    for text in texts(4):
        marks.append(len(session.tokens))
        answers.append(session.send(text, NEW))
    session.rewind(marks[2])
    assert len(session.messages) == 1 + 2 * 2 and len(session.tokens) == marks[2]
    assert [session.send(text, NEW) for text in texts(4)[2:]] == answers[2:]
    same_cache(session, talker, engine)
    session.rewind(0)
    assert session.messages == [SYSTEM] and session.tokens == []
    assert session.send(texts(4)[0], NEW) == answers[0]
    for position in (-1, len(session.tokens) + 1):
        with pytest.raises(InputError, match="position must be in"):
            session.rewind(position)
    session.reset()
    assert session.messages == [SYSTEM] and session.tokens == []


def test_messages_may_be_edited(talker: Program) -> None:
    session = talker.session(messages=[SYSTEM])
    session.send("ab", NEW)
    session.messages[0] = {"role": "system", "content": "no"}
    asked = [*session.messages, {"role": "user", "content": "cd"}]
    assert session.send("cd", NEW) == talker.generate(asked, NEW, chat=True)
    assert session.turn.kept == len("<s>")


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_answer_that_was_cut_off(talker: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    session = talker.session()
    whole = talker.generate("ab", 30, chat=True)
    pieces = session.stream("ab", 30)
    said = next(pieces) + next(pieces)
    pieces.close()
    assert session.messages[-1] == {"role": "assistant", "content": said} and whole.startswith(said)
    asked = [*session.messages, {"role": "user", "content": "cd"}]
    assert session.send("cd", NEW) == talker.generate(asked, NEW, chat=True)
    # Nothing was said: the message was not asked.
    before = session.messages.copy()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.engine, "forward", interrupted)
        session.send("ef")
    assert session.messages == before
    asked = [*before, {"role": "user", "content": "ef"}]
    assert session.send("ef", NEW) == talker.generate(asked, NEW, chat=True)


def test_an_interrupt_leaves_no_layer_ahead(talker: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    session = talker.session(engine="oracle")
    session.send("ab", NEW)
    ops = [op for op in mqc_ops(talker.module) if op.states()]
    real, calls = type(ops[0]).evaluate, []

    def second_layer_fails(op: Any, *operands: Any) -> Any:
        calls.append(op)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(op, *operands)

    with monkeypatch.context() as patch:
        patch.setattr(type(ops[0]), "evaluate", second_layer_fails)
        with pytest.raises(KeyboardInterrupt):
            session.send("cd")
    session.send("ef", NEW)
    same_cache(session, talker, "oracle")


def test_stop_texts(talker: Program) -> None:
    whole = talker.generate("ab", 12, chat=True)
    stop = whole[5:9]
    session = talker.session()
    assert session.send("ab", 12, stop=[stop]) == whole[: whole.index(stop)]
    assert talker.generate("ab", 12, chat=True, stop=[stop]) == whole[: whole.index(stop)]
    assert session.messages[-1]["content"] == whole[: whole.index(stop)]


def test_two_threads_in_two_sessions(talker: Program) -> None:
    def talk(seed: int) -> list[str]:
        session = talker.session()
        return [session.send(text, NEW, temperature=1.0, seed=seed) for text in texts(10, seed)]

    want = [talk(seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(talk, range(4), timeout=120)) == want


def test_a_turn_that_another_one_cuts_off_says_so(talker: Program) -> None:
    session = talker.session()
    pieces = session.stream("ab", 9)
    next(pieces)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(session.send, "cd", NEW).result(60)
    with pytest.raises(InputError, match="another sequence was started"):
        next(pieces)
    assert [message["content"] for message in session.messages[:2]] == ["ab", "cd"]
    same_cache(session, talker)


def test_a_fork_of_the_process_says_what_to_do(talker: Program) -> None:
    session = talker.session()
    session.send("ab", NEW)
    for work in (lambda: session.send("cd", NEW), session.fork, lambda: session.rewind(1)):
        assert "open one in each process" in in_a_fork(work)
    want = talker.generate("ab", NEW, chat=True)
    assert in_a_fork(lambda: talker.session().send("ab", NEW) == want) == "True"


# ---- a context that is full


def test_a_conversation_that_does_not_fit_says_so(talker: Program) -> None:
    session = talker.session(messages=[SYSTEM])
    session.send("a" * 100, 100)
    tokens, messages = session.tokens.copy(), session.messages.copy()
    with pytest.raises(InputError, match=r"conversation of 314 tokens .* room for 318; .*drop-oldest"):
        session.send("b" * 97, 6)
    assert (session.tokens, session.messages) == (tokens, messages)
    with pytest.raises(InputError, match="do not fit the context"):
        list(session.generate_tokens([0] * 200, 4))
    assert session.send("b" * 97, 5) and len(session.tokens) == 319  # the last one need not be in the cache


def test_the_oldest_turns_are_forgotten(talker: Program) -> None:
    session = talker.session(messages=[SYSTEM], overflow="drop-oldest")
    dropped = []
    for number, text in enumerate(texts(60)):
        before = session.messages.copy()
        answer = session.send(text, NEW)
        *earlier, asked, said = session.messages
        assert asked == {"role": "user", "content": text} and said["content"] == answer
        assert earlier[0] == SYSTEM and earlier[1:] == before[len(before) - len(earlier) + 1 :]
        assert answer == talker.generate([*earlier, asked], NEW, chat=True)
        assert len(session.tokens) <= session.room + 1
        if session.dropped != (dropped[-1][1] if dropped else 0):
            dropped.append((number, session.dropped))
            assert len(session.tokens) <= session.room // 2 + 1
        elif number:
            assert session.turn.prefilled == 9  # between, turns add only themselves
    assert 2 <= len(dropped) <= 5
    position = len(session.tokens)
    answer = session.send("ab", NEW)
    session.rewind(position)
    assert session.send("ab", NEW) == answer
    with pytest.raises(InputError, match="do not fit the context"):
        session.send("a" * 320)
    with pytest.raises(InputError, match="overflow must be 'refuse' or 'drop-oldest'"):
        talker.session(overflow="drop")


# ---- files


@pytest.fixture(scope="module")
def file(talker: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    session = talker.session(messages=[SYSTEM])
    session.send("ab", NEW)
    path = tmp_path_factory.mktemp("session") / "s"
    session.save(path)
    return path


def rewritten(file: Path, path: Path, tensors: dict[str, Any], **changes: Any) -> Path:
    """A session's file with other contents, and the hash of these."""
    with safe_open(file, framework="numpy") as given:
        held = {name: given.get_tensor(name) for name in given.keys()} | tensors  # noqa: SIM118
        metadata = dict(given.metadata())
    del metadata["sha256"]
    conversation = json.loads(metadata["conversation"])
    conversation |= {k: v for k, v in changes.items() if k in conversation}
    metadata |= {k: v for k, v in changes.items() if k not in conversation}
    metadata["conversation"] = json.dumps(conversation)
    held = {name: array for name, array in held.items() if array is not None}
    save_file(held, path, metadata | {"sha256": session_file._digest(metadata, held)})
    return path


def test_what_was_altered_is_refused(talker: Program, file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    rng = random.Random(0)
    path = tmp_path / "damaged"
    session = talker.session()
    session.send("ef", NEW)
    tokens = session.tokens.copy()

    def refused(content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            session.restore(path)

    for place in [*range(16), *(rng.randrange(len(data)) for _ in range(100))]:
        refused(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
    for size in (0, 7, 100, len(data) - 1):
        refused(data[:size])
    assert session.tokens == tokens
    same_cache(session, talker)


def test_values_of_a_state_file_are_checked(talker: Program, file: Path, tmp_path: Path) -> None:
    """Also where the hash is right."""
    same = talker.session(rewritten(file, tmp_path / "same", {}))
    assert same.send("cd", NEW) == talker.session(file).send("cd", NEW)
    with safe_open(file, framework="numpy") as held:
        tokens, keys = held.get_tensor("tokens"), held.get_tensor("state.key.0")
    wrong: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"tokens": np.full_like(tokens, 64)}, {}, "outside the vocabulary"),
        ({"tokens": -tokens - 1}, {}, "outside the vocabulary"),
        ({"tokens": tokens.astype(np.float32)}, {}, "tensor tokens"),
        ({"tokens": np.zeros(319, np.int32)}, {}, "tensor tokens"),
        ({"tokens": tokens[: len(keys) - 1]}, {}, "tensor state"),
        ({"state.key.0": keys[:, :1]}, {}, r"state.key.0 is uint8\[.*, not uint8"),
        ({"state.key.0": keys.astype(np.uint16)}, {}, "state.key.0"),
        ({"state.key.0": keys[:-1]}, {}, "does not fit its tensors"),
        ({"state.key.0": None}, {}, "not those that the program keeps"),
        ({"state.key.9": keys}, {}, "not those that the program keeps"),
        ({}, {"cached": 1000}, "does not fit"),
        ({}, {"cached": "1"}, "does not fit"),
        ({}, {"messages": [1]}, "does not fit"),
        ({}, {"messages": {}}, "does not fit"),
        ({}, {"turns": [[0]]}, "cannot be read"),
        ({}, {"turns": [[0, -1]]}, "does not fit"),
        ({}, {"turns": 5}, "cannot be read"),
        ({}, {"format": "mqc session 0"}, "another version"),
        ({}, {"program": "0" * 64}, "another program"),
    ]
    for number, (tensors, changes, message) in enumerate(wrong):
        path = rewritten(file, tmp_path / str(number), tensors, **changes)
        with pytest.raises(ArtifactError, match=message):
            talker.session(path)
    save_file({"x": keys}, tmp_path / "x")
    with pytest.raises(ArtifactError, match="no session"):
        talker.session(tmp_path / "x")


def test_a_session_in_which_nothing_was_said(talker: Program, tmp_path: Path) -> None:
    talker.session(messages=[SYSTEM]).save(tmp_path / "s")
    session = talker.session(tmp_path / "s")
    assert (session.tokens, session.cached, session.messages) == ([], 0, [SYSTEM])
    assert session.fork().send("ab", NEW) == talker.session(messages=[SYSTEM]).send("ab", NEW)


def test_a_session_of_another_program(talker: Program, program: Program, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="another program"):
        program.session(file)
    with pytest.raises(ArtifactError, match="cannot read"):
        talker.session(tmp_path)
    with pytest.raises(InputError, match="not both"):
        talker.session(file, messages=[SYSTEM])


def test_a_session_is_written_whole_or_not_at_all(talker: Program, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(file.read_bytes())
    session = talker.session(messages=[{"role": "user", "content": {1, 2}}])
    with pytest.raises(InputError, match="saved as JSON"):
        session.save(path)
    with pytest.raises(StorageError):
        talker.session(file).save(tmp_path)
    assert path.read_bytes() == file.read_bytes() and list(tmp_path.iterdir()) == [path]


# ---- other engines, and other states


def test_onnx_runtime(tmp_path: Path) -> None:
    made = compiled("onnx-int8", lower_for_onnx, letter_tokenizer())
    made.configure(style="integer")
    session = made.session()
    session.send("ab", NEW)
    session.save(tmp_path / "s")
    for other in (session.fork(), made.session(tmp_path / "s"), session):
        asked = [*other.messages, {"role": "user", "content": "cd"}]
        assert other.send("cd", NEW) == made.generate(asked, NEW, chat=True)
        assert other.turn.prefilled == 9
        same_cache(other, made)
    session.rewind(3)
    same_cache(session, made)


@pytest.mark.parametrize("simulator", ["numpy", pytest.param("qemu", marks=pytest.mark.hexagon)])
def test_the_npu_goes_back_but_gives_no_copy(simulator: str, tmp_path: Path) -> None:
    made = compiled("npu-int8", lower_for_npu, letter_tokenizer()).configure(simulator=simulator)
    session = made.session()
    for text in ("ab", "cd"):
        asked = [*session.messages, {"role": "user", "content": text}]
        assert session.send(text, NEW) == made.generate(asked, NEW, chat=True)
    session.rewind(5)
    kept = session.tokens.copy()
    assert list(session.generate_tokens([1, 2], 3)) == list(made.generate_tokens([*kept, 1, 2], 3))
    for copy in (session.fork, lambda: session.save(tmp_path / "s")):
        with pytest.raises(TargetError, match="does not give its state"):
            copy()
    assert not list(tmp_path.iterdir())


@irdl_op_definition
class Delay(MqcOp):
    """The token before's value: what a convolution over time keeps."""

    name = "int.delay"
    x = operand_def(TensorType)
    result = result_def(TensorType)

    def states(self) -> tuple[State, ...]:
        shape = (channels(self.x),)
        return (State("delay", shape, u8, grows=False, initial=None, cleared=True, padding=False),)

    def evaluate(self, ctx: Any, x: Any) -> Any:
        last = ctx.state.get("delay", np.zeros(channels(self.x), np.uint8))
        ctx.state["delay"] = x[-1]
        return np.concatenate([last[None], x[:-1]])


@pytest.fixture
def delayed() -> Iterator[Program]:
    """A program of which an op keeps the last token's value alone."""
    ctx, module = quantized(tiny_model("llama"))
    lower_for_cpu(ctx, module)
    value = next(op for op in mqc_ops(module) if op.states()).operands[0]
    delay = Delay.create(operands=[value], result_types=[value.type])
    value.owner.parent.insert_op_after(delay, value.owner)  # type: ignore[union-attr]
    value.replace_uses_with_if(delay.results[0], lambda use: use.operation is not delay)
    manifest = {"target": "cpu-int8", "recipe": "w8a8", "source": {}, "mac_share_8bit": 0.8}
    yield Program(module, ctx.weights, letter_tokenizer(), manifest)


def test_a_state_of_fixed_size_goes_back_only_to_a_copy(delayed: Program, tmp_path: Path) -> None:
    session = delayed.session(engine="oracle")
    whole = list(delayed.generate_tokens([5, 6, 7], 9, engine="oracle"))
    assert list(session.generate_tokens([5, 6, 7], 4)) == whole[:4]
    copy = session.fork()
    session.save(tmp_path / "s")
    list(session.generate_tokens([9], 2))
    with pytest.raises(InputError, match=r"state delay .* fork the session before"):
        session.rewind(5)
    for other in (copy, delayed.session(tmp_path / "s", engine="oracle")):
        assert list(other.generate_tokens([], 5)) == whole[4:]
    session.rewind(0)
    assert list(session.generate_tokens([5, 6, 7], 4)) == whole[:4]
    # A conversation that only grows keeps its cache; one that differs begins anew.
    talk = delayed.session(engine="oracle")
    for text, kept in (("ab", 0), ("cd", 11), ("ef", 0)):
        asked = [*talk.messages, {"role": "user", "content": text}]
        assert talk.send(text, NEW) == delayed.generate(asked, NEW, chat=True, engine="oracle")
        assert talk.turn.kept == kept
        if text == "cd":
            talk.messages[1] = {"role": "assistant", "content": "no"}


def test_linear_attention_on_the_cpu(tmp_path: Path) -> None:
    """Its state forks, is saved, and goes on; a sequence that differs begins anew."""
    made = compiled("cpu-int8", lower_for_cpu, letter_tokenizer(), 128, "qwen3_5_text")
    session = made.session()
    whole = list(made.generate_tokens([5, 6, 7], 9))
    assert list(session.generate_tokens([5, 6, 7], 4)) == whole[:4]
    same_cache(session, made)
    copy = session.fork()
    session.save(tmp_path / "s")
    list(session.generate_tokens([9], 2))
    with pytest.raises(InputError, match=r"state recurrent\.0 .* fork the session before"):
        session.rewind(5)
    for other in (copy, made.session(tmp_path / "s"), made.session(tmp_path / "s", engine="oracle")):
        assert list(other.generate_tokens([], 5)) == whole[4:]
    session.rewind(0)
    assert list(session.generate_tokens([5, 6, 7], 4)) == whole[:4]
    talk = made.session()
    for text, kept in (("ab", 0), ("cd", 11)):
        asked = [*talk.messages, {"role": "user", "content": text}]
        assert talk.send(text, NEW) == made.generate(asked, NEW, chat=True)
        assert talk.turn.kept == kept
        same_cache(talk, made)


def test_states_of_other_shapes_are_refused(program: Program) -> None:
    for engine in (program.session().engine, OracleEngine(program.module, program.weights)):
        engine.forward(np.arange(5, dtype=np.int32))
        position, kept = engine.position, engine.read_state()
        for where, state in (
            (position - 1, kept), (1, kept), (65, kept), (position, {}),
            (position, kept | {"key.0": kept["key.0"].astype(np.int8)}),
        ):  # fmt: skip
            with pytest.raises(InputError, match=r"state|position|keeps"):
                engine.write_state(where, state)
        for where in (1, position + 1):
            with pytest.raises(InputError, match="position must be in"):
                engine.rewind(where)
        assert engine.position == position
