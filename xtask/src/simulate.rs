//! How often the verdicts on series of memory are wrong: prints the table of `docs/verdicts.md`, or writes it there.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{cargo, output, workspace};

/// Where the tables are kept.
const DOCUMENT: &str = "docs/verdicts.md";
/// The tables: of series of memory, and of allocation sites; and the cases per row that are kept.
const TABLES: [(&str, u32); 2] = [("series", 4000), ("sites", 1000)];

/// `cargo xtask simulate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Cases per row; the tables that are kept have 4000 series and 1000 sites.
    #[arg(long)]
    seeds: Option<u32>,
    /// The first seed. Those of the tables that are kept were never used to find a threshold: for that, take others.
    #[arg(long, default_value_t = 2_000_001)]
    first_seed: u64,
    /// Only this table.
    #[arg(long, value_parser = TABLES.map(|(name, _)| name))]
    table: Option<String>,
    /// Only rows with this in their names.
    #[arg(long, default_value = "", conflicts_with_all = ["write", "check"])]
    row: String,
    /// Put the tables into `docs/verdicts.md`.
    #[arg(long, conflicts_with = "check")]
    write: bool,
    /// Fail if `docs/verdicts.md` has other tables. The same seeds give the same tables.
    #[arg(long)]
    check: bool,
}

/// Simulates.
pub fn run(arguments: &Arguments) -> Result<()> {
    let path = workspace().join(DOCUMENT);
    let document = fs::read_to_string(&path).with_context(|| format!("cannot read `{DOCUMENT}`"))?;
    let mut new = document.clone();
    for (name, seeds) in TABLES {
        if arguments.table.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let mut command = cargo();
        command.args(["run", "--release", "--quiet", "--package", "offheap", "--example", "verdict_rates"]);
        let (seeds, first_seed) =
            (arguments.seeds.unwrap_or(seeds).to_string(), arguments.first_seed.to_string());
        command.args(["--", name, &seeds, &first_seed, &arguments.row]);
        let table = output(&mut command)?;
        new = replaced(&new, name, &table)?;
        if !arguments.write && !arguments.check {
            println!("{table}");
        }
    }
    if arguments.write {
        fs::write(&path, &new).with_context(|| format!("cannot write `{DOCUMENT}`"))?;
    }
    if arguments.check {
        ensure!(new == document, "`{DOCUMENT}` has other tables: `cargo xtask simulate --write`");
    }
    Ok(())
}

fn replaced(document: &str, name: &str, table: &str) -> Result<String> {
    let begin = format!("<!-- cargo xtask simulate, {name}: begin -->\n");
    let end = format!("<!-- cargo xtask simulate, {name}: end -->");
    let parts =
        document.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let Some((before, behind)) = parts else { bail!("`{DOCUMENT}` has no place for the table of {name}") };
    Ok(format!("{before}{begin}{table}{end}{behind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_goes_between_the_marks() {
        let marked = |table| {
            format!(
                "a\n<!-- cargo xtask simulate, sites: begin -->\n{table}\n<!-- cargo xtask simulate, sites: end -->\nb\n"
            )
        };
        assert_eq!(replaced(&marked("old"), "sites", "new\n").ok(), Some(marked("new")));
        assert!(replaced(&marked("old"), "series", "new").is_err());
    }
}
