//! Metrics beside lm-eval's own functions (golden/metrics.json, made by golden/make.py) and beside exact arithmetic.

use std::collections::BTreeMap;

use proptest::prelude::*;
use recua_eval::metrics::math::{self, Rules, Verdict};
use recua_eval::metrics::text::{self, ExactMatch, Extract};
use recua_eval::metrics::{calibration, choice, minerva, stats};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    lm_eval: String,
    math_answers: Vec<(String, Option<String>, String)>,
    math_pairs: Vec<(String, String, bool)>,
    boxed: Vec<(String, Option<String>)>,
    #[serde(rename = "final")]
    final_answers: Vec<(String, String)>,
    gsm8k: Vec<(String, String, String, String)>,
    exact: BTreeMap<String, Vec<(String, String, bool)>>,
    majority: Vec<(Vec<String>, String)>,
    means: Vec<(Vec<f64>, f64, f64, f64)>,
    groups: Vec<(Vec<GoldenPart>, f64, f64, f64, f64)>,
    weighted: Vec<(Vec<Weighted>, f64, f64)>,
}

/// Mean, its error, size.
type GoldenPart = (f64, f64, usize);

/// Log-probability, units.
type Weighted = (f64, u64);

fn golden() -> Golden {
    let golden: Golden = serde_json::from_str(include_str!("golden/metrics.json")).expect("the golden file is JSON");
    assert_eq!(golden.lm_eval, "0.4.13");
    golden
}

/// Sums of some dozens of doubles in another order.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * a.abs().max(b.abs()).max(1e-300)
}

#[test]
fn math_answers_are_the_harness_s() {
    let golden = golden();
    assert!(golden.math_answers.len() > 200);
    for (answer, stripped, normalized) in &golden.math_answers {
        assert_eq!(math::strip_string(answer, Rules::Harness), *stripped, "strip_string of {answer:?}");
        assert_eq!(minerva::normalize(answer), *normalized, "Minerva's form of {answer:?}");
    }
    for (a, b, equal) in &golden.math_pairs {
        assert_eq!(math::is_equiv(a, b, Rules::Harness), *equal, "{a:?} and {b:?}");
    }
    for (text, boxed) in &golden.boxed {
        assert_eq!(math::last_boxed(text), boxed.as_deref(), "the last box of {text:?}");
    }
    for (text, answer) in &golden.final_answers {
        assert_eq!(minerva::final_answer(text), *answer, "the final answer of {text:?}");
    }
}

/// The cases of the authors' own test (hendrycks/math, modeling/math_equivalence_test.py).
#[test]
fn math_answers_are_the_authors() {
    let cases = [
        (r"\tfrac{1}{2} + \frac1{72}", r"\\frac{1}{2} + 2/3", false),
        ("10, 4, -2", "4, 10, -2", false),
        ("10, 4, 2", "4, 12, 2", false),
        (r"\tfrac{1}{2} +\! \frac1{72}", r"\\dfrac{1}{2} +\frac{1}{72}", true),
        (r"10\text{ units}", "10 ", true),
        (r"10\text{ units}", "100 ", false),
        ("10", r"\$10", true),
        (r"\left(x-2\right)\left(x+2\right)", "(x-2)(x+2)", true),
        ("0.1, 4, 2", "4, .1, 2", false),
        ("0.1", ".1", true),
        (r"10\%", "10", true),
        (r"10\sqrt{3} + \sqrt4", r"10\sqrt3 + \sqrt{4}", true),
        (r"\frac34i", r"\frac{3}{4}i", true),
        (r"\tfrac83", r"\frac{8}{3}", true),
        ("5x - 7y + 11z + 4 = 0", "x + y - z + 2 = 0", false),
        ("1/2", r"\frac{1}{2}", true),
    ];
    for rules in [Rules::Authors, Rules::Harness] {
        for (a, b, equal) in cases {
            assert_eq!(math::is_equiv(a, b, rules), equal, "{a:?} and {b:?}, {rules:?}");
        }
    }
    // Where the two copies differ: a fraction of letters, which the harness compares as it came.
    assert!(math::is_equiv("a/b", "a / b", Rules::Authors));
    assert!(!math::is_equiv("a/b", "a / b", Rules::Harness));
}

#[test]
fn boxes_open() {
    assert_eq!(math::boxed_answer(r"so $\boxed{\frac{1}{2}}$."), Some(r"\frac{1}{2}"));
    assert_eq!(math::boxed_answer(r"\fbox{7}"), Some("7"));
    assert_eq!(math::boxed_answer(r"$\boxed 5$ apples"), Some("5"));
    assert_eq!(math::boxed_answer(r"\boxed{1"), None);
    assert_eq!(math::boxed_answer("none"), None);
    assert_eq!(math::between_dollars("so $1$ and $2$."), "1$ and $2");
    assert_eq!(math::between_dollars("so $1"), "so $1");
    assert_eq!(minerva::gold(r"thus $\boxed{10\text{ cm}}$").as_deref(), Some("10"));
}

#[test]
fn what_only_a_symbolic_judge_can_tell_is_named() {
    for (answer, gold, verdict) in [
        ("5", "5", Verdict::Equal),
        ("(1,2)", "(1,2)", Verdict::Equal),
        ("5", "6", Verdict::Different),
        ("0.3", r"\frac{1}{3}", Verdict::Different),
        ("", "6", Verdict::Different),
        (minerva::INVALID, "x", Verdict::Different),
        (r"\frac{2}{4}", r"\frac{1}{2}", Verdict::Symbolic),
        ("0.50", "1/2", Verdict::Symbolic),
        ("x+1", "1+x", Verdict::Symbolic),
        ("3", r"\sqrt{9}", Verdict::Symbolic),
        ("1/0", "2", Verdict::Symbolic),
    ] {
        assert_eq!(minerva::judge(answer, gold), verdict, "{answer:?} and {gold:?}");
    }
}

#[test]
fn numbers_are_read_off_as_the_harness_does() -> recua_eval::Result<()> {
    let (strict, flexible) = (Extract::gsm8k_strict()?, Extract::gsm8k_flexible()?);
    let said = Extract::new(r"The answer is (\-?[0-9\.\,]*[0-9]+)", false)?;
    for (text, by_strict, by_flexible, by_said) in golden().gsm8k {
        assert_eq!(strict.apply(&text)?, by_strict, "{text:?}");
        assert_eq!(flexible.apply(&text)?, by_flexible, "{text:?}");
        assert_eq!(said.apply(&text)?, by_said, "{text:?}");
    }
    Ok(())
}

#[test]
fn exact_match_is_the_harness_s() -> recua_eval::Result<()> {
    let golden = golden();
    let rules = [("nq_open", ExactMatch::nq_open()?), ("triviaqa", ExactMatch::triviaqa()?), ("gsm8k", ExactMatch::gsm8k()?)];
    for (name, rule) in rules {
        let cases = &golden.exact[name];
        assert!(cases.iter().filter(|case| case.2).count() > 30 && cases.len() > 900);
        for (a, b, equal) in cases {
            assert_eq!(rule.any(a, &[b])?, *equal, "{name}: {a:?} and {b:?}");
        }
    }
    Ok(())
}

#[test]
fn the_paper_s_answers() {
    for (text, answer) in
        [("Paris.\nQ: next", "Paris"), (" U.S. ", "U.S"), ("the year 1988, or", "the year 1988, or"), ("a,", "a"), ("", "")]
    {
        assert_eq!(text::paper_answer(text), answer);
    }
    // SQuAD's definition: lower case, punctuation gone, then articles as words, then single spaces.
    for (text, normal) in [
        ("The  Beatles", "beatles"),
        ("a-ha", "aha"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),
        ("A", ""),
        ("\u{201c}the\u{201d} end", "\u{201c} \u{201d} end"),
        ("ÉCOLE", "école"),
    ] {
        assert_eq!(text::paper_normalize(text), normal, "{text:?}");
    }
    assert!(text::paper_match(" The U.S.\nQ:", &["us"]));
    assert!(!text::paper_match("UK", &["us"]));
    // F1 by hand: 2 of 3 words shared with 2 of 4 give 2 * 2 / (3 + 4).
    assert!(close(text::f1("the red big car", "big red dog house"), 4.0 / 7.0));
    assert!(close(text::f1("x x y", "x z"), 2.0 / 5.0));
    assert_eq!(text::f1("", "the"), 1.0);
    assert_eq!(text::f1("", "x"), 0.0);
    assert!(close(text::f1_any("a b c", &["d", "b c"]), 1.0));
}

#[test]
fn votes_go_to_the_first_seen() {
    for (answers, winner) in golden().majority {
        assert_eq!(text::majority(&answers), Some(&winner), "{answers:?}");
    }
    assert_eq!(text::majority::<&str>(&[]), None);
}

#[test]
fn means_and_errors_are_the_harness_s() {
    let golden = golden();
    for (values, mean, stderr, perplexity) in &golden.means {
        assert!(close(stats::mean(values).unwrap(), *mean) && close(stats::stderr(values).unwrap(), *stderr));
        assert!(close(stats::perplexity(values).unwrap(), *perplexity));
        // Groups of one are no groups.
        let alone: Vec<String> = (0..values.len()).map(|at| at.to_string()).collect();
        assert!(close(stats::clustered_stderr(values, &alone).unwrap(), *stderr));
    }
    for (parts, by_items, items_error, by_tasks, tasks_error) in &golden.groups {
        let parts: Vec<_> =
            parts.iter().map(|&(value, stderr, size)| stats::Part { value, stderr: Some(stderr), size }).collect();
        assert!(
            close(stats::group_mean(&parts, true).unwrap(), *by_items)
                && close(stats::group_stderr(&parts, true).unwrap(), *items_error)
        );
        assert!(
            close(stats::group_mean(&parts, false).unwrap(), *by_tasks)
                && close(stats::group_stderr(&parts, false).unwrap(), *tasks_error)
        );
    }
    for (items, perplexity, bits) in &golden.weighted {
        let (lls, units): (Vec<f64>, Vec<u64>) = items.iter().copied().unzip();
        assert!(
            close(stats::unit_perplexity(&lls, &units).unwrap(), *perplexity)
                && close(stats::bits_per_unit(&lls, &units).unwrap(), *bits)
        );
    }
    assert_eq!((stats::mean(&[]), stats::stderr(&[1.0]), stats::unit_perplexity(&[], &[])), (None, None, None));
}

/// By hand: mean 1/2, sums of deviations 1 and -1 in two groups of two: sqrt(2 * 2/1) / 4 = 1/2, where independent items have less.
#[test]
fn items_of_a_passage_err_together() {
    let error = stats::clustered_stderr(&[1.0, 1.0, 0.0, 0.0], &["a", "a", "b", "b"]).unwrap();
    assert!(close(error, 0.5));
    assert!(stats::stderr(&[1.0, 1.0, 0.0, 0.0]).unwrap() < 0.3);
    assert_eq!(stats::clustered_stderr(&[1.0, 0.0], &["a", "a"]), None);
}

/// `1 - C(n - c, k) / C(n, k)` in whole numbers.
#[test]
fn pass_at_k_is_the_share_of_subsets() {
    fn binomial(n: u64, k: u64) -> u128 {
        if k > n { 0 } else { (1..=u128::from(k)).fold(1, |all, i| all * (u128::from(n - k) + i) / i) }
    }
    for n in 1..=60 {
        for c in 0..=n {
            for k in 1..=n {
                let (none, all) = (binomial(n - c, k), binomial(n, k));
                let exact = (all - none) as f64 / all as f64;
                // Each factor of the product is rounded, and so is 1 minus it: 60 roundings at the most.
                assert!((stats::pass_at_k(n, c, k).unwrap() - exact).abs() <= 60.0 * f64::EPSILON, "n {n}, c {c}, k {k}");
            }
        }
    }
    assert_eq!((stats::pass_at_k(2, 1, 3), stats::pass_at_k(2, 3, 1), stats::pass_at_k(2, 1, 0)), (None, None, None));
}

#[test]
fn choices() {
    assert_eq!(choice::by_sum(&[-2.0, -1.0, -1.0]), Some(1), "the first of equal ones");
    assert_eq!(choice::by_sum(&[]), None);
    assert_eq!(choice::argmax([1.0, f64::NAN, 2.0]), Some(1), "numpy's argmax of a NaN");
    assert_eq!(choice::argmax([f64::NEG_INFINITY; 2]), Some(0));
    // "éé" has 2 characters and 4 bytes: -3/2 > -2, but -3/4 > -2/1 also; with "aaa" at -3.6 the two differ.
    assert_eq!(choice::by_character(&[-3.0, -3.6], &["éé", "aaa"]), Some(1));
    assert_eq!(choice::by_byte(&[-3.0, -3.6], &["éé", "aaa"]), Some(0));
    assert_eq!(choice::by_ratio(&[-3.0, -4.0], &[-1.0, -3.0]), Some(1));
    // p = 0.1, 0.3, 0.6: (0.1 + 0.6) / 1.
    let lls = [0.1_f64.ln() - 900.0, 0.3_f64.ln() - 900.0, 0.6_f64.ln() - 900.0];
    assert!((choice::mc2(&lls, &[true, false, true]) - 0.7).abs() < 1e-12, "no underflow");
    assert!(choice::mc1(&lls, &[false, false, true]) && !choice::mc1(&lls, &[true, false, false]));
    assert_eq!(choice::softmax(&[f64::NEG_INFINITY; 4]), [0.25; 4]);
}

#[test]
fn reliability() {
    let items = [(0.95, true), (0.85, false), (0.91, true), (0.3, false), (0.31, true)];
    let curve = calibration::calibration(&items, 10).unwrap();
    assert_eq!(curve.bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [0, 0, 1, 1, 0, 0, 0, 0, 1, 2]);
    // |0 - .3| / 5 + |1 - .31| / 5 + |0 - .85| / 5 + |1 - .93| * 2 / 5
    assert!(close(curve.error, (0.3 + 0.69 + 0.85 + 0.14) / 5.0));
    assert!(calibration::calibration(&[], 10).is_none());
}

#[cfg(unix)]
mod scorer {
    use std::time::{Duration, Instant};

    use recua_eval::metrics::scorer::Scorer;

    fn score(program: &str, texts: &[&str]) -> Result<Vec<f64>, String> {
        let command = ["python3", "-c", program].map(str::to_owned).to_vec();
        let rows: Vec<_> = texts.iter().map(|text| serde_json::json!({ "text": text })).collect();
        Scorer { command, deadline: Duration::from_secs(4) }.score(&rows).map_err(|error| error.to_string())
    }

    const LENGTHS: &str = "import sys, json\nfor line in sys.stdin: print(len(json.loads(line)['text']))";

    #[test]
    fn scores_come_back_in_order() {
        assert_eq!(score(LENGTHS, &["a\nb", "", "éé"]), Ok(vec![3.0, 0.0, 2.0]));
        assert_eq!(score("import sys\nfor _ in sys.stdin: print('{\"score\": 0.25}')", &["x"]), Ok(vec![0.25]));
        // More than a pipe holds, both ways at once.
        let long = "x".repeat(50_000);
        assert_eq!(score(LENGTHS, &[long.as_str(); 40]), Ok(vec![50_000.0; 40]));
    }

    #[test]
    fn a_scorer_that_fails_is_an_error() {
        for (program, part) in [
            ("import sys; sys.stdin.read(); print(1)", "expected 2 lines, one a text, got 1"),
            ("import sys; sys.stdin.read(); print('1\\nhigh')", "line 2: expected a number or {\"score\": number}, got `high`"),
            ("import sys; sys.stdin.read(); sys.exit('no model')", "no model"),
            ("print('NaN\\n1')", "line 1: expected a number"),
        ] {
            let error = score(program, &["a", "b"]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let start = Instant::now();
        let error = score("import time\nwhile True: time.sleep(1)", &["a"]).unwrap_err();
        assert!(error.contains("longer than 4 s") && start.elapsed() < Duration::from_secs(10), "{error}");
        let missing = Scorer { command: vec!["/no/such/program".into()], deadline: Duration::from_secs(1) };
        assert!(missing.score(&["x"]).unwrap_err().to_string().contains("cannot be started"));
    }
}

proptest! {
    /// Whatever a model writes, its judges answer.
    #[test]
    fn no_text_is_too_strange(text in "(\\\\(frac|sqrt|boxed|text|left)|[{}$/=.,0-9 a\u{e9}-]|.){0,40}") {
        let _ = (math::strip_string(&text, Rules::Harness), math::strip_string(&text, Rules::Authors), math::boxed_answer(&text));
        let _ = minerva::judge(&minerva::normalize(&minerva::final_answer(&text)), &minerva::normalize(&text));
        let _ = (text::paper_normalize(&text), text::f1(&text, "x"), math::between_dollars(&text));
        prop_assert!(Extract::gsm8k_flexible().and_then(|filter| filter.apply(&text)).is_ok());
        prop_assert!(ExactMatch::gsm8k().and_then(|rule| rule.normalize(&text)).is_ok());
    }
}
