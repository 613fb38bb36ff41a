#!/usr/bin/env python3
"""The clients that people use, against a running `recua serve`: `openai` and `anthropic` from PyPI.

    python3 -m venv V && V/bin/pip install openai anthropic
    V/bin/python tests/clients/sdk.py http://127.0.0.1:8080 [--key KEY]

The model may be any with a tokenizer: what is held is the shape of answers, that streams say what single answers say, that scores add
up, and how refusals look. The last line is `N passed, N failed`.
"""

import argparse
import math
import sys
import threading
import time
import traceback
import urllib.request

import anthropic
import openai

TESTS = []


def test(f):
    TESTS.append(f)
    return f


class Run:
    def __init__(self, url: str, key: str):
        self.url = url
        self.openai = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
        self.model = self.openai.models.list().data[0].id

    def metric(self, name: str) -> float:
        text = urllib.request.urlopen(self.url + "/metrics").read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))


def refused(f, status: int, param: str | None = None) -> None:
    try:
        f()
    except openai.APIStatusError as e:
        assert e.status_code == status, e
        assert param is None or e.body["param"] == param, e.body
        return
    raise AssertionError("not refused")


@test
def completions(run: Run) -> None:
    ask = dict(model=run.model, prompt="fn main() {", max_tokens=16, temperature=0)
    whole = run.openai.completions.create(**ask)
    assert whole.choices[0].finish_reason in ("length", "stop") and whole.usage.completion_tokens <= 16
    again = run.openai.completions.create(**ask)
    assert again.choices[0].text == whole.choices[0].text
    assert again.usage.prompt_tokens_details.cached_tokens <= again.usage.prompt_tokens
    parts = list(run.openai.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    seeded = [run.openai.completions.create(**(ask | dict(temperature=1.0, seed=s))).choices[0].text for s in (1, 1, 2, 3)]
    assert seeded[0] == seeded[1] and len(set(seeded)) > 1
    several = run.openai.completions.create(model=run.model, prompt=["a", "b"], n=2, max_tokens=3, seed=5)
    assert [c.index for c in several.choices] == [0, 1, 2, 3]


@test
def scores(run: Run) -> None:
    text = "pub fn new() -> Self { Self {} }"
    echo = run.openai.completions.create(model=run.model, prompt=text, max_tokens=0, echo=True, logprobs=3)
    l = echo.choices[0].logprobs
    assert echo.choices[0].text == text and l.token_logprobs[0] is None
    for token, logprob, top in list(zip(l.tokens, l.token_logprobs, l.top_logprobs))[1:]:
        assert logprob <= 0 and top.get(token, logprob) == logprob and max(top.values()) >= logprob
    written = run.openai.completions.create(model=run.model, prompt=text, max_tokens=5, temperature=0, logprobs=2).choices[0]
    both = run.openai.completions.create(model=run.model, prompt=text, max_tokens=5, temperature=0, logprobs=2, echo=True).choices[0]
    assert both.text == text + written.text and both.logprobs.token_logprobs[len(l.tokens):] == written.logprobs.token_logprobs
    # A prompt in two ways: text, and its ids.
    ids = run.openai.post("/../tokenize", body={"prompt": text}, cast_to=object)["tokens"]
    by_ids = run.openai.completions.create(model=run.model, prompt=ids, max_tokens=0, echo=True, logprobs=0).choices[0]
    assert by_ids.logprobs.token_logprobs[1:] == l.token_logprobs[1:]


@test
def chat(run: Run) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    ask = dict(model=run.model, messages=messages, max_tokens=12, temperature=0)
    whole = run.openai.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens and all(len(t.top_logprobs) == 3 for t in content)
    assert all(t.logprob <= 0 and bytes(t.bytes or []) is not None for t in content)
    parts = list(run.openai.chat.completions.create(**ask, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in parts) == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    stopped = run.openai.chat.completions.create(**ask, stop=list("etaoinshrdlu") + [" ", "\n"])
    assert stopped.choices[0].finish_reason == "stop" or stopped.usage.completion_tokens == 12


@test
def refusals(run: Run) -> None:
    ask = dict(model=run.model, prompt="a")
    refused(lambda: run.openai.completions.create(**ask, best_of=3), 400, "best_of")
    refused(lambda: run.openai.completions.create(**ask, temperature=-1), 400, "temperature")
    refused(lambda: run.openai.completions.create(**ask, extra_body={"no_such_field": 1}), 400, "no_such_field")
    refused(lambda: run.openai.completions.create(model=run.model, prompt=[10**9]), 400)
    refused(lambda: run.openai.completions.create(model=run.model, prompt="word " * 20000), 400)
    refused(lambda: run.openai.get("/nothing", cast_to=object), 404)
    run.openai.completions.create(**ask, max_tokens=1, user="somebody")


@test
def responses(run: Run) -> None:
    ask = dict(model=run.model, input="hello", max_output_tokens=16, temperature=0)
    whole = run.openai.responses.create(**ask)
    assert whole.status in ("completed", "incomplete") and whole.usage.output_tokens <= 16
    events = list(run.openai.responses.create(**ask, stream=True))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}, {"type": "local_shell"}]
    answer = run.openai.responses.with_raw_response.create(**ask, tools=tools)
    assert "local_shell" in answer.headers["x-recua-dropped-tools"]
    refused(lambda: run.openai.responses.create(**ask, previous_response_id="resp_1"), 400, "previous_response_id")


@test
def embeddings(run: Run) -> None:
    made = run.openai.embeddings.create(model=run.model, input=["one", "one", "another text"], encoding_format="float")
    a, b, c = (d.embedding for d in made.data)
    assert abs(math.fsum(x * x for x in a) - 1) < 1e-4 and a == b and a != c


@test
def messages(run: Run) -> None:
    # This client has no `temperature` of its own any more.
    cold = {"temperature": 0}
    ask = dict(model=run.model, max_tokens=12, system="Be short.", messages=[{"role": "user", "content": "hello"}], extra_body=cold)
    whole = run.anthropic.messages.create(**ask)
    assert whole.stop_reason in ("end_turn", "max_tokens") and whole.usage.output_tokens <= 12
    with run.anthropic.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "".join(block.text for block in whole.content) and final.stop_reason == whole.stop_reason
    counted = run.anthropic.messages.count_tokens(model=run.model, system="Be short.", messages=ask["messages"])
    # Anthropic's counts leave out what the cache had.
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    try:
        run.anthropic.messages.create(**(ask | {"extra_body": {"temperature": -1}}))
        raise AssertionError("not refused")
    except anthropic.BadRequestError as e:
        assert e.body["error"]["type"] == "invalid_request_error", e.body


@test
def closing_stops(run: Run) -> None:
    before = run.metric("vllm:generation_tokens_total")
    stream = run.openai.completions.create(model=run.model, prompt="a", max_tokens=200, stream=True, extra_body={"ignore_eos": True})
    for _, _ in zip(range(3), stream):
        pass
    stream.close()
    for _ in range(100):
        if run.metric("vllm:num_requests_running") == 0:
            break
        time.sleep(0.05)
    assert run.metric("vllm:num_requests_running") == 0
    assert run.metric("vllm:generation_tokens_total") - before < 200


@test
def many_at_once(run: Run) -> None:
    ask = lambda i: run.openai.completions.create(model=run.model, prompt=f"use {i};", max_tokens=10, temperature=0).choices[0].text
    alone = [ask(i) for i in range(12)]
    together: list = [None] * 12
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, ask(i))) for i in range(12)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert together == alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--key", default="none")
    a = parser.parse_args()
    run = Run(a.url.rstrip("/"), a.key)
    failed = 0
    for f in TESTS:
        try:
            f(run)
            print(f"{f.__name__} ok")
        except Exception:
            failed += 1
            print(f"{f.__name__} FAILED")
            traceback.print_exc()
    print(f"{len(TESTS) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
