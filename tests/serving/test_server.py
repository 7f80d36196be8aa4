"""A server as its clients meet it: a process's port, the `openai` client, lm-eval and a browser."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import openai
import pytest
import uvicorn
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from playwright.sync_api import expect, sync_playwright

from mqc.errors import InputError
from mqc.runtime.lm_eval import ProgramLM
from mqc.runtime.program import Program
from mqc.runtime.sampling import log_probabilities
from mqc.runtime.tokenizer import TOKENIZER, Tokenizer
from mqc.serving.app import Settings, create_app
from mqc.serving.middleware import BODY_BYTES
from mqc.serving.pool import Pool
from tests.compiled import lower_for_cpu
from tests.runtime.conftest import byte_tokenizer, compiled
from tests.test_report import CHROMIUM

NAME, KEY = "tiny", "a secret"


@contextmanager
def served(program: Program, **settings: Any) -> Iterator[str]:
    """A server of its own port; its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        app = create_app(program, Settings(NAME, **settings))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def bytes_program() -> Program:
    """Room for some hundred tokens, an end token, and letters of two bytes."""
    return compiled("cpu-int8", lower_for_cpu, byte_tokenizer(), context=320)


@pytest.fixture(scope="module")
def address(bytes_program: Program) -> Iterator[str]:
    with served(bytes_program) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as made:
        yield made


def post(address: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Status and JSON of an answer to a body, JSON or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(f"{address}{path}", data, {"Content-Type": "application/json", **headers})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def get(address: str, path: str, **headers: str) -> str:
    with urlopen(Request(f"{address}{path}", headers=headers), timeout=60) as answer:
        return answer.read().decode()


def metric(address: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", get(address, "/metrics"), re.M)
    assert found is not None
    return float(found[1])


def eventually(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to that in a minute")


MESSAGES: Any = [{"role": "system", "content": "be"}, {"role": "user", "content": "stop it and go"}]


# ---- the same answers as the program's own


def test_chats_are_the_programs_own(client: openai.OpenAI, bytes_program: Program) -> None:
    for options in ({}, {"temperature": 0.9, "seed": 3}, {"temperature": 1.0, "seed": 4, "top_p": 0.5}):
        expected = bytes_program.generate(MESSAGES, 12, chat=True, **options)
        answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=12, **options)  # type: ignore[call-overload]
        assert answer.choices[0].message.content == expected
        pieces = client.chat.completions.create(
            model=NAME, messages=MESSAGES, max_completion_tokens=12, stream=True,
            stream_options={"include_usage": True}, **options,
        )  # type: ignore[call-overload]  # fmt: skip
        chunks = list(pieces)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == answer.choices[
            0
        ].finish_reason
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
        # The prompt is in the cache by now, but for its last token.
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1


def test_completions_are_the_programs_own(client: openai.OpenAI, bytes_program: Program) -> None:
    prompts = ["post", "it is post", "the"]
    answer = client.completions.create(model=NAME, prompt=prompts, max_tokens=9, n=2, temperature=1, seed=5)
    assert [c.index for c in answer.choices] == list(range(6))
    assert [c.text for c in answer.choices] == [
        bytes_program.generate(prompt, 9, temperature=1, seed=seed) for prompt in prompts for seed in (5, 6)
    ]
    ids = bytes_program.tokenizer.encode(prompts[1])
    same = client.completions.create(model=NAME, prompt=ids, max_tokens=9, temperature=0)
    assert same.choices[0].text == bytes_program.generate(prompts[1], 9)
    short = client.completions.create(model=NAME, prompt=ids, temperature=0)
    assert short.usage is not None and short.usage.completion_tokens <= 16
    streamed = client.completions.create(model=NAME, prompt=prompts, max_tokens=9, stream=True, echo=True)
    texts = dict.fromkeys(range(3), "")
    for chunk in streamed:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == [p + bytes_program.generate(p, 9) for p in prompts]


def test_stop_texts_and_reasons(client: openai.OpenAI, bytes_program: Program) -> None:
    whole = bytes_program.generate("post", 30)
    stop = whole[4:7]
    answer = client.completions.create(model=NAME, prompt="post", max_tokens=30, stop=["never", stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    cut = client.completions.create(model=NAME, prompt="post", max_tokens=3)
    assert cut.choices[0].finish_reason == "length"


def test_chances_are_the_models(client: openai.OpenAI, bytes_program: Program) -> None:
    ids = bytes_program.tokenizer.encode("stop it and go")
    answer = client.completions.create(
        model=NAME, prompt="stop it and go", max_tokens=4, logprobs=5, echo=True, temperature=0
    )
    told = answer.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
    assert told.text_offset is not None and told.tokens is not None
    later = bytes_program.tokenizer.encode(answer.choices[0].text, start=False)
    assert len(told.tokens) == len(ids) + 4 == len(later)
    logits = bytes_program.integer_logits([*ids, *later[len(ids) :]])
    rows = log_probabilities(logits, bytes_program.logit_scale)
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None  # type: ignore[comparison-overlap]
    assert told.token_logprobs[1:] == pytest.approx(rows[np.arange(len(rows) - 1), later[1:]].tolist())
    for top, row in zip(told.top_logprobs[1:], rows, strict=False):
        assert sorted(top.values(), reverse=True) == pytest.approx(np.sort(row)[::-1][:5].tolist())
    assert told.text_offset == np.cumsum([0, *map(len, told.tokens[:-1])]).tolist()
    chat = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2, temperature=0
    )
    assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
    for one in chat.choices[0].logprobs.content:
        assert one.logprob == one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob
        assert bytes(one.bytes or ()).decode(errors="replace") == one.token or one.token.startswith("bytes:")


def test_answers_keep_a_form(client: openai.OpenAI) -> None:
    def asked(**options: Any) -> str:
        answer = client.chat.completions.create(
            model=NAME, messages=MESSAGES, max_tokens=200, temperature=1, seed=1, **options
        )
        assert answer.choices[0].finish_reason == "stop"
        return str(answer.choices[0].message.content)

    assert re.fullmatch(
        "[0-9]{3}[a-f]+t", asked(extra_body={"structured_outputs": {"regex": "[0-9]{3}[a-f]+t"}})
    )
    choice = {"structured_outputs": {"choice": ["post", "send"]}}
    assert {asked(extra_body=choice) for _ in range(2)} <= {"post", "send"}
    # The alphabet has neither braces nor quotes: of JSON it can write numbers and words.
    schema = {"type": "integer", "minimum": 10, "maximum": 99}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert 10 <= json.loads(asked(response_format=form)) <= 99
    greedy = client.chat.completions.create(
        model=NAME, messages=MESSAGES, temperature=0, extra_body={"structured_outputs": {"json": schema}}
    )
    assert 10 <= json.loads(greedy.choices[0].message.content or "") <= 99


def test_lm_eval_scores_as_in_the_process(address: str, bytes_program: Program, tmp_path: Path) -> None:
    for name, text in bytes_program.tokenizer.files.items():
        (tmp_path / name).write_text(text)
    remote = LocalCompletionsAPI(
        base_url=f"{address}/v1/completions", model=NAME, tokenizer=str(tmp_path),
        tokenizer_backend="huggingface", max_length=300,
    )  # fmt: skip
    own = ProgramLM(bytes_program)

    def requests(kind: str, arguments: list[Any]) -> list[Instance]:
        return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]

    # What the model itself says, where it says it in tokens that its text gives back.
    own_words = {
        text: said
        for text in ("send", "post", "item", "a", "of", "3")
        if "<" not in (said := bytes_program.generate(text, 3))
    }
    pairs = [("post", " is it"), ("is it", " post"), ("the", " a"), *own_words.items()]
    scored = remote.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    expected = own.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert [greedy for _, greedy in scored] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in scored} == {True, False}
    assert [score for score, _ in scored] == pytest.approx([score for score, _ in expected])
    asked = [("post", {"until": ["q"], "max_gen_toks": 8}), ("is", {"until": ["e"], "max_gen_toks": 20})]
    texts = remote.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert texts == own.generate_until(requests("generate_until", asked), disable_tqdm=True)


# ---- what is refused


@pytest.mark.parametrize(
    ("path", "change", "status", "told"),
    [
        ("chat/completions", {"model": "tini"}, 404, "did you mean 'tiny'"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"temperatur": 1}, 400, "does not know this field"),
        ("chat/completions", {"temperature": -1}, 400, "temperature must be 0 or more"),
        ("chat/completions", {"temperature": "warm"}, 400, "temperature"),
        ("chat/completions", {"top_p": 2}, 400, "top_p must be in"),
        ("chat/completions", {"presence_penalty": 0.5}, 400, "not supported"),
        ("chat/completions", {"tools": [{"type": "function"}]}, 400, "tools: this is not supported"),
        ("chat/completions", {"n": 1000}, 400, "n: "),
        ("chat/completions", {"max_tokens": 10_000}, 400, "do not fit the context of"),
        ("chat/completions", {"max_tokens": 10_000, "stream": True}, 400, "do not fit the context of"),
        ("chat/completions", {"stop": [""]}, 400, "a stop text is empty"),
        ("chat/completions", {"top_logprobs": 2}, 400, "needs logprobs"),
        ("chat/completions", {"structured_outputs": {"regex": "("}}, 400, "unclosed group"),
        ("chat/completions", {"structured_outputs": {}}, 400, "give one of"),
        ("chat/completions", {"chat_template_kwargs": {"a b": 1}}, 400, "no name of a variable"),
        ("chat/completions", {"response_format": {"type": "json_schema"}}, 400, "json_schema is given"),
        ("chat/completions", {"messages": [{"role": "u", "content": [{"type": "x"}]}]}, 400, "content"),
        ("completions", {"prompt": [999]}, 400, "999"),
        ("completions", {"prompt": [-1]}, 400, "-1"),
        ("completions", {"prompt": [[1], []]}, 400, "the prompt is empty"),
        ("completions", {"max_tokens": 0}, 400, "only with echo"),
        ("completions", {"suffix": "x"}, 400, "not supported"),
        ("nothing", {}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_refused_requests(address: str, path: str, change: dict[str, Any], status: int, told: str) -> None:
    body = (
        {"model": NAME, "messages": MESSAGES} if path.startswith("chat") else {"model": NAME, "prompt": "a"}
    )
    got, answer = post(address, f"/v1/{path}", body | change)
    assert got == status, answer
    assert told in answer["error"]["message"]
    assert metric(address, "mqc_running_requests") == 0


def test_bodies_that_are_no_requests(address: str) -> None:
    for body in (b"", b"{", b"\xff\xfe", b"[]", b'{"model": "tiny", "messages": [' * 5, b"[" * 10_000):
        assert post(address, "/v1/chat/completions", body)[0] == 400
    status, answer = post(address, "/v1/completions", b" " * (BODY_BYTES + 1))
    assert status == 413 and "MiB" in answer["error"]["message"]
    assert post(address, "/v1/completions", {"model": NAME, "prompt": "post"})[0] == 200


def test_a_page_of_another_site_cannot_call(address: str) -> None:
    with pytest.raises(HTTPError, match="400"):
        get(address, "/v1/models", Host="evil.example")
    assert NAME in get(address, "/v1/models", Host="localhost:1234")


def test_a_key_is_asked_for(bytes_program: Program) -> None:
    with served(bytes_program, api_key=KEY) as address:
        body = {"model": NAME, "prompt": "a"}
        for wrong in ({}, {"Authorization": "Bearer other"}, {"Authorization": f"Basic {KEY}"}):
            status, answer = post(address, "/v1/completions", body, **wrong)
            assert status == 401 and "API key" in answer["error"]["message"]
        assert post(address, "/v1/completions", body, Authorization=f"Bearer {KEY}")[0] == 200
        assert json.loads(get(address, "/health")) == {"status": "ok"}


def test_a_tokenizer_that_has_no_forms(bytes_program: Program) -> None:
    """Plain answers are served; forms and chances, which need the bytes of tokens, are refused."""
    files = dict(bytes_program.tokenizer.files)
    files[TOKENIZER] = json.dumps(json.loads(files[TOKENIZER]) | {"decoder": {"type": "Fuse"}})
    other = Program(bytes_program.module, bytes_program.weights, Tokenizer(files), bytes_program.manifest)
    with served(other) as address:
        asked = {"model": NAME, "prompt": "post"}
        assert post(address, "/v1/completions", asked)[0] == 200
        for more in ({"logprobs": 1}, {"structured_outputs": {"regex": "a"}}):
            status, answer = post(address, "/v1/completions", asked | more)
            assert status == 400 and "llguidance cannot read" in answer["error"]["message"]


def test_settings_out_of_range(bytes_program: Program) -> None:
    with pytest.raises(InputError, match="sessions must be 1 or more"):
        create_app(bytes_program, Settings(NAME, sessions=0))


# ---- several clients


def test_clients_take_turns_and_keep_their_caches(bytes_program: Program) -> None:
    """Twelve conversations at once on two sessions: every answer is that of the program alone."""
    with served(bytes_program, sessions=2) as address:

        def talk(number: int) -> list[str]:
            messages: list[Any] = [{"role": "user", "content": f"item {number}"}]
            with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:
                for _ in range(3):
                    answer = client.chat.completions.create(model=NAME, messages=messages, max_tokens=8)
                    text = str(answer.choices[0].message.content)
                    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "and"}]
            return [str(m["content"]) for m in messages]

        with ThreadPoolExecutor(12) as threads:
            told = list(threads.map(talk, range(12)))
        for number, texts in enumerate(told):
            messages: list[Any] = [{"role": "user", "content": f"item {number}"}]
            for text in texts[1::2]:
                assert text == bytes_program.generate(messages, 8, chat=True)
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "and"}]
        assert metric(address, 'mqc_tokens_total{kind="kept"}') > 0
        assert metric(address, "mqc_running_requests") == metric(address, "mqc_waiting_requests") == 0


def test_a_full_queue_refuses(bytes_program: Program) -> None:
    with served(bytes_program, queue=0) as address:
        body = {"model": NAME, "prompt": "post", "max_tokens": 300, "stream": True, "stop": []}
        request = Request(
            f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=60) as stream:
            assert stream.readline().startswith(b"data: ")
            status, answer = post(address, "/v1/completions", {"model": NAME, "prompt": "a"})
            assert status == 429 and "try again later" in answer["error"]["message"]
        eventually(lambda: metric(address, "mqc_running_requests") == 0)


def test_a_client_that_vanishes_frees_its_session(bytes_program: Program) -> None:
    """In a stream, behind one, and before the answer to a request that waits."""
    with served(bytes_program) as address:
        port = int(address.rsplit(":", 1)[1])
        for stream in (True, False):
            for read in (1, 4096):
                body = json.dumps(
                    {"model": NAME, "prompt": "post", "max_tokens": 300, "n": 16, "stream": stream}
                )
                head = (
                    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                )
                with socket.create_connection(("127.0.0.1", port)) as raw:
                    raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                    if stream:
                        raw.recv(read)
                    else:
                        time.sleep(0.2)
        eventually(lambda: metric(address, "mqc_running_requests") == 0)
        assert metric(address, "mqc_waiting_requests") == 0
        # Not all of the 4 · 16 answers were computed.
        assert metric(address, 'mqc_tokens_total{kind="generated"}') < 4 * 16 * 300
        assert post(address, "/v1/completions", {"model": NAME, "prompt": "a"})[0] == 200


def test_whoever_came_first_is_first(bytes_program: Program) -> None:
    """Sessions go in the order of asking."""

    async def run() -> list[int]:
        pool, order = Pool(bytes_program, 1, 8), []

        async def one(number: int) -> None:
            async with pool.session([number]):
                order.append(number)
                await asyncio.sleep(0)

        async with pool.session([0]):
            started = [asyncio.create_task(one(number)) for number in range(5)]
            await asyncio.sleep(0.01)
            assert pool.waiting == 5 and pool.running == 1
        await asyncio.gather(*started)
        return order

    assert asyncio.run(run()) == list(range(5))


# ---- the page


def test_the_page_talks(address: str, bytes_program: Program, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (CI installs one)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        expect(page.locator("#model")).to_contain_text(f"{NAME}, ")
        page.locator("summary").click()
        page.locator("#most").fill("8")
        messages: list[Any] = []
        for text in ("stop it and go", "<b>and</b>"):
            messages.append({"role": "user", "content": text})
            expected = bytes_program.generate(messages, 8, chat=True)
            page.locator("#text").fill(text)
            page.locator("#text").press("Enter")
            expect(page.locator(".user").last).to_have_text(text)
            expect(page.locator("#send")).to_have_text("Send")
            assert page.locator(".assistant").last.text_content() == expected
            messages.append({"role": "assistant", "content": expected})
        expect(page.locator("#stats")).to_contain_text("+ 8 tokens")
        assert complaints == []
        page.locator("#temperature").fill("-1")
        page.locator("#text").fill("post")
        page.locator("#send").click()
        expect(page.locator(".error")).to_contain_text("temperature must be 0 or more")
        page.screenshot(path=tmp_path / "page.png")
        page.locator("#reset").click()
        expect(page.locator(".message")).to_have_count(0)
        browser.close()
