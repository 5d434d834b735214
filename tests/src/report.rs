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
    /// Every process of the recording.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// Every allocator of the recording.
    #[serde(default)]
    pub allocators: Vec<Allocator>,
    /// Sums, where `--by` asks for them.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// Memory of allocators and runtimes, which is no leak.
    #[serde(default)]
    pub mappings: Vec<Mapping>,
    /// Every site, in order of its rank, of both lenses.
    pub sites: Vec<Site>,
}

/// How memory was observed.
pub const MALLOC: &str = "malloc";
/// How memory was observed.
pub const MMAP: &str = "mmap";

/// How memory was observed.
pub const FAULTS: &str = "faults";

/// One process; an exec begins a new one.
#[derive(Debug, Deserialize)]
pub struct Process {
    /// Identity within the report.
    pub id: u32,
    /// Identity of the one it comes from.
    pub parent: Option<u32>,
    /// As the host sees it.
    pub pid: u32,
    /// In its own namespace, where it differs.
    pub inner_pid: Option<u32>,
    /// Pid of the one it comes from.
    pub parent_pid: Option<u32>,
    /// Name.
    pub comm: String,
    /// Executable.
    pub exe: Option<String>,
    /// Command line.
    pub cmdline: Vec<String>,
    /// `running`, `exited`, `executed`.
    pub state: String,
    /// Bytes not released.
    pub outstanding_bytes: u64,
    /// Blocks not released.
    pub outstanding_count: u64,
    /// Bytes of mappings that can be leaks, where mappings were recorded.
    pub mapped_bytes: Option<u64>,
    /// Such mappings.
    pub mapped_count: Option<u64>,
}

/// One allocator.
#[derive(Debug, Deserialize)]
pub struct Allocator {
    /// Identity within the report.
    pub id: u32,
    /// Name.
    pub name: String,
    /// What its functions begin with.
    pub prefix: String,
    /// File.
    pub path: String,
    /// Bytes not released.
    pub outstanding_bytes: u64,
    /// Blocks not released.
    pub outstanding_count: u64,
    /// Bytes allocated.
    pub allocated_bytes: u64,
    /// Blocks allocated.
    pub allocated_count: u64,
}

/// Sums of one group.
#[derive(Debug, Deserialize)]
pub struct Group {
    /// What its sites have in common.
    pub name: String,
    /// The process, where it is one.
    pub pid: Option<u32>,
    /// Bytes not released.
    pub outstanding_bytes: u64,
    /// Blocks not released.
    pub outstanding_count: u64,
    /// Bytes of mappings that can be leaks, where mappings were recorded.
    pub mapped_bytes: Option<u64>,
    /// Such mappings.
    pub mapped_count: Option<u64>,
}

/// Memory of an allocator or a runtime.
#[derive(Debug, Deserialize)]
pub struct Mapping {
    /// The lens that saw it.
    pub lens: String,
    /// What it is.
    pub class: String,
    /// More about it.
    pub label: Option<String>,
    /// Whose it is.
    pub allocator: Option<String>,
    /// Bytes mapped.
    pub outstanding_bytes: u64,
    /// Mappings.
    pub outstanding_count: u64,
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
    /// [`MALLOC`] or [`MMAP`].
    #[serde(default = "malloc")]
    pub lens: String,
    /// What the memory is.
    pub class: Option<String>,
    /// More about it.
    pub label: Option<String>,
    /// Whose it is.
    pub pid: Option<u32>,
    /// Identities of the processes whose it is.
    #[serde(default)]
    pub processes: Vec<u32>,
    /// Which allocator was called.
    pub allocator: Option<String>,
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
    /// What it does, where enough was seen.
    pub verdict: Option<String>,
    /// What that rests on.
    pub evidence: Option<serde_json::Value>,
    /// Why the stack ends.
    pub stack_end: Option<String>,
    /// Innermost first.
    pub stack: Vec<StackFrame>,
}

fn malloc() -> String {
    MALLOC.to_owned()
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

    /// Outstanding bytes and blocks of all sites of the lens [`MALLOC`].
    pub fn outstanding(&self) -> (u64, u64) {
        self.outstanding_in(MALLOC)
    }

    /// Outstanding bytes and blocks, or mappings, of all sites of a lens.
    pub fn outstanding_in(&self, lens: &str) -> (u64, u64) {
        let sum = |get: fn(&Site) -> u64| self.sites_in(lens).map(get).sum();
        (sum(|site| site.outstanding_bytes), sum(|site| site.outstanding_count))
    }

    /// Sites of a lens, in order of their rank.
    pub fn sites_in<'a>(&'a self, lens: &'a str) -> impl Iterator<Item = &'a Site> {
        self.sites.iter().filter(move |site| site.lens == lens)
    }

    /// Processes with this pid, in order: more than one after an exec.
    pub fn processes_of(&self, pid: u32) -> Vec<&Process> {
        self.processes.iter().filter(|process| process.pid == pid).collect()
    }

    /// The allocator of this name.
    pub fn allocator(&self, name: &str) -> Result<&Allocator> {
        let found = self.allocators.iter().find(|allocator| allocator.name == name);
        found.with_context(|| format!("no allocator {name} in {:?}", self.allocators))
    }

    /// Bytes and mappings of all memory of allocators and runtimes of one class.
    pub fn set_aside(&self, class: &str) -> (u64, u64) {
        let rows = || self.mappings.iter().filter(|row| row.class == class);
        (rows().map(|row| row.outstanding_bytes).sum(), rows().map(|row| row.outstanding_count).sum())
    }

    /// Bytes of all memory of allocators and runtimes that was seen through one lens, of one class or of any.
    pub fn set_aside_in(&self, lens: &str, class: Option<&str>) -> u64 {
        let is_wanted = |row: &&Mapping| row.lens == lens && class.is_none_or(|class| row.class == class);
        self.mappings.iter().filter(is_wanted).map(|row| row.outstanding_bytes).sum()
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
