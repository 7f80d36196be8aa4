"""Programs under EleutherAI's lm-eval: its tasks, prompts and metrics, on the logits of an integer program.

The program gives s32 logits; softmax, choice among answers and metrics are outside of it. lm-eval is an
extra of this package, so this module is imported only where it is needed.
"""

from __future__ import annotations

import os
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mqc.errors import InputError
from mqc.runtime.program import Program
from mqc.runtime.sampling import Sampling, log_probabilities

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise InputError(f'tasks need lm-eval: pip install "mqc[lm-eval]" ({error})') from error

Progress = Callable[[str, float], None]
#: Token ids of what is given, and of what is scored behind it.
Pair = tuple[list[int], list[int]]
Score = tuple[float, bool]
#: Requests between two reports on the float model.
_AT_ONCE = 32


def evaluate_tasks(
    program: Program,
    names: Sequence[str],
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    progress: Progress = lambda message, share: None,
    beside: Callable[[], tuple[Any, Any]] | None = None,
    against: Program | None = None,
) -> dict[str, dict[str, float]]:
    """What lm-eval measures: for each task, and each group that has a mean, metric and value.

    With a float model beside the program also its value of each metric, as `float_` and the metric's name,
    and for tasks with answers `changed_answers`, the share of documents to which the two give another one:
    the likeliest choice, the text, or whether a text is what greedy decoding gives. With another program the
    same, as `against_` and the metric's name, and `changed_against`.

    Args:
        names: of tasks, groups or tags; `*` and `?` as in file names.
        include_path: folder with task files of one's own, beside those of lm-eval.
        limit: documents per task, from the first; all by default.
        num_fewshot: examples before each question; the task's own number by default, and for a task that
            fixes none.
        beside: gives a transformers model and its tokenizer, measured by lm-eval's own `HFLM`.
        against: another program.

    Raises `InputError` for unknown tasks, data that cannot be read, and requests beyond the context.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more, got {limit}")
    if num_fewshot is not None and num_fewshot < 0:
        raise InputError(f"num_fewshot must be 0 or more, got {num_fewshot}")
    random.seed(DEFAULT_RANDOM_SEED)  # as lm-eval's own command does; tasks shuffle by them
    np.random.seed(DEFAULT_OTHER_SEED)
    progress("loading tasks", 0.0)
    with redirect_stdout(sys.stderr):  # lm-eval and its tasks print
        loaded = _load(names, include_path)
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise InputError(f"task {name} runs code that a model wrote, or takes images: not done here")
            own = task.get_config("num_fewshot")
            if own is None or (own != 0 and num_fewshot is not None):
                task.set_config(key="num_fewshot", value=num_fewshot or 0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        progress("loading tasks", 1.0)
        others: dict[tuple[str, str], TemplateLM] = {}
        if beside is not None:
            others["float_", "changed_answers"] = _float_lm(program, *beside(), progress)
        if against is not None:
            others["against_", "changed_against"] = ProgramLM(against, progress, "the other program")
        numbers, answers = _measured(ProgramLM(program, progress), loaded, limit)
        for (prefix, changed), model in others.items():
            other, expected = _measured(model, loaded, limit)
            for name, values in numbers.items():
                values |= {f"{prefix}{metric}": value for metric, value in other[name].items()}
                pairs = list(zip(answers.get(name, ()), expected.get(name, ()), strict=True))
                if pairs:
                    values[changed] = float(np.mean([a != b for a, b in pairs]))
    return {name: values for name, values in numbers.items() if values}


def _measured(
    model: TemplateLM, tasks: Any, limit: int | None
) -> tuple[dict[str, dict[str, float]], dict[str, list[Any]]]:
    """Metrics by task, and the answers to its documents."""
    found = evaluate(lm=model, task_dict=tasks, limit=limit)
    numbers = {
        # `acc,none` is the metric without a filter.
        name: {key.removesuffix(",none"): float(v) for key, v in values.items() if _is_metric(key, v)}
        for name, values in found["results"].items()
    }
    answers = {
        name: [answer for sample in samples if (answer := _answer(sample["filtered_resps"])) is not None]
        for name, samples in found["samples"].items()
    }
    return numbers, answers


def _answer(responses: Sequence[Any]) -> Any:
    """What a model says to a document: which choice, whether a text is the greedy one, or a text."""
    first = responses[0]
    if isinstance(first, list | tuple) and len(first) == 2:
        return bool(first[1]) if len(responses) == 1 else int(np.argmax([r[0] for r in responses]))
    return tuple(responses) if isinstance(first, str) else None


def _float_lm(program: Program, model: Any, tokenizer: Any, progress: Progress) -> TemplateLM:
    """lm-eval's model of transformers, with the program's room, and progress."""
    from lm_eval.models.huggingface import HFLM

    class FloatLM(HFLM):
        def _told(self, ask: Callable[..., list[Any]], requests: Sequence[Any]) -> list[Any]:
            answers: list[Any] = []
            for start in range(0, len(requests), _AT_ONCE):
                answers += ask(requests[start : start + _AT_ONCE], disable_tqdm=True)
                progress("float model", len(answers) / len(requests))
            return answers

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._told(super().loglikelihood, requests)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._told(super().loglikelihood_rolling, requests)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._told(super().generate_until, requests)

    room = program.context - len(program.prefix)
    return FloatLM(pretrained=model, tokenizer=tokenizer, max_length=room, truncation=True)


def _is_metric(key: str, value: Any) -> bool:
    """Beside `metric,filter` lm-eval lists names and counts; an unknown error of a metric is a text."""
    return "," in key and isinstance(value, int | float | np.number)


def _load(names: Sequence[str], include_path: Path | None) -> Any:
    """lm-eval's tasks and groups by name."""
    if include_path is not None and not os.path.isdir(include_path):
        raise InputError(f"--include-path {include_path} is not a folder")
    manager = TaskManager(include_path=include_path, include_defaults=False)
    # Reading lm-eval's own 14,000 files takes 10 s. A group of one's own may name tasks of theirs.
    if not set(names) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=include_path)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown or not names:
        near = sorted({n for name in unknown for n in get_close_matches(name, manager.all_tasks)})
        wrong = InputError(f"lm-eval has no task {', '.join(unknown) or 'without a name'}")
        if near:
            wrong.add_note(f"near it: {', '.join(near)}")
        wrong.add_note("a task of your own: --include-path FOLDER, with its YAML file (docs/evaluation.md)")
        raise wrong
    try:
        return manager.load(manager.match_tasks(list(names)))
    except ConnectionError as error:
        offline = InputError(f"the data of {', '.join(names)} cannot be reached: {error}")
        offline.add_note("lm-eval's tasks read their data from the Hugging Face Hub: is there a network?")
        offline.add_note("tasks with local data: --include-path FOLDER (docs/evaluation.md)")
        raise offline from error
    except Exception as error:  # data sets and the code of tasks raise what they like
        kind = type(error).__name__
        raise InputError(f"cannot load {', '.join(names)}: {kind}: {error}") from error


class ProgramLM(TemplateLM):
    """An integer program as lm-eval's model, one request after the other.

    No special token is added to a text, as everywhere in mqc: the program's prefix stands before all.
    A text that has nothing before it follows the tokenizer's start token, or its end token; where there
    is neither, its first token is given and not scored. What is too long loses tokens on the left.

    progress: called with what is done, by which program if it has a name, and the share of it that is.
    """

    def __init__(
        self, program: Program, progress: Progress = lambda message, share: None, name: str = ""
    ) -> None:
        super().__init__()
        self.program, self._progress, self._who = program, progress, f"{name}, " if name else ""
        tokenizer = program.tokenizer
        self._start = tokenizer.eos if tokenizer.bos is None else tokenizer.bos

    @property
    def max_length(self) -> int:
        """Tokens of one request at most: the context without the program's prefix."""
        return self.program.context - len(self.program.prefix)

    @property
    def eot_token_id(self) -> int | None:
        return self.program.tokenizer.eos

    @property
    def prefix_token_id(self) -> int | None:
        return self._start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.program.tokenizer.encode(string, start=False)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Score]:
        """Log-likelihood of each continuation, and whether greedy decoding would give it."""
        pairs = [(request.args, *self._encoded(*request.args)) for request in requests]
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token once, in windows as long as the context."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            context, ids = self._from_start(self.tok_encode(*request.args))
            # With one token of context a window, as lm-eval does it for every model.
            rolling = get_rolling_token_windows(ids, context[0], self.max_length, 1) if ids else ()
            for window in rolling:
                windows.append((request.args, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for owner, (likelihood, _) in zip(owners, scores, strict=True):
            totals[owner] += likelihood
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts that follow the contexts, up to the first of their stop texts."""
        texts = []
        for number, request in enumerate(self._counted(requests, "generating", disable_tqdm)):
            context, given = request.args
            options = normalize_gen_kwargs(given)
            until = [text for text in handle_stop_sequences(options.get("until"), eos=None) if text]
            new_tokens = options["max_gen_toks"]
            if new_tokens >= self.max_length:
                raise InputError(
                    f"a task asks for {new_tokens} new tokens in a context of {self.max_length}: compile "
                    "with a larger context, or set max_gen_toks in the task's generation_kwargs"
                )
            prompt = self.tok_encode(context)[new_tokens - self.max_length :]
            if not prompt and self._start is not None:
                prompt = [self._start]
            top_k, top_p = options.get("top_k") or None, options.get("top_p") or None
            # A request that is repeated, to sample it more than once, has another seed each time.
            temperature = float(options.get("temperature", 1.0 if options["do_sample"] else 0.0))
            penalty = float(options.get("repetition_penalty") or 1.0)
            sampling = Sampling(temperature, top_k, top_p, number, options.get("min_p"), penalty)
            texts.append(self._generate(prompt, new_tokens, sampling, until))
        return texts

    def _generate(self, prompt: list[int], new_tokens: int, sampling: Sampling, until: list[str]) -> str:
        tokenizer = self.program.tokenizer
        encoded = [tokenizer.encode(text, start=False) for text in until]
        # Special tokens have no text to look for.
        special = [ids[0] for ids in encoded if len(ids) == 1 and not tokenizer.decode(ids)]
        text = ""
        tokens = self.program.generate_tokens(prompt, new_tokens, sampling, special)
        for piece in tokenizer.decode_stream(tokens):
            text += piece
            if any(stop in text for stop in until):
                break
        return str(postprocess_generated_text(text, until, None))

    def _encoded(self, context: str, continuation: str) -> Pair:
        """Tokens of both texts, split where the context's own tokens end; the continuation has the spaces
        between them."""
        given, scored = self._encode_pair(context, continuation) if context else ([], [])
        return (given, scored) if given else self._from_start(self.tok_encode(context + continuation))

    def _from_start(self, ids: list[int]) -> Pair:
        """Tokens of a text that has nothing before it: one to begin with, and the others."""
        if self._start is None or ids[:1] == [self._start]:
            return ids[:1], ids[1:]
        return [self._start], ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Score]:
        """Scores of (texts, context, continuation).

        Requests with the same input, which are those that choose among single tokens, are evaluated once.
        """
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise InputError(
                    f"{len(continuation)} tokens are to be scored in a context of {self.max_length}: "
                    "compile with a larger context"
                )
            alike[tuple((context + continuation)[-self.max_length - 1 : -1])].append(number)
        scores: list[Score] = [(0.0, True)] * len(requests)
        for ids, numbers in self._counted(list(alike.items()), "scoring", disable_tqdm):
            rows = max(len(requests[number][2]) for number in numbers)
            if not rows:  # nothing is to be scored
                continue
            engine = self.program.engine()
            engine.reset()
            logits = engine.forward(np.array(ids, np.int32), rows)
            for number in numbers:
                targets = requests[number][2]
                some = logits[rows - len(targets) :]
                scores[number] = score(some, targets, self.program.logit_scale, self.program.logit_cap)
        return scores

    def _counted(self, items: Sequence[Any], message: str, silent: bool) -> Iterator[Any]:
        for number, item in enumerate(items):
            yield item
            if not silent:
                self._progress(f"{self._who}{message}", (number + 1) / len(items))


def score(
    logits: npt.NDArray[np.int32], targets: Iterable[int], scale: float, cap: float | None = None
) -> Score:
    """Log-likelihood of `targets` `[tokens]` under s32 logits `[tokens, vocabulary]` in steps of `scale`,
    after a softcap `cap` if there is one, and whether each has the largest logit."""
    ids = np.fromiter(targets, np.int64)
    total = 0.0
    for start in range(0, len(ids), 64):  # float64 of a whole window would take gigabytes
        x = log_probabilities(logits[start : start + 64], scale, cap)
        total += float(x[np.arange(len(x)), ids[start : start + 64]].sum())
    return total, bool((logits.argmax(-1) == ids).all())
