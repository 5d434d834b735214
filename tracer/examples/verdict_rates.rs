//! Prints how often the verdict of `offheap::trend` is wrong, over many made-up series whose truth is known. Run by
//! `cargo xtask simulate`. Arguments: seeds, samples.

use offheap::trend::Kind;
use offheap::trend::simulation::{Truth, cases};

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|word| word.parse::<u64>().ok());
    let seeds = arguments.next().unwrap_or(2000);
    let samples = arguments.next().unwrap_or(31) as usize;
    println!("| series | leaks? | called growth | called level or bounded | undetermined |");
    println!("|---|---|---:|---:|---:|");
    for case in cases() {
        let rates = case.rates(seeds, samples);
        let sum = |wanted: fn(Kind) -> bool| {
            let rates = Kind::ALL.into_iter().zip(rates).filter(|(kind, _)| wanted(*kind));
            100.0 * rates.map(|(_, rate)| rate).sum::<f64>()
        };
        let truth = match case.truth {
            Truth::Bounded => "no",
            Truth::Leaks => "yes",
            Truth::Unknowable => "too short to know",
        };
        let (growth, open) = (sum(Kind::is_growth), sum(|kind| kind == Kind::Undetermined));
        let bounded = sum(|kind| !kind.is_growth() && kind != Kind::Undetermined);
        println!("| {} | {truth} | {growth:.2} % | {bounded:.1} % | {open:.1} % |", case.name);
        if std::env::var_os("KINDS").is_some() {
            let mut why = std::collections::BTreeMap::new();
            for seed in 1..=seeds {
                let v = offheap::trend::judge(&case.series(seed, samples), &offheap::trend::Floors::RSS);
                *why.entry(format!("{}/{}", v.kind.name(), v.reason.name())).or_insert(0.0) +=
                    100.0 / seeds as f64;
            }
            eprintln!("    {why:.1?}");
            if false {
                eprintln!(
                    "    {:?}",
                    Kind::ALL
                        .map(Kind::name)
                        .into_iter()
                        .zip(rates.map(|r| (r * 1000.0).round() / 10.0))
                        .filter(|x| x.1 > 0.0)
                        .collect::<Vec<_>>()
                );
            }
        }
    }
}
