//! `offheap rss`: where a process's resident memory lies.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::ExitStatus;
use super::report::unless_closed;
use crate::capture::create_file;
use crate::cli::plan::{LedgerKey, RssFormat, RssPlan};
use crate::ledger::{Depth, LedgerReader, Reading, native_memory};
use crate::model::ProcessId;
use crate::report::{RssOptions, escape, rss_json, rss_text};

/// Columns of the table where the output is no terminal.
const UNKNOWN_WIDTH: usize = 120;
/// How long `jcmd` may take. A JVM answers at its next safepoint.
const JCMD_PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// Reads the ledger and prints it. What could not be looked at stands in it, and in the status.
///
/// # Errors
/// A process that cannot be looked at says why.
pub fn run(plan: &RssPlan, out: &mut impl Write, err: &mut impl Write) -> Result<ExitStatus> {
    let depth = if plan.is_quick { Depth::Ranges } else { Depth::Heaps };
    let tgid = plan.tgid.get();
    let mut reading = LedgerReader::new(tgid).read(ProcessId(0), 0, depth)?;
    if reading.runtime.as_ref().is_some_and(|runtime| runtime.name == "jvm") {
        ask_jvm(plan, &mut reading, err)?;
    }
    let comm = fs::read(format!("/proc/{tgid}/comm")).unwrap_or_default();
    let comm = String::from_utf8_lossy(&comm);
    let options = RssOptions {
        tgid,
        comm: comm.trim_end_matches('\n'),
        by_class: plan.by == LedgerKey::Class,
        width: plan.width.map_or(UNKNOWN_WIDTH, usize::from),
    };
    let text = match plan.format {
        RssFormat::Text => rss_text(&reading, &options),
        RssFormat::Json => format!("{:#}\n", rss_json(&reading, &options)),
    };
    match &plan.out {
        Some(path) => create_file(path, plan.force, None)?
            .write_all(text.as_bytes())
            .with_context(|| format!("write `{}`", path.display()))?,
        None => unless_closed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
            .context("write the ledger")?,
    }
    Ok(ExitStatus::of(reading.gaps.is_empty()))
}

/// Asks the JVM for its native memory tracking if that is wanted, else says how. `jcmd` makes the JVM run code of its
/// own, which nothing else here does: so it has to be asked for.
fn ask_jvm(plan: &RssPlan, reading: &mut Reading, err: &mut impl Write) -> Result<()> {
    let tgid = plan.tgid;
    if !plan.runs_jcmd {
        if plan.out.is_some() || plan.format == RssFormat::Text {
            writeln!(
                err,
                "offheap: the JVM's own account: jcmd {tgid} VM.native_memory (or --jcmd), if it was started with -XX:NativeMemoryTracking=summary"
            )?;
        }
        return Ok(());
    }
    match jcmd(tgid.get()) {
        Ok(answer) => {
            let figures = native_memory(&answer, reading.ledger.process, reading.ledger.elapsed_ns);
            if figures.is_empty() {
                let last = answer.lines().last().unwrap_or_default();
                reading.gaps.push(format!("jcmd says: {}", escape(last)));
            }
            reading.figures.extend(figures);
        }
        Err(error) => reading.gaps.push(format!("jcmd does not answer: {error:#}")),
    }
    Ok(())
}

/// Runs `jcmd`, and ends it if it takes too long.
fn jcmd(tgid: u32) -> Result<String> {
    let mut child = Command::new("jcmd")
        .args([&tgid.to_string(), "VM.native_memory", "summary"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run jcmd")?;
    let output = child.stdout.take().context("no output")?;
    let reader = std::thread::spawn(move || {
        let mut answer = Vec::new();
        output.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).map(|_| answer)
    });
    let deadline = Instant::now() + JCMD_PATIENCE;
    while child.try_wait().context("cannot wait for jcmd")?.is_none() {
        if Instant::now() > deadline {
            child.kill().and_then(|()| child.wait()).context("cannot end jcmd")?;
            anyhow::bail!("no answer within {} seconds", JCMD_PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let answer = reader.join().map_err(|_| anyhow::anyhow!("its answer cannot be read"))??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
