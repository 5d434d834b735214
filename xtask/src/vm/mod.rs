//! The kernel tests on other kernels, in QEMU.
//!
//! One Debian cloud kernel per suite, booted with an initramfs that holds the tests, offheap, the native targets and the
//! libraries they need. No disk, no network, no KVM needed.

mod cross;
mod initramfs;
mod kernel;
mod qemu;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::demo::{build_offheap, target_directory};
use crate::ebpf::Arch;
use crate::kernel_tests;
use initramfs::Image;
use kernel::Kernel;

/// Tests that run without language runtimes; the others need more than an initramfs holds.
const GUEST_TESTS: &[&str] = &[
    "native::",
    "lifecycle::",
    "errors::",
    "losses::",
    "mappings::every_system_call",
    "faults::every_way",
    "faults::fork_and_copies",
    "output::",
    "processes::children_are_followed",
    "processes::exec_ends_all_records",
    "probe_kinds::a_child_that_shares",
    "probe_kinds::both_kinds",
    "probe_kinds::the_kind_is_named",
];
/// The one test for kernels that offheap refuses.
const REFUSAL_TEST: &[&str] = &["--ignored", "--exact", "old_kernel::old_kernel_is_refused"];
const TIMEOUT_S: u64 = 1500;
const GUEST_TARGETS: &str = "/targets";
const GUEST_OFFHEAP: &str = "/bin/offheap";

/// `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Machine of the guests. Those of aarch64 are always emulated, and cross-compiled for.
    #[arg(long, value_enum, default_value = "x86_64")]
    arch: Arch,
    /// Only these kernels, by the beginning of their release (`6.1.`).
    #[arg(long)]
    kernel: Vec<String>,
    /// Fetch the newest kernels instead of using the cached ones.
    #[arg(long)]
    refresh: bool,
    /// Seconds for one kernel.
    #[arg(long, default_value_t = TIMEOUT_S)]
    timeout_s: u64,
    /// Run this program instead of the tests.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Arguments for that program, or test filters.
    #[arg(last = true)]
    rest: Vec<String>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            arch: Arch::X86_64,
            kernel: Vec::new(),
            refresh: false,
            timeout_s: TIMEOUT_S,
            program: None,
            rest: Vec::new(),
        }
    }
}

/// Runs the tests on every kernel; fails at the end if one of them failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut image = match (arguments.arch, &arguments.program) {
        (Arch::X86_64, Some(program)) => Image::new(program)?,
        (Arch::X86_64, None) => test_image()?,
        (Arch::Aarch64, program) => cross::image(program.as_deref())?,
    };
    let is_wanted = |kernel: &Kernel| {
        arguments.kernel.is_empty()
            || arguments.kernel.iter().any(|wanted| kernel.release.starts_with(wanted))
    };
    let guests: Vec<(Kernel, Vec<u8>)> = kernel::fetch(arguments.arch, arguments.refresh)?
        .into_iter()
        .filter(is_wanted)
        .map(|kernel| {
            image.set_arguments(&guest_arguments(arguments, &kernel));
            let archive = image.archive();
            (kernel, archive)
        })
        .collect();
    if guests.is_empty() {
        bail!("no such kernel: {:?}", arguments.kernel);
    }
    let results = boot_all(arguments.arch, &guests, arguments.timeout_s);
    eprintln!("{}", results.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n"));
    match results.iter().filter(|(is_ok, _)| !is_ok).count() {
        0 => Ok(()),
        count => bail!("vm: {count} of {} kernels failed", results.len()),
    }
}

/// Boots every guest, a few at a time, for each takes one CPU. Whether it went well, and a line that says so.
fn boot_all(arch: Arch, guests: &[(Kernel, Vec<u8>)], timeout_s: u64) -> Vec<(bool, String)> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let work = || {
        while let Some((kernel, archive)) = guests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let result = match qemu::boot(arch, kernel, archive, timeout_s) {
                Ok(0) => "ok".to_owned(),
                Ok(status) => format!("FAILED with status {status}"),
                Err(error) => format!("FAILED: {error:#}"),
            };
            let line = format!("vm: {} {result} ({:.1} s)", kernel.release, start.elapsed().as_secs_f64());
            eprintln!("{line}");
            results.lock().unwrap_or_else(PoisonError::into_inner).push((result == "ok", line));
        }
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cpus.min(guests.len()) {
            scope.spawn(work);
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn guest_arguments(arguments: &Arguments, kernel: &Kernel) -> Vec<String> {
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    if arguments.program.is_some() {
        return arguments.rest.clone();
    }
    let mut list: Vec<String> = match (kernel.is_below_floor(), arguments.rest.is_empty()) {
        (true, _) => owned(REFUSAL_TEST),
        (false, true) => owned(match arguments.arch {
            Arch::X86_64 => GUEST_TESTS,
            Arch::Aarch64 => cross::TESTS,
        }),
        (false, false) => arguments.rest.clone(),
    };
    list.push("--test-threads=1".to_owned());
    list
}

/// The tests with everything they need.
fn test_image() -> Result<Image> {
    let offheap = build_offheap()?;
    let tests = kernel_tests::build()?;
    kernel_tests::build_targets(&tests)?;
    let mut image = Image::new(&tests)?;
    image.add_program(&offheap, GUEST_OFFHEAP)?;
    for target in executables(&target_directory().join("test-targets"))? {
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        image.add_program(&target, &format!("{GUEST_TARGETS}/{name}"))?;
    }
    image.set_variable("OFFHEAP_BIN", GUEST_OFFHEAP);
    image.set_variable("OFFHEAP_TARGETS", GUEST_TARGETS);
    image.set_variable("OFFHEAP_REQUIRE", "1");
    Ok(image)
}

/// The programs in a folder; libraries for language runtimes stay out.
fn executables(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list `{}`", directory.display()))? {
        let path = entry.with_context(|| format!("cannot list `{}`", directory.display()))?.path();
        if path.extension().is_none() && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
