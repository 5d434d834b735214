//! Prints how often the verdicts of `offheap::trend` are wrong, over many made-up series whose truth is known. Run by
//! `cargo xtask simulate`. One argument: the number of series per row.

use offheap::trend::Kind;
use offheap::trend::simulation::{Truth, cases};

/// Lengths of the watch, in seconds, with one sample a second.
const LENGTHS_S: [usize; 3] = [30, 60, 120];

fn main() {
    let seeds = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1000);
    print!("| series | leaks |");
    for length_s in LENGTHS_S {
        print!(" {length_s} s: growth | open |");
    }
    println!("\n|---|---|{}", "---:|---:|".repeat(LENGTHS_S.len()));
    for case in cases() {
        let truth = match case.truth {
            Truth::Bounded => "no",
            Truth::Leaks => "yes",
            Truth::Unknowable => "*",
        };
        print!("| {} | {truth} |", case.name);
        for length_s in LENGTHS_S {
            let rates = case.rates(seeds, length_s + 1);
            let percent = |wanted: fn(Kind) -> bool| {
                let rates = Kind::ALL.into_iter().zip(rates).filter(|(kind, _)| wanted(*kind));
                100.0 * rates.map(|(_, rate)| rate).sum::<f64>()
            };
            let open = percent(|kind| kind == Kind::Undetermined);
            print!(" {:.2} % | {open:.0} % |", percent(Kind::is_growth));
        }
        println!();
    }
}
