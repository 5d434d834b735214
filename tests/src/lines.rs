//! Lines of a child's output, with a time limit.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::Result;

/// Longest wait for anything. Emulated machines are ten times slower than real ones.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Lines that a thread reads from a pipe.
pub struct Lines {
    name: &'static str,
    receiver: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    /// Reads `pipe` until it is closed.
    pub fn new(name: &'static str, pipe: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|size| size > 0) {
                if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Self { name, receiver, seen: Vec::new() }
    }

    /// Waits for the first line that `wanted` accepts.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("no {what} from {}: {:#?}", self.name, self.seen),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{} ended without {what}: {:#?}", self.name, self.seen)
                }
            }
        }
    }

    /// Everything up to the end of the output.
    pub fn rest(mut self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push(line);
        }
        self.seen
    }
}
