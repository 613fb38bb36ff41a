//! What several tests need.

use std::io::Write;
use std::path::PathBuf;

/// The file or folder `name` under the folder that the environment variable names. Without it, says on standard error (past
/// the harness, which shows no output of tests that pass) that the test was skipped.
pub(crate) fn outside(variable: &str, name: &str) -> Option<PathBuf> {
    let skipped = |why: &str| {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
        None
    };
    let Some(folder) = std::env::var_os(variable) else { return skipped(&format!("{variable} is not set")) };
    let path = PathBuf::from(folder).join(name);
    if path.exists() { Some(path) } else { skipped(&format!("{} is not there", path.display())) }
}
