#!/usr/bin/env python3
"""Two servers of one model on two devices say the same.

    python3 tests/clients/same.py URL OTHER_URL

Greedy texts of some prompts, with the log-probabilities of prompt and text. Float32 sums in another order differ in the last digits: 1e-3
is allowed between them, and a text may differ from the first place on where the two likeliest tokens were closer than that.
"""

import json
import sys
import urllib.request

PROMPTS = ["fn main() {", "use std::", "//! The", "impl<T> Iterator for", "pub struct Config {\n    pub name: String,\n"]
BOUND = 1e-3


def ask(url: str) -> list:
    body = {"prompt": PROMPTS, "max_tokens": 24, "temperature": 0, "echo": True, "logprobs": 2, "ignore_eos": True}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    return [choice["logprobs"] for choice in json.load(urllib.request.urlopen(request))["choices"]]


def main() -> None:
    tokens, ties, worst = 0, 0, 0.0
    for a, b in zip(ask(sys.argv[1]), ask(sys.argv[2]), strict=True):
        for i, (one, other) in enumerate(zip(a["tokens"], b["tokens"], strict=True)):
            if one != other:
                likeliest = sorted(a["top_logprobs"][i].values(), reverse=True)
                assert likeliest[0] - likeliest[1] < BOUND, f"{one!r} and {other!r} at {i} of {a['tokens']}: {likeliest}"
                ties += 1
                break
            tokens += 1
            if a["token_logprobs"][i] is not None:
                worst = max(worst, abs(a["token_logprobs"][i] - b["token_logprobs"][i]))
    assert worst < BOUND and tokens > 100 and ties <= 1, (worst, tokens, ties)
    print(f"{tokens} tokens the same, {ties} ties; largest difference of a log-probability {worst:.1e}")


if __name__ == "__main__":
    main()
