//! `offheap watch`: samples the memory of processes until told to stop, and says whether it grows.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use super::{ExitStatus, record::owner_of, report::unless_closed};
use crate::{
    attach::launch::Invoker,
    capture::{CaptureWriter, Header, LENS_SETTING},
    cli::plan::{TargetPlan, Verbosity, WatchFormat, WatchPlan},
    ledger,
    model::{EndReason, ProcessId},
    record::{
        clock::{nanoseconds, realtime_ns},
        wait::{Signals, any_readable, until, watched},
    },
    watch::{Change, LedgerSource, Tick, Watch, Whom, csv, json, text},
};

/// Reads the ledger of a process while it is watched.
const LEDGER: Option<LedgerSource> = Some(|tgid| ledger::read(tgid, ProcessId(0), 0).ok());
/// Samples at the interval that was asked for, before it doubles: an hour at a second.
const SAMPLES_PER_INTERVAL: u32 = 3600;
/// A look may take one part of so many of the time.
const COST_PAUSES: u32 = 20;
/// Lines are not printed more often, where there is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(1);

/// Watches; the verdicts, or every sample, go to `out`, what happens meanwhile to `err`.
///
/// # Errors
/// There is no such process, a file cannot be written, or the output.
pub fn run(
    plan: &WatchPlan,
    verbosity: Verbosity,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<ExitStatus> {
    let whom = match &plan.target {
        TargetPlan::Processes(tgids) => Whom::Processes(tgids.iter().map(|tgid| tgid.get()).collect()),
        TargetPlan::Scope(scope) => Whom::Scope(scope.clone()),
        TargetPlan::Command(_) => anyhow::bail!("a command cannot be watched, only running processes"),
    };
    let watch = Watch::new(whom, plan.max_processes as usize, LEDGER)?;
    if let TargetPlan::Scope(scope) = &plan.target {
        ensure!(
            watch.running() > 0,
            "there is no process in the {}: it may have ended; `offheap watch` sees what /proc of this pid namespace shows",
            scope.describe()
        );
    }
    let capture = plan.output.as_deref().map(|path| create_capture(path, plan, &watch)).transpose()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the event loop")?;
    let mut run = Run {
        plan,
        watch,
        capture,
        begin: Instant::now(),
        start: jiff::Timestamp::now(),
        voice: Voice::new(plan, verbosity),
        is_closed: false,
    };
    let reason = runtime.block_on(run.until_the_end(out, err))?;
    run.conclude(reason, out, err)
}

fn create_capture(path: &Path, plan: &WatchPlan, watch: &Watch) -> Result<CaptureWriter> {
    let first = watch.programs().first().context("nobody to watch")?;
    let owner = Invoker::from_environment()?.as_ref().map(owner_of);
    let system = rustix::system::uname();
    let settings = [
        // No allocator call was observed.
        (LENS_SETTING, String::new()),
        ("interval_ns", plan.interval.as_nanos().to_string()),
        ("max_processes", plan.max_processes.to_string()),
    ];
    let header = Header {
        target: first.process.target.clone(),
        start_realtime_ns: realtime_ns(),
        interval_ns: nanoseconds(plan.interval),
        settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        kernel_release: system.release().to_string_lossy().into_owned(),
        offheap_version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: system.machine().to_string_lossy().into_owned(),
    };
    let mut writer = CaptureWriter::create_for(path, plan.force, owner, &header)?;
    for program in watch.programs() {
        writer.add_process(&program.process)?;
    }
    Ok(writer)
}

struct Run<'a> {
    plan: &'a WatchPlan,
    watch: Watch,
    capture: Option<CaptureWriter>,
    begin: Instant,
    start: jiff::Timestamp,
    voice: Voice,
    /// Nobody reads the standard output any more.
    is_closed: bool,
}

impl Run<'_> {
    async fn until_the_end(&mut self, out: &mut impl Write, err: &mut impl Write) -> Result<EndReason> {
        let mut signals = Signals::new().context("take over the signals")?;
        self.voice.begin(&self.watch, self.plan, err);
        if self.plan.format == WatchFormat::Csv {
            self.print(out, csv::HEADER)?;
        }
        let deadline = self.plan.duration.map(|duration| self.begin + duration);
        let mut next = self.begin;
        loop {
            let exits = exits(&self.watch);
            let wanted = deadline.map_or(next, |deadline| next.min(deadline));
            tokio::select! {
                () = signals.any() => {
                    self.look(out, err)?;
                    return Ok(EndReason::Interrupted);
                }
                () = until(Some(wanted.into())) => {}
                () = any_readable(&exits), if !exits.is_empty() => {}
            }
            let cost = self.look(out, err)?;
            if self.watch.is_over() {
                return Ok(EndReason::TargetExited);
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(EndReason::Duration);
            }
            if self.is_closed {
                return Ok(EndReason::Interrupted);
            }
            let pause = pause(self.plan, self.begin.elapsed(), cost);
            // Samples keep their distance also after a suspended machine, a slow look or an exit.
            while next <= now {
                next += pause;
            }
        }
    }

    /// Takes a look at everybody, and passes it on. Gives what it took.
    fn look(&mut self, out: &mut impl Write, err: &mut impl Write) -> Result<Duration> {
        let now = self.begin.elapsed();
        let tick = self.watch.tick(now)?;
        self.store(&tick, nanoseconds(now))?;
        if self.plan.format == WatchFormat::Csv {
            let lines: String = tick
                .samples
                .iter()
                .filter_map(|sample| {
                    Some(csv::line(&self.watch.program(sample.process)?.process.target, sample))
                })
                .collect();
            self.print(out, &lines)?;
        }
        self.voice.look(&self.watch, &tick, now, err);
        Ok(tick.cost)
    }

    fn store(&mut self, tick: &Tick, elapsed_ns: u64) -> Result<()> {
        let Some(capture) = &mut self.capture else { return Ok(()) };
        for change in &tick.changes {
            match *change {
                Change::Started(id) => {
                    if let Some(program) = self.watch.program(id) {
                        capture.add_process(&program.process)?;
                    }
                }
                Change::Ended(id, end) => capture.end_process(id, elapsed_ns, end)?,
            }
        }
        capture.add_samples(elapsed_ns, &[])?;
        for sample in &tick.samples {
            capture.add_rss(sample)?;
        }
        for ledger in &tick.ledgers {
            capture.add_ledger(ledger)?;
        }
        for figure in &tick.figures {
            capture.add_figure(figure)?;
        }
        Ok(capture.commit()?)
    }

    fn print(&mut self, out: &mut impl Write, text: &str) -> Result<()> {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        self.is_closed |= written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
        unless_closed(written).context("write the output")
    }

    fn conclude(
        mut self,
        reason: EndReason,
        out: &mut impl Write,
        err: &mut impl Write,
    ) -> Result<ExitStatus> {
        self.voice.end();
        let elapsed = self.begin.elapsed();
        self.watch.refresh_limits();
        if let Some(mut capture) = self.capture.take() {
            for program in self.watch.programs() {
                let limit = program.limit.clone();
                let limit = limit.map(|limit| limit.for_process(program.process.id, nanoseconds(elapsed)));
                limit.map_or(Ok(()), |limit| capture.add_limit(&limit))?;
            }
            capture.finish(reason, nanoseconds(elapsed))?;
        }
        match self.plan.format {
            WatchFormat::Text => {
                let text = text::verdicts(&self.watch);
                self.print(out, &text)?;
            }
            WatchFormat::Json => {
                let frame = json::Frame {
                    start: self.start.to_string(),
                    seconds: elapsed.as_secs_f64(),
                    interval_s: pause(self.plan, elapsed, Duration::ZERO).as_secs_f64(),
                    end: reason.name(),
                };
                let document = serde_json::to_string_pretty(&json::document(&self.watch, &frame))?;
                self.print(out, &format!("{document}\n"))?;
            }
            // The samples are out already; the verdicts are for whoever sits there.
            WatchFormat::Csv => self.voice.say(&text::verdicts(&self.watch), err),
        }
        if let Some(path) = &self.plan.output {
            let file = path.display().to_string();
            let file = crate::report::escape(&file);
            self.voice.say(&format!("offheap: wrote {file}; next: offheap report {file}\n"), err);
        }
        let is_complete = json::is_complete(&self.watch);
        if !is_complete {
            writeln!(
                err,
                "offheap: data incomplete: {} reads failed, {} processes were too many to watch (--max-processes), {} \
                 programs that ended were forgotten",
                self.watch.failed_reads(),
                self.watch.left_out,
                self.watch.forgotten
            )?;
        }
        Ok(ExitStatus::of(is_complete))
    }
}

/// Descriptors that are readable when a process has ended, so that the end of the last one is the end of the watch. A group
/// is looked at again and again anyhow.
fn exits(watch: &Watch) -> Vec<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    if !watch.can_end() {
        return Vec::new();
    }
    let running = watch.programs().iter().filter(|program| program.end.is_none());
    running
        .filter_map(|program| {
            let tgid = i32::try_from(program.process.target.tgid).ok()?;
            let pid = rustix::process::Pid::from_raw(tgid)?;
            let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
            watched(fd).ok()
        })
        .collect()
}

/// Time to the next sample: what was asked for; where nothing was, twice as long after an hour, and twice that after two…;
/// and never so short that looking would take more than a twentieth of the time.
fn pause(plan: &WatchPlan, elapsed: Duration, cost: Duration) -> Duration {
    let mut pause = plan.interval;
    while plan.adapts && elapsed > pause.saturating_mul(SAMPLES_PER_INTERVAL) {
        pause = pause.saturating_mul(2);
    }
    pause.max(cost.saturating_mul(COST_PAUSES))
}

/// What is said while it runs: a line that changes on a terminal, else one line after the other.
struct Voice {
    is_quiet: bool,
    bar: Option<ProgressBar>,
    next: Duration,
}

impl Voice {
    fn new(plan: &WatchPlan, verbosity: Verbosity) -> Self {
        let is_quiet = verbosity == Verbosity::Quiet;
        // Lines that scroll by would break the one that stays.
        let is_shared = plan.format == WatchFormat::Csv && std::io::stdout().is_terminal();
        let style = ProgressStyle::with_template("{spinner} {wide_msg}").ok();
        let bar = style
            .filter(|_| !is_quiet && !is_shared && std::io::stderr().is_terminal())
            .map(|style| ProgressBar::new_spinner().with_style(style));
        Self { is_quiet, bar, next: Duration::ZERO }
    }

    fn say(&mut self, text: &str, err: &mut impl Write) {
        if !self.is_quiet {
            // Nobody to tell if the standard error is closed; the watch goes on.
            let mut write = || err.write_all(text.as_bytes()).and_then(|()| err.flush());
            let _ = match &self.bar {
                Some(bar) => bar.suspend(write),
                None => write(),
            };
        }
    }

    fn begin(&mut self, watch: &Watch, plan: &WatchPlan, err: &mut impl Write) {
        let whom = match watch.programs() {
            [one] => text::name(&one.process.target),
            several => format!("{} processes", several.len()),
        };
        let every = humantime::format_duration(plan.interval);
        let how_long = plan.duration.map_or_else(
            || "until Ctrl-C".to_owned(),
            |duration| format!("for {}, Ctrl-C ends it", humantime::format_duration(duration)),
        );
        self.say(&format!("offheap: watching {whom} every {every} {how_long}\n"), err);
    }

    fn look(&mut self, watch: &Watch, tick: &Tick, now: Duration, err: &mut impl Write) {
        if self.is_quiet {
            return;
        }
        for change in &tick.changes {
            let (Change::Started(id) | Change::Ended(id, _)) = *change;
            let Some(program) = watch.program(id) else { continue };
            let name = text::name(&program.process.target);
            let line = match (*change, program.restart_of) {
                (Change::Ended(_, end), _) => format!("offheap: {name} has {}\n", end.name()),
                (Change::Started(_), Some(_)) => format!("offheap: {name} is a restart\n"),
                (Change::Started(_), None) if program.process.start_ns == 0 => continue,
                (Change::Started(_), None) => format!("offheap: {name} is new\n"),
            };
            self.say(&line, err);
        }
        if now < self.next {
            return;
        }
        // In a long watch without a terminal, not more than some hundred lines.
        self.next = now + LINE_PAUSE.max(if self.bar.is_some() { Duration::ZERO } else { now / 50 });
        let line = text::live_line(watch, now.as_secs_f64());
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            None => self.say(&format!("{line}\n"), err),
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(adapts: bool) -> WatchPlan {
        WatchPlan {
            target: TargetPlan::Processes(Vec::new()),
            duration: None,
            interval: Duration::from_secs(1),
            adapts,
            max_processes: 1,
            format: WatchFormat::Text,
            output: None,
            force: false,
        }
    }

    #[test]
    fn long_watches_and_dear_looks_have_longer_pauses() {
        let seconds = |adapts, elapsed, cost_ms| {
            pause(&plan(adapts), Duration::from_secs(elapsed), Duration::from_millis(cost_ms)).as_secs()
        };
        assert_eq!([0, 3600, 3601, 7200, 7201].map(|elapsed| seconds(true, elapsed, 0)), [1, 1, 2, 2, 4]);
        assert_eq!(seconds(false, 1 << 40, 0), 1);
        assert_eq!(seconds(false, 0, 500), 10);
    }
}
