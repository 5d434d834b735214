//! Targets that lie, and what may go wrong with probes: everything ends, the numbers are right or counted as lost, nothing is
//! given away, and the target goes on.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use tracer_tests::confined::{
    CAP_BPF, CAP_CHECKPOINT_RESTORE, CAP_DAC_READ_SEARCH, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE, NOBODY,
    home_of_nobody, offheap_as_nobody,
};
use tracer_tests::report::Report;
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{COMPLETE, FAILED, Finished, Recording, offheap, offheap_output};
use tracer_tests::{Result, build, require};

/// Name in the program that the tests overwrite.
const PLACEHOLDER: &str = "site_named_placeholder_0123456789abcd";
/// As long: it sets a terminal's title, and runs a script in a page.
const EVIL: &str = "\u{1b}]0;owned\u{7}</script><script>alert(1)//";

fn finish(recording: Recording, target: Target, status: i32) -> Result<Finished> {
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(status)?;
    Ok(finished)
}

/// Bytes and blocks that a function has outstanding.
fn of_function(report: &Report, function: &str) -> (u64, u64) {
    let sites = report.sites.iter().filter(|site| site.functions().contains(&function));
    sites.fold((0, 0), |sum, site| (sum.0 + site.outstanding_bytes, sum.1 + site.outstanding_count))
}

fn hints(finished: &Finished) -> String {
    finished.errors.iter().filter(|line| line.contains(" note: ")).cloned().collect::<Vec<_>>().join("\n")
}

/// Return probes and the probes on nops of five bytes end in system calls that no filter knows. This kernel passes
/// them; others are refused (`attach/preflight.rs`).
#[test]
fn a_filter_does_not_kill_the_target() -> Result {
    require!();
    for arguments in [&["--probe-kind", "auto"], &["--probe-kind", "perf"]] {
        let mut target = Target::start("hostile")?;
        target.order("filter")?;
        let arguments = [["--allocator-prefix", "nop_"], *arguments].concat();
        let recording = Recording::attach(&target, &arguments)?;
        target.order("leak 30 40")?;
        target.order("nop 50 60")?;
        target.order("leak 3 70000")?;
        let finished = recording.stop()?;
        // The filter is one that kills.
        target.send("forbidden")?;
        ensure!(target.wait()?.signal() == Some(libc::SIGSYS), "the target has no filter: nothing is shown");
        finished.expect_status(COMPLETE)?;
        let report = finished.report()?;
        ensure!(
            of_function(&report, "site_leak") == (1200 + 210_000, 33),
            "{arguments:?}: {:#?}",
            report.sites
        );
        ensure!(of_function(&report, "site_nop") == (3000, 50), "{arguments:?}: {:#?}", report.sites);
    }
    Ok(())
}

/// `doctor` says what it has found, and a recording notes what matters.
#[test]
fn what_stands_in_the_way_is_named() -> Result {
    require!();
    let mut target = Target::start("hostile")?;
    target.order("filter")?;
    let pid = target.pid().to_string();
    let text = offheap_output(["doctor", &pid])?;
    for words in ["faults", "seccomp     a filter", "no breakpoint of anybody else"] {
        ensure!(text.contains(words), "no `{words}` in\n{text}");
    }
    let first = Recording::attach(&target, &[])?;
    let text = offheap_output(["doctor", &pid])?;
    ensure!(text.contains("somebody else has breakpoints on"), "{text}");
    let second = Recording::attach(&target, &["--lens", "malloc"])?;
    target.order("leak 5 50")?;
    let finished = second.stop()?;
    finished.expect_status(COMPLETE)?;
    ensure!(hints(&finished).contains("somebody else has breakpoints on"), "{:?}", finished.errors);
    ensure!(finished.report()?.outstanding() == (250, 5), "{:?}", finished.report()?.sites);
    let finished = finish(first, target, COMPLETE)?;
    ensure!(!hints(&finished).contains("somebody else"), "{:?}", finished.errors);
    Ok(())
}

#[test]
fn a_debugger_is_named() -> Result {
    require!();
    let mut target = Target::start("hostile")?;
    let pid = i32::try_from(target.pid())?;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the target is our child; it goes on running.
    ensure!(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) } == 0, "cannot trace the target");
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 5 50")?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    ensure!(hints(&finished).contains("is traced by thread"), "{:?}", finished.errors);
    ensure!(finished.report()?.outstanding() == (250, 5), "{:?}", finished.report()?.sites);
    Ok(())
}

#[test]
fn a_program_with_rights_of_its_own_is_named() -> Result {
    require!();
    let home = home_of_nobody()?;
    let program = home.path().join("set-user-id");
    fs::copy(build::target("hostile")?, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755))?;
    let mut command = Command::new(&program);
    command.uid(NOBODY).gid(NOBODY);
    let mut target = Target::start_command(command)?;
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 5 50")?;
    let finished = finish(recording, target, COMPLETE)?;
    ensure!(hints(&finished).contains("rights that its caller had not"), "{:?}", finished.errors);
    ensure!(fs::metadata(finished.capture())?.mode() & 0o7777 == 0o600, "others may read the capture");
    Ok(())
}

/// Files that are mapped as code and lie about what is in them.
fn lying_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let libc = fs::read("/proc/self/exe")?;
    let patched = |at: usize, bytes: &[u8]| -> Result<Vec<u8>> {
        let mut copy = libc.clone();
        copy.get_mut(at..at + bytes.len()).context("a short program")?.copy_from_slice(bytes);
        Ok(copy)
    };
    let files = [
        // Tables of headers at the end of all numbers, and more of them than bytes.
        ("sections-nowhere", patched(0x28, &u64::MAX.to_le_bytes())?),
        ("segments-nowhere", patched(0x20, &(1u64 << 62).to_le_bytes())?),
        ("many-sections", patched(0x3c, &[0xff, 0xfe, 0xff, 0xff])?),
        ("many-segments", patched(0x38, &[0xff, 0xff])?),
        ("cut", libc.get(..4096).context("a short program")?.to_vec()),
        ("no-elf", b"MZ this is none".repeat(1000)),
        // The middle of the file, where the call frame information is, overwritten.
        ("garbage", {
            let mut copy = libc.clone();
            let half = copy.len() / 8;
            copy.iter_mut().skip(half).for_each(|byte| *byte ^= 0xa5);
            copy
        }),
    ];
    let mut paths = Vec::new();
    for (name, bytes) in files {
        let path = directory.join(name);
        fs::write(&path, bytes)?;
        paths.push(path);
    }
    // One that claims to be huge, and is: a terabyte without a byte on the disk.
    let sparse = directory.join("sparse");
    fs::write(&sparse, patched(0x28, &(1u64 << 39).to_le_bytes())?)?;
    if fs::File::options().write(true).open(&sparse)?.set_len(1 << 40).is_ok() {
        paths.push(sparse);
    }
    Ok(paths)
}

#[test]
fn files_that_lie() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let mut target = Target::start("hostile")?;
    for path in lying_files(directory.path())? {
        target.order(&format!("map {}", path.display()))?;
    }
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 7 77")?;
    let finished = finish(recording, target, COMPLETE)?;
    ensure!(of_function(&finished.report()?, "site_leak") == (539, 7), "{:?}", finished.report()?.sites);
    Ok(())
}

/// The name of a file, a library in a JVM's place, beside whose home there is a FIFO: who opens it waits for ever.
#[test]
fn a_version_file_that_never_ends() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let server = directory.path().join("home/lib/server");
    fs::create_dir_all(&server)?;
    let library = server.join("libjvm.so");
    fs::copy(build::target("puppet")?, &library)?;
    fifo(&directory.path().join("home/release"))?;
    let mut target = Target::start("hostile")?;
    target.order(&format!("map {}", library.display()))?;
    let text = offheap_output(["doctor", &target.pid().to_string()])?;
    ensure!(text.contains("jvm (version unknown)"), "{text}");
    target.finish_well()
}

fn fifo(path: &Path) -> Result {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: a path that ends in zero and outlives the call.
    ensure!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) } == 0, "cannot make a FIFO");
    Ok(())
}

/// A perf map is opened by a name that anybody can give to anything.
#[test]
fn perf_maps_that_are_something_else() -> Result {
    require!();
    let secret = fs::read_to_string("/etc/shadow")?;
    for kind in ["fifo", "link", "hard link"] {
        let mut target = Target::start("hostile")?;
        let path = PathBuf::from(format!("/tmp/perf-{}.map", target.pid()));
        let directory = tempfile::tempdir_in("/tmp")?;
        match kind {
            "fifo" => fifo(&path)?,
            "link" => symlink("/etc/shadow", &path)?,
            _ => {
                let file = directory.path().join("secret");
                fs::write(&file, "1 7fffffffffff secret\n")?;
                fs::hard_link(file, &path)?;
            }
        }
        let recording = Recording::attach(&target, &[]);
        let done = target.order("leak 7 77");
        let finished = recording.and_then(|recording| finish(recording, target, COMPLETE));
        fs::remove_file(&path)?;
        done?;
        let finished = finished?;
        ensure!(hints(&finished).contains("is not a regular file"), "{kind}: {:?}", finished.errors);
        let report = finished.report_json(&[])?;
        ensure!(!report.contains("secret"), "{kind}: {report}");
        for line in secret.lines().filter(|line| line.len() > 8) {
            ensure!(!report.contains(line), "{kind}: a line of the file is in the report");
        }
    }
    Ok(())
}

/// The target with another name for its function, in its symbols and in its debug information.
fn with_evil_names(directory: &Path) -> Result<PathBuf> {
    ensure!(EVIL.len() == PLACEHOLDER.len(), "{} bytes", EVIL.len());
    let mut bytes = fs::read(build::target("hostile")?)?;
    let mut found = 0;
    while let Some(at) = bytes.windows(PLACEHOLDER.len()).position(|window| window == PLACEHOLDER.as_bytes())
    {
        bytes[at..at + EVIL.len()].copy_from_slice(EVIL.as_bytes());
        found += 1;
    }
    ensure!(found > 0, "the name is not in the program");
    let path = directory.join("named");
    fs::write(&path, bytes)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn names_do_nothing_to_terminals_and_pages() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let mut target = Target::start_command(Command::new(with_evil_names(directory.path())?))?;
    target.order("call \u{1b}[2J<b>")?;
    let recording = Recording::attach(&target, &[])?;
    target.order("named 7 77")?;
    let finished = finish(recording, target, COMPLETE)?;
    ensure!(of_function(&finished.report()?, EVIL) == (539, 7), "{:#?}", finished.report()?.sites);
    let capture = finished.capture();
    let text = offheap_output([OsStr::new("report"), capture.as_os_str()])?;
    ensure!(text.contains("alert(1)"), "the name is not shown at all:\n{text}");
    let control = |text: &str| text.chars().find(|c| c.is_control() && *c != '\n');
    ensure!(control(&text).is_none(), "a control character in\n{text:?}");
    let lines = finished.errors.join("\n");
    ensure!(control(&lines).is_none(), "a control character in\n{lines:?}");
    for format in ["html", "svg", "folded", "speedscope", "csv"] {
        let page = finished.directory().join(format);
        let arguments = ["export", "--format", format, "-o"].map(OsStr::new);
        offheap_output(arguments.into_iter().chain([page.as_os_str(), capture.as_os_str()]))?;
        let page = fs::read_to_string(page)?;
        ensure!(!page.contains('\u{1b}'), "{format}: an escape character");
        let is_markup = ["html", "svg"].contains(&format);
        ensure!(!is_markup || !page.contains("<script>alert(1)"), "{format}: the script is a script");
        ensure!(!is_markup || !page.contains("[2J<b>"), "{format}: the name of the process is markup");
    }
    Ok(())
}

/// As many mappings as the kernel allows by default, many of them code.
#[test]
fn tens_of_thousands_of_mappings() -> Result {
    require!();
    let mut target = Target::start("hostile")?;
    target.order("many 28000")?;
    target.order("code 3000")?;
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 7 77")?;
    target.order("code 3000")?;
    target.order("leak 3 77")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    let report = finished.report()?;
    ensure!(of_function(&report, "site_leak") == (770, 10), "{:#?}", report.sites);
    // What did not fit is counted.
    let is_complete = finished.status.code() == Some(COMPLETE);
    ensure!(is_complete || !report.losses().is_empty(), "{}: {:?}", finished.status, report.completeness);
    Ok(())
}

#[test]
fn a_command_line_of_megabytes() -> Result {
    require!();
    let mut command = command("hostile")?;
    command.args((0..12).map(|_| "x".repeat(100_000)));
    let mut target = Target::start_command(command)?;
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 7 77")?;
    let finished = finish(recording, target, COMPLETE)?;
    let report = finished.report()?;
    let kept: usize = report.processes.iter().flat_map(|process| &process.cmdline).map(String::len).sum();
    ensure!(kept > 1000 && kept <= 64 << 10, "{kept} bytes of the command line are kept");
    ensure!(of_function(&report, "site_leak") == (539, 7), "{:?}", report.sites);
    ensure!(fs::metadata(finished.capture())?.len() < 1 << 20, "a large capture");
    Ok(())
}

/// A file that another takes the place of while it is read, and one that shrinks and grows.
#[test]
fn files_that_change_while_they_are_read() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let (program, mapped) = (directory.path().join("program"), directory.path().join("mapped"));
    let (good, other) = (fs::read(build::target("hostile")?)?, fs::read(build::target("puppet")?)?);
    let put = |path: &Path, bytes: &[u8]| -> Result {
        let new = path.with_extension("new");
        fs::write(&new, bytes)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        Ok(fs::rename(&new, path)?)
    };
    put(&program, &good)?;
    put(&mapped, &good)?;
    let mut target = Target::start_command(Command::new(&program))?;
    target.order(&format!("map {}", mapped.display()))?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| -> Result {
            let file = fs::File::options().write(true).open(&mapped)?;
            while !is_over.load(Ordering::Relaxed) {
                put(&program, &other)?;
                file.set_len(100)?;
                put(&program, &good)?;
                file.set_len(good.len() as u64)?;
            }
            Ok(())
        });
        let recorded = (1..4u64).try_for_each(|round| {
            let recording = Recording::attach(&target, &[])?;
            target.order("leak 7 77")?;
            let finished = recording.stop()?;
            finished.expect_status(COMPLETE)?;
            let report = finished.report()?;
            ensure!(of_function(&report, "site_leak") == (539, 7), "{round}: {:#?}", report.sites);
            Ok(())
        });
        is_over.store(true, Ordering::Relaxed);
        changer.join().map_err(|_| anyhow::anyhow!("the changer panicked"))??;
        recorded
    })?;
    target.finish_well()
}

/// The stack is gone above the function that calls: its bytes are right, where it was called from is not known.
#[test]
fn a_stack_that_is_not_there() -> Result {
    require!();
    let mut target = Target::start("hostile")?;
    let recording = Recording::attach(&target, &[])?;
    target.order("unstack 9 90")?;
    target.order("leak 3 30")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    let report = finished.report()?;
    ensure!(of_function(&report, "site_unstacked") == (810, 9), "{:#?}", report.sites);
    ensure!(of_function(&report, "site_leak") == (90, 3), "{:#?}", report.sites);
    let site = report.sites.iter().find(|site| site.functions().contains(&"site_unstacked"));
    ensure!(site.is_some_and(|site| site.stack_end.as_deref() == Some("read-fault")), "{site:#?}");
    finished.expect_status(COMPLETE)
}

/// What somebody else has prepared in his directory is never written to.
#[test]
fn planted_files_are_not_written_to() -> Result {
    require!();
    let target = Target::start("hostile")?;
    let directory = home_of_nobody()?;
    let victim = directory.path().join("victim");
    fs::write(&victim, "precious")?;
    let capture = directory.path().join("x.offheap");
    for name in ["x.offheap", "x.offheap-wal", "x.offheap-shm", "x.offheap-journal"] {
        symlink(&victim, directory.path().join(name))?;
    }
    let pid = target.pid().to_string();
    let record = |force: &[&str]| {
        let arguments = ["record", "-p", &pid, "--duration", "1s", "-o"].map(OsStr::new);
        let force = force.iter().map(OsStr::new);
        offheap(arguments.into_iter().chain([capture.as_os_str()]).chain(force))
    };
    let refused = record(&[])?;
    ensure!(refused.status.code() == Some(FAILED), "{}", String::from_utf8_lossy(&refused.stderr));
    let forced = record(&["--force"])?;
    ensure!(forced.status.code() == Some(COMPLETE), "{}", String::from_utf8_lossy(&forced.stderr));
    ensure!(fs::read(&victim)? == b"precious", "a link was written through");
    let made = fs::symlink_metadata(&capture)?;
    ensure!(made.is_file() && made.mode() & 0o7777 == 0o600 && made.uid() == 0, "{made:?}");
    target.finish_well()
}

/// Effective capabilities of a process.
fn rights_of(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    Ok(u64::from_str_radix(line.trim(), 16)?)
}

/// Without root: what is necessary, and what each further right adds.
#[test]
fn a_few_capabilities_are_enough() -> Result {
    require!();
    const FEW: &[u32] = &[CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE];
    const MORE: &[u32] = &[CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH];
    // With the few there are no tracepoints: neither mappings nor children. Where perf's uprobes want more, links serve.
    for (rights, arguments) in [(FEW, &["--lens", "malloc", "--no-follow"][..]), (MORE, &[])] {
        let mut target = Target::start("hostile")?;
        let home = home_of_nobody()?;
        let command = offheap_as_nobody(home.path(), rights);
        let pid = target.pid().to_string();
        let arguments = [&["-p", pid.as_str()], arguments].concat();
        let recording = Recording::attach_in(home, command, &arguments)?;
        let wanted = rights.iter().fold(0, |set, right| set | 1 << right);
        ensure!(rights_of(recording.pid())? == wanted, "{:x}", rights_of(recording.pid())?);
        target.order("leak 7 77")?;
        let finished = finish(recording, target, COMPLETE)?;
        let report = finished.report()?;
        ensure!(of_function(&report, "site_leak") == (539, 7), "{:#?}", report.sites);
        let made = fs::metadata(finished.capture())?;
        ensure!(made.uid() == NOBODY && made.mode() & 0o7777 == 0o600, "{made:?}");
    }
    Ok(())
}

#[test]
fn without_a_capability_it_is_named() -> Result {
    require!();
    let target = Target::start("hostile")?;
    for (rights, missing) in [
        (&[CAP_BPF, CAP_PERFMON][..], "CAP_SYS_PTRACE"),
        (&[CAP_SYS_PTRACE, CAP_PERFMON], "CAP_BPF"),
        (&[], "CAP_PERFMON"),
    ] {
        let home = home_of_nobody()?;
        let mut command = offheap_as_nobody(home.path(), rights);
        let output = command.args(["record", "-p", &target.pid().to_string()]).output()?;
        let errors = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(FAILED) && errors.contains(missing), "{rights:?}: {errors}");
        ensure!(errors.lines().count() == 1, "{errors}");
    }
    target.finish_well()
}

/// Root gives away what a recording does not need.
#[test]
fn rights_that_are_not_needed_are_given_away() -> Result {
    require!();
    const CAP_SYS_MODULE: u32 = 16;
    const CAP_SETUID: u32 = 7;
    let mut target = Target::start("hostile")?;
    let recording = Recording::attach(&target, &[])?;
    // `attached` is said when the loop stands: the rights have gone by then.
    let has = rights_of(recording.pid())?;
    for gone in [CAP_SYS_MODULE, CAP_SETUID] {
        ensure!(has & 1 << gone == 0, "capability {gone} is still there: {has:x}");
    }
    ensure!(has & 1 << CAP_BPF != 0, "what is needed for later probes has gone: {has:x}");
    target.order("leak 7 77")?;
    let finished = finish(recording, target, COMPLETE)?;
    ensure!(of_function(&finished.report()?, "site_leak") == (539, 7), "{:?}", finished.report()?.sites);
    Ok(())
}
