//! `offheap demo`: traces a leaking program that is part of offheap, and checks the answer against what the
//! program knows.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{ExitStatus, demo_target::DemoTruth, export, record, report};
use crate::{
    attach::{feature, target},
    capture::Capture,
    cli::plan::{
        AllocatorSelection, DEFAULT_MAX_PROCESSES, ExportFormat, ExportPlan, GroupKey, LensKey, Limits,
        ProbeKindKey, RecordPlan, ReportFormat, ReportPlan, Selection, SortKey, TargetPlan,
    },
    profile::{Filter, Profile},
    record::Session,
};

/// How long the program works.
const DURATION: Duration = Duration::from_secs(10);
const CAPTURE: &str = "demo.offheap";
const FLAME_GRAPH: &str = "demo.svg";

/// Runs the demo; the report goes to `out`, what happens to `err`.
///
/// # Errors
/// What stood in the way, also if the report and the program's own account disagree.
pub fn run(
    directory: &Path,
    color: bool,
    width: Option<u16>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<ExitStatus> {
    feature::require_tracing()?;
    let mut program = Program::start()?;
    writeln!(
        err,
        "offheap: started a leaking program (process {}); tracing it for {DURATION:?}",
        program.child.id()
    )?;
    let file = directory.join(CAPTURE);
    let truth = trace(&mut program, &file)?;
    let plan = ReportPlan {
        file: file.clone(),
        format: ReportFormat::Table,
        top: Some(5),
        min_age: None,
        at: None,
        sort: SortKey::Verdict,
        by: GroupKey::Site,
        tree: None,
        merges_processes: false,
        selection: Selection::default(),
        color,
        width,
    };
    let status = report::run(&plan, out, err)?;
    let graph = directory.join(FLAME_GRAPH);
    export::run(
        &ExportPlan {
            file: file.clone(),
            format: ExportFormat::Svg,
            selection: Selection::default(),
            output: Some(graph.clone()),
            force: true,
        },
        out,
        err,
    )?;
    let filter = Filter::default();
    compare(&Profile::new(Capture::open(&file)?, filter)?, &truth, err)?;
    writeln!(err, "offheap: wrote {} and {}", file.display(), graph.display())?;
    Ok(status)
}

/// The leaking program. Killed when dropped, if it has not ended.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start() -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(["demo-target", "--duration", &format!("{}s", DURATION.as_secs())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the leaking program")?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }
}

/// Records the program from `ready` to the line with its truth.
fn trace(program: &mut Program, file: &Path) -> Result<Vec<DemoTruth>> {
    let mut output = BufReader::new(program.child.stdout.take().context("no pipe from the leaking program")?);
    let mut line = String::new();
    output.read_line(&mut line).context("read from the leaking program")?;
    ensure!(line.trim_end() == "ready", "the leaking program said `{}`", line.trim_end().escape_debug());
    let tgid =
        std::num::NonZeroU32::new(program.child.id()).context("the leaking program has no process id")?;
    let process = target::examine(tgid.get())?;
    let plan = RecordPlan {
        target: TargetPlan::Processes(vec![tgid]),
        duration: None,
        interval: Duration::from_secs(1),
        output: Some(file.to_owned()),
        force: true,
        min_size_bytes: 0,
        max_size_bytes: u64::MAX,
        limits: Limits::DEFAULT,
        lenses: vec![LensKey::Malloc],
        follow: true,
        max_processes: DEFAULT_MAX_PROCESSES,
        selection: AllocatorSelection::default(),
        bpf_log: None,
        probe_kind: ProbeKindKey::Auto,
        sample_bytes: None,
        max_overhead: None,
        then_report: true,
    };
    let processes = vec![process];
    let options = record::options(&plan, &processes, None);
    let mut session = Session::prepare(processes, options)?;
    session.synchronize()?;
    session.require_probes()?;
    let mut input = program.input.as_ref().context("no pipe to the leaking program")?;
    input.write_all(b"go\n").context("write to the leaking program")?;
    // The line is waited for on a thread of its own: the loop must not block.
    let (done, is_done) = tokio::sync::oneshot::channel();
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        let read = output.read_line(&mut line).map(|_| line);
        let _ = done.send(());
        read
    });
    let stop = async {
        let _ = is_done.await;
    };
    record::block_on(session, stop, || {}, |_| {})?;
    let Ok(read) = reader.join() else { bail!("reading from the leaking program failed") };
    serde_json::from_str(&read.context("read from the leaking program")?)
        .context("the leaking program's account")
}

/// Compares each function's unfreed bytes and blocks with what the program says.
fn compare(profile: &Profile, truth: &[DemoTruth], err: &mut impl Write) -> Result<()> {
    for expected in truth {
        let (mut bytes, mut count) = (0, 0);
        for site in &profile.sites {
            let mut functions = profile.stack(site).filter_map(|frame| frame.location.function.as_deref());
            if functions.any(|function| function == expected.function) {
                bytes += site.outstanding_bytes;
                count += site.outstanding_count;
            }
        }
        let name = expected.function.rsplit("::").next().unwrap_or_default();
        ensure!(
            (bytes, count) == (expected.outstanding_bytes, expected.outstanding_count),
            "the answer is wrong: `{name}` holds {} bytes in {} blocks, the report says {bytes} bytes in {count}",
            expected.outstanding_bytes,
            expected.outstanding_count
        );
        writeln!(err, "offheap: {name}: {bytes} bytes in {count} blocks, as the program itself says")?;
    }
    Ok(())
}
