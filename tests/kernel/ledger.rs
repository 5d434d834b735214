//! The ledger of resident memory: it adds up, and what grows is named, by the figures of the targets themselves.
//!
//! A target is stopped while it is looked at, so that its `smaps` and offheap's can be compared to the byte.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tracer_tests::lines::PATIENCE;
use tracer_tests::require::Need;
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{COMPLETE, offheap, offheap_output, program};
use tracer_tests::{Result, build, require};

const MIB: u64 = 1 << 20;
const LIVE: &str = "allocator-live";
const SLACK: &str = "allocator-slack";
const MAPPED: &str = "glibc malloc, blocks with a mapping of their own";

/// What `offheap rss` says.
struct Look(Value);

impl Look {
    fn rows(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.0["ledger"].as_array().into_iter().flatten().map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default();
            (text("class"), text("label"), row["bytes"].as_u64().unwrap_or(u64::MAX))
        })
    }

    fn class(&self, class: &str) -> u64 {
        self.rows().filter(|(of, ..)| *of == class).map(|(.., bytes)| bytes).sum()
    }

    fn label(&self, wanted: &str) -> u64 {
        self.rows().filter(|(_, label, _)| *label == wanted).map(|(.., bytes)| bytes).sum()
    }

    fn figure(&self, name: &str) -> Result<u64> {
        let figures = self.0["figures"].as_array().context("no figures")?;
        let found = figures.iter().find(|figure| figure["name"] == name);
        found.and_then(|figure| figure["bytes"].as_u64()).with_context(|| format!("no {name} in {figures:?}"))
    }

    fn advises(&self, kind: &str) -> bool {
        self.0["advice"].as_array().is_some_and(|all| all.iter().any(|advice| advice["kind"] == kind))
    }

    fn summary(&self) -> &str {
        self.0["summary"].as_str().unwrap_or_default()
    }
}

/// A process that is stopped until the value is dropped.
struct Stopped(i32);

impl Stopped {
    fn new(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid)?;
        // SAFETY: takes two numbers; the process is a child of ours that was not waited for.
        ensure!(unsafe { libc::kill(pid, libc::SIGSTOP) } == 0, "cannot stop the target");
        let stopped = Self(pid);
        let deadline = Instant::now() + PATIENCE;
        while !is_stopped(pid)? {
            ensure!(Instant::now() < deadline, "the target does not stop");
            std::thread::yield_now();
        }
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::kill(self.0, libc::SIGCONT) };
    }
}

/// Whether all threads are.
fn is_stopped(pid: i32) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        if !status.lines().any(|line| line.starts_with("State:\tT")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The sum of Rss over smaps.
fn rss(pid: u32) -> Result<u64> {
    let smaps = fs::read(format!("/proc/{pid}/smaps"))?;
    let smaps = String::from_utf8_lossy(&smaps);
    let kib = smaps
        .lines()
        .filter_map(|line| line.strip_prefix("Rss:")?.strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(1024 * kib.sum::<u64>())
}

/// Looks at a stopped target: complete, adding up to the byte, hardly anything unknown.
fn look_with(pid: u32, arguments: &[&str]) -> Result<Look> {
    let pid_text = pid.to_string();
    let stopped = Stopped::new(pid)?;
    // The kernel may take pages of files from a stopped process, and a look brings those back that it reads.
    let mut tries = 0;
    let (output, truth) = loop {
        let truth = rss(pid)?;
        let output = offheap_output(["rss", "--format", "json", &pid_text].iter().chain(arguments))?;
        if rss(pid)? == truth {
            break (output, truth);
        }
        tries += 1;
        ensure!(tries < 10, "the target is not still");
    };
    drop(stopped);
    let look = Look(serde_json::from_str(&output)?);
    let sum: u64 = look.rows().map(|(.., bytes)| bytes).sum();
    ensure!(look.0["rss_bytes"] == truth && sum == truth, "{sum} and {} of {truth}", look.0["rss_bytes"]);
    ensure!(
        look.class("unknown") * 20 < truth,
        "unknown: {} of {truth}: {}",
        look.class("unknown"),
        look.0["ledger"]
    );
    Ok(look)
}

fn look(target: &Target) -> Result<Look> {
    look_with(target.pid(), &[])
}

/// Fails unless two numbers differ by at most 5 % of the second.
fn expect_near(what: &str, found: u64, truth: u64) -> Result {
    ensure!(found.abs_diff(truth) * 20 <= truth, "{what}: {found} instead of {truth}");
    Ok(())
}

/// Fails unless `of` has grown by this much, and nothing else by a tenth of it.
fn expect_growth(before: &Look, after: &Look, class: &str, label: Option<&str>, truth: u64) -> Result {
    let of = |look: &Look| label.map_or_else(|| look.class(class), |label| look.label(label));
    let detail = format!("{} -> {}", before.0["ledger"], after.0["ledger"]);
    expect_near(class, of(after).saturating_sub(of(before)), truth).with_context(|| detail.clone())?;
    for (other, ..) in after.rows().filter(|(other, ..)| *other != class) {
        let grown = after.class(other).saturating_sub(before.class(other));
        ensure!(grown * 10 < truth, "{other} grew by {grown} with {class}: {detail}");
    }
    Ok(())
}

/// Gives a native target an order, and expects the growth that it tells.
fn native(order: &str, class: &str, label: Option<&str>) -> Result<(Target, Look)> {
    let mut target = Target::start("ledger")?;
    let before = look(&target)?;
    let grown = *target.ask(order)?.get("grown").context("no answer")?;
    let after = look(&target)?;
    expect_growth(&before, &after, class, label, grown)?;
    Ok((target, after))
}

#[test]
fn native_blocks_in_use() -> Result {
    require!();
    let (target, after) = native("live 64", LIVE, Some("glibc malloc"))?;
    ensure!(after.advises("allocations"), "{}", after.0["advice"]);
    // What mallinfo2 would say: blocks and what glibc needs for itself.
    expect_near("in use", after.figure("in use in arenas")?, after.label("glibc malloc"))?;
    target.finish_well()
}

#[test]
fn native_fragmentation() -> Result {
    require!();
    let (target, after) = native("holes 256", SLACK, Some("glibc malloc, free between blocks"))?;
    ensure!(after.class("allocator-live") < 32 * MIB && after.advises("fragmentation"), "{}", after.0);
    ensure!(after.summary().contains("free inside the allocator"), "{}", after.summary());
    target.finish_well()
}

#[test]
fn native_retention_in_arenas_of_threads() -> Result {
    require!();
    let (target, after) = native("arenas 8", SLACK, Some("glibc malloc, whole free pages"))?;
    let advice = after.0["advice"].to_string();
    ensure!(after.advises("allocator-retention") && advice.contains("MALLOC_ARENA_MAX"), "{advice}");
    target.finish_well()
}

#[test]
fn native_blocks_with_mappings() -> Result {
    require!();
    let (target, after) = native("large 48", LIVE, Some(MAPPED))?;
    expect_near("mmapped_mem", after.label(MAPPED), after.figure("blocks with a mapping of their own")?)?;
    target.finish_well()
}

#[test]
fn native_mappings() -> Result {
    require!();
    native("mmap 48", "mmap", None)?.0.finish_well()?;
    let (target, after) = native("memfd 48", "shared-memory", None)?;
    ensure!(after.label("/memfd:frame pool (deleted)") >= 48 * MIB, "{}", after.0["ledger"]);
    target.finish_well()
}

#[test]
fn native_stacks_have_their_threads() -> Result {
    require!();
    let (target, after) = native("stacks 32", "thread-stack", None)?;
    let mut workers = 0;
    for task in fs::read_dir(format!("/proc/{}/task", target.pid()))? {
        let tid = task?.file_name().to_string_lossy().into_owned();
        if tid != target.pid().to_string() {
            let bytes = after.label(&format!("thread {tid} worker"));
            ensure!((MIB / 2..MIB / 2 + 64 * 1024).contains(&bytes), "{tid}: {bytes}");
            workers += 1;
        }
    }
    ensure!(workers == 32, "{workers} threads");
    target.finish_well()
}

#[test]
fn native_stacks_of_ended_threads() -> Result {
    require!();
    let mut target = Target::start("ledger")?;
    target.ask("ended 4")?;
    let after = look(&target)?;
    let is_kept = |(_, label, _): &(&str, &str, u64)| label.contains("ended threads");
    ensure!(after.rows().any(|row| is_kept(&row)), "{}", after.0["ledger"]);
    ensure!(!after.rows().any(|(_, label, _)| label.ends_with(" worker")), "{}", after.0["ledger"]);
    target.finish_well()
}

#[test]
fn quick_looks_add_up_too() -> Result {
    require!();
    let mut target = Target::start("ledger")?;
    target.ask("holes 64")?;
    let quick = look_with(target.pid(), &["--quick"])?;
    expect_near("arena", quick.class("allocator-arena"), 64 * MIB)?;
    let by_class = look_with(target.pid(), &["--by", "class"])?;
    ensure!(by_class.rows().all(|(_, label, _)| label.is_empty()), "{}", by_class.0["ledger"]);
    target.finish_well()
}

#[test]
fn other_allocators_have_their_memory() -> Result {
    const FOLDER: &str = "/usr/lib/x86_64-linux-gnu";
    require!(
        Need::File("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
        Need::File("/usr/lib/x86_64-linux-gnu/libmimalloc.so.2"),
        Need::File("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
    );
    // What a block of 200 bytes takes of each; the target counts with 208.
    for (name, library, block_bytes) in [
        ("jemalloc", "libjemalloc.so.2", 224),
        ("mimalloc", "libmimalloc.so.2", 224),
        ("tcmalloc", "libtcmalloc_minimal.so.4", 208),
    ] {
        let mut preloaded = command("ledger")?;
        preloaded.env("LD_PRELOAD", format!("{FOLDER}/{library}"));
        let mut target = Target::start_command(preloaded)?;
        // Two of mimalloc's segments, of 32 MiB, must be there.
        target.ask("live 64")?;
        let before = look(&target)?;
        target.ask("live 64")?;
        let live = look(&target)?;
        expect_growth(&before, &live, "allocator-arena", Some(name), 64 * MIB / 208 * block_bytes)
            .context(name)?;
        target.ask("mmap 48")?;
        let mapped = look(&target)?;
        expect_growth(&live, &mapped, "mmap", None, 48 * MIB).context(name)?;
        ensure!(mapped.figure("in use").is_err(), "{name} does not tell");
        target.finish_well()?;
    }
    Ok(())
}

#[test]
fn node_heap_buffers_and_addon() -> Result {
    require!(Need::Program("node"), Need::File("/usr/include/node/node_api.h"));
    build::target("leak_node")?;
    let mut node = Command::new("node");
    node.arg("--expose-gc").arg(build::sources().join("ledger_node.js")).arg(build::directory()?);
    let mut target = Target::start_command(node)?;
    let first = target.ask("heap 1")?;
    let before = look(&target)?;
    let grown =
        |name: &str, from: &Told, to: &Told| Ok::<u64, anyhow::Error>(told(to, name)? - told(from, name)?);
    let second = target.ask("heap 64")?;
    let heap = look(&target)?;
    expect_growth(&before, &heap, "managed-heap", Some("V8 heap"), grown("heap", &first, &second)?)?;
    ensure!(heap.advises("managed-heap"), "{}", heap.0["advice"]);
    let third = target.ask("buffers 64")?;
    let buffers = look(&target)?;
    expect_growth(&heap, &buffers, LIVE, None, grown("buffers", &second, &third)?)?;
    target.ask("addon 64")?;
    let addon = look(&target)?;
    expect_growth(&buffers, &addon, LIVE, None, 64 * MIB)?;
    ensure!(addon.summary().contains("exceeds the V8 heap"), "{}", addon.summary());
    target.finish_well()
}

type Told = std::collections::HashMap<String, u64>;

fn told(answers: &Told, name: &str) -> Result<u64> {
    answers.get(name).copied().with_context(|| format!("no {name} in {answers:?}"))
}

#[test]
fn java_heap_direct_buffers_and_jni() -> Result {
    require!(Need::Program("java"), Need::Program("javac"), Need::Program("jcmd"));
    build::target("LeakJni")?;
    build::target("LedgerJvm")?;
    let mut library_path = std::ffi::OsString::from("-Djava.library.path=");
    library_path.push(build::directory()?);
    let mut java = Command::new("java");
    // Large enough that nothing is collected, which would move objects.
    java.args(["-XX:NativeMemoryTracking=summary", "-Xms512m", "-Xmx512m", "-Xmn320m"]);
    java.arg(library_path).arg("-cp").arg(build::directory()?).arg("LedgerJvm");
    let mut target = Target::start_command(java)?;
    // Classes are loaded by then.
    for order in ["heap 1", "direct 1", "jni 1", "threads 1"] {
        target.ask(order)?;
    }
    let before = look(&target)?;
    let tracked = || native_memory(target.pid());
    let tracked_before = tracked()?;
    target.ask("heap 64")?;
    let heap = look(&target)?;
    expect_growth(&before, &heap, "managed-heap", Some("Java heap"), 64 * MIB)?;
    target.ask("direct 64")?;
    let direct = look(&target)?;
    let tracked_after = native_memory(target.pid())?;
    let other = tracked_after.figure("Other, committed")? - tracked_before.figure("Other, committed")?;
    expect_growth(&heap, &direct, LIVE, None, other)?;
    target.ask("jni 64")?;
    let jni = look(&target)?;
    expect_growth(&direct, &jni, LIVE, None, 64 * MIB)?;
    target.ask("threads 40")?;
    let threads = look(&target)?;
    let count =
        threads.rows().filter(|(class, label, _)| *class == "thread-stack" && label.contains(" ledger-"));
    ensure!(count.count() == 41, "{}", threads.0["ledger"]);
    ensure!(threads.figure("Java heap, used")? <= 512 * MIB, "{}", threads.0["figures"]);
    let tracked_before = native_memory(target.pid())?;
    target.ask("classes 3000")?;
    let classes = look(&target)?;
    let metaspace = "Metaspace, committed";
    let grown = native_memory(target.pid())?.figure(metaspace)? - tracked_before.figure(metaspace)?;
    ensure!(grown > 8 * MIB, "{grown}");
    expect_near(metaspace, classes.label("JVM metaspace") - threads.label("JVM metaspace"), grown)?;
    target.finish_well()
}

/// What native memory tracking says, by way of offheap. The target is not stopped: it has to answer.
fn native_memory(pid: u32) -> Result<Look> {
    let output = offheap_output(["rss", "--format", "json", "--jcmd", &pid.to_string()])?;
    Ok(Look(serde_json::from_str(&output)?))
}

#[test]
fn python_objects_and_extension() -> Result {
    require!(Need::Program("python3"), Need::Program("python3-config"));
    build::target("leak_python")?;
    for python in ["python3", "/usr/bin/python3"] {
        // The second one is a distribution's, without symbols; it cannot always load the extension.
        let is_system = python.starts_with('/');
        if is_system && !Path::new(python).exists() {
            continue;
        }
        let mut command = Command::new(python);
        command.arg(build::sources().join("ledger_python.py")).env("PYTHONPATH", build::directory()?);
        let mut target = Target::start_command(command)?;
        let before = look(&target)?;
        target.ask("objects 64")?;
        let objects = look(&target)?;
        let grown = objects.class("managed-heap") - before.class("managed-heap");
        expect_near("arenas", grown, 64 * MIB)
            .with_context(|| format!("{python}: {}", objects.0["ledger"]))?;
        let used = objects.figure("blocks in use")? - before.figure("blocks in use")?;
        expect_near("blocks", used, 64 * MIB)?;
        target.ask("extension 64")?;
        let extension = look(&target)?;
        expect_growth(&objects, &extension, LIVE, None, 64 * MIB)?;
        target.finish_well()?;
    }
    Ok(())
}

#[test]
fn go_heap_and_c() -> Result {
    require!(Need::Program("go"), Need::Program("gcc"));
    for name in ["ledger_go", "ledger_go_stripped"] {
        let mut target = Target::start(name)?;
        let first = target.ask("heap 1")?;
        let before = look(&target)?;
        let second = target.ask("heap 64")?;
        let heap = look(&target)?;
        let grown = told(&second, "inuse")? - told(&first, "inuse")?;
        expect_growth(&before, &heap, "managed-heap", Some("Go heap"), grown).context(name)?;
        if name == "ledger_go" {
            expect_near("HeapInuse", heap.figure("heap in use (HeapInuse)")?, told(&second, "inuse")?)?;
            expect_near(
                "HeapReleased",
                heap.figure("heap given back to the kernel (HeapReleased)")?,
                told(&second, "released")?,
            )?;
        } else {
            ensure!(heap.figure("heap in use (HeapInuse)").is_err(), "a stripped program tells nothing");
        }
        target.ask("cgo 64")?;
        let cgo = look(&target)?;
        expect_growth(&heap, &cgo, LIVE, None, 64 * MIB).context(name)?;
        target.finish_well()?;
    }
    Ok(())
}

#[test]
fn an_ordinary_user_sees_his_own_process() -> Result {
    require!();
    const NOBODY: u32 = 65534;
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let (offheap, ledger) = (directory.path().join("offheap"), directory.path().join("ledger"));
    fs::copy(program()?, &offheap)?;
    fs::copy(command("ledger")?.get_program(), &ledger)?;
    let mut own = Command::new(&ledger);
    own.uid(NOBODY).gid(NOBODY);
    let mut target = Target::start_command(own)?;
    target.ask("live 16")?;
    let as_nobody = |pid: u32| {
        let mut command = Command::new(&offheap);
        command.args(["rss", "--format", "json", &pid.to_string()]).uid(NOBODY).gid(NOBODY);
        command.stdin(Stdio::null()).output().context("cannot run offheap")
    };
    let output = as_nobody(target.pid())?;
    let look = Look(serde_json::from_slice(&output.stdout)?);
    let sum: u64 = look.rows().map(|(.., bytes)| bytes).sum();
    ensure!(look.0["rss_bytes"] == sum && sum > 16 * MIB, "{}", look.0);
    // Whether memory may be read depends on the machine (Yama): if not, that is said.
    match output.status.code() {
        Some(COMPLETE) => expect_near("live", look.class(LIVE), 16 * MIB)?,
        _ => ensure!(look.0["gaps"].to_string().contains("memory cannot be read"), "{}", look.0["gaps"]),
    }
    // Somebody else's process is refused in one line.
    let output = as_nobody(std::process::id())?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1) && text.contains("not permitted") && text.lines().count() == 1,
        "{text}"
    );
    target.finish_well()
}

#[test]
fn processes_without_memory_are_refused() -> Result {
    require!();
    // The first kernel thread.
    let output = offheap(["rss", "2"])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && text.contains("has no memory"), "{text}");
    let mut child = Command::new("true").spawn()?;
    let pid = child.id().to_string();
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") Z ") {
        if Instant::now() > deadline {
            bail!("no zombie");
        }
        std::thread::yield_now();
    }
    let output = offheap(["rss", &pid])?;
    child.wait()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(())
}
