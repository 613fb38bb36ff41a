//! What the LLaMA paper prints (arXiv 2302.13971v1, tables 3 to 9, 12 and 13), in percent.

/// Models whose numbers stand beside ours.
pub(super) const MODELS: [&str; 7] =
    ["LLaMA 7B", "LLaMA 13B", "LLaMA 33B", "LLaMA 65B", "GPT-3 175B", "Chinchilla 70B", "PaLM 540B"];

/// A row of a table of the paper.
pub(super) struct Row {
    /// As the paper calls it.
    pub(super) label: &'static str,
    /// Names of tasks or groups; the first that was run is meant.
    pub(super) tasks: &'static [&'static str],
    /// Names of metrics, or how they begin; the first that is there is meant.
    pub(super) metrics: &'static [&'static str],
    /// Only with so many shots.
    pub(super) shots: Option<usize>,
    /// By [`MODELS`]; NaN where the paper has none.
    pub(super) values: [f64; 7],
}

/// A table of the paper.
pub(super) struct Table {
    /// Its title.
    pub(super) title: &'static str,
    /// Its rows (the paper's columns).
    pub(super) rows: &'static [Row],
}

const NO: f64 = f64::NAN;

const fn row(
    label: &'static str,
    tasks: &'static [&'static str],
    metrics: &'static [&'static str],
    shots: Option<usize>,
    values: [f64; 7],
) -> Row {
    Row { label, tasks, metrics, shots, values }
}

const ACC: &[&str] = &["acc"];
const BY_CHARACTER: &[&str] = &["acc_norm", "acc"];
const BY_ANSWER: &[&str] = &["acc_norm_answer", "acc_norm", "acc"];
const EXACT: &[&str] = &["exact_match"];
const NQ: &[&str] = &["nq_open"];
const TRIVIAQA: &[&str] = &["triviaqa"];
const MATH: &[&str] = &["minerva_math", "math", "minerva_math500", "hendrycks_math"];
const GSM8K: &[&str] = &["gsm8k", "gsm8k_cot"];
const VOTED: &[&str] = &["exact_match,maj"];
const GSM8K_VOTED: &[&str] = &["gsm8k_cot_self_consistency", "gsm8k_maj", "gsm8k"];

pub(super) const TABLES: &[Table] = &[
    Table {
        title: "Common sense, 0-shot (table 3)",
        rows: &[
            row("BoolQ", &["boolq"], &["acc_norm_answer", "acc"], Some(0), [76.5, 78.1, 83.1, 85.3, 60.5, 83.7, 88.0]),
            row("PIQA", &["piqa"], BY_CHARACTER, Some(0), [79.8, 80.1, 82.3, 82.8, 81.0, 81.8, 82.3]),
            row("SIQA", &["social_iqa"], BY_CHARACTER, Some(0), [48.9, 50.4, 50.4, 52.3, NO, 51.3, NO]),
            row("HellaSwag", &["hellaswag"], BY_CHARACTER, Some(0), [76.1, 79.2, 82.8, 84.2, 78.9, 80.8, 83.4]),
            row("WinoGrande", &["winogrande"], ACC, Some(0), [70.1, 73.0, 76.0, 77.0, 70.2, 74.9, 81.1]),
            row("ARC-e", &["arc_easy"], BY_CHARACTER, Some(0), [72.8, 74.8, 80.0, 78.9, 68.8, NO, 76.6]),
            row("ARC-c", &["arc_challenge"], BY_CHARACTER, Some(0), [47.6, 52.7, 57.8, 56.0, 51.4, NO, 53.0]),
            row("OBQA", &["openbookqa"], BY_ANSWER, Some(0), [57.2, 56.4, 58.6, 60.2, 57.6, NO, 53.4]),
        ],
    },
    Table {
        title: "Closed-book questions, exact match (tables 4 and 5)",
        rows: &[
            row("NaturalQuestions, 0-shot", NQ, EXACT, Some(0), [16.8, 20.1, 24.9, 23.8, 14.6, 16.6, 21.2]),
            row("NaturalQuestions, 1-shot", NQ, EXACT, Some(1), [18.7, 23.4, 28.3, 31.0, 23.0, NO, 29.3]),
            row("NaturalQuestions, 5-shot", NQ, EXACT, Some(5), [22.0, 28.1, 32.9, 35.0, NO, 31.5, NO]),
            row("NaturalQuestions, 64-shot", NQ, EXACT, Some(64), [26.1, 31.9, 36.0, 39.9, 29.9, 35.5, 39.6]),
            row("TriviaQA, 0-shot", TRIVIAQA, EXACT, Some(0), [50.0, 56.6, 65.1, 68.2, NO, 55.4, NO]),
            row("TriviaQA, 1-shot", TRIVIAQA, EXACT, Some(1), [53.4, 60.5, 67.9, 71.6, NO, NO, NO]),
            row("TriviaQA, 5-shot", TRIVIAQA, EXACT, Some(5), [56.3, 63.1, 69.9, 72.6, NO, 64.1, NO]),
            row("TriviaQA, 64-shot", TRIVIAQA, EXACT, Some(64), [57.6, 64.0, 70.4, 73.0, NO, 64.6, NO]),
        ],
    },
    Table {
        title: "Reading, 0-shot (table 6)",
        rows: &[
            row("RACE-middle", &["race_middle"], BY_CHARACTER, Some(0), [61.1, 61.6, 64.1, 67.9, 58.4, NO, 68.1]),
            row("RACE-high", &["race"], BY_CHARACTER, Some(0), [46.9, 47.2, 48.3, 51.6, 45.5, NO, 49.1]),
        ],
    },
    Table {
        title: "Mathematics (table 7; the paper votes over 256 answers for MATH, 100 for GSM8K)",
        rows: &[
            row("MATH", MATH, EXACT, None, [2.9, 3.9, 7.1, 10.6, NO, NO, 8.8]),
            row("MATH, maj1@k", MATH, VOTED, None, [6.9, 8.8, 15.2, 20.5, NO, NO, NO]),
            row("GSM8K", GSM8K, EXACT, None, [11.0, 17.8, 35.6, 50.9, NO, NO, 56.5]),
            row("GSM8K, maj1@k", GSM8K_VOTED, VOTED, None, [18.1, 29.3, 53.1, 69.7, NO, NO, NO]),
        ],
    },
    Table {
        title: "Code (table 8)",
        rows: &[
            row("HumanEval, pass@1", &["humaneval"], &["pass@1"], Some(0), [10.5, 15.8, 21.7, 23.7, NO, NO, 26.2]),
            row("HumanEval, pass@100", &["humaneval"], &["pass@100"], Some(0), [36.5, 52.5, 70.7, 79.3, NO, NO, 76.2]),
            row("MBPP, pass@1", &["mbpp"], &["pass@1"], Some(3), [17.7, 22.0, 30.2, 37.7, NO, NO, 36.8]),
            row("MBPP, pass@80", &["mbpp"], &["pass@80"], Some(3), [56.2, 64.0, 73.4, 76.8, NO, NO, 75.0]),
        ],
    },
    Table {
        title: "MMLU, 5-shot (table 9)",
        rows: &[
            row("Humanities", &["mmlu_humanities"], ACC, Some(5), [34.0, 45.0, 55.8, 61.8, 40.8, 63.6, 77.0]),
            row("STEM", &["mmlu_stem"], ACC, Some(5), [30.5, 35.8, 46.0, 51.7, 36.7, 54.9, 55.6]),
            row("Social sciences", &["mmlu_social_sciences"], ACC, Some(5), [38.3, 53.8, 66.7, 72.9, 50.4, 79.3, 81.0]),
            row("Other", &["mmlu_other"], ACC, Some(5), [38.1, 53.3, 63.4, 67.4, 48.8, 73.9, 69.6]),
            row("All", &["mmlu"], ACC, Some(5), [35.1, 46.9, 57.8, 63.4, 43.9, 67.5, 69.3]),
        ],
    },
    Table {
        title: "Bias (tables 12 and 13)",
        rows: &[
            row(
                "CrowS-Pairs, stereotypes preferred",
                &["crows_pairs_english"],
                &["pct_stereotype"],
                Some(0),
                [NO, NO, NO, 66.6, NO, NO, NO],
            ),
            row("WinoGender, all", &["winogender_all"], ACC, Some(0), [66.0, 64.7, 69.0, 77.5, NO, NO, NO]),
        ],
    },
];
