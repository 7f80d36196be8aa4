"""A compiled program: what `mqc.compile` returns and `mqc.load` reads."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from html import escape
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from xdsl.dialects.builtin import ModuleOp

from mqc.backend import Engine, check_options
from mqc.errors import InputError
from mqc.ir.module import (
    context_length,
    logit_cap,
    mqc_ops,
    prefix_tokens,
    returned_value,
    states,
    weight_refs,
)
from mqc.ir.op import channels, plain
from mqc.ir.weight_store import WeightStore, numpy_dtype
from mqc.numerics.softcap import capped
from mqc.registry import backend_for
from mqc.runtime import artifact
from mqc.runtime.oracle import OracleEngine
from mqc.runtime.perplexity import perplexity, text_windows
from mqc.runtime.sampling import Sampling
from mqc.runtime.session import REFUSE, Session
from mqc.runtime.stop_texts import split_stops, until_stop
from mqc.runtime.tokenizer import Message, Tokenizer

Prompt = str | Sequence[int]


class Program:
    """An integer-only LLM, its tokenizer, and the engine that runs it.

    Threads may share a program: calls wait for each other. A sequence that `stream` or `generate_tokens`
    began ends with an error when another one was started, in whichever thread. Sessions (`session`) run side
    by side. A forked process has engines of its own, over the same weights.

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
        self._process = os.getpid()
        #: By kind of engine: what runs on the program's own.
        self._sessions: dict[str, Session] = {}
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
    def logit_cap(self) -> float | None:
        """The c of the model's final softcap, `c · tanh(logits / c)`; None without. The s32 logits are before
        it."""
        return logit_cap(self.module)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, as stored."""
        return self.weights.nbytes(weight_refs(self.module))

    @property
    def cache_bytes(self) -> int:
        """Bytes of what ops keep for each position."""
        kept = (state for state in states(self.module) if state.grows)
        return sum(prod(state.shape) * numpy_dtype(state.element).itemsize for state in kept)

    def facts(self) -> dict[str, Any]:
        """What a program is: its manifest, and what its files say. `mqc info --json` gives it."""
        return {
            **self.manifest,
            "context": self.context,
            "prefix": list(self.prefix),
            "vocabulary": channels(returned_value(self.module)),
            "logit_scale": self.logit_scale,
            "logit_cap": self.logit_cap,
            "weight_bytes": self.size_bytes,
            "cache_bytes_per_position": self.cache_bytes,
            "ops": dict(Counter(op.name for op in mqc_ops(self.module))),
            "start_tokens": list(self.tokenizer.start),
            "end_tokens": sorted(self.tokenizer.ends),
            "chat_templates": sorted(self.tokenizer.templates),
            "generation_config": self.tokenizer.generation,
        }

    def _repr_html_(self) -> str:
        """The program in a notebook: a table."""
        source = self.manifest.get("source")
        shown = {
            "model": source.get("id") if isinstance(source, dict) else None,
            "target": self.target,
            "recipe": self.manifest.get("recipe"),
            "context": f"{self.context:,} positions, {self.cache_bytes:,} bytes each",
            "prefix": list(self.prefix),
            "weights": f"{self.size_bytes / 1e6:.1f} MB",
        }
        rows = (
            f"<tr><th>{escape(name)}</th><td>{escape(str(fact))}</td></tr>"
            for name, fact in shown.items()
            if fact is not None
        )
        return f"<table>{''.join(rows)}</table>"

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
            if self._process != os.getpid():
                self._process = os.getpid()
                self._engines.clear()
            if kind not in self._engines:
                self._engines[kind] = self._open(kind)
            return self._engines[kind]

    def session(
        self,
        path: str | Path | None = None,
        *,
        messages: Iterable[Message] = (),
        overflow: str = REFUSE,
        chat_options: Mapping[str, Any] | None = None,
        engine: str = "target",
    ) -> Session:
        """A conversation or sequence that goes on (`Session`), with an engine and a cache of its own.

        Args:
            path: a file that `Session.save` wrote, to go on from.
            messages: what a conversation begins with, such as a system message.
            overflow: what a conversation does that no longer fits the context: `refuse`, or `drop-oldest`.
            chat_options: as for `generate`.
            engine: `target`, or `oracle` for the NumPy semantics.

        Raises `ArtifactError` if the file is truncated, altered or of another program.
        """
        begun = list(messages)
        if path is not None and begun:
            raise InputError("a session's file has its messages; give a path or messages, not both")
        opened = Session(
            self.module, self.tokenizer, lambda: self._open(engine), begun, overflow, chat_options
        )
        if path is not None:
            opened.restore(path)
        return opened

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
        session = self._own(engine)
        yield from session.complete(prompt, max_new_tokens, sampling, stop)

    def stream(self, prompt: Prompt | Sequence[Message], chat: bool = False, **options: Any) -> Iterator[str]:
        """Pieces of text as they are generated; options as in `generate`."""
        ids = self._prompt_ids(prompt, chat, **options.pop("chat_options", {}))
        ends, texts = split_stops(self.tokenizer, options.pop("stop", ()))
        given = {field.name: options.pop(field.name, None) for field in fields(Sampling)}
        sampling = Sampling.of_model(self.tokenizer.generation, **given)
        tokens = self.generate_tokens(ids, sampling=sampling, stop=ends, **options)
        return until_stop(self.tokenizer.decode_stream(tokens, continues=not chat), texts)

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
            stop: token ids and texts that end the answer; it does not hold them.
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
        return self._own(engine).evaluate(self._prompt_ids(prompt, False))

    def logits(self, prompt: Prompt, engine: str = "target") -> npt.NDArray[np.float32]:
        """Real logits `[tokens, vocabulary]`: the integers times `logit_scale`, after the model's softcap."""
        real = self.integer_logits(prompt, engine).astype(np.float32) * np.float32(self.logit_scale)
        return capped(real, 1.0, self.logit_cap)

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
        if self.logit_cap is not None:
            facts["logit_cap"] = self.logit_cap
        artifact.export(self._parts(), Path(path), facts, **options)

    def _parts(self) -> artifact.Parts:
        return artifact.Parts(self.module, self.weights, self.tokenizer, self.manifest)

    # ---- helpers

    def _open(self, kind: str) -> Engine:
        if kind == "oracle":
            return OracleEngine(self.module, self.weights)
        if kind == "target":
            return backend_for(self.target).engine(self.module, self.weights, **self.options)
        raise InputError(f"engine must be 'target' or 'oracle', got {kind!r}")

    def _own(self, kind: str) -> Session:
        """The session on the program's own engine, which holds one sequence after another."""
        with self._lock:
            engine = self.engine(kind)
            if kind not in self._sessions or self._sessions[kind].engine is not engine:
                self._sessions[kind] = Session(self.module, self.tokenizer, lambda: engine)
            return self._sessions[kind]

    def _prompt_ids(self, prompt: Any, chat: bool, **options: Any) -> list[int]:
        if chat:
            return self.tokenizer.chat(prompt, **options)
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
