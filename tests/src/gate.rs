//! Running `offheap check`.

use std::ffi::OsStr;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::Result;
use crate::lines::Lines;
use crate::tracer::{program, wait};

/// `offheap check` while it records. It is killed when the value is dropped.
pub struct Gate {
    child: Child,
    errors: Option<Lines>,
    output: Option<std::thread::JoinHandle<std::io::Result<Vec<u8>>>>,
}

/// A gate that has spoken.
pub struct Judged {
    /// How offheap ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: String,
    /// Its standard error, line by line.
    pub errors: Vec<String>,
}

impl Gate {
    /// Starts it with its arguments.
    pub fn start<Argument: AsRef<OsStr>>(arguments: impl IntoIterator<Item = Argument>) -> Result<Self> {
        let mut command = Command::new(program()?);
        command.arg("check").args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let errors = Lines::new("offheap", child.stderr.take().context("no error pipe")?);
        // Read all the time: a result is larger than a pipe.
        let mut output = child.stdout.take().context("no output pipe")?;
        let output = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut output, &mut bytes).map(|_| bytes)
        });
        Ok(Self { child, errors: Some(errors), output: Some(output) })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the probes are in place.
    pub fn wait_until_attached(&mut self) -> Result {
        let errors = self.errors.as_mut().context("the check has ended")?;
        errors.wait_for("`attached`", |line| line.contains("attached")).map(drop)
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self) -> Result<Judged> {
        let status = wait(&mut self.child, "offheap")?;
        let errors = self.errors.take().map(Lines::rest).unwrap_or_default();
        let output = self.output.take().context("the check has ended")?;
        let output = output.join().map_err(|_| anyhow::anyhow!("the reader has failed"))??;
        Ok(Judged { status, output: String::from_utf8(output)?, errors })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Judged {
    /// Fails unless offheap ended with this status.
    pub fn expect_status(&self, status: i32) -> Result {
        ensure!(
            self.status.code() == Some(status),
            "offheap ended with {} instead of {status}: {:#?}\n{}",
            self.status,
            self.errors,
            self.output
        );
        Ok(())
    }

    /// The document of `--format json`.
    pub fn json(&self) -> Result<Value> {
        // A command's own output comes before it.
        let begin = self.output.find("{\n  \"schema\"").with_context(|| self.output.clone())?;
        serde_json::from_str(&self.output[begin..]).with_context(|| self.output.clone())
    }

    /// The functions that asked for the memory of the offenders, in order.
    pub fn culprits(&self) -> Result<Vec<String>> {
        let json = self.json()?;
        let offenders = json["offenders"].as_array().context("no offenders")?;
        let culprit = |offender: &Value| {
            let site = &offender["site"];
            let index = usize::try_from(site["culprit"].as_u64()?).ok()?;
            site["stack"].get(index)?["function"].as_str().map(str::to_owned)
        };
        Ok(offenders.iter().map(|offender| culprit(offender).unwrap_or_default()).collect())
    }
}
