"""Conversations and sequences that go on: what was computed stays in the cache."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.ir_text import print_module
from mqc.backend import Engine, Logits
from mqc.errors import InputError
from mqc.ir.module import logit_cap, states
from mqc.ir.op import plain
from mqc.runtime import session_file
from mqc.runtime.decoding import Steps
from mqc.runtime.sampling import Sampling, Steering
from mqc.runtime.stop_texts import split_stops, until_stop
from mqc.runtime.tokenizer import Message, Tokenizer
from mqc.tokens import token_ids

#: Most new tokens by default.
NEW_TOKENS = 100
#: Logits that are held at once.
_LOGIT_BYTES = 1 << 26
#: What a conversation does that no longer fits: an error, or forgetting its oldest turns.
REFUSE, DROP_OLDEST = "refuse", "drop-oldest"


@dataclass
class Turn:
    """What a turn took.

    Tokens of its prompt that were in the cache (`kept`) and that were not (`prefilled`), and tokens that it
    gave (`generated`). `prefill_seconds` until the first of them; `decode_seconds` for the others.
    """

    kept: int = 0
    prefilled: int = 0
    generated: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


class Session:
    """One sequence on an engine of its own, over the program's weights.

    Tokens behind the program's prefix stay in the cache from turn to turn: only what differs from them is
    prefilled. If an op keeps a state of fixed size, which cannot go back, a sequence that differs from the
    cache begins anew.

    `messages` is the conversation, a list to read and to edit. `send` renders all of it by the chat template,
    so that an answer is that of a fresh run on the same messages, bit for bit.

    A conversation that does not fit the context is an `InputError`, and the session stays as it was. With
    `overflow="drop-oldest"` it forgets its oldest turns instead, until half of the context is free. The
    prefix, the system message and the last message stay.

    Several sessions of one program run at once, each in a thread of its own. A session serves one at a
    time: a turn ends with an error when another one was begun, in whichever thread.

    Memory: the engine's cache and activations. tokens: of the sequence. turn: figures of the last turn.
    dropped: messages that were forgotten. speculates: whether steps take drafts along
    (`mqc.runtime.speculation`), from which only the speed depends.
    """

    def __init__(
        self,
        module: ModuleOp,
        tokenizer: Tokenizer,
        open_engine: Callable[[], Engine],
        messages: Iterable[Message] = (),
        overflow: str = REFUSE,
        chat_options: Mapping[str, Any] | None = None,
    ) -> None:
        if overflow not in (REFUSE, DROP_OLDEST):
            raise InputError(f"overflow must be {REFUSE!r} or {DROP_OLDEST!r}, got {overflow!r}")
        self.tokens: list[int] = []
        self.messages: list[Message] = list(messages)
        self.turn = Turn()
        self.dropped = 0
        self.overflow = overflow
        self.chat_options = dict(chat_options or {})
        self.engine = open_engine()
        self._module, self._tokenizer, self._open_engine = module, tokenizer, open_engine
        self._logit_scale = float(plain(module.attributes["mqc.logit_scale"]))
        self._logit_cap = logit_cap(module)
        self._goes_back = all(state.grows for state in states(module))
        # What steers is told of each token when it is given out, and drafts are chosen before.
        self.speculates = self._goes_back and type(self.engine).rewind is not Engine.rewind
        #: Where turns began, as numbers of tokens and of messages.
        self._turns: list[tuple[int, int]] = []
        # Engines hold one sequence, and give up the GIL while they compute.
        self._lock = threading.RLock()

    @property
    def room(self) -> int:
        """Tokens that fit behind the program's prefix."""
        return self.engine.context - self.engine.prefix_length

    @property
    def cached(self) -> int:
        """How many of `tokens` are in the cache. The last one that was generated may not be."""
        return min(self.engine.position - self.engine.prefix_length, len(self.tokens))

    def shared(self, sequence: Sequence[int]) -> int:
        """How many tokens in the cache a sequence begins with."""
        pairs = zip(self.tokens[: self.cached], sequence, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(self.cached, len(sequence)))

    # ---- conversations

    def send(
        self,
        text: str,
        max_new_tokens: int | None = None,
        *,
        stop: Iterable[int | str] = (),
        stream: Callable[[str], None] | None = None,
        **sampling: Any,
    ) -> str:
        """The answer to a message of the user; both become part of `messages`.

        Args:
            max_new_tokens: most tokens of the answer; by default 100, or as many as fit.
            stop: token ids and texts that end the answer; it does not hold them.
            stream: called with each piece of text as it comes.
            sampling: fields of `Sampling`; by default as the model's `generation_config` says, else greedy.

        Raises `InputError` for what is out of range, and for a conversation that does not fit the context.
        """
        pieces = []
        for piece in self.stream(text, max_new_tokens, stop=stop, **sampling):
            pieces.append(piece)
            if stream is not None:
                stream(piece)
        return "".join(pieces)

    def stream(
        self,
        text: str,
        max_new_tokens: int | None = None,
        *,
        stop: Iterable[int | str] = (),
        **sampling: Any,
    ) -> Generator[str, None, None]:
        """Pieces of the answer as they are generated; else as `send`.

        If the iterator is closed early, what was said until then is the answer. If nothing was, the message
        is forgotten.
        """
        _check_most(max_new_tokens)
        chosen = Sampling.of_model(self._tokenizer.generation, **sampling)
        ids, texts = split_stops(self._tokenizer, stop)
        return self._converse(text, max_new_tokens, chosen, ids, texts)

    def _converse(
        self, text: str, most: int | None, sampling: Sampling, ids: list[int], texts: list[str]
    ) -> Generator[str, None, None]:
        with self._lock:
            asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
            messages, prompt = self._fitting(asked, most)
            if len(messages) < len(asked):
                self.dropped += len(asked) - len(messages)
                self._turns = []
            self._turns.append((len(self.tokens), len(messages) - 1))
            self.messages = messages
        said, ended = "", False
        tokens = self._follow(lambda: prompt, most, sampling, ids)
        try:
            for piece in until_stop(self._tokenizer.decode_stream(tokens, continues=False), texts):
                said += piece
                yield piece
            ended = True
        finally:
            if messages[-1:] == asked[-1:]:  # not if the session was rewound meanwhile
                if said or ended:
                    messages.append({"role": "assistant", "content": said})
                else:
                    messages.pop()

    def _fitting(self, messages: list[Message], most: int | None) -> tuple[list[Message], list[int]]:
        """A conversation of which the answer fits too, and its tokens."""
        drops = self.overflow == DROP_OLDEST
        answer = most or (min(NEW_TOKENS, self.room // 4) if drops else 1)
        ids = self._rendered(messages)
        if len(ids) + answer - 1 <= self.room:
            return messages, ids
        # Half of it, so that the next turns only add to the cache.
        while drops and len(ids) + answer - 1 > self.room // 2:
            shorter = _without_oldest_turn(messages)
            if shorter is None:
                break
            messages, ids = shorter, self._rendered(shorter)
        if len(ids) + answer - 1 > self.room:
            advice = "" if drops else f"; begin anew, shorten `messages`, or use overflow={DROP_OLDEST!r}"
            raise InputError(
                f"the conversation of {len(ids)} tokens and an answer of {answer} do not fit the context, "
                f"which has room for {self.room}{advice}"
            )
        return messages, ids

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        return self._tokenizer.chat(messages, **self.chat_options)

    # ---- tokens

    def generate_tokens(
        self,
        ids: Sequence[int],
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[int] = (),
    ) -> Iterator[int]:
        """Append token ids to the sequence, and give those that follow, one by one, until a stop token (not
        given out). The end tokens of the tokenizer and of the model's `generation_config` stop too.

        Raises `InputError` if the sequence and the new tokens do not fit the context, the sequence is empty,
        or it holds ids outside the vocabulary.
        """
        return self._follow(lambda: [*self.tokens, *ids], max_new_tokens, sampling or Sampling(), stop)

    def complete(
        self,
        prompt: Sequence[int],
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[int] = (),
    ) -> Iterator[int]:
        """As `generate_tokens`, on a sequence that begins with the prompt; nothing in the cache is used."""

        def begin() -> Sequence[int]:
            self._forget()
            return prompt

        return self._follow(begin, max_new_tokens, sampling or Sampling(), stop)

    def follow(
        self,
        prompt: Sequence[int],
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[int] = (),
        steering: Steering | None = None,
    ) -> Iterator[int]:
        """As `complete`, but what the cache holds of the prompt is used. The tokens are the same.

        steering: limits and watches the choice.
        """
        return self._follow(lambda: prompt, max_new_tokens, sampling or Sampling(), stop, steering)

    def evaluate(self, ids: Sequence[int]) -> Logits:
        """s32 logits `[tokens, vocabulary]` of a sequence by itself, which is the session's then."""
        checked = token_ids(ids, self.engine.vocabulary)
        with self._lock:
            self._begin_with(checked.tolist())
            return self.engine.forward(checked)

    def evaluate_in_parts(self, ids: Sequence[int]) -> Iterator[Logits]:
        """The logits of `evaluate`, of as many tokens at a time as take some 64 MiB."""
        checked = token_ids(ids, self.engine.vocabulary)
        rows = max(_LOGIT_BYTES // (4 * self.engine.vocabulary), 1)
        with self._lock:
            turn = self._begin_with(checked.tolist())
        for start in range(0, len(checked), rows):
            with self._lock:
                self._check_current(turn)
                part = self.engine.forward(checked[start : start + rows])
            yield part

    def _follow(
        self,
        begin: Callable[[], Sequence[int]],
        most: int | None,
        sampling: Sampling,
        stop: Sequence[int],
        steering: Steering | None = None,
    ) -> Iterator[int]:
        """Tokens that follow the sequence that `begin` gives, once the turn is begun."""
        _check_most(most)
        with self._lock:
            turn = self._begin()
            sequence = begin()
            if not len(sequence):
                raise InputError("the prompt is empty")
            most = most or max(min(NEW_TOKENS, self.room - len(sequence) + 1), 1)
            if len(sequence) + most - 1 > self.room:
                raise InputError(
                    f"a sequence of {len(sequence)} tokens and {most} new ones do not fit the context of "
                    f"{self.room}; shorten it, or compile with a larger context"
                )
            self._keep(token_ids(sequence, self.engine.vocabulary).tolist(), turn)
        steps = Steps(
            self.engine, self.tokens, sampling, steering, {*stop, *self._tokenizer.ends}, self._logit_scale,
            self._logit_cap, speculates=self.speculates and steering is None,
        )  # fmt: skip
        while turn.generated < most:
            with self._lock:
                self._check_current(turn)
                started = time.perf_counter()
                token = steps.next(most - turn.generated)
                took = time.perf_counter() - started
                if not turn.generated:
                    turn.prefill_seconds = took
                if token is None:
                    return
                if turn.generated:
                    turn.decode_seconds += took
                turn.generated += 1
                self.tokens.append(token)
            yield token

    def _begin(self) -> Turn:
        self._settle()
        self.turn = Turn()
        return self.turn

    def _begin_with(self, sequence: list[int]) -> Turn:
        """A turn on a sequence of which nothing is computed yet."""
        turn = self._begin()
        self._forget()
        self.tokens = sequence
        return turn

    def _check_current(self, turn: Turn) -> None:
        if self.turn is not turn:
            raise InputError("another sequence was started here; finish the first, or give each a session")

    def _settle(self) -> None:
        """Forget what a turn that was left has in the cache beyond its tokens: drafts that were right."""
        if self.engine.position - self.engine.prefix_length > len(self.tokens):
            self._return_to(len(self.tokens))

    def _keep(self, sequence: list[int], turn: Turn) -> None:
        """Make the sequence this one, and keep of the cache what both begin with."""
        held, same = self.cached, self.shared(sequence)
        same = min(same, len(sequence) - 1)  # the last token goes through the engine: its logits are wanted
        if same < held and not self._goes_back:
            same = 0
        if same < held:
            self._return_to(same)
        self.tokens = sequence
        turn.kept, turn.prefilled = same, len(sequence) - same

    # ---- going back, copies and files

    def rewind(self, position: int) -> None:
        """Go back to the first `position` of `tokens`, and to the messages that there were then.

        Raises `InputError` if there are not so many, or if an op keeps a state of fixed size, which can only
        be copied before (`fork`); `TargetError` if the target's engine cannot go back.
        """
        with self._lock:
            if not 0 <= position <= len(self.tokens):
                raise InputError(f"position must be in [0, {len(self.tokens)}], got {position}")
            if position < self.cached:
                self._return_to(position)
            self._begin()
            del self.tokens[position:]
            while self._turns and self._turns[-1][0] >= position:
                del self.messages[self._turns.pop()[1] :]

    def reset(self) -> None:
        """Forget the sequence, and of the conversation all but a system message in front."""
        with self._lock:
            self._begin()
            self._forget()
            self.messages = self.messages[: _opening(self.messages)]
            self._turns, self.dropped = [], 0

    def fork(self) -> Session:
        """A copy that goes on by itself, with an engine and a cache of its own.

        Raises `TargetError` if the target's engine does not give its state.
        """
        with self._lock:
            self._settle()
            state = self.engine.read_state()
            other = Session(
                self._module, self._tokenizer, self._open_engine, deepcopy(self.messages), self.overflow,
                self.chat_options,
            )  # fmt: skip
            other.engine.write_state(self.engine.position, state)
            other.tokens, other._turns, other.dropped = self.tokens.copy(), self._turns.copy(), self.dropped
            return other

    def save(self, path: str | Path) -> None:
        """Write tokens, cache and conversation as one file, for `Program.session`; whole or not at all.

        Options of the chat template, the overflow policy and the engine's options are not in it.

        Raises `StorageError`; `InputError` for messages that JSON does not have; `TargetError` if the
        target's engine does not give its state.
        """
        with self._lock:
            self._settle()
            try:
                json.dumps(self.messages)
            except (TypeError, ValueError) as error:
                raise InputError(f"the messages cannot be saved as JSON: {error}") from error
            messages = [dict(message) for message in self.messages]
            saved = session_file.Saved(
                self.tokens, self.cached, self.engine.read_state(), messages, self._turns
            )
            session_file.write(Path(path), self._program_hash(), saved)

    def restore(self, path: str | Path) -> None:
        """Go on from a file that `save` wrote, of this program.

        Raises `ArtifactError` if it is truncated, altered or of another program.
        """
        with self._lock:
            saved = session_file.read(
                Path(path), self._program_hash(), states(self._module), self.engine.vocabulary, self.room
            )
            self._begin()
            self.engine.write_state(self.engine.prefix_length + saved.cached, saved.state)
            self.tokens, self._turns, self.dropped = saved.tokens, saved.turns, 0
            self.messages = list(saved.messages)

    def _program_hash(self) -> str:
        """SHA-256 of the program's text, which holds the hashes of its weights, and of its tokenizer."""
        digest = hashlib.sha256(print_module(self._module).encode())
        digest.update(json.dumps(self._tokenizer.files, sort_keys=True).encode())
        return digest.hexdigest()

    def _forget(self) -> None:
        self.engine.reset()
        self.tokens = []

    def _return_to(self, position: int) -> None:
        """Go back in the cache; to the prefix every engine can."""
        if position == 0:
            self.engine.reset()
        else:
            self.engine.rewind(self.engine.prefix_length + position)


def _check_most(most: int | None) -> None:
    if most is not None and most < 1:
        raise InputError(f"max_new_tokens must be 1 or more, got {most}")


def _opening(messages: Sequence[Message]) -> int:
    """How many messages in front are the system's."""
    roles = [message.get("role") for message in messages]
    return next((n for n, role in enumerate(roles) if role not in ("system", "developer")), len(roles))


def _without_oldest_turn(messages: list[Message]) -> list[Message] | None:
    """A conversation that goes on with the second message of its user; None if there is none."""
    first = _opening(messages)
    later = (n for n in range(first + 1, len(messages)) if messages[n].get("role") == "user")
    following = next(later, None)
    return None if following is None else messages[:first] + messages[following:]
