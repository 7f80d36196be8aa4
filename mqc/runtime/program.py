"""A compiled program: what `mqc.compile` returns and `mqc.load` reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from xdsl.dialects.builtin import ModuleOp

from mqc.backend import Engine, check_options
from mqc.errors import InputError
from mqc.ir.module import context_length, prefix_tokens, weight_refs
from mqc.ir.op import plain
from mqc.ir.weight_store import WeightStore
from mqc.registry import backend_for
from mqc.runtime import artifact
from mqc.runtime.oracle import OracleEngine
from mqc.runtime.perplexity import perplexity, text_windows
from mqc.runtime.sampling import Sampling
from mqc.runtime.tokenizer import Message, Tokenizer
from mqc.tokens import token_ids

Prompt = str | Sequence[int]
#: Most new tokens by default.
NEW_TOKENS = 100


class Program:
    """An integer-only LLM, its tokenizer, and the engine that runs it.

    Threads may share a program: calls wait for each other. A sequence that `stream` or `generate_tokens`
    began ends with an error when another one was started, in whichever thread.

    manifest: `target`, `recipe`, `pipeline`, `source`, `mac_share_8bit`, `mqc_version`.
    options: of the target's engine, set by `configure`.
    """

    def __init__(
        self,
        module: ModuleOp,
        weights: WeightStore,
        tokenizer: Tokenizer,
        manifest: dict[str, Any],
    ) -> None:
        self.module, self.weights = module, weights
        self.tokenizer = tokenizer.behind(prefix_tokens(module))
        self.manifest = manifest
        self.options: dict[str, Any] = {}
        self._engines: dict[str, Engine] = {}
        self._turns: dict[str, object] = {}
        # Engines hold one sequence, and give up the GIL while they compute.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        source = self.manifest.get("source")
        model = source.get("id") if isinstance(source, dict) else None
        facts = {"recipe": self.manifest.get("recipe"), "model": model}
        told = "".join(f" {name}={fact!r}" for name, fact in facts.items() if fact is not None)
        return f"<Program {self.target}{told} context={self.context} prefix={list(self.prefix)}>"

    # ---- facts

    @property
    def target(self) -> str:
        return str(self.manifest["target"])

    @property
    def context(self) -> int:
        """Positions in all, the prefix included."""
        return context_length(self.module)

    @property
    def prefix(self) -> tuple[int, ...]:
        """Tokens that stand in the cache before every prompt."""
        return prefix_tokens(self.module)

    @property
    def logit_scale(self) -> float:
        """Real value of one step of the s32 logits."""
        return float(plain(self.module.attributes["mqc.logit_scale"]))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, as stored."""
        return self.weights.nbytes(weight_refs(self.module))

    # ---- running

    def configure(self, **options: Any) -> Program:
        """Set options of the target's engine (`Backend.options`; for the CPU `threads`, `isa`), where not
        None. Returns itself. Raises `InputError` for options that the target does not have."""
        given = {name: value for name, value in options.items() if value is not None}
        check_options(self.target, backend_for(self.target).options, given)
        self.options |= given
        self._engines.pop("target", None)
        return self

    def engine(self, kind: str = "target") -> Engine:
        """The engine of the target, or with `oracle` the NumPy semantics. Made on first use."""
        with self._lock:
            if kind not in self._engines:
                if kind == "oracle":
                    self._engines[kind] = OracleEngine(self.module, self.weights)
                elif kind == "target":
                    backend = backend_for(self.target)
                    self._engines[kind] = backend.engine(self.module, self.weights, **self.options)
                else:
                    raise InputError(f"engine must be 'target' or 'oracle', got {kind!r}")
            return self._engines[kind]

    def generate_tokens(
        self,
        prompt: Sequence[int],
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[int] = (),
        engine: str = "target",
    ) -> Iterator[int]:
        """Token ids that follow a prompt, one by one, until a stop token (not given out).

        The end tokens of the tokenizer and of the model's `generation_config` stop too. Raises `InputError`
        if prompt and new tokens do not fit the context, or the prompt is empty or holds ids outside the
        vocabulary.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
        if not len(prompt):
            raise InputError("the prompt is empty")
        runner = self.engine(engine)
        room = runner.context - runner.prefix_length
        if max_new_tokens is None:
            max_new_tokens = max(min(NEW_TOKENS, room - len(prompt) + 1), 1)
        if len(prompt) + max_new_tokens - 1 > room:
            raise InputError(
                f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones do not fit the "
                f"context of {room}; shorten the prompt or compile with a larger context"
            )
        chosen = sampling or Sampling()
        generator = chosen.generator()
        ends = {*stop, *self.tokenizer.ends}
        current = token_ids(prompt, runner.vocabulary)
        text = set(current.tolist())
        turn = self._take(engine)
        for _ in range(max_new_tokens):
            with self._lock:
                if self._turns[engine] is not turn:
                    raise InputError(
                        "another sequence was started on this program; finish the first, or load the "
                        "program once more to run both"
                    )
                logits = runner.forward(current, rows=1)
            token = chosen.choose(logits[-1], self.logit_scale, generator, text)
            if token in ends:
                return
            yield token
            text.add(token)
            current = np.array([token], np.int32)

    def stream(self, prompt: Prompt | Sequence[Message], chat: bool = False, **options: Any) -> Iterator[str]:
        """Pieces of text as they are generated; options as in `generate`."""
        ids = self._prompt_ids(prompt, chat, **options.pop("chat_options", {}))
        texts = options.pop("stop", ())
        stop = [i for t in texts for i in ([t] if isinstance(t, int) else self._stop_id(t))]
        given = {field.name: options.pop(field.name, None) for field in fields(Sampling)}
        sampling = Sampling.of_model(self.tokenizer.generation, **given)
        tokens = self.generate_tokens(ids, sampling=sampling, stop=stop, **options)
        return self.tokenizer.decode_stream(tokens, continues=not chat)

    def generate(
        self,
        prompt: Prompt | Sequence[Message],
        max_new_tokens: int | None = None,
        *,
        chat: bool = False,
        chat_options: Mapping[str, Any] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: Sequence[int | str] = (),
        stream: Callable[[str], None] | None = None,
        engine: str = "target",
    ) -> str:
        """Complete a prompt: text, or token ids; with `chat`, a message or a list of messages.

        Args:
            max_new_tokens: most tokens to add; by default 100, or as many as fit.
            chat_options: of `Tokenizer.chat`: `template`, `parse_special`, and the variables of templates.
            temperature: 0 is greedy. top_k, top_p, min_p, repetition_penalty, seed: see `Sampling`. What is
                None is what the model's `generation_config` states, else greedy and without a penalty.
            stop: token ids, or texts of single tokens, that end the answer.
            stream: called with each piece of text as it comes.
            engine: `target`, or `oracle` for the NumPy semantics.

        Raises `InputError` for prompts or options out of range.
        """
        pieces = []
        for piece in self.stream(
            prompt, chat, max_new_tokens=max_new_tokens, chat_options=chat_options or {},
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, seed=seed, stop=stop, engine=engine,
        ):  # fmt: skip
            pieces.append(piece)
            if stream is not None:
                stream(piece)
        return "".join(pieces)

    def integer_logits(self, prompt: Prompt, engine: str = "target") -> npt.NDArray[np.int32]:
        """s32 logits `[tokens, vocabulary]` of a prompt, evaluated by itself."""
        runner = self.engine(engine)
        ids = token_ids(self._prompt_ids(prompt, False), runner.vocabulary)
        with self._lock:
            self._take(engine)
            return runner.forward(ids)

    def logits(self, prompt: Prompt, engine: str = "target") -> npt.NDArray[np.float32]:
        """Real logits `[tokens, vocabulary]`: the integers times `logit_scale`."""
        return self.integer_logits(prompt, engine).astype(np.float32) * np.float32(self.logit_scale)

    def perplexity(
        self,
        text: str,
        windows: int = 30,
        skip: int = 0,
        length: int = 512,
        engine: str = "target",
        progress: Callable[[float], None] = lambda share: None,
    ) -> float:
        """Perplexity on consecutive windows of a text (`mqc.runtime.perplexity`)."""
        parts = text_windows(self.tokenizer.encode(text, start=False), length, windows, skip)
        return perplexity(lambda ids: self.logits(ids.tolist(), engine), parts, progress)

    # ---- on disk

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read a program that `save` wrote. Needs neither torch nor transformers; weights are memory-mapped.

        Raises `ArtifactError` if a file is missing, truncated or altered, or of another format version.
        """
        parts = artifact.read(Path(path))
        return cls(parts.module, parts.weights, parts.tokenizer, parts.manifest)

    def save(self, path: str | Path, **options: Any) -> None:
        """Write the program as a folder (`mqc.runtime.artifact`); options are the backend's
        (`save_options`)."""
        artifact.write(self._parts(), Path(path), **options)

    def export(self, path: str | Path, **options: Any) -> None:
        """Write the files for the target as a folder; options are the backend's (`export_options`)."""
        context = options.get("context") or self.context
        facts = {"prefix": self.prefix, "context": context, "logit_scale": self.logit_scale}
        artifact.export(self._parts(), Path(path), facts, **options)

    def _parts(self) -> artifact.Parts:
        return artifact.Parts(self.module, self.weights, self.tokenizer, self.manifest)

    # ---- helpers

    def _take(self, kind: str) -> object:
        """Start a sequence on an engine, which holds one at a time; the one before has ended."""
        with self._lock:
            self.engine(kind).reset()
            self._turns[kind] = object()
            return self._turns[kind]

    def _prompt_ids(self, prompt: Any, chat: bool, **options: Any) -> list[int]:
        if chat:
            return self.tokenizer.chat(prompt, **options)
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _stop_id(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, start=False)
        if len(ids) != 1:
            raise InputError(f"stop text {text!r} is {len(ids)} tokens; give a single token's text")
        return ids
