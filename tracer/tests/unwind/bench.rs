//! How long a table and a reference walk take. `cargo test --release --test unwind bench -- --ignored --nocapture`

use std::path::{Path, PathBuf};
use std::time::Instant;

use offheap::unwind::store::TableStore;
use offheap::unwind::table::FileTable;

use super::libraries::ROOMY;
use super::own_file;

#[test]
#[ignore = "a measurement"]
fn time_per_row() {
    let optional = [
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/bin/python3.11",
        "/usr/bin/node",
        "/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so",
        "/usr/lib/llvm-14/lib/libLLVM-14.so.1",
    ];
    let optional = optional.into_iter().map(PathBuf::from).filter(|path| path.exists());
    for path in std::iter::once(own_file("libc.so")).chain(optional) {
        measure(&path);
    }
}

#[test]
#[ignore = "a measurement"]
fn time_per_reference_stack() {
    let (frames, time) = super::live::time_of_reference_walk(10_000);
    println!("reference walk of {frames} frames, with linear search of the mappings: {time:?}");
}

fn measure(path: &Path) {
    let data = std::fs::read(path).unwrap();
    let mut best_ns = (u128::MAX, u128::MAX);
    let (mut rules, mut rows, mut chunks) = (0, 0, 0);
    for _ in 0..5 {
        let start = Instant::now();
        let table = FileTable::from_elf(&data).unwrap();
        let built_ns = start.elapsed().as_nanos();
        let mut store = TableStore::new(ROOMY);
        let start = Instant::now();
        store.add((), &table).unwrap();
        best_ns = (best_ns.0.min(built_ns), best_ns.1.min(start.elapsed().as_nanos()));
        (rules, rows, chunks) = (table.rules().len(), table.stats().row_count, store.usage().row_chunks);
    }
    println!(
        "{}: {rows} rows, {rules} rules, {chunks} row chunks; build {:.1} ms = {} ns per row, store {:.1} ms",
        path.display(),
        best_ns.0 as f64 / 1e6,
        best_ns.0 / u128::from(rows.max(1)),
        best_ns.1 as f64 / 1e6,
    );
}
