//! `recua info`

use clap::Args;
use recua::Result;
use recua::backend;

/// List backends, devices and what they can do
#[derive(Args)]
pub(crate) struct Info {
    /// Say which body each operation runs on each backend
    #[arg(long)]
    ops: bool,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(crate) fn run(self) -> Result<()> {
        let rows = backend::list();
        if self.json {
            return super::print_json(&rows);
        }
        let default = backend::BackendName::default().to_string();
        for row in rows {
            let mark = if row.name == default { " (default)" } else { "" };
            super::print(&format!("{:<10} {}{mark}", row.name, if row.usable { &row.device } else { "not usable" }));
            if row.usable {
                super::print(&format!("           computes in {}", row.dtypes.join(", ")));
            }
            if let Some(missing) = &row.missing {
                super::print(&format!("           {missing}"));
            }
            if self.ops && row.usable {
                super::print(&format!("           operations: {}", row.ops));
            }
        }
        Ok(())
    }
}
