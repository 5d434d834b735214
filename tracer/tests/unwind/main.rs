//! Unwind tables of made-up and of real files, and stacks walked by them. Needs no privileges.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod aarch64;
mod bench;
mod elf_file;
mod go;
mod hostile;
mod kernel;
mod libraries;
mod live;
mod made_up;
mod walks;

use std::path::{Path, PathBuf};

/// Files mapped executable into this process, in the order of their addresses: libc, the loader, and this
/// very program, which rust-lld linked.
fn own_files() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let executable = |line: &str| {
        let mut fields = line.split_whitespace();
        let is_executable = fields.nth(1)?.contains('x');
        let path = Path::new(fields.nth(3)?).to_owned();
        (is_executable && path.is_absolute()).then_some(path)
    };
    maps.lines().filter_map(executable).collect()
}

fn own_file(name: &str) -> PathBuf {
    let is_named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(name);
    own_files().into_iter().find(is_named).unwrap_or_else(|| panic!("`{name}` is not mapped"))
}
