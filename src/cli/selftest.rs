//! `recua selftest`

use clap::Args;
use recua::{Error, Result};

/// Check every operation of a backend against CPU references
///
/// For a new card or driver: run it before trusting what the machine computes.
#[derive(Args)]
pub(crate) struct Selftest {
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: super::Device,
}

impl Selftest {
    pub(crate) fn run(self) -> Result<()> {
        self.device.apply()?;
        let rows = recua::selftest::run(&self.device.backend.open()?, &mut |row| {
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
