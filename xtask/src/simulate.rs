//! How often the verdicts on series of memory are wrong: prints the table of `docs/verdicts.md`, or writes it there.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{cargo, output, workspace};

/// Where the table is kept.
const DOCUMENT: &str = "docs/verdicts.md";
/// Around the table.
const BEGIN: &str = "<!-- cargo xtask simulate: begin -->\n";
const END: &str = "<!-- cargo xtask simulate: end -->";

/// `cargo xtask simulate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Series per row; the table that is kept has 4000.
    #[arg(long, default_value_t = 4000)]
    seeds: u32,
    /// Put the table into `docs/verdicts.md`.
    #[arg(long, conflicts_with = "check")]
    write: bool,
    /// Fail if `docs/verdicts.md` has another table. The same seeds give the same table.
    #[arg(long)]
    check: bool,
}

/// Simulates.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--package", "offheap", "--example", "verdict_rates"]);
    command.args(["--", &arguments.seeds.to_string()]);
    let table = output(&mut command)?;
    let path = workspace().join(DOCUMENT);
    let document = fs::read_to_string(&path).with_context(|| format!("cannot read `{DOCUMENT}`"))?;
    let new = replaced(&document, &table)?;
    match (arguments.write, arguments.check) {
        (true, _) => fs::write(&path, new).with_context(|| format!("cannot write `{DOCUMENT}`"))?,
        (_, true) => {
            ensure!(new == document, "`{DOCUMENT}` has another table: `cargo xtask simulate --write`")
        }
        _ => print!("{table}"),
    }
    Ok(())
}

fn replaced(document: &str, table: &str) -> Result<String> {
    let parts = document.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, behind)) = parts else { bail!("`{DOCUMENT}` has no place for the table") };
    Ok(format!("{before}{BEGIN}{table}{END}{behind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_goes_between_the_marks() {
        let document = format!("a\n{BEGIN}old\n{END}\nb\n");
        assert_eq!(replaced(&document, "new\n").ok(), Some(format!("a\n{BEGIN}new\n{END}\nb\n")));
        assert!(replaced("nothing", "new").is_err());
    }
}
