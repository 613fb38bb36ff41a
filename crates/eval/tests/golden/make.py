"""Makes metrics.json: what lm-eval 0.4.13 and numpy say of answers, texts and means.

    python make.py MATH500.jsonl > metrics.json     # pip install lm-eval==0.4.13 numpy sympy

`minerva_math/utils.py` wants math_verify and antlr, which nothing here uses: empty modules stand in for them.
"""

import importlib.metadata
import json
import math
import pathlib
import random
import sys
import types

import lm_eval
from lm_eval.api import metrics
from lm_eval.filters.extraction import RegexFilter
from lm_eval.filters.selection import MajorityVoteFilter

for name in ["antlr4", "math_verify", "sympy.parsing.latex"]:
    sys.modules[name] = types.ModuleType(name)
sys.modules["math_verify"].parse = sys.modules["math_verify"].verify = None
sys.modules["sympy.parsing.latex"].parse_latex = None


def load(task):
    path = pathlib.Path(lm_eval.__file__).parent / "tasks" / task / "utils.py"
    source = path.read_text().replace('assert version("antlr4-python3-runtime")', 'assert "4.11"')
    module = types.ModuleType(task)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


hendrycks, minerva = load("hendrycks_math"), load("minerva_math")
rng = random.Random(17)

# Answers of MATH, and what becomes of them in the mouth of a model.
golds = []
solutions = [json.loads(line)["solution"] for line in open(sys.argv[1], encoding="utf-8")]
for solution in solutions:
    golds.append(minerva.remove_boxed(minerva.last_boxed_only_string(solution)))
written = [
    "1/2", "0.5", ".5", "-.5", "{.5}", "\\frac12", "\\frac1{72}", "\\frac{72}1", "\\frac1", "\\frac", "\\tfrac{1}{2}", "\\dfrac34x", "x=5", "abc=5",
    "k = 5", "a=b=c", "\\sqrt3", "\\sqrt", "\\sqrt[3]8", "\\sqrt[3]{8}", "2\\sqrt 2", "10\\text{ cm}", "10\\text{ cm}\\text{ m}", "\\text{m}^2",
    "5\\text{m}^2", "12\\%", "12%", "\\$32,000.00", "$18$", "the answer is $x$ or $y$", "x \\in [0,\\infty)", "\\left(3, \\frac{\\pi}{2}\\right)",
    "2\\pi cm", "2\\picm", "1,000", "10,000,000", "0,1", "1,00", "-1,234", "-2/3", "+1/2", "01/2", "1/2/3", "a/b", " 3 / 4 ", "90^\\circ", "90^{\\circ}",
    "45 degrees", "3 feet", "\\mbox{east}", "\\text{(A)}", "\\textbf{(B)}", "\\overline{AB}", "\\boxed{7}", "\\boxed{\\frac{1}{2}}", "a and b",
    "an apple", "12 square feet", "1\\!000", "1{,}000", "\\ldots", "x^2+2x+1", "x\n=3", "\\text{\ns}", "", " ", "=", "7=", "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
    "100\\,", "5.", "5.$", "\\frac\\pi2", "é/2", "\\sqrté", "\\fracéa", "１/２",
]
answers = list(dict.fromkeys(golds + written))
for gold in golds[:60]:
    answers.append(gold.replace("\\frac", "\\dfrac"))
    answers.append(" " + gold + "\\text{ units}")
    answers.append("x = " + gold)
    answers.append(gold.replace("{", "").replace("}", ""))
answers = list(dict.fromkeys(answers))


def attempt(f, *xs):
    try:
        return f(*xs)
    except Exception:
        return None


math_answers = [[a, attempt(hendrycks.strip_string, a), minerva.normalize_final_answer(a)] for a in answers]
pairs = [(rng.choice(answers), rng.choice(answers)) for _ in range(200)] + [(g, g.replace("\\frac", "\\dfrac")) for g in golds]
pairs += [(a, a) for a in written] + [("1/2", "\\frac{1}{2}"), ("0.5", "1/2"), ("a/b", "a/b "), ("10\\text{ units}", "10 ")]
math_pairs = [[a, b, hendrycks.is_equiv(a, b)] for a, b in pairs]
texts = solutions[:30] + [
    "so \\boxed{1} or \\boxed{2}", "\\fbox{3}", "\\boxed{\\frac{1}{2}", "\\boxed 5$ apples", "a \\boxed {6} $", "none", "\\boxed{}", "\\boxed{a}\\fbox{b}",
    "x \\boxed{1} then \\boxed 2 then \\boxed{3}",
]
boxed = [[t, minerva.last_boxed_only_string(t)] for t in texts]
generations = [
    "Final Answer: The final answer is $5$. I hope it is correct.", "Final Answer: The final answer is $5$", "The final answer is 5. I hope it is correct.",
    "Final Answer: The final answer is\n5. I hope it is correct.", "Final Answer: The final answer is 3! I hope it is correct. Final Answer: The final answer is 4. I hope it is correct.",
    "", "Final Answer: The final answer is ",
]
final = [[g, minerva.get_unnormalized_answer(g)] for g in generations]

# Filters and exact match.
gsm = [
    "3 + 4 = 7\n#### 7", "#### -1,234.50 dollars", "The answer is 18.", "so $1,200.", "no number", "#### ", "12 and 13", "7.", "#### 7.", "-5", "$", "$$", "--3",
    "#### 1\n#### 2", "a 3.5. b", "", "1 2 3 #### 4 5", ",", "...", "５",
]
strict = RegexFilter("#### (\\-?[0-9\\.\\,]+)")
flexible = RegexFilter("(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
said = RegexFilter("The answer is (\\-?[0-9\\.\\,]*[0-9]+)")
gsm_filtered = [[t] + [list(f.apply([[t]], [{}]))[0][0] for f in (strict, flexible, said)] for t in gsm]
rules = {
    "nq_open": dict(ignore_case=True, ignore_punctuation=True, regexes_to_ignore=["\\b(?:The |the |An |A |The |a |an )"]),
    "triviaqa": dict(ignore_case=True, ignore_punctuation=True),
    "gsm8k": dict(ignore_case=True, ignore_punctuation=False, regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"]),
}
sides = [
    "The Beatles", "the beatles", "Beatles", "a man", "banana man", "Banana", "A-ha", "ha", "an", "The", "U.S.", "US", "18.", "18", "18.\n", "18\n", "1,800",
    "1800", "$18", "#### 18", "a\nb #### 18", "STRASSE", "straße", "ÉCOLE", "école", "“quoted”", '"quoted"', "x  y", "x y", "THE x", "Theatre", "", " ",
]
exact = {}
for name, rule in rules.items():
    exact[name] = [[a, b, bool(metrics.exact_match_hf_evaluate([a], [b], **rule)["exact_match"])] for a in sides for b in sides]
votes = [["a", "b", "b", "a"], ["x"], ["[invalid]", "3", "3"], ["b", "a", "c"], ["2", "1", "1", "2", "3"]]
votes += [[rng.choice("abc") for _ in range(rng.randint(1, 9))] for _ in range(40)]
majority = [[v, list(MajorityVoteFilter().apply([v], [{}]))[0][0]] for v in votes]

# Means and their errors.
means = []
for _ in range(20):
    values = [rng.choice([0.0, 1.0]) if rng.random() < 0.5 else rng.gauss(-3, 2) for _ in range(rng.randint(2, 40))]
    means.append([values, metrics.mean(values), metrics.mean_stderr(values), metrics.perplexity(values)])
groups = []
for _ in range(20):
    parts = [[rng.random(), rng.random() / 10, rng.randint(2, 300)] for _ in range(rng.randint(1, 8))]
    value, error, size = map(list, zip(*parts))
    one = [parts]
    for weighted in (True, False):
        one.append(metrics.aggregate_subtask_metrics(value, size, weighted))
        one.append(float(metrics.pooled_sample_stderr(error, size) if weighted else metrics.unweighted_mean_stderr(error)))
    groups.append(one)
weighted = []
for _ in range(10):
    items = [[rng.gauss(-100, 30), rng.randint(1, 90)] for _ in range(rng.randint(1, 9))]
    weighted.append([items, metrics.weighted_perplexity(items), metrics.bits_per_byte(items)])

out = dict(
    lm_eval=importlib.metadata.version("lm_eval"), math_answers=math_answers, math_pairs=math_pairs, boxed=boxed, final=final, gsm8k=gsm_filtered,
    exact=exact, majority=majority, means=means, groups=groups, weighted=weighted,
)
assert all(math.isfinite(m[2]) for m in means)
json.dump(out, sys.stdout, ensure_ascii=False, indent=None, separators=(",", ":"))
