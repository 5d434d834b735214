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

use crate::demo::target_directory;
use crate::ebpf::Arch;
use crate::kernel_tests;
use initramfs::Image;
use kernel::Kernel;

/// Some of the tests on every kernel.
struct Share {
    /// Added to the kernel's command line.
    parameters: &'static str,
    /// Test filters.
    tests: &'static [&'static str],
}

/// Tests that run without language runtimes; the others need more than an initramfs holds. Those whose outcome depends on
/// what interrupts a probe run where the kernel can be preempted anywhere, also inside of a BPF program.
const SHARES: [Share; 2] = [
    Share {
        parameters: "preempt=full",
        tests: &[
            "native::",
            "losses::",
            // Where all CPUs of the guest share one thread, two threads meet for milliseconds or not at all.
            "--skip",
            "losses::interning_race",
            "faults::every_way",
            "processes::children_are_followed",
            "processes::exec_ends_all_records",
            "probe_kinds::both_kinds",
        ],
    },
    Share {
        parameters: "",
        tests: &[
            "errors::",
            "faults::fork_and_copies",
            "lifecycle::",
            "mappings::every_system_call",
            "output::",
            "probe_kinds::a_child_that_shares",
            "probe_kinds::the_kind_is_named",
            "programs::",
        ],
    },
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
    let mut guests = Vec::new();
    // The newest are the slowest: first, so that no CPU waits at the end.
    for kernel in kernel::fetch(arguments.arch, arguments.refresh)?.into_iter().rev().filter(is_wanted) {
        for (parameters, list) in runs(arguments, &kernel) {
            image.set_arguments(&list);
            guests.push(Guest { kernel: kernel.clone(), parameters, archive: image.archive() });
        }
    }
    if guests.is_empty() {
        bail!("no such kernel: {:?}", arguments.kernel);
    }
    let results = boot_all(arguments.arch, &guests, arguments.timeout_s);
    eprintln!("{}", results.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n"));
    match results.iter().filter(|(is_ok, _)| !is_ok).count() {
        0 => Ok(()),
        count => bail!("vm: {count} of {} guests failed", results.len()),
    }
}

/// A kernel, how it is started, and the files with what it runs.
struct Guest {
    kernel: Kernel,
    parameters: &'static str,
    archive: Vec<u8>,
}

/// Boots every guest, a few at a time, for each takes one CPU. Whether it went well, and a line that says so.
fn boot_all(arch: Arch, guests: &[Guest], timeout_s: u64) -> Vec<(bool, String)> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let work = || {
        while let Some(guest) = guests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let result = match qemu::boot(arch, &guest.kernel, guest.parameters, &guest.archive, timeout_s) {
                Ok(0) => "ok".to_owned(),
                Ok(status) => format!("FAILED with status {status}"),
                Err(error) => format!("FAILED: {error:#}"),
            };
            let name = qemu::name(&guest.kernel, guest.parameters);
            let line = format!("vm: {name} {result} ({:.1} s)", start.elapsed().as_secs_f64());
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

/// What is run on a kernel: parameters of the kernel, arguments of the program.
fn runs(arguments: &Arguments, kernel: &Kernel) -> Vec<(&'static str, Vec<String>)> {
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    if arguments.program.is_some() {
        return vec![("", arguments.rest.clone())];
    }
    let one_at_a_time = |mut list: Vec<String>| {
        list.push("--test-threads=1".to_owned());
        list
    };
    match (kernel.is_below_floor(), arguments.rest.is_empty()) {
        (true, _) => vec![("", one_at_a_time(owned(REFUSAL_TEST)))],
        (false, true) if arguments.arch == Arch::Aarch64 => vec![("", one_at_a_time(owned(cross::TESTS)))],
        (false, true) => {
            SHARES.iter().map(|share| (share.parameters, one_at_a_time(owned(share.tests)))).collect()
        }
        (false, false) if arguments.arch == Arch::Aarch64 => {
            vec![("", one_at_a_time(arguments.rest.clone()))]
        }
        (false, false) => {
            SHARES.iter().map(|share| (share.parameters, one_at_a_time(arguments.rest.clone()))).collect()
        }
    }
}

/// The tests with everything they need.
fn test_image() -> Result<Image> {
    let tests = kernel_tests::build()?;
    kernel_tests::build_targets(&tests)?;
    let offheap = target_directory().join("release/offheap");
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
