//! What an evaluation leaves behind: `results.json`, `samples/TASK.jsonl`.
