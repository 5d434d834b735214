//! `offheap report --format json`, as far as the tests read it.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

use crate::Result;

/// The report.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// Name and version of the schema.
    pub schema: String,
    /// What is missing.
    pub completeness: Completeness,
    /// Every site, in order of its rank.
    pub sites: Vec<Site>,
}

/// What is missing.
#[derive(Debug, Deserialize)]
pub struct Completeness {
    /// Whether nothing is.
    pub complete: bool,
    /// What was lost or seen beside the bookkeeping.
    pub losses: Vec<Loss>,
    /// How stacks ended.
    pub stacks: Stacks,
}

/// One reason and how often it occurred.
#[derive(Debug, Deserialize)]
pub struct Loss {
    /// Stable name.
    pub reason: String,
    /// Events.
    pub count: u64,
    /// Bytes concerned.
    pub bytes: Option<u64>,
}

/// How stacks ended.
#[derive(Debug, Deserialize)]
pub struct Stacks {
    /// Stacks seen.
    pub total: u64,
    /// Those that reach the root of their thread.
    pub whole: u64,
}

/// One allocation site.
#[derive(Debug, Deserialize)]
pub struct Site {
    /// From 1.
    pub rank: u64,
    /// Bytes not released.
    pub outstanding_bytes: u64,
    /// Blocks not released.
    pub outstanding_count: u64,
    /// Bytes allocated.
    pub allocated_bytes: u64,
    /// Blocks allocated.
    pub allocated_count: u64,
    /// Bytes released.
    pub freed_bytes: u64,
    /// Blocks released.
    pub freed_count: u64,
    /// Why the stack ends.
    pub stack_end: Option<String>,
    /// Innermost first.
    pub stack: Vec<StackFrame>,
}

/// One frame.
#[derive(Debug, Deserialize)]
pub struct StackFrame {
    /// Demangled name.
    pub function: Option<String>,
    /// File of the code.
    pub object: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Source line.
    pub line: Option<u32>,
}

impl Report {
    /// Parses the text.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).with_context(|| format!("not a report: {text}"))
    }

    /// Events and bytes of one loss; zero where the report does not list it.
    pub fn loss(&self, reason: &str) -> (u64, u64) {
        let loss = self.completeness.losses.iter().find(|loss| loss.reason == reason);
        loss.map_or((0, 0), |loss| (loss.count, loss.bytes.unwrap_or(0)))
    }

    /// Losses that occurred, by name.
    pub fn losses(&self) -> BTreeMap<&str, u64> {
        let seen = self.completeness.losses.iter().filter(|loss| loss.count > 0);
        seen.map(|loss| (loss.reason.as_str(), loss.count)).collect()
    }

    /// The report with a suffix taken off the names of all functions.
    pub fn without_suffix(mut self, suffix: &str) -> Self {
        for frame in self.sites.iter_mut().flat_map(|site| &mut site.stack) {
            frame.function = frame.function.take().map(|name| name.trim_end_matches(suffix).to_owned());
        }
        self
    }

    /// Outstanding bytes and blocks of all sites.
    pub fn outstanding(&self) -> (u64, u64) {
        let bytes = self.sites.iter().map(|site| site.outstanding_bytes).sum();
        let count = self.sites.iter().map(|site| site.outstanding_count).sum();
        (bytes, count)
    }

    /// Share of whole stacks.
    pub fn whole_percent(&self) -> f64 {
        100.0 * self.completeness.stacks.whole as f64 / self.completeness.stacks.total as f64
    }
}

impl Site {
    /// Functions of the stack, innermost first, for messages.
    pub fn functions(&self) -> Vec<&str> {
        self.stack.iter().map(|frame| frame.function.as_deref().unwrap_or("?")).collect()
    }
}
