#!/usr/bin/env python3
"""The chat page in a real browser.

    python3 -m venv VENV && VENV/bin/pip install playwright==1.65.2     # the driver alone, no browser
    apt-get install chromium                                            # Debian's browser
    VENV/bin/python tests/clients/page.py --mock                        # without a model
    VENV/bin/python tests/clients/page.py --url http://127.0.0.1:8080   # with a server that runs

Playwright's package brings its driver; of the browsers it drives, Debian's `chromium` is taken from the
path (or from --browser), so that nothing is downloaded. As root the browser runs without its sandbox.

A scripted server (`Mock`) answers as a test's message asks it to: slowly, with an error, with a script.
With --mock it serves the page as well, from crates/serve/src/page. With --url the page, its headers and
the models come from the server that runs; the scripted tests then send the page's API calls to the mock
instead, and tests named `real_…` talk to the server itself. --key is a key that the server takes (the
tests of it then also see that none and a wrong one are refused). --files lays this tree's page over the
server's, for a server that was built before the page was changed.

--shots DIR writes pictures there. --axe FILE checks the page with axe-core (npm's `axe-core`, axe.min.js).
Exits with 1 if a test failed.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect, sync_playwright

FILES = Path(__file__).resolve().parents[2] / "crates/serve/src/page"
PATHS = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

# ---- The scripted server ----------------------------------------------------------------------

PLAIN = (
    "Llamas were domesticated in the Andes some four to five thousand years ago. They carry loads of about a quarter of "
    "their weight, eat coarse grass that sheep leave alone, and find their footing where a road would be folly. "
    "A train of them, walking in single file, is called a *recua*."
)
MARKDOWN = """# Title
Some **bold**, *slanted*, ~~gone~~ and `code`, snake_case_name, 2 * 3 * 4, [a link](https://example.org/a_(b)?c=1&d) and https://example.com/x.
A second line.

![a picture](https://example.org/track.png) [bad](javascript:alert(1)) [worse](data:text/html,x) [rel](/v1/models)

- one
- two
  1. inner
  2. more

     with a paragraph
- three

5. five
6. six

> quoted **text**
> on two lines

```python
def f(x):
    return "<b>" + x  # **not bold**

print(f(1))
```

| left | right | mid |
|:-----|------:|:---:|
| a | 1 | `x|y` |
| b \\| c | 2 | **z** |

---
Escaped \\*stars\\* and a last ***both***.

~~~
unclosed <i>fence</i>
"""
HOSTILE = (
    '<script>window.hacked=1</script><img src=x onerror="window.hacked=2"><svg onload=window.hacked=3>\n'
    "[click](javascript:window.hacked=4) [x](https://a\"onmouseover=window.hacked=5) <a href='javascript:window.hacked=6'>y</a>\n"
    '```"><script>window.hacked=7</script>\n</code></pre><script>window.hacked=8</script>\n```\n'
    "| <b>h</b> |\n|---|\n| <iframe srcdoc='<script>parent.hacked=9</script>'> |\n\n&lt;b&gt; &amp;"
)
WIDE = "```\n" + "wide " * 100 + "\n```\n\n|" + " a column |" * 14 + "\n|" + "---|" * 14 + "\n|" + " 123456789 |" * 14 + "\n\n" + "x" * 400

OTHERS = {"": [" the", " other", ",", " and"], " made": [" produced", " often", " like", " that"]}


def pieces(text):
    return re.findall(r"\s?[^\s\w]|\s?\w+|\s", text)


def chance(i, token):
    """A made-up but steady log-probability."""
    return math.log(0.004 if i % 23 == 17 else max(1e-4, random.Random(f"{i}{token}").betavariate(1.2, 0.35)))


class Mock(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # browsers open connections in bursts

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self):
        self.bodies, self.keys = [], []  # of the requests for answers
        self.left = 0  # answers whose reader went away
        self.active = 0
        self.key, self.models, self.speed = None, ["llama-mock"], 0.004
        self.replies = {}  # other than the usual ones

    def handle_error(self, *_):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def whole(self, status, body, kind="application/json", **more):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **more}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def error(self, status, message, kind="invalid_request_error", param=None, code=None, **more):
        self.whole(status, {"error": {"message": message, "type": kind, "param": param, "code": code}}, **more)

    def refused(self):
        key = self.headers.get("authorization")
        if self.server.key and key != f"Bearer {self.server.key}":
            self.error(401, "the API key is wrong", "authentication_error", code="invalid_api_key")
            return True
        return False

    def do_GET(self):
        path = urlsplit(self.path).path
        if path == "/v1/models":
            if not self.refused():
                self.whole(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]})
            return
        if path not in PATHS:
            return self.error(404, "nothing is here", code="not_found")
        name, kind = PATHS[path]
        self.whole(200, (FILES / name).read_bytes(), f"{kind}; charset=utf-8", content_security_policy=POLICY, cache_control="no-cache")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server, chat = self.server, self.path == "/v1/chat/completions"
        if self.refused():
            return
        server.bodies.append(body)
        server.keys.append(self.headers.get("authorization"))
        asked = body["messages"][-1]["content"].split("\n\n")[-1] if chat else body["prompt"]
        if "429" in asked:
            return self.error(429, "too many requests wait", "rate_limit_error", code="queue_full", retry_after="7")
        if "503" in asked:
            return self.error(503, "the model is being loaded", "unavailable_error", retry_after="1")
        if "html error" in asked:
            return self.whole(502, b"<h1>Bad <b>gateway</b></h1>", "text/html")
        if "template" in asked and chat:
            return self.error(400, "messages: the model's template cannot write them: no user", param="messages", code="invalid_value")
        if "refuse logprobs" in asked and body.get("logprobs"):
            return self.error(400, "`logprobs` is not supported; leave it out", param="logprobs", code="unsupported_parameter")
        server.active += 1
        try:
            self.stream(body, asked, chat)
        except (BrokenPipeError, ConnectionResetError):
            server.left += 1
            self.close_connection = True
        finally:
            server.active -= 1

    def stream(self, body, asked, chat):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

        def put(data):
            data = data.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def event(choices, **more):
            put(f"data: {json.dumps({'id': 'x', 'model': body['model'], 'choices': choices, **more}, ensure_ascii=False)}\n\n")

        texts = {**self.server.replies, "markdown": MARKDOWN, "inject": HOSTILE, "wide": WIDE, "nothing": ""}
        text = next((text for word, text in texts.items() if word in asked), PLAIN)
        tokens = [(token, token.encode()) for token in pieces(text)]
        if "bytes" in asked:
            tokens = [("An ", b"An "), ("bytes:\\xf0\\x9f", b"\xf0\x9f"), ("bytes:\\xa6\\x99", b"\xa6\x99"), (" and\nmore", b" and\nmore")]
        if "slow" in asked or "long" in asked:
            tokens = tokens * 40
        pause = 0.03 if "slow" in asked else 0 if "long" in asked else self.server.speed
        most = body.get("max_tokens") or 10**9
        put(": keep-alive\n\n")
        if chat:
            event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}])
        decoded, made = b"", 0
        for i, (token, raw) in enumerate(tokens[:most]):
            time.sleep(pause)
            if "break" in asked and i == 12:
                put('data: {"error": {"message": "the device <b>failed</b>", "type": "server_error", "code": "internal_error"}}\n\n')
                break
            if "cut" in asked and i == 12:
                time.sleep(0.1)
                self.connection.shutdown(2)
                return
            decoded += raw
            try:
                piece, decoded = decoded.decode(), b""
            except UnicodeDecodeError:
                piece = ""
            logprob = chance(i, token)
            rest = 1 - math.exp(logprob)
            others = [(other, math.log(rest * 0.5**n * 0.9 + 1e-9)) for n, other in enumerate(OTHERS.get(token, OTHERS[""]), 1)]
            top = sorted([(token, logprob), *others], key=lambda other: -other[1])
            choice = {"index": 0, "logprobs": None, "finish_reason": None, **({"delta": {"content": piece}} if chat else {"text": piece})}
            if body.get("logprobs") and "no probabilities" not in asked:
                one = lambda name, p: {"token": name, "logprob": p, "bytes": list(raw if name == token else name.encode())}  # noqa: E731
                choice["logprobs"] = (
                    {"content": [{**one(token, logprob), "top_logprobs": [one(*other) for other in top]}]}
                    if chat
                    else {"tokens": [token], "token_logprobs": [logprob], "top_logprobs": [dict(top)], "text_offset": [0]}
                )
            event([choice])
            made += 1
        else:
            reason = "length" if most < len(tokens) else "stop"
            event([{"index": 0, "logprobs": None, "finish_reason": reason, **({"delta": {}} if chat else {"text": ""})}])
            usage = {"prompt_tokens": 58, "completion_tokens": made, "prompt_tokens_details": {"cached_tokens": 32}}
            event([], usage=usage)
            put("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")


# ---- The tests --------------------------------------------------------------------------------


class Test:
    """A fresh browser context on the page, and what it did: requests and the console's lines."""

    def __init__(self, run, real, **options):
        self.run, self.mock, self.real = run, run.mock, real
        self.mock.reset()
        self.base = run.url or self.mock.url
        self.console, self.requests = [], []
        self.context = run.browser.new_context(**{"viewport": {"width": 1200, "height": 800}, "color_scheme": "light", **options})
        self.context.set_default_timeout(10_000)
        self.context.on("console", lambda line: self.console.append(f"{line.type}: {line.text}"))
        self.context.on("weberror", lambda error: self.console.append(f"error: {error.error}"))
        self.context.on("request", lambda request: self.requests.append(request.url))
        if run.url and not real:
            to_mock = lambda route: route.continue_(url=self.mock.url + urlsplit(route.request.url).path)  # noqa: E731
            self.context.route(re.compile(r"/v1/"), to_mock)
        if run.files:
            for path, (name, kind) in PATHS.items():
                reply = {"path": FILES / name, "headers": {"content-type": f"{kind}; charset=utf-8", "content-security-policy": POLICY}}
                self.context.route(self.base + path, lambda route, _request, reply=reply: route.fulfill(**reply))
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])

    def open(self) -> Page:
        page = self.context.new_page()
        if self.real and self.run.key:
            page.add_init_script(f"sessionStorage.setItem('recua.key', JSON.stringify({json.dumps(self.run.key)}))")
        page.goto(self.base)
        if not self.mock.key:
            expect(page.locator("#model-name, #model-pick").locator("visible=true")).not_to_be_empty()
        return page

    def quiet(self, *allowed):
        """Nothing in the console but the browser's own lines about responses that are errors."""
        lines = [line for line in self.console if not any(part in line for part in allowed)]
        assert not lines, lines
        foreign = [url for url in self.requests if not url.startswith((self.base + "/", "data:", "blob:"))]
        assert not foreign, foreign


def send(page, text):
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def done(page, timeout=30_000):
    expect(page.locator("#send")).to_have_text("Send", timeout=timeout)


def say(page, text):
    send(page, text)
    done(page)
    return answer(page)


def answer(page, nth=-1):
    return page.locator("li.answer").nth(nth)


def view(page, name):
    page.locator(f"#view label:has([value={name}])").click()


def mode(page, name):
    page.locator(f"#mode label:has([value={name}])").click()


def until(what, seconds=5):
    end = time.time() + seconds
    while not what():
        assert time.time() < end, "it did not come"
        time.sleep(0.02)


def streamed(page, least=20):
    """Waits until some of an answer is there, while more is to come."""
    expect(answer(page).locator(".stats")).to_contain_text("tokens/s")
    handle = answer(page).locator(".body")
    end = time.time() + 10
    while len(handle.text_content()) < least:
        assert time.time() < end, "no text came"
    assert page.locator("#send").text_content() == "Stop"


def no_sideways(page):
    wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1], wide


TESTS = []


def test(**options):
    def add(function):
        TESTS.append((function, options))
        return function

    return add


@test()
def it_loads(t):
    page = t.open()
    assert page.title() == "recua"
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#empty h2")).to_have_text("Talk with llama-mock")
    t.quiet()
    assert sum((FILES / name).stat().st_size for name in ("index.html", "page.css", "page.js")) < 100_000
    paths = sorted({urlsplit(url).path for url in t.requests if url.startswith("http")})
    assert paths == ["/", "/page.css", "/page.js", "/v1/models"], paths


@test()
def the_policy_holds(t):
    page = t.open()
    for markup in ("<img src=x onerror=hacked=1>", "<b>x</b>"):
        refused = page.evaluate("(markup) => { try { document.body.innerHTML = markup; return false; } catch { return true; } }", markup)
        assert refused, "innerHTML is taken"
    page.evaluate("""() => {
        const made = document.createElement('script');
        try { made.textContent = 'window.hacked = 1'; document.body.append(made); } catch { /* refused */ }
        document.body.append(Object.assign(document.createElement('img'), { src: 'https://example.org/x.png' }));
    }""")
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert page.evaluate("window.hacked") is None
    inline = page.evaluate("[...document.querySelectorAll('[style], [onclick]')].filter((node) => !node.matches('textarea')).length")
    assert inline == 0


@test()
def an_answer_streams(t):
    page = t.open()
    send(page, "slow please")
    streamed(page)
    early = answer(page).locator(".body").text_content()
    expect(answer(page)).to_have_attribute("aria-busy", "true")
    page.wait_for_timeout(300)
    assert len(answer(page).locator(".body").text_content()) > len(early)
    page.keyboard.press("Escape")
    done(page)
    said = say(page, "hello")
    expect(said.locator(".body")).to_contain_text("walking in single file")
    expect(said.locator(".body em")).to_have_text("recua")
    stats = said.locator(".stats").text_content()
    for part in (r"\d+ tokens ", r"[\d.]+ tokens/s", r"first after [\d.]+ s", r"prompt 58, 32 cached"):
        assert re.search(part, stats), (part, stats)
    body = t.mock.bodies[-1]
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}, body
    assert body["logprobs"] is True and body["top_logprobs"] == 5, body
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"], body
    assert not {"temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "repetition_penalty", "stop"} & set(body), body
    assert page.title() == "slow please – recua"
    said.get_by_role("button", name="Copy").first.click()
    expect(said.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == PLAIN
    t.quiet()


@test()
def stop_frees(t):
    page = t.open()
    for way in ("Escape", "button"):
        t.mock.reset()
        send(page, "slow please")
        streamed(page)
        assert t.mock.active == 1
        page.keyboard.press("Escape") if way == "Escape" else page.locator("#send").click()
        done(page, 5000)
        until(lambda: t.mock.left == 1 and t.mock.active == 0)
        expect(answer(page).locator(".stats")).to_contain_text("stopped")
        assert len(answer(page).locator(".body").text_content()) > 20
    t.mock.reset()
    send(page, "slow please")
    streamed(page)
    page.reload()
    until(lambda: t.mock.left == 1)
    expect(answer(page).locator(".body")).to_contain_text("Llamas")
    expect(answer(page).locator(".stats")).to_contain_text("interrupted")
    t.quiet()


@test()
def regenerate(t):
    page = t.open()
    say(page, "first")
    say(page, "second")
    answer(page).get_by_role("button", name="Regenerate").click()
    done(page)
    assert page.locator("#log > li").count() == 4
    assert [message["content"] for message in t.mock.bodies[-1]["messages"]][::2] == ["first", "second"]
    answer(page, 0).get_by_role("button", name="Regenerate").click()
    done(page)
    assert page.locator("#log > li").count() == 2
    page.get_by_role("button", name="Undo").click()
    assert page.locator("#log > li").count() == 4
    t.quiet()


@test()
def edit_goes_on_from_there(t):
    page = t.open()
    say(page, "first")
    say(page, "second")
    page.locator("li.user").first.get_by_role("button", name="Edit").click()
    area = page.get_by_label("Edit the message")
    expect(area).to_be_focused()
    assert area.input_value() == "first"
    area.press("Escape")
    expect(area).to_be_hidden()
    page.locator("li.user").first.get_by_role("button", name="Edit").click()
    area.fill("changed")
    area.press("Enter")
    done(page)
    assert page.locator("#log > li").count() == 2
    assert [message["content"] for message in t.mock.bodies[-1]["messages"]] == ["changed"]
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("li.user .body")).to_have_text(["first", "second"])
    page.locator("#prompt").press("ArrowUp")
    assert page.get_by_label("Edit the message").input_value() == "second"
    page.get_by_label("Edit the message").press("Escape")
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#log > li").count() == 0
    page.get_by_role("button", name="Undo").click()
    assert page.locator("#log > li").count() == 4
    t.quiet()


@test()
def markdown(t):
    page = t.open()
    body = say(page, "markdown please").locator(".body")
    expect(body.locator("h3")).to_have_text("Title")
    expect(body.locator("> p").first.locator("strong")).to_have_text("bold")
    expect(body.locator("> p").first.locator("em")).to_have_text("slanted")
    expect(body.locator("> p").first.locator("del")).to_have_text("gone")
    expect(body.locator("> p").first.locator("code")).to_have_text("code")
    expect(body.locator("> p").first).to_contain_text("snake_case_name, 2 * 3 * 4,")
    assert body.locator("> p").first.locator("br").count() == 1
    links = body.locator("a").evaluate_all("(all) => all.map((a) => [a.getAttribute('href'), a.rel, a.target, a.textContent])")
    assert [link[0] for link in links] == ["https://example.org/a_(b)?c=1&d", "https://example.com/x", "https://example.org/track.png"], links
    assert all("noopener" in link[1] and link[2] == "_blank" for link in links), links
    expect(body.locator("> p").nth(1)).to_contain_text("[bad](javascript:alert(1)) [worse](data:text/html,x) [rel](/v1/models)")
    assert body.locator("img").count() == 0
    assert body.locator("> ul > li").count() == 3
    expect(body.locator("> ul > li ol > li")).to_have_count(2)
    expect(body.locator("> ul > li ol > li").nth(1).locator("p")).to_have_text("with a paragraph")
    expect(body.locator("> ol")).to_have_attribute("start", "5")
    expect(body.locator("blockquote strong")).to_have_text("text")
    code = body.locator(".code").first
    expect(code.locator(".head span")).to_have_text("python")
    assert code.locator("code").text_content() == 'def f(x):\n    return "<b>" + x  # **not bold**\n\nprint(f(1))'
    code.get_by_role("button").click()
    assert page.evaluate("navigator.clipboard.readText()").startswith("def f(x):")
    assert body.locator("th").all_text_contents() == ["left", "right", "mid"]
    expect(body.locator("tbody tr").nth(1).locator("td").first).to_have_text("b | c")
    expect(body.locator("tbody td.right").first).to_have_text("1")
    assert body.locator("hr").count() == 1
    expect(body.locator("> p").nth(2)).to_have_text("Escaped *stars* and a last both.")
    expect(body.locator(".code").nth(1).locator("code")).to_contain_text("unclosed <i>fence</i>")
    whole = body.evaluate("(node) => node.outerHTML")
    page.reload()  # drawn at once it is what it is drawn piece by piece
    assert re.sub("Copied", "Copy", whole) == answer(page).locator(".body").evaluate("(node) => node.outerHTML")
    view(page, "plain")
    assert answer(page).locator(".body").text_content() == MARKDOWN
    t.quiet()


@test()
def scripts_are_text(t):
    t.mock.models = ["<img src=x onerror=hacked=1>", "b"]
    page = t.open()
    page.locator("#f-system").evaluate("(area) => { area.value = '<script>hacked=1</script>'; area.dispatchEvent(new Event('input', { bubbles: true })); }")
    body = say(page, HOSTILE + " inject").locator(".body")
    for how in ("markdown", "tokens", "plain"):
        view(page, how)
        expect(body).to_contain_text("<script>window.hacked=1</script><img src=x onerror=\"window.hacked=2\">")
        assert page.locator("#log").locator("script, img, svg, iframe, a[href^=javascript], [onerror], [onmouseover], [onload]").count() == 0
    assert page.locator("li.user .body").text_content() == HOSTILE + " inject"
    view(page, "tokens")
    for token in body.locator(".t").all()[:12]:
        token.hover()
    mode(page, "raw")
    say(page, HOSTILE + " inject")
    say(page, "break")
    expect(page.locator(".fault")).to_contain_text("the device <b>failed</b>")
    mode(page, "chat")
    say(page, "html error")
    expect(page.locator(".fault")).to_contain_text("<h1>Bad <b>gateway</b></h1>")
    page.reload()
    assert page.evaluate("window.hacked") is None
    t.quiet("status of 502")


@test()
def tokens_show_their_probability(t):
    page = t.open()
    body = say(page, "hello").locator(".body")
    expect(page.locator("#legend")).to_be_hidden()
    view(page, "tokens")
    expect(page.locator("#legend li")).to_have_count(5)
    spans = body.locator(".t")
    assert spans.count() == len(pieces(PLAIN))
    assert body.text_content() == PLAIN
    steps = {re.search(r"s\d", name)[0] for name in spans.evaluate_all("(all) => all.map((span) => span.className)")}
    assert steps == {"s0", "s1", "s2", "s3", "s4"}, steps
    for i, token in enumerate(pieces(PLAIN)[:40]):
        share = math.exp(chance(i, token))
        step = sum(share < limit for limit in (0.5, 0.2, 0.05, 0.01))
        assert f"s{step}" in spans.nth(i).get_attribute("class"), (i, token, share)
    expect(answer(page).locator(".stats")).to_contain_text("bits a token")

    pop = page.get_by_role("tooltip")
    expect(pop).to_be_hidden()
    spans.nth(5).hover()
    expect(pop).to_be_visible()
    share = 100 * math.exp(chance(5, pieces(PLAIN)[5]))
    expect(pop).to_contain_text(f"{share:.{2 if share < 10 else 1}f} %")
    expect(pop).to_contain_text("bits of surprise")
    assert pop.locator("tr").count() == 5
    expect(pop.locator("tr.on")).to_contain_text("␣Andes ✓" if pieces(PLAIN)[5] == " Andes" else "✓")
    pop.hover()  # it stays while the pointer is on it
    page.wait_for_timeout(300)
    expect(pop).to_be_visible()
    page.keyboard.press("Escape")
    expect(pop).to_be_hidden()
    page.mouse.move(5, 400)

    spans.first.focus()
    expect(spans.first).to_have_attribute("aria-describedby", "pop")
    page.keyboard.press("ArrowRight")
    expect(spans.nth(1)).to_be_focused()
    expect(pop).to_be_visible()
    page.keyboard.press("ArrowDown")
    assert re.search("s[34]", page.evaluate("document.activeElement.className"))
    page.keyboard.press("End")
    expect(spans.last).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    expect(pop).to_be_hidden()
    assert page.evaluate("document.querySelectorAll('.t[tabindex=\"0\"]').length") == 1

    body = say(page, "bytes").locator(".body")
    assert body.locator(".t").count() == 4
    assert body.text_content().replace("·", "").replace("↵", "") == "An 🦙 and\nmore"
    mode(page, "raw")
    body = say(page, "bytes").locator(".body")
    assert body.text_content().replace("·", "").replace("↵", "") == "An 🦙 and\nmore"
    assert answer(page).get_by_role("button", name="Copy").count() == 1
    t.quiet()


@test()
def without_probabilities(t):
    page = t.open()
    view(page, "tokens")
    said = say(page, "no probabilities")
    assert said.locator(".body").text_content() == PLAIN
    expect(said.locator(".stats")).to_contain_text("no probabilities were sent")
    said.locator(".t").first.hover()
    expect(page.get_by_role("tooltip")).to_contain_text("not sent")
    said = say(page, "refuse logprobs")
    assert said.locator(".body").text_content() == PLAIN
    assert "logprobs" not in t.mock.bodies[-1] and "top_logprobs" not in t.mock.bodies[-1]
    page.locator("#settings-open").click()
    page.get_by_label("Ask for each token").uncheck()
    page.locator("#settings-close").click()
    say(page, "hello")
    assert "logprobs" not in t.mock.bodies[-1] and "top_logprobs" not in t.mock.bodies[-1]
    t.quiet("status of 400")


@test()
def raw_mode(t):
    page = t.open()
    say(page, "a chat")
    mode(page, "raw")
    assert page.locator("#log > li").count() == 0
    expect(page.locator("#empty h2")).to_have_text("Let llama-mock continue a text")
    said = say(page, "  Once upon\na *time*")
    body = t.mock.bodies[-1]
    assert body["prompt"] == "  Once upon\na *time*" and body["logprobs"] == 5 and body["max_tokens"] == 256, body
    assert said.locator(".body").text_content() == PLAIN
    assert said.locator("em").count() == 0
    said.get_by_role("button", name="Continue").click()
    done(page)
    assert t.mock.bodies[-1]["prompt"] == "  Once upon\na *time*" + PLAIN
    assert said.locator(".body").text_content() == PLAIN * 2
    view(page, "tokens")
    assert said.locator(".t").count() == 2 * len(pieces(PLAIN))
    said.locator(".t").last.hover()
    expect(page.get_by_role("tooltip")).to_contain_text("bits of surprise")
    page.mouse.move(5, 400)
    said.get_by_role("button", name="Regenerate").click()
    done(page)
    assert t.mock.bodies[-1]["prompt"] == "  Once upon\na *time*"
    mode(page, "chat")
    assert page.locator("#log > li").count() == 2
    t.quiet()


@test()
def settings_are_sent_and_kept(t):
    page = t.open()
    page.locator("#settings-open").click()
    values = {"Temperature": "0.7", "Top p": "0.9", "Top k": "40", "Min p": "0.05", "Repetition penalty": "1.1", "Max tokens": "12", "Seed": "7"}
    for label, value in values.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Stop strings").fill("END\n\\n\\n")
    page.get_by_label("System prompt").fill("Be brief.")
    page.locator("#settings-close").click()
    said = say(page, "hello")
    want = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "max_tokens": 12, "seed": 7, "stop": ["END", "\n\n"]}
    body = t.mock.bodies[-1]
    assert {name: body[name] for name in want} == want, body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    expect(said.locator(".stats")).to_contain_text("cut at the limit of tokens")
    other = t.open()
    other.locator("#settings-open").click()
    expect(other.get_by_label("Temperature")).to_have_value("0.7")
    expect(other.get_by_label("System prompt")).to_have_value("Be brief.")
    other.get_by_label("Temperature").fill("9")
    expect(other.get_by_label("Temperature")).to_have_attribute("aria-invalid", "true")
    other.locator("#settings-close").click()
    asked = len(t.mock.bodies)
    send(other, "hello")
    expect(other.get_by_label("Temperature")).to_be_focused()
    expect(other.locator("#h-temperature")).to_contain_text("2")
    assert len(t.mock.bodies) == asked and other.locator("#prompt").input_value() == "hello"
    page.locator("#settings-open").click()
    page.get_by_label("Top k").fill("50")  # in one tab, while another has other fields changed
    page.locator("#settings-close").click()
    other.get_by_label("Temperature").fill("0.3")
    other.get_by_label("Temperature").press("Enter")
    third = t.open()
    third.locator("#settings-open").click()
    expect(third.get_by_label("Temperature")).to_have_value("0.3")
    expect(third.get_by_label("Top k")).to_have_value("50")
    third.close()
    other.locator("#settings-open").click()
    other.get_by_role("button", name="Back to the defaults").click()
    expect(other.get_by_label("Temperature")).to_have_value("")
    other.locator("#settings-close").click()
    other.locator("#prompt").press("Enter")
    done(other)
    assert not set(want) & set(t.mock.bodies[-1]), t.mock.bodies[-1]
    t.quiet()


@test()
def several_models(t):
    t.mock.models = ["small", "large"]
    page = t.open()
    page.get_by_label("Model").select_option("large")
    said = say(page, "hello")
    assert t.mock.bodies[-1]["model"] == "large"
    expect(said.locator(".who")).to_have_text("large")
    page.reload()
    expect(page.get_by_label("Model")).to_have_value("large")
    t.quiet()


@test()
def the_key(t):
    t.mock.key = "sk-right"
    page = t.open()
    expect(page.locator("#notice")).to_contain_text("wants an API key")
    say(page, "hello")
    expect(page.locator(".fault")).to_contain_text("Error 401: the API key is wrong")
    page.get_by_role("button", name="Enter the API key").click()
    expect(page.get_by_label("API key")).to_be_focused()
    assert page.get_by_label("API key").get_attribute("type") == "password"
    page.keyboard.type("sk-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.locator("#notice")).to_contain_text("wants an API key")
    page.get_by_role("button", name="Enter the key").click()
    page.get_by_label("API key").fill("sk-right")
    page.locator("#settings-close").click()
    expect(page.locator("#model-name")).to_have_text("llama-mock")
    expect(page.locator("#notice")).to_be_empty()
    page.get_by_role("button", name="Try again").click()
    done(page)
    expect(answer(page).locator(".body")).to_contain_text("Llamas")
    assert t.mock.keys == ["Bearer sk-right"]
    kept = page.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage), location.href, document.cookie]")
    assert "sk-right" in kept[0] and not any("sk-" in part for part in kept[1:]), kept
    page.reload()
    expect(page.locator("#model-name")).to_have_text("llama-mock")
    other = t.context.new_page()
    other.goto(t.base)
    expect(other.locator("#notice")).to_contain_text("wants an API key")
    t.quiet("status of 401")


@test()
def errors_are_shown(t):
    page = t.open()
    say(page, "429")
    fault = page.locator(".fault")
    expect(fault).to_have_attribute("role", "alert")
    expect(fault).to_contain_text("Error 429: too many requests wait (rate_limit_error, queue_full)")
    expect(fault).to_contain_text("wait 7 s")
    say(page, "503")
    expect(fault.last).to_contain_text("Error 503: the model is being loaded")
    expect(fault.last).to_contain_text("wait 1 s")
    roles = [message["role"] for message in t.mock.bodies[-1]["messages"]]
    assert roles == ["user"], roles  # those without an answer in one
    page.get_by_role("button", name="Clear").click()
    said = say(page, "break")
    expect(said.locator(".fault")).to_contain_text("Error: the device <b>failed</b>")
    assert said.locator(".body").text_content() == "".join(pieces(PLAIN)[:12])
    said = say(page, "cut")
    expect(said.locator(".fault")).to_contain_text("connection")
    assert said.locator(".body").text_content() == "".join(pieces(PLAIN)[:12])
    said = say(page, "nothing")
    expect(said.locator(".stats")).to_contain_text("an empty answer")
    t.context.route(re.compile("/v1/chat"), lambda route: route.abort())
    said = say(page, "hello")
    expect(said.locator(".fault")).to_contain_text("could not be reached")
    t.context.unroute(re.compile("/v1/chat"))
    if t.run.url:
        t.context.route(re.compile("/v1/"), lambda route: route.continue_(url=t.mock.url + urlsplit(route.request.url).path))
    said.get_by_role("button", name="Try again").click()
    done(page)
    expect(answer(page).locator(".body")).to_contain_text("Llamas")
    expect(answer(page).locator(".fault")).to_have_count(0)
    t.quiet("Failed to load resource", "net::ERR")


@test()
def raw_mode_without_a_template(t):
    page = t.open()
    say(page, "template")
    page.get_by_role("button", name="Use raw mode").click()
    done(page)
    assert t.mock.bodies[-1]["prompt"] == "template"
    expect(answer(page).locator(".body")).to_contain_text("Llamas")
    t.quiet("status of 400")


@test()
def keyboard_only(t):
    page = t.open()
    page.keyboard.type("slow please")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("on two lines")
    assert page.locator("#prompt").input_value() == "slow please\non two lines"
    page.keyboard.press("Enter")
    streamed(page)
    page.keyboard.type("while it writes")
    page.keyboard.press("Enter")  # sends nothing
    page.keyboard.press("Escape")
    done(page)
    assert page.locator("#prompt").input_value() == "while it writes" and len(t.mock.bodies) == 1
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")

    def tab_to(name, key="Tab", most=40):
        for _ in range(most):
            page.keyboard.press(key)
            here = page.evaluate("""() => {
                const node = document.activeElement, shown = node.matches('.seg input') ? node.nextElementSibling : node.id === 'prompt' ? node.parentElement : node;
                const style = getComputedStyle(shown);
                return [node.id || node.value || node.textContent, style.outlineStyle !== 'none' || style.boxShadow !== 'none'];
            }""")
            assert here[1] or here[0] in ("", None) or "recua" in here[0], f"the focus on {here[0]} cannot be seen"
            if here[0] == name:
                return
        raise AssertionError(f"{name} was not reached")

    tab_to("Regenerate", "Shift+Tab")
    page.keyboard.press("Enter")
    streamed(page)
    page.keyboard.press("Escape")
    done(page)
    expect(page.locator("#prompt")).to_be_focused()
    tab_to("markdown", "Shift+Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#legend")).to_be_visible()
    tab_to("settings-open")
    page.keyboard.press("Enter")
    expect(page.locator("#f-system")).to_be_focused()
    tab_to("f-temperature")
    page.keyboard.type("0.5")
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.locator("#settings-open")).to_be_focused()
    tab_to("Edit")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.type("markdown edited")
    page.keyboard.press("Enter")
    done(page)
    assert t.mock.bodies[-1]["messages"][-1]["content"] == "markdown edited" and t.mock.bodies[-1]["temperature"] == 0.5
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.classList.contains('t')"):
            break
    assert page.evaluate("document.activeElement.classList.contains('t')"), "the tokens were not reached"
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tooltip")).to_be_visible()
    page.reload()
    page.locator("body").evaluate("() => document.activeElement.blur()")
    page.keyboard.press("Tab")
    tab_to("clear")
    page.keyboard.press("Enter")
    assert page.locator("#log > li").count() == 0
    expect(page.locator("#prompt")).to_be_focused()
    t.quiet()


@test(viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True, device_scale_factor=2)
def on_a_phone(t):
    t.mock.models = ["a-model-with-quite-a-long-name-for-a-phone-8b-instruct-q4"]
    page = t.open()
    no_sideways(page)
    assert page.locator("#model-name").bounding_box()["width"] > 80
    page.locator("#prompt").fill("wide")
    page.locator("#prompt").press("Enter")  # a new line here
    assert page.locator("#prompt").input_value() == "wide\n"
    page.locator("#send").tap()
    done(page)
    for how in ("markdown", "plain", "tokens"):
        view(page, how)
        no_sideways(page)
    page.locator("#prompt").fill("markdown")
    page.locator("#send").tap()
    done(page)
    for how in ("markdown", "plain", "tokens"):
        view(page, how)
        no_sideways(page)
    token = answer(page).locator(".t").nth(6)
    token.tap()
    pop = page.get_by_role("tooltip")
    expect(pop).to_be_visible()
    no_sideways(page)
    box = pop.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 375, box
    page.locator(".who").last.tap()
    expect(pop).to_be_hidden()
    small = page.evaluate("""() => [...document.querySelectorAll('button, .seg label, select, input')]
        .filter((node) => node.offsetParent && !node.closest('.seg label > *') && !node.matches('.hide'))
        .map((node) => [node.textContent || node.id, node.getBoundingClientRect().height, node.getBoundingClientRect().width])
        .filter(([, height, width]) => height < 24 || width < 24)""")
    assert not [node for node in small if node[0]], small
    page.locator("#settings-open").tap()
    assert page.locator("#settings").bounding_box()["width"] == 375
    no_sideways(page)
    page.get_by_label("Temperature").fill("0.1")
    page.locator("#settings-close").tap()
    expect(page.locator("#settings")).to_be_hidden()
    assert page.evaluate("JSON.parse(localStorage['recua.settings']).temperature") == "0.1"
    mode(page, "raw")
    no_sideways(page)
    t.quiet()


@test()
def two_tabs_at_once(t):
    one, two = t.open(), t.open()
    send(one, "slow one")
    send(two, "slow two")
    until(lambda: t.mock.active == 2)
    for page in (one, two):
        streamed(page)
    one.keyboard.press("Escape")
    done(one)
    until(lambda: t.mock.active == 1)
    before = len(answer(two).locator(".body").text_content())
    until(lambda: len(answer(two).locator(".body").text_content()) > before)
    two.keyboard.press("Escape")
    done(two)
    for page, text in ((one, "slow one"), (two, "slow two")):
        page.reload()
        expect(page.locator("li.user .body")).to_have_text([text])
        assert len(answer(page).locator(".body").text_content()) > 20
    t.quiet()


CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgb = (color) => { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
    const light = (color) => rgb(color).map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
        .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (node) => { for (; node; node = node.parentElement) { const color = getComputedStyle(node).backgroundColor; if (!/, 0\\)$|transparent/.test(color)) return color; } return 'white'; };
    const found = {};
    for (const node of document.querySelectorAll('#legend .t, #legend span, .who, .body, .stats, .foot button, .fault p, .fault strong, #keys, #send, #model-name, h1, .seg span, .body a, .body code, small, label, legend')) {
        const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        found[`${node.tagName} ${node.className} ${node.id}`] = ratio;
    }
    return { found, steps: [...document.querySelectorAll('#legend .t')].map((node) => light(behind(node))) };
}"""


@test()
def dark_and_light(t):
    page = t.open()
    say(page, "markdown")
    say(page, "429")
    view(page, "tokens")
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        seen = page.evaluate(CONTRAST)
        low = {name: round(ratio, 2) for name, ratio in seen["found"].items() if ratio < 4.5}
        assert not low, (scheme, low)
        order = sorted(seen["steps"], reverse=scheme == "light")  # each step is darker, or lighter, than the one before
        assert order == seen["steps"] and len(set(order)) == 5, seen["steps"]
    assert grounds[0] != grounds[1]
    page.locator("#settings-open").click()
    page.get_by_label("Appearance").select_option("light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[0]
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[0]
    under = page.locator("#legend .s4").evaluate("(node) => getComputedStyle(node).textDecorationLine")
    assert under == "underline"
    t.quiet("status of 429")


@test()
def read_aloud_without_a_flood(t):
    page = t.open()
    page.evaluate("""() => {
        window.added = 0;
        new MutationObserver((all) => { for (const one of all) window.added += one.addedNodes.length; }).observe(document.getElementById('live'), { childList: true });
    }""")
    send(page, "slow please")
    streamed(page)
    page.wait_for_timeout(9000)
    added = page.evaluate("window.added")
    assert 1 <= added <= 3, added
    said = page.locator("#live").text_content()
    assert said.endswith((". ", ".")), said
    page.keyboard.press("Escape")
    done(page)
    assert page.evaluate("window.added") <= added + 2
    expect(page.locator("#live p").last).to_have_text("Stopped.")
    kept = page.evaluate("JSON.parse(sessionStorage['recua.talk']).chat[1].content")
    assert page.locator("#live").text_content() == kept + "Stopped."
    assert page.locator("#log").get_attribute("aria-live") is None
    expect(page.locator("#live")).to_have_attribute("aria-live", "polite")
    tree = page.locator("body").aria_snapshot()
    for part in ('heading "recua"', 'group "Mode"', 'group "How answers are shown"', 'radio "Chat"', 'list "Conversation"', 'textbox "Message"', 'button "Send"', 'heading "You"'):
        assert part in tree, (part, tree)
    t.quiet()


@test(reduced_motion="reduce")
def reduced_motion(t):
    page = t.open()
    send(page, "slow please")
    streamed(page)
    moving = page.evaluate("document.getAnimations().length")
    assert moving == 0, moving
    page.keyboard.press("Escape")
    done(page)
    page.emulate_media(reduced_motion="no-preference")
    t.quiet()


@test()
def export_and_import(t):
    page = t.open()
    say(page, "markdown")
    mode(page, "raw")
    say(page, "some text")
    page.locator("#settings-open").click()
    page.get_by_label("System prompt").fill("Be kind.")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = Path(download.value.path())
    kept = json.loads(file.read_text())
    assert kept["mode"] == "raw" and kept["system"] == "Be kind." and len(kept["chat"]) == 2 and kept["chat"][1]["content"] == MARKDOWN
    assert download.value.suggested_filename.endswith(".json")
    assert "sk-" not in file.read_text()

    def load(name, text):
        if page.locator("#settings").is_hidden():
            page.locator("#settings-open").click()
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Import").click()
        chooser.value.set_files({"name": name, "mimeType": "application/json", "buffer": text.encode()})
        expect(page.locator("#notice")).to_contain_text(name)

    page.get_by_label("System prompt").fill("")
    page.locator("#settings-close").click()
    page.get_by_role("button", name="Clear").click()
    load("kept.json", file.read_text())
    expect(page.locator("li.user .body")).to_have_text(["some text"])
    expect(page.locator("#f-system")).to_have_value("Be kind.")
    view(page, "tokens")
    answer(page).locator(".t").nth(3).hover()
    expect(page.get_by_role("tooltip")).to_contain_text("bits")
    load("messages.json", json.dumps({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}))
    expect(page.locator("li.user .body")).to_have_text(["Q"])
    expect(page.locator("#f-system")).to_have_value("S")
    for bad in ("not json", "{}", "null", "7"):
        load("bad.json", bad)
        expect(page.locator("#notice")).to_contain_text("no conversation")
        expect(page.locator("li.user .body")).to_have_text(["Q"])
    load("odd.json", json.dumps({"chat": [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE, "tokens": [["a", "b", 1]], "stats": {"finish": HOSTILE}}, 7, None, {"role": "tool"}]}))
    assert page.locator("#log > li").count() == 2
    assert page.evaluate("window.hacked") is None
    t.quiet()


@test()
def odd_markdown_is_harmless(t):
    """Every letter of it is shown, in order, and none of it takes long."""
    chance = random.Random(7)
    bits = ["*", "**", "_", "__", "~~", "`", "``", "```", "\n", "\n\n", "\n- ", "\n  1. ", "\n> ", "|", "\n|-|-|\n", "[", "](", ")", "!", "\\", "#", "\n## ", "    ", "a", "b", "word", " ", "<b>", "&", "\n---\n", "~~~"]
    turns = [{"role": "assistant", "content": "".join(chance.choices(bits, k=chance.randint(1, 60)))} for _ in range(300)]
    most = 40_000
    for part in ("*", "_a ", "**a ", "[", "[a](", "`", "`a", "> ", ">", "- ", "|", "a|\n|-|\n", "#", "\\", "~", "***a", "1. \n", " ", "\n", "http://", "x_", "- a\n", "  - a\n", "```\n"):
        turns.append({"role": "assistant", "content": (part * most)[:most]})
    turns += [{"role": "assistant", "content": "".join(f"{' ' * i}- a\n" for i in range(0, 400, 2))}]
    page = t.open()
    page.locator("#settings-open").click()
    begun = time.time()
    page.locator("#file").set_input_files({"name": "odd.json", "mimeType": "application/json", "buffer": json.dumps(turns).encode()})
    expect(page.locator("li.answer")).to_have_count(len(turns), timeout=60_000)
    print(f"    {len(turns)} odd texts: {time.time() - begun:.2f} s")
    assert time.time() - begun < 60
    shown = page.locator("li.answer .body").evaluate_all("""(all) => all.map((body) => {
        body = body.cloneNode(true);
        for (const head of body.querySelectorAll('.head')) head.remove();
        return body.textContent;
    })""")
    letters = lambda text: re.sub(r"[^a-z]", "", text)  # noqa: E731
    for turn, text in zip(turns[:300], shown):
        content = turn["content"]
        if not re.search(r"```|~~~|\|-|\[", content):  # whose language, cells and addresses are not all shown
            assert letters(text) == letters(content), (content, text)
    t.quiet()


@test()
def it_follows_unless_scrolled(t):
    page = t.open()
    say(page, "markdown")
    say(page, "markdown")
    send(page, "slow please")
    streamed(page)
    gap = "document.documentElement.scrollHeight - innerHeight - scrollY"
    until(lambda: len(answer(page).locator(".body").text_content()) > 300)
    assert page.evaluate(gap) < 60
    page.mouse.move(600, 300)
    page.mouse.wheel(0, -600)
    page.wait_for_timeout(200)
    at = page.evaluate("scrollY")
    page.wait_for_timeout(600)
    assert page.evaluate("scrollY") == at
    page.keyboard.press("Escape")
    done(page)
    t.quiet()


@test()
def long_answers_are_fast(t):
    page = t.open()
    page.evaluate("""() => { window.longest = 0; new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration); }).observe({ type: 'longtask' }); }""")
    count = 40 * len(pieces(PLAIN))
    for how in ("markdown", "tokens"):
        view(page, how)
        begun = time.time()
        send(page, "long please")
        done(page, 60_000)
        took = time.time() - begun
        print(f"    {count} tokens as {how}: {took:.2f} s, longest task {page.evaluate('longest'):.0f} ms")
        assert took < 30, took
    page.reload()
    assert len(answer(page).locator(".body").text_content()) == 40 * len(PLAIN)
    t.quiet()


@test()
def axe_finds_nothing(t):
    if not t.run.axe:
        return "no --axe"
    page = t.open()
    source = Path(t.run.axe).read_text()
    say(page, "markdown")
    say(page, "429")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for how in ("markdown", "tokens"):
            view(page, how)
            if how == "tokens":
                answer(page, 0).locator(".t").nth(2).focus()
            page.evaluate(source)
            found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
            found = [(one["id"], one["help"], [node["html"][:150] for node in one["nodes"]][:3]) for one in found]
            assert not found, (scheme, how, found)
    page.locator("#settings-open").click()
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    assert not found, [(one["id"], one["help"], [node["html"][:150] for node in one["nodes"]][:3]) for one in found]
    return None


# Against the server itself. What a model says is not known; what the page makes of it is.


@test()
def real_chat(t):
    page = t.open()
    page.locator("#settings-open").click()
    page.get_by_label("Max tokens").fill("48")
    page.locator("#settings-close").click()
    view(page, "tokens")
    said = say(page, "Tell me about llamas. <script>window.hacked=1</script>")
    expect(said.locator(".fault")).to_have_count(0)
    stats = said.locator(".stats").text_content()
    assert re.search(r"\d+ tokens? .*first after", stats) and "prompt" in stats, stats
    assert said.locator(".t").count() > 0
    said.locator(".t").first.hover()
    expect(page.get_by_role("tooltip")).to_contain_text("bits of surprise")
    assert page.get_by_role("tooltip").locator("tr").count() >= 5
    assert page.locator("li.user .body").text_content() == "Tell me about llamas. <script>window.hacked=1</script>"
    page.mouse.move(5, 400)
    answer(page).get_by_role("button", name="Regenerate").click()
    done(page)
    expect(answer(page).locator(".stats")).to_contain_text("cached")
    assert page.evaluate("window.hacked") is None
    t.quiet()


@test()
def real_raw(t):
    page = t.open()
    mode(page, "raw")
    page.locator("#settings-open").click()
    page.get_by_label("Max tokens").fill("24")
    page.get_by_label("Temperature").fill("0")
    page.locator("#settings-close").click()
    view(page, "tokens")
    first = say(page, "The llama").locator(".body").text_content()
    answer(page).get_by_role("button", name="Regenerate").click()
    done(page)
    assert answer(page).locator(".body").text_content() == first  # by the likeliest token always the same
    count = answer(page).locator(".t").count()
    answer(page).get_by_role("button", name="Continue").click()
    done(page)
    expect(answer(page).locator(".fault")).to_have_count(0)
    assert answer(page).locator(".t").count() >= count
    t.quiet()


@test()
def real_stop(t):
    one, two = t.open(), t.open()
    for page in (one, two):
        mode(page, "raw")
        page.locator("#settings-open").click()
        page.get_by_label("Max tokens").fill("2000")
        page.locator("#settings-close").click()
    for page in (one, two):
        send(page, "The llama")
    for page in (one, two):
        expect(answer(page).locator(".stats")).to_contain_text("token", timeout=20_000)
        if page.locator("#send").text_content() == "Stop":
            page.keyboard.press("Escape")
            done(page, 10_000)
            expect(answer(page).locator(".stats")).to_contain_text("stopped")
        else:
            print("    the answer ended before it could be stopped")
    t.quiet()


@test()
def real_errors(t):
    page = t.open()
    page.locator("#settings-open").click()
    page.get_by_label("System prompt").fill("x " * 200_000)
    page.locator("#settings-close").click()
    say(page, "hello")
    expect(page.locator(".fault")).to_contain_text("Error 400")
    t.quiet("status of 400")


@test()
def real_key(t):
    if not t.run.key:
        return "no --key"
    right, t.run.key = t.run.key, None
    try:
        page = t.context.new_page()
        page.goto(t.base)
        expect(page.locator("#notice")).to_contain_text("wants an API key")
        page.get_by_role("button", name="Enter the key").click()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        say(page, "hello")
        expect(page.locator(".fault")).to_contain_text("Error 401")
        page.get_by_role("button", name="Enter the API key").click()
        page.get_by_label("API key").fill(right)
        page.keyboard.press("Enter")
        expect(page.locator("#model-name, #model-pick").locator("visible=true")).not_to_be_empty()
        page.get_by_role("button", name="Try again").click()
        done(page)
        expect(answer(page).locator(".fault")).to_have_count(0)
    finally:
        t.run.key = right
    t.quiet("status of 401")


@test()
def real_headers(t):
    page = t.open()
    response = page.goto(t.base)
    policy = response.headers.get("content-security-policy", "")
    for part in ("default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert part in policy, policy
    assert "unsafe-inline" not in policy, policy
    t.quiet()


# ---- Pictures ---------------------------------------------------------------------------------

SHOTS = {
    "Why do llamas hum?": (
        "Llamas hum to **stay in touch**. It is a quiet sound, made with the mouth closed, and most of it passes between "
        "a mother and her cria:\n\n- *Rising* hums ask something: where are you?\n- *Low, even* hums mean that all is well.\n"
        "- *Short, tense* ones come with worry, heat or a strange dog.\n\nA llama that hums at you is not angry. It is thinking out loud."
    ),
    "How would I count them in Rust?": (
        "With an iterator, and a `filter` for those that are awake:\n\n```rust\nfn awake(recua: &[Llama]) -> usize {\n"
        "    recua.iter().filter(|llama| !llama.asleep).count()\n}\n```\n\n| state | method | cost |\n|:--|:--|--:|\n| awake | `awake` | *O*(n) |\n| all | `len` | *O*(1) |"
    ),
}


def shots(run):
    folder = Path(run.shots)
    folder.mkdir(parents=True, exist_ok=True)
    phone = {"viewport": {"width": 375, "height": 720}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    for name, options, how in (
        ("chat-light", {"viewport": {"width": 1100, "height": 640}}, "tokens"),
        ("chat-light-markdown", {"viewport": {"width": 1100, "height": 900}}, "markdown"),
        ("chat-dark", {"viewport": {"width": 1100, "height": 760}, "color_scheme": "dark"}, "tokens"),
        ("chat-phone", {**phone, "color_scheme": "dark"}, "markdown"),
        ("chat-phone-tokens", {**phone, "color_scheme": "light"}, "tokens"),
        ("settings-light", {"viewport": {"width": 1300, "height": 900}}, "tokens"),
        ("settings-phone", {**phone, "color_scheme": "dark"}, "markdown"),
        ("empty", {"viewport": {"width": 1100, "height": 760}}, "markdown"),
        ("error", {"viewport": {"width": 1100, "height": 760}}, "markdown"),
    ):
        t = Test(run, False, **options)
        t.mock.models, t.mock.speed = ["example-model"], 0.012
        t.mock.replies = SHOTS
        page = t.open()
        view(page, how)
        press = (lambda: page.locator("#send").tap()) if options.get("is_mobile") else (lambda: page.locator("#prompt").press("Enter"))
        texts = {"empty": [], "error": ["Why do llamas hum?", "429 please"]}.get(name, list(SHOTS) if how == "markdown" else list(SHOTS)[:1])
        for text in texts:
            page.locator("#prompt").fill(text)
            press()
            done(page)
        if how == "tokens":
            token = answer(page, 0).locator(".t").filter(has_text=" made").first
            token.tap() if options.get("is_mobile") else token.hover()
        if name.startswith("settings"):
            page.locator("#settings-open").click()
        page.screenshot(path=folder / f"{name}.png")
        t.context.close()


# ---- ------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="of a recua server that runs")
    where.add_argument("--mock", action="store_true", help="the page's files and a scripted server")
    parser.add_argument("--files", action="store_true", help="with --url: this tree's page in place of the server's")
    parser.add_argument("--key", help="an API key that the server takes")
    parser.add_argument("--browser", default=os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser"))
    parser.add_argument("--axe", help="axe.min.js")
    parser.add_argument("--shots", help="write pictures into this folder and test nothing")
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve the page with the mock and test nothing")
    parser.add_argument("names", nargs="*", help="parts of the tests' names")
    run = parser.parse_args()
    if run.serve:
        print(Mock(run.serve).url)
        threading.Event().wait()
    run.url = run.url and run.url.rstrip("/")
    run.mock = Mock()
    passed = failed = skipped = 0
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        # A page that was laid over has no address, and may then not ask this machine's.
        local = ["--disable-features=LocalNetworkAccessChecks"] if run.files else []
        run.browser = playwright.chromium.launch(executable_path=run.browser, args=sandbox + local)
        if run.shots:
            return shots(run)
        for function, options in TESTS:
            name = function.__name__
            if run.names and not any(part in name for part in run.names):
                continue
            if name.startswith("real_") and not run.url:
                continue
            begun, t = time.time(), Test(run, name.startswith("real_"), **options)
            try:
                why = function(t)
                skipped, passed = skipped + bool(why), passed + (not why)
                print(f"{'skip' if why else 'ok  '} {name} {time.time() - begun:.1f} s{' ' + why if why else ''}", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL {name}\n{traceback.format_exc()}  console: {t.console}", flush=True)
            t.context.close()
        run.browser.close()
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
