//! What a test needs of the machine. Where it is missing, the test is skipped with a line that says so; with
//! `OFFHEAP_REQUIRE` set, as in `cargo xtask test`, it fails instead.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::Result;

/// Something a test needs.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Effective user id 0.
    Root,
    /// A program in `PATH`.
    Program(&'static str),
    /// A file or folder.
    File(&'static str),
    /// So many CPUs, for what happens on two of them at the same moment.
    Cpus(usize),
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            // SAFETY: takes no arguments and cannot fail.
            Self::Root => (unsafe { libc::geteuid() } != 0).then(|| "root".to_owned()),
            Self::Program(name) => find_program(name).is_none().then(|| format!("`{name}`")),
            Self::Cpus(count) => {
                let has = std::thread::available_parallelism().map_or(1, usize::from);
                (has < count).then(|| format!("{count} CPUs"))
            }
            Self::File(path) => (!Path::new(path).exists()).then(|| format!("`{path}`")),
        }
    }
}

/// Finds a program in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Whether the running kernel is of this version (major, minor), or later.
pub fn kernel_is_at_least(wanted: (u32, u32)) -> Result<bool> {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's version")?;
    let mut numbers =
        release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse::<u32>());
    let mut next = || {
        numbers.next().and_then(std::result::Result::ok).with_context(|| format!("not a version: {release}"))
    };
    Ok((next()?, next()?) >= wanted)
}

/// Whether the test can run: `false` is a skip, an error a skip that is not allowed.
pub fn available(needs: &[Need]) -> Result<bool> {
    let missing: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    if env::var_os("OFFHEAP_REQUIRE").is_some() {
        bail!("needs {} (`cargo xtask setup` installs programs and files)", missing.join(", "));
    }
    eprintln!("skipped: needs {}", missing.join(", "));
    Ok(false)
}

/// Ends the test here if something it needs is missing ([`available`]).
#[macro_export]
macro_rules! require {
    ($($need:expr),* $(,)?) => {
        if !$crate::require::available(&[$crate::require::Need::Root, $($need),*])? {
            return Ok(());
        }
    };
}
