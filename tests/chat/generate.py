"""What jinja2 makes of the templates here, set up as transformers does (utils/chat_template_utils.py): cases.json.

pip install jinja2; python generate.py
"""

import json
import pathlib

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """`{% generation %}` marks what is trained on; what it renders is its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def raise_exception(message):
    raise TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception

SYSTEM = {"role": "system", "content": " Be brief.\n"}
USER = {"role": "user", "content": "  Hello <there>,\nwhat is \"x\"? "}
ANSWER = {"role": "assistant", "content": " An unknown. \n"}
MORE = {"role": "user", "content": "Und auf Französisch? 🦙"}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER, MORE],
    [SYSTEM, USER, ANSWER, MORE],
    [USER, ANSWER],
    [USER, MORE],
    [USER, SYSTEM, ANSWER],
]

here = pathlib.Path(__file__).parent
cases = []
for path in sorted(here.glob("*.jinja")):
    template = env.from_string(path.read_text())
    for messages in CONVERSATIONS:
        for prompt in [False, True]:
            case = {"template": path.name, "messages": messages, "add_generation_prompt": prompt}
            tokens = {"bos_token": "<s>", "eos_token": "</s>"}
            try:
                case["text"] = template.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=prompt, **tokens
                )
            except TemplateError as e:
                case["refused"] = str(e)
            cases.append(case)
(here / "cases.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")
print(len(cases), sum("refused" in c for c in cases))
