//! `recua eval list`, `recua eval compare`

use std::path::PathBuf;

use clap::Args;
use recua::Result;
use recua::eval::{Kind, LM_EVAL, Protocol, Task, all_tasks, compare, find_tasks, folder};
use serde_json::json;

use super::super::{print, print_json};
use super::run::Which;

/// Hold two evaluations against each other
///
/// Paired, over the questions that both have: the difference of each metric, and its error.
#[derive(Args)]
pub(crate) struct Compare {
    /// What `recua eval run --out` wrote
    a: PathBuf,
    /// Another
    b: PathBuf,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub(super) fn run(self) -> Result<()> {
        let comparison = compare::compare(&self.a, &self.b)?;
        if self.json {
            return print_json(&comparison);
        }
        print(compare::table(&comparison).trim_end());
        Ok(())
    }
}

/// Show the tasks
///
/// Protocol, version, metrics, shots, and where each task's data comes from; with --data whether it is there.
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    which: Which,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) fn run(self) -> Result<()> {
        let names = self.which.names();
        let tasks = if names.is_empty() { all_tasks(self.which.protocol)? } else { find_tasks(&names, self.which.protocol)? };
        let found = |task: &Task| {
            (task.made.is_none() && !self.which.data.is_empty())
                .then(|| folder(task, &self.which.data).map_err(|e| e.to_string()))
        };
        if self.json {
            let rows = tasks.iter().map(|task| {
                let found = found(task);
                json!({
                    "task": task.name, "aliases": task.aliases, "groups": task.groups, "protocol": task.protocol, "version": task.version,
                    "kind": task.kind, "metrics": task.metric_names(), "shots": task.shots, "source": task.source,
                    "found": found.as_ref().map(Result::is_ok),
                    "problem": found.and_then(Result::err),
                })
            });
            return print_json(&rows.collect::<Vec<_>>());
        }
        let protocol = self.which.protocol;
        print(&match protocol {
            Protocol::LmEval => format!("protocol lm-eval: prompts, shots and metrics of lm-eval {LM_EVAL}"),
            Protocol::Paper => "protocol paper: those of the LLaMA paper; docs/eval.md says where it is silent".into(),
        });
        for task in tasks {
            let also = if task.aliases.is_empty() { String::new() } else { format!(" ({})", task.aliases.join(", ")) };
            let shots = if task.kind == Kind::Text { String::new() } else { format!(", {} shots", task.shots) };
            print(&format!("{}{also}  {}, {}{shots}", task.name, task.version, task.metric_names().join(" ")));
            print(&format!("    {}", task.source));
            match found(&task) {
                Some(Ok(_)) => print("    found"),
                Some(Err(e)) => print(&format!("    not found: {e}")),
                None => {}
            }
        }
        Ok(())
    }
}
