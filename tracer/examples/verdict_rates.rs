//! Prints how often verdicts are wrong, over many made-up cases whose truth is known. Run by `cargo xtask simulate`.
//!
//! Arguments: the table (`series`, of `offheap::trend`, or `sites`, of `offheap::profile`), the number of seeds per row, the
//! first seed, and for rows of one name only a part of it.

use std::process::ExitCode;

use offheap::profile::simulation as sites;
use offheap::trend::Kind;
use offheap::trend::simulation::{self as series, Truth};

/// Lengths of the watch of a series, in seconds, with one sample a second.
const SERIES_S: [u32; 3] = [30, 60, 120];
/// Lengths of the recording of a site.
const SITES_S: [u32; 3] = [15, 30, 60];
/// The length that the bars are set for.
const BAR_S: u32 = 30;

/// Of one case at one length, as parts of 1.
struct Cell {
    growth: f64,
    open: f64,
    rate_error: Option<f64>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
    let (Some(table), Some(seeds), Some(first)) = (words.first(), number(1), number(2)) else {
        eprintln!("arguments: series|sites SEEDS FIRST_SEED [NAME]");
        return ExitCode::from(2);
    };
    let name = words.get(3).map_or("", String::as_str);
    match table.as_str() {
        "series" => {
            println!("{}", head("growth", &SERIES_S));
            for case in series::cases().iter().filter(|case| case.name.contains(name)) {
                row(case.name, case.truth, &SERIES_S, |seconds| series_cell(case, first, seeds, seconds));
            }
        }
        "sites" => {
            println!("{}", head("leak", &SITES_S));
            for case in sites::cases().iter().filter(|case| case.name.contains(name)) {
                row(case.name, case.truth, &SITES_S, |seconds| {
                    let rates = case.rates(first, seeds, seconds);
                    Cell { growth: rates.leak, open: rates.open, rate_error: rates.rate_error }
                });
            }
        }
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

fn series_cell(case: &series::Case, first: u64, seeds: u64, seconds: u32) -> Cell {
    let rates = case.rates(first, seeds, seconds as usize + 1);
    let sum = |wanted: fn(Kind) -> bool| {
        Kind::ALL.into_iter().zip(rates).filter(|(kind, _)| wanted(*kind)).map(|(_, rate)| rate).sum()
    };
    Cell { growth: sum(Kind::is_growth), open: sum(|kind| kind == Kind::Undetermined), rate_error: None }
}

fn head(growth: &str, lengths_s: &[u32]) -> String {
    let lengths: String =
        lengths_s.iter().map(|length_s| format!(" {length_s} s: {growth} | open |")).collect();
    format!("| case | leaks |{lengths}\n|---|---|{}", "---:|---:|".repeat(lengths_s.len()))
}

/// What is outside of the bars is in bold.
fn row(name: &str, truth: Truth, lengths_s: &[u32], cell: impl Fn(u32) -> Cell) {
    let said = match truth {
        Truth::Bounded => "no",
        Truth::Leaks => "yes",
        Truth::Unknowable => "*",
    };
    print!("| {name} | {said} |");
    for length_s in lengths_s {
        let Cell { growth, open, rate_error } = cell(*length_s);
        let is_outside = *length_s == BAR_S
            && match truth {
                Truth::Bounded => growth >= 0.01,
                Truth::Leaks => growth <= 0.95,
                Truth::Unknowable => false,
            };
        let bold = if is_outside { "**" } else { "" };
        let error = rate_error.map_or_else(String::new, |error| format!(", ±{:.0} %", 100.0 * error));
        print!(" {bold}{:.2} %{bold}{error} | {:.0} % |", 100.0 * growth, 100.0 * open);
    }
    println!();
}
