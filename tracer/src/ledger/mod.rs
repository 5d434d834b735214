//! Where the resident memory of a process lies: every mapping in one class, the sum to the byte.
//!
//! * [`smaps`]: what is mapped, and what of it is resident.
//! * [`claim`]: ranges that somebody knows, and how they divide a mapping. The surest evidence claims first.
//! * [`pagemap`]: which pages of a divided mapping are resident.
//! * [`glibc`], [`allocators`], [`threads`], [`rest`]: allocators, stacks, and what a mapping's own name says.
//! * [`jvm`], [`cpython`], [`go`]: what runtimes leave to be known, and what they say of themselves; [`hsperf`] is the file
//!   in which a JVM does.
//! * [`rows`]: the sums.
//!
//! Everything is read from outside, while the process runs. It is never stopped, and nothing is written.

mod advice;
mod allocators;
mod claim;
mod context;
mod cpython;
mod error;
#[cfg(test)]
mod fake;
mod glibc;
mod go;
pub(crate) mod hsperf;
mod jvm;
pub mod limit;
mod nmt;
mod pagemap;
mod reach;
mod rest;
mod rows;
pub(crate) mod smaps;
pub(crate) mod threads;

use std::fs::File;
use std::io::BufReader;

use self::claim::{Claims, Use};
use self::context::Context;
use self::glibc::Malloc;
use self::pagemap::Pagemap;
use self::rest::{Leftover, class_of};
use self::smaps::{Smaps, Vma};
use self::threads::Thread;
use crate::attach::maps::MapEntry;
use crate::attach::target::runtime_of;
use crate::managed;
use crate::managed::memory::{Memory as _, ProcessMemory, variables};
use crate::model::{Ledger, LedgerClass, Machine, ProcessId, Runtime, RuntimeFigure};

pub use self::advice::{Advice, headline, ours};
pub use self::error::LedgerError;
pub use self::nmt::native_memory;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Mappings, and what is known about ranges: cheap enough to be repeated every few seconds.
    Ranges,
    /// And what is free inside of the allocator, and which pages of it are resident. Takes seconds for heaps of
    /// gigabytes.
    Heaps,
}

/// Source and name of the figure of what is free inside of the allocator and resident.
pub const SLACK: (&str, &str) = ("allocator", "free inside, resident");

/// What is said about one process at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The ledger.
    pub ledger: Ledger,
    /// What runtime and allocator say of themselves.
    pub figures: Vec<RuntimeFigure>,
    /// The runtime, if one was recognised.
    pub runtime: Option<Runtime>,
    /// What could not be looked at, in sentences.
    pub gaps: Vec<String>,
    /// What to do about what was found.
    pub advice: Vec<Advice>,
}

/// Reads ledgers of one process, and keeps what need not be looked for again. After an exec make a new one.
#[derive(Debug)]
pub struct LedgerReader {
    tgid: u32,
    runtime: Option<Runtime>,
    arena: Option<glibc::Found>,
    rtld_global: Option<Option<u64>>,
}

impl Reading {
    /// What is free inside of the allocator and resident, as a figure: of a look into the heaps ([`Depth::Heaps`]) that came
    /// to its end in all of them.
    pub fn slack_figure(&self) -> Option<RuntimeFigure> {
        let rows = &self.ledger.rows;
        let has = |class| rows.iter().any(|row| row.class == class);
        let is_known = has(LedgerClass::AllocatorLive) && !has(LedgerClass::AllocatorArena);
        is_known.then(|| RuntimeFigure {
            process: self.ledger.process,
            elapsed_ns: self.ledger.elapsed_ns,
            source: SLACK.0.to_owned(),
            name: SLACK.1.to_owned(),
            bytes: Some(advice::of_class(&self.ledger, LedgerClass::AllocatorSlack)),
        })
    }
}

/// The ledger of a process now, and what its runtime says of itself: [`Depth::Ranges`].
///
/// # Errors
/// [`LedgerError`]: there is no such process, it has no memory, or it is somebody else's.
pub fn read(
    tgid: u32,
    process: ProcessId,
    elapsed_ns: u64,
) -> Result<(Ledger, Vec<RuntimeFigure>), LedgerError> {
    let reading = LedgerReader::new(tgid).read(process, elapsed_ns, Depth::Ranges)?;
    Ok((reading.ledger, reading.figures))
}

impl LedgerReader {
    /// A reader for a process.
    pub fn new(tgid: u32) -> Self {
        Self { tgid, runtime: runtime_of(tgid), arena: None, rtld_global: None }
    }

    /// The ledger now.
    ///
    /// # Errors
    /// [`LedgerError`]: there is no such process, it has no memory, or it is somebody else's.
    pub fn read(
        &mut self,
        process: ProcessId,
        elapsed_ns: u64,
        depth: Depth,
    ) -> Result<Reading, LedgerError> {
        // The layouts of glibc's and the runtimes' own structures are those of x86-64.
        if Machine::HOST != Machine::X86_64 {
            return Err(LedgerError::UnknownMachine { machine: Machine::HOST.name() });
        }
        let smaps = read_smaps(self.tgid)?;
        let entries: Vec<MapEntry> = smaps.vmas.iter().map(|vma| vma.entry.clone()).collect();
        let mut context = Context {
            memory: ProcessMemory { tgid: self.tgid },
            entries: &entries,
            pagemap: Pagemap::open(self.tgid),
            is_deep: depth == Depth::Heaps,
        };
        let mut gaps = gaps_of(&context, &smaps);
        let mut told = Told { figures: Vec::new(), process, elapsed_ns };
        let mut claims = Claims::default();
        let covers_heap = self.claim_managed(&mut context, &smaps.vmas, &mut claims, &mut told, &mut gaps);
        let threads = threads::read(self.tgid);
        self.claim_stacks(&context, &threads, &mut claims);
        rest::claim_zeroed(&context.memory, &smaps.vmas, &mut claims);
        let malloc = glibc::claim(&mut context, &smaps.vmas, &mut self.arena, &mut claims);
        threads::claim_by_pointer(&entries, self.tgid, &threads, &mut claims);
        self.claim_reached(&context, &mut claims);
        let allocator = allocators::claim(&context, malloc.is_none(), &mut claims, &mut told);
        told.malloc(malloc.as_ref());
        let leftover = self.leftover(covers_heap, allocator);
        let parts = rows::parts(&mut context, &smaps.vmas, &claims, leftover, &mut gaps);
        let rows = rows::rows(parts, malloc.as_ref().and_then(|malloc| malloc.walk.as_ref()));
        let ledger = Ledger { process, elapsed_ns, rss_bytes: smaps.rss_bytes(), rows };
        let advice = advice::advise(&ledger, malloc.as_ref(), self.runtime.as_ref(), self.tgid);
        Ok(Reading { ledger, figures: told.figures, runtime: self.runtime.clone(), gaps, advice })
    }

    /// Claims what the runtime says is its; whether that is all of its heap.
    fn claim_managed(
        &self,
        context: &mut Context<'_>,
        vmas: &[Vma],
        claims: &mut Claims,
        told: &mut Told,
        gaps: &mut Vec<String>,
    ) -> bool {
        let Some(runtime) = &self.runtime else { return true };
        let regions = managed::regions(self.tgid, runtime, context.entries);
        for region in regions.iter().flatten() {
            claims.add(region.start, region.end, &Use::new(class_of(region.class), region.label));
        }
        let mut covers_heap = regions.is_some();
        match runtime.name.as_str() {
            "jvm" => jvm::tell(self.tgid, context, told),
            "cpython" => {
                covers_heap |= cpython::claim(context, vmas, runtime, regions.is_some(), claims, told);
            }
            "go" => go::tell(self.tgid, context, told),
            _ => {}
        }
        if !covers_heap {
            gaps.push(format!(
                "{} does not tell which memory is its heap: unnamed memory is shown as unknown",
                runtime.name
            ));
        }
        covers_heap
    }

    /// Claims the stacks that glibc knows.
    fn claim_stacks(&mut self, context: &Context<'_>, threads: &[Thread], claims: &mut Claims) {
        const LOADERS: &[&str] = &["ld-linux", "ld-2."];
        let rtld_global = *self.rtld_global.get_or_insert_with(|| {
            let found = variables(self.tgid, context.entries, LOADERS, |name| name == "_rtld_global");
            found.get("_rtld_global").copied()
        });
        if let Some(rtld_global) = rtld_global {
            threads::claim_listed(&context.memory, rtld_global, threads, claims);
        }
    }

    /// Claims what is reached from the runtime's own variables only.
    fn claim_reached(&self, context: &Context<'_>, claims: &mut Claims) {
        match self.runtime.as_ref().map(|runtime| runtime.name.as_str()) {
            Some("jvm") => jvm::claim(self.tgid, context, claims),
            Some("go") => go::claim(context, claims),
            _ => {}
        }
    }

    /// What unnamed memory is that nobody claims. Where the runtime has told all of its heap, and does not keep more than
    /// that in mappings, the rest is somebody's direct mapping, as it is in a process without a runtime.
    fn leftover(&self, covers_heap: bool, allocator: Option<&'static str>) -> Leftover {
        let name = self.runtime.as_ref().map(|runtime| runtime.name.as_str());
        match name {
            None if allocator.is_some() => Leftover {
                class: LedgerClass::Mmap,
                label: "anonymous memory, mapped by the program or for an allocator's own use",
            },
            None => Leftover { class: LedgerClass::Mmap, label: "anonymous memory" },
            Some("node" | "cpython") if covers_heap => {
                Leftover { class: LedgerClass::Mmap, label: "anonymous memory, not of the runtime's heap" }
            }
            _ => Leftover { class: LedgerClass::Unknown, label: "anonymous memory that nobody claims" },
        }
    }
}

/// Figures as they come.
struct Told {
    figures: Vec<RuntimeFigure>,
    process: ProcessId,
    elapsed_ns: u64,
}

impl Told {
    /// Adds a figure.
    fn add(&mut self, source: &str, name: &str, bytes: Option<u64>) {
        self.figures.push(RuntimeFigure {
            process: self.process,
            elapsed_ns: self.elapsed_ns,
            source: source.to_owned(),
            name: name.to_owned(),
            bytes,
        });
    }

    /// What glibc's malloc says, if it is used.
    fn malloc(&mut self, malloc: Option<&Malloc>) {
        const SOURCE: &str = "glibc malloc";
        let Some(malloc) = malloc else { return };
        let mapped = malloc.settings.as_ref().map(|settings| settings.mapped_bytes);
        self.add(SOURCE, "arenas, from the kernel", Some(malloc.system_bytes));
        self.add(SOURCE, "main arena, from the kernel", Some(malloc.main_system_bytes));
        self.add(SOURCE, "arenas, at their largest", Some(malloc.max_system_bytes));
        self.add(SOURCE, "blocks with a mapping of their own", mapped);
        let Some(walk) = &malloc.walk else { return };
        // Of heaps that were not walked to their end nothing is known, so that of all nothing is.
        let whole = |bytes: u64| (malloc.cut_count == 0).then_some(bytes);
        let fast_bytes = malloc.fast_bytes.unwrap_or(0);
        let cached = walk.cached_bytes + fast_bytes;
        self.add(SOURCE, "in use in arenas", whole(walk.used_bytes.saturating_sub(cached)));
        self.add(SOURCE, "free in arenas", whole(walk.free_bytes + walk.top_bytes));
        self.add(SOURCE, "of this, at the ends of arenas", whole(walk.top_bytes));
        self.add(SOURCE, "free, kept by threads (tcache)", whole(walk.cached_bytes));
        self.add(SOURCE, "free, in fast bins", malloc.fast_bytes);
    }
}

/// Reads the file; once more if the mappings changed under it.
fn read_smaps(tgid: u32) -> Result<Smaps, LedgerError> {
    let path = format!("/proc/{tgid}/smaps");
    let mut tries_left = 2;
    loop {
        let of = |source| LedgerError::of(tgid, &path, source);
        let file = File::open(&path).map_err(of)?;
        let smaps = smaps::read(BufReader::with_capacity(1 << 16, file)).map_err(of)?;
        if smaps.vmas.is_empty() {
            return Err(LedgerError::NoMemory { tgid });
        }
        if smaps.overlap_count == 0 || tries_left == 0 {
            return Ok(smaps.without_empty());
        }
        tries_left -= 1;
    }
}

/// What cannot be looked at at all.
fn gaps_of(context: &Context<'_>, smaps: &Smaps) -> Vec<String> {
    let mut gaps = Vec::new();
    let is_readable = |entry: &&MapEntry| entry.permissions.starts_with(b"r") && entry.inode == 0;
    let readable = context.entries.iter().find(|entry| is_readable(entry) && entry.name == b"[stack]");
    if readable.is_some_and(|entry| context.memory.word(entry.end - 8).is_none()) {
        gaps.push(
            "the process's memory cannot be read, so that heaps, arenas and stacks are not told apart: run as root, or \
             with CAP_SYS_PTRACE"
                .to_owned(),
        );
    }
    if context.pagemap.is_none() {
        gaps.push(
            "pagemap cannot be read: a mapping of several uses counts as the largest of them".to_owned(),
        );
    }
    if smaps.is_cut {
        gaps.push(format!("there are more than {} mappings: the rest is missing", smaps::MAX_MAPPINGS));
    }
    if smaps.overlap_count > 0 {
        gaps.push("mappings changed while they were read: the sum is not that of one moment".to_owned());
    }
    gaps
}
