//! `recua selftest`

use clap::Args;
use recua::selftest::Filter;
use recua::{Error, Result};

/// Check every operation of a backend against CPU references
///
/// For a new card or driver: run it before trusting what the machine computes.
#[derive(Args)]
pub(crate) struct Selftest {
    /// Only the checks with TEXT in their line; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Without the checks with TEXT in their line; may be repeated
    #[arg(long, value_name = "TEXT")]
    skip: Vec<String>,
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: super::Device,
}

impl Selftest {
    pub(crate) fn run(self) -> Result<()> {
        self.device.apply()?;
        let filter = Filter { only: self.only, skip: self.skip };
        let rows = recua::selftest::run(&self.device.backend.open()?, &filter, &mut |row| {
            if !self.json {
                super::print(&row.to_string());
            }
        })?;
        let failed = rows.iter().filter(|row| !row.passed).count();
        if self.json {
            super::print_json(&rows)?;
        } else {
            super::print(&format!("{} checks, {failed} failed", rows.len()));
        }
        if rows.is_empty() {
            let problem = format!("no check has this in its line: {}", filter.only.join(", "));
            return Err(Error::bad_value("--only", problem, "`recua selftest` prints them all"));
        }
        if failed == 0 {
            return Ok(());
        }
        Err(Error::Backend {
            name: self.device.backend.to_string(),
            problem: format!("{failed} of {} checks failed", rows.len()),
            hint: "update the driver, or use another backend".into(),
        })
    }
}
