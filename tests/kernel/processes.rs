//! Several processes: children, other programs, groups, and processes in a world of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use tracer_tests::report::{MALLOC, Report, Site};
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{COMPLETE, INCOMPLETE, Recording};
use tracer_tests::{Result, build, require};

/// Outstanding bytes and blocks of one process and function, and nothing else of that process.
fn ensure_only(report: &Report, pid: u32, function: &str, wanted: (u64, u64)) -> Result {
    let of_process =
        |site: &&Site| site.pid == Some(pid) && site.lens == MALLOC && site.outstanding_count > 0;
    let sites: Vec<&Site> = report.sites.iter().filter(of_process).collect();
    let sum = sites.iter().fold((0, 0), |sum: (u64, u64), site| {
        (sum.0 + site.outstanding_bytes, sum.1 + site.outstanding_count)
    });
    ensure!(sum == wanted, "process {pid} has {sum:?} outstanding instead of {wanted:?}: {sites:#?}");
    ensure!(
        sites.iter().all(|site| site.functions().contains(&function)),
        "not all of {pid} is from {function}: {sites:#?}"
    );
    ensure!(
        sites.iter().all(|site| site.stack_end.as_deref() == Some("thread-start")),
        "a stack of {pid} is not whole: {sites:#?}"
    );
    Ok(())
}

fn state_of(report: &Report, pid: u32) -> Vec<String> {
    report
        .processes
        .iter()
        .filter(|process| process.pid == pid)
        .map(|process| process.state.clone())
        .collect()
}

#[test]
fn children_are_followed() -> Result {
    require!();
    let mut target = Target::start("family")?;
    let parent = target.pid();
    let mut recording = Recording::attach(&target, &["-v"])?;
    target.order("keep 4 50")?;
    let child = target.order_child()?;
    recording.wait_until_said(&format!("probes in process {child}"))?;
    target.order("to 0 leak 5 100")?;
    // Copies of what the parent remembers: the parent's blocks stay.
    target.order("to 0 drop")?;
    target.order("leak 3 10")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure_only(&report, child, "site_leak", (500, 5))?;
    let own: Vec<_> =
        report.sites.iter().filter(|site| site.pid == Some(parent) && site.lens == MALLOC).collect();
    let bytes: u64 = own.iter().map(|site| site.outstanding_bytes).sum();
    ensure!(bytes == 4 * 50 + 3 * 10, "{own:#?}");
    ensure!(report.loss("unknown-release").0 >= 4, "{:?}", report.losses());
    let row = report.processes.iter().find(|process| process.pid == child).context("no row of the child")?;
    ensure!(row.parent_pid == Some(parent) && row.state == "running", "{row:?}");
    Ok(())
}

#[test]
fn grandchildren_and_exits() -> Result {
    require!();
    let mut target = Target::start("family")?;
    let mut recording = Recording::attach(&target, &["-v"])?;
    let child = target.order_child()?;
    recording.wait_until_said(&format!("probes in process {child}"))?;
    target.order("to 0 leak 2 30")?;
    target.order("to 0 fork")?;
    recording.wait_until_said("is a child")?;
    recording.wait_until_said("probes in process")?;
    target.order("to 0 to 0 leak 7 11")?;
    target.order("to 0 end 0")?;
    target.order("end 0")?;
    recording.wait_until_said(&format!("process {child} has exited"))?;
    target.order("leak 1 99")?;
    let finished = recording.stop()?;
    let parent = target.pid();
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure_only(&report, parent, "site_leak", (99, 1))?;
    ensure_only(&report, child, "site_leak", (60, 2))?;
    ensure!(report.processes.len() == 3, "{:?}", report.processes);
    let grandchild = report.processes.iter().find(|process| process.parent_pid == Some(child));
    let grandchild = grandchild.context("no grandchild")?;
    ensure_only(&report, grandchild.pid, "site_leak", (77, 7))?;
    ensure!(grandchild.state == "exited" && state_of(&report, child) == ["exited"], "{:?}", report.processes);
    Ok(())
}

#[test]
fn children_are_left_alone_on_demand() -> Result {
    require!();
    let mut target = Target::start("family")?;
    let recording = Recording::attach(&target, &["--no-follow"])?;
    let child = target.order_child()?;
    target.order("to 0 leak 5 100")?;
    target.order("leak 3 10")?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure_only(&report, target.pid(), "site_leak", (30, 3))?;
    ensure!(report.processes.len() == 1 && state_of(&report, child).is_empty(), "{:?}", report.processes);
    target.finish_well()
}

#[test]
fn a_limit_of_processes_is_told() -> Result {
    require!();
    let mut target = Target::start("family")?;
    let recording = Recording::attach(&target, &["--max-processes", "1"])?;
    target.order_child()?;
    target.order("to 0 leak 5 100")?;
    let finished = recording.stop()?;
    finished.expect_status(INCOMPLETE)?;
    ensure!(finished.report()?.loss("process-limit").0 == 1, "{:?}", finished.report()?.losses());
    target.finish_well()
}

#[test]
fn many_brief_children() -> Result {
    require!();
    let mut target = Target::start("family")?;
    let recording = Recording::attach(&target, &[])?;
    target.order("brief 100")?;
    target.order("leak 6 60")?;
    let finished = recording.stop()?;
    let pid = target.pid();
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure_only(&report, pid, "site_leak", (360, 6))?;
    let told = report.loss("short-lived-child").0;
    let rows = report.processes.len() as u64 - 1;
    ensure!(told + rows == 100, "{told} short-lived and {rows} recorded of 100");
    Ok(())
}

/// A child that has executed a program of which nothing has run yet when the recording ends: only its dynamic linker is there,
/// and that it has no allocator says nothing.
#[test]
fn a_child_that_has_not_started_yet() -> Result {
    require!();
    let mut target = Target::start("family")?;
    let pid = target.pid();
    let mut recording = Recording::attach(&target, &["-v"])?;
    target.order("leak 2 8")?;
    let child = target.order_child_by("hold")?;
    recording.wait_until_said(&format!("process {child} runs another program"))?;
    let finished = recording.stop()?;
    target.order("unhold")?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure_only(&report, pid, "site_leak", (16, 2))?;
    let told = (report.loss("short-lived-child").0, report.loss("no-allocator").0);
    // If it got probes before its exec, it is no child that came too early.
    ensure!(told.0 <= 1 && told.1 == 0, "{told:?}: {:?}", report.losses());
    Ok(())
}

#[test]
fn exec_ends_all_records() -> Result {
    require!();
    let mut target = Target::start("family")?;
    let pid = target.pid();
    let mut recording = Recording::attach(&target, &["-v"])?;
    target.order("leak 9 1000")?;
    target.order_anew("exec")?;
    recording.wait_until_said(&format!("process {pid} runs another program"))?;
    recording.wait_until_said(&format!("followed the code of process {pid}"))?;
    target.order("leak 4 7")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    let leaks: Vec<_> = report
        .sites
        .iter()
        .filter(|site| {
            site.lens == MALLOC && site.functions().contains(&"site_leak") && site.outstanding_count > 0
        })
        .collect();
    let sum: u64 = leaks.iter().map(|site| site.outstanding_bytes).sum();
    ensure!(sum == 28, "{leaks:#?}");
    ensure!(state_of(&report, pid) == ["executed", "running"], "{:?}", report.processes);
    Ok(())
}

/// After vfork and clone(CLONE_VM) the blocks belong to whose memory it is. (`probe_kinds` has the other kind of probes.)
#[test]
fn children_that_share_the_memory() -> Result {
    require!();
    let mut target = Target::start("family")?;
    let recording = Recording::attach(&target, &["--probe-kind", "perf"])?;
    target.order("sharing 6 60")?;
    let finished = recording.stop()?;
    let pid = target.pid();
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure_only(&report, pid, "site_sharing", (360, 6))?;
    ensure!(report.processes.len() == 1, "{:?}", report.processes);
    Ok(())
}

#[test]
fn two_processes_at_once() -> Result {
    require!();
    let (mut one, mut other) = (Target::start("puppet")?, Target::start("family")?);
    let (first, second) = (one.pid().to_string(), other.pid().to_string());
    let recording = Recording::attach_with(&[&first, &second])?;
    one.order("leak 5 500")?;
    other.order("leak 6 600")?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure_only(&report, one.pid(), "site_leak", (2500, 5))?;
    ensure_only(&report, other.pid(), "site_leak", (3600, 6))?;
    one.finish_well()?;
    other.finish_well()
}

/// A library with an allocator that comes after the attach.
#[test]
fn an_allocator_that_is_loaded_later() -> Result {
    require!();
    let library = "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2";
    require!(tracer_tests::require::Need::File(library));
    let mut target = Target::start("family")?;
    let pid = target.pid();
    let mut recording = Recording::attach(&target, &["-v"])?;
    target.order(&format!("open {library}"))?;
    recording.wait_until_said(&format!("probes in process {pid}"))?;
    target.order("via 8 80")?;
    target.order("leak 2 20")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    let of = |function: &str| {
        let sites = report.sites_in(MALLOC).filter(|site| site.functions().contains(&function));
        sites.fold((0, 0), |sum, site| (sum.0 + site.outstanding_bytes, sum.1 + site.outstanding_count))
    };
    ensure!(of("site_via_library") == (640, 8), "{:?}", of("site_via_library"));
    ensure!(of("site_leak") == (40, 2), "{:?}", of("site_leak"));
    Ok(())
}

/// A control group of its own, removed when the value is dropped.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
        let found = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let is_usable = fields[2] == "cgroup2" || (fields[2] == "cgroup" && fields[3].contains("pids"));
            is_usable.then(|| PathBuf::from(fields[1]))
        });
        let root = match found {
            Some(root) => root,
            None => {
                let root = PathBuf::from("/sys/fs/cgroup");
                let mounted = Command::new("mount").args(["-t", "cgroup2", "none"]).arg(&root).status();
                ensure!(mounted.is_ok_and(|status| status.success()), "cannot mount a cgroup2 file system");
                root
            }
        };
        let group = Self(root.join(name));
        fs::create_dir_all(&group.0).with_context(|| format!("cannot make `{}`", group.0.display()))?;
        Ok(group)
    }

    fn add(&self, pid: u32) -> Result {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
            .context("cannot move a process into the group")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Fails while a process is in it; the next run makes do with the directory.
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_container_and_who_joins_it() -> Result {
    require!();
    let id = format!("{:016x}{}", std::process::id(), "0123456789abcdef".repeat(3));
    let group = Group::new(&format!("docker-{id}.scope"))?;
    let (mut first, mut late) = (Target::start("puppet")?, Target::start("puppet")?);
    group.add(first.pid())?;
    let mut recording = Recording::attach_with(&["--container", &id[..20], "--interval", "100ms", "-v"])?;
    first.order("leak 4 40")?;
    group.add(late.pid())?;
    recording.wait_until_said(&format!("probes in process {}", late.pid()))?;
    late.order("leak 5 50")?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure_only(&report, first.pid(), "site_leak", (160, 4))?;
    ensure_only(&report, late.pid(), "site_leak", (250, 5))?;
    first.finish_well()?;
    late.finish_well()?;
    Ok(())
}

/// The only child of a process.
fn child_of(pid: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children.split_whitespace().next().context("no child")?.parse().context("not a process id")
}

/// Copies a program and its libraries into a directory, as a root for it.
fn make_root(program: &Path, root: &Path) -> Result {
    let maps = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8(maps.stdout)?;
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for file in libraries.chain([program.to_path_buf()]) {
        let name =
            if file == program { PathBuf::from("program") } else { file.strip_prefix("/")?.to_path_buf() };
        let copy = root.join(name);
        fs::create_dir_all(copy.parent().context("no directory")?)?;
        fs::copy(&file, &copy).with_context(|| format!("cannot copy `{}`", file.display()))?;
    }
    Ok(())
}

/// Own process, mount and root: no path of the target means anything to us, and its process id is another inside.
#[test]
fn a_process_in_its_own_namespaces_and_root() -> Result {
    require!();
    let root = tempfile::tempdir()?;
    make_root(&build::target("puppet")?, root.path())?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--mount", "--fork", "--kill-child", "chroot"]).arg(root.path()).arg("/program");
    let mut target = Target::start_command(unshare)?;
    let pid = child_of(target.pid())?;
    let recording = Recording::attach_with(&[&pid.to_string()])?;
    target.order("leak 6 70")?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    target.finish_well()?;
    let report = finished.report()?;
    ensure_only(&report, pid, "site_leak", (420, 6))?;
    let row = report.processes.first().context("no process")?;
    ensure!(row.inner_pid == Some(1), "{row:?}");
    Ok(())
}

/// What is mapped counts, not what stands under its name now.
#[test]
fn a_binary_that_was_replaced() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("program");
    fs::copy(build::target("puppet")?, &copy)?;
    let mut target = Target::start_command(Command::new(&copy))?;
    fs::remove_file(&copy)?;
    fs::copy(build::target("noleak")?, &copy)?;
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 3 33")?;
    let finished = recording.stop()?;
    let pid = target.pid();
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    ensure_only(&finished.report()?, pid, "site_leak", (99, 3))
}

/// A command whose shell makes children: all are recorded.
#[test]
fn a_command_with_children() -> Result {
    require!();
    let puppet = command("puppet")?.get_program().to_owned();
    let mut script = std::ffi::OsString::from("(\"$0\"; true)");
    script.push(" ; exit 0");
    let shell: [&std::ffi::OsStr; 4] = ["sh".as_ref(), "-c".as_ref(), &script, &puppet];
    let (mut recording, mut input, mut output) = Recording::launch_with(&["-v"], &shell)?;
    output.wait_for("`ready`", |line| line == "ready")?;
    let said = recording.wait_until_said("runs another program")?;
    let pid =
        said.split("process ").nth(1).and_then(|rest| rest.split(' ').next()).context("no process in it")?;
    recording.wait_until_said(&format!("probes in process {pid}"))?;
    std::io::Write::write_all(&mut input, b"leak 12 12\n")?;
    output.wait_for("`done`", |line| line == "done")?;
    drop(input);
    let finished = recording.finish()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    let leak = report.sites.iter().find(|site| site.functions().contains(&"site_leak")).context("no leak")?;
    ensure!((leak.outstanding_bytes, leak.outstanding_count) == (144, 12), "{leak:?}");
    Ok(())
}
