//! Hand-written recordings for tests: they go through the writer and the reader like real ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use tracer_common::abi::{Loss, SiteCounters};

mod estimated;
mod resident;
mod server;

pub(crate) use estimated::{budgeted, sampled};
pub(crate) use resident::{resident, watched};
pub(crate) use server::server;

use super::{Budget, Capture, CaptureWriter, Header};
use crate::model::{
    Allocator, AllocatorId, EndReason, Frame, FrameId, FrameKind, Ledger, Lens, Lifetime, LiveAge, LiveSize,
    Location, LossTally, MemoryClass, MemoryLimit, Object, ObjectId, Process, ProcessEnd, ProcessId,
    RssSample, Runtime, RuntimeFigure, SampledAge, SiteClass, Stack, StackEnd, Target,
};

pub(crate) const MIB: u64 = 1 << 20;
const SECOND_NS: u64 = 1_000_000_000;

/// A recording in the making.
pub(crate) struct Recording {
    pub(crate) header: Header,
    /// Besides the header's target.
    pub(crate) processes: Vec<Process>,
    pub(crate) ends: Vec<(ProcessId, u64, ProcessEnd)>,
    pub(crate) allocators: Vec<Allocator>,
    pub(crate) classes: Vec<SiteClass>,
    pub(crate) objects: Vec<Object>,
    pub(crate) frames: Vec<Frame>,
    pub(crate) stacks: Vec<Stack>,
    pub(crate) ticks: Vec<(u64, Vec<(u32, SiteCounters)>)>,
    pub(crate) rss: Vec<RssSample>,
    pub(crate) ledgers: Vec<Ledger>,
    pub(crate) figures: Vec<RuntimeFigure>,
    pub(crate) limits: Vec<MemoryLimit>,
    /// By time of the tick.
    pub(crate) residents: Vec<(u64, Vec<(u32, u64)>)>,
    pub(crate) lifetimes: Vec<Lifetime>,
    pub(crate) losses: Vec<LossTally>,
    pub(crate) live_ages: Vec<LiveAge>,
    pub(crate) sampled_ages: Vec<SampledAge>,
    pub(crate) live_sizes: Vec<LiveSize>,
    pub(crate) overhead: Option<(u64, Option<u64>)>,
    pub(crate) budget: Option<Budget>,
    pub(crate) hints: Vec<String>,
    pub(crate) finish: Option<(EndReason, u64)>,
}

/// Counters of `count` blocks of `size_bytes`, of which `freed` were released.
pub(crate) fn blocks(size_bytes: u64, count: u64, freed: u64) -> SiteCounters {
    SiteCounters {
        allocated_bytes: size_bytes * count,
        allocated_count: count,
        freed_bytes: size_bytes * freed,
        freed_count: freed,
    }
}

impl Recording {
    /// Nothing but a header.
    pub(crate) fn new() -> Self {
        let target = Target {
            tgid: 4242,
            inner_tgid: Some(7),
            comm: "node".into(),
            cmdline: vec!["node".into(), "app.js".into()],
            exe: Some("/usr/bin/node".into()),
            runtime: Some(Runtime { name: "node".into(), version: Some("20.20.2".into()) }),
        };
        let header = Header {
            target,
            start_realtime_ns: 1_763_690_400 * SECOND_NS,
            interval_ns: SECOND_NS,
            settings: vec![("duration".into(), "10s".into()), ("max-sites".into(), "65536".into())],
            kernel_release: "6.18.0".into(),
            offheap_version: "0.1.0".into(),
            machine: "x86_64".into(),
        };
        Self {
            header,
            processes: Vec::new(),
            ends: Vec::new(),
            allocators: Vec::new(),
            classes: Vec::new(),
            objects: Vec::new(),
            frames: Vec::new(),
            stacks: Vec::new(),
            ticks: Vec::new(),
            rss: Vec::new(),
            ledgers: Vec::new(),
            figures: Vec::new(),
            limits: Vec::new(),
            residents: Vec::new(),
            lifetimes: Vec::new(),
            losses: Loss::ALL.iter().map(|loss| tally(*loss, 0, 0)).collect(),
            live_ages: Vec::new(),
            sampled_ages: Vec::new(),
            live_sizes: Vec::new(),
            overhead: None,
            budget: None,
            hints: Vec::new(),
            finish: Some((EndReason::Duration, 10 * SECOND_NS)),
        }
    }

    /// Adds an object.
    pub(crate) fn object(&mut self, path: &str, build_id: Option<&str>) -> ObjectId {
        let id = ObjectId(self.objects.len() as u32);
        self.objects.push(Object { id, path: path.into(), build_id: build_id.map(str::to_owned) });
        id
    }

    /// Adds a frame of an object.
    pub(crate) fn frame(&mut self, object: ObjectId, offset: u64, locations: Vec<Location>) -> FrameId {
        let id = FrameId(self.frames.len() as u32);
        let address = 0x7f00_0000_0000 + (u64::from(id.0) << 20) + offset;
        let (object, file_offset) = (Some(object), Some(offset));
        self.frames.push(Frame { id, address, object, file_offset, kind: FrameKind::Native, locations });
        id
    }

    /// Adds a stack.
    pub(crate) fn stack(&mut self, site: u32, end: StackEnd, frames: &[FrameId]) {
        self.stack_of(site, ProcessId(0), (Lens::Malloc, None), end, frames);
    }

    /// Adds a stack of a process, seen through a lens.
    pub(crate) fn stack_of(
        &mut self,
        site: u32,
        process: ProcessId,
        (lens, allocator): (Lens, Option<AllocatorId>),
        end: StackEnd,
        frames: &[FrameId],
    ) {
        self.stacks.push(Stack { site, process, lens, allocator, frames: frames.to_vec(), end });
    }

    /// Adds a process that begins at a whole second.
    pub(crate) fn process(&mut self, parent: Option<ProcessId>, second: u64, target: Target) -> ProcessId {
        let id = ProcessId(self.processes.len() as u32 + 1);
        self.processes.push(Process { id, parent, target, start_ns: second * SECOND_NS });
        id
    }

    /// Adds an allocator.
    pub(crate) fn allocator(&mut self, name: &str, prefix: &str, path: &str) -> AllocatorId {
        let id = AllocatorId(self.allocators.len() as u32 + 1);
        let (name, prefix, path) = (name.into(), prefix.into(), path.into());
        self.allocators.push(Allocator { id, name, prefix, path, build_id: Some("ee55".into()) });
        id
    }

    /// Says what the memory of a site is.
    pub(crate) fn class(&mut self, site: u32, class: MemoryClass, label: Option<&str>) {
        self.classes.push(SiteClass { site, class, label: label.map(str::to_owned) });
    }

    /// Sets what was lost.
    pub(crate) fn loss(&mut self, loss: Loss, count: u64, bytes: u64) {
        self.losses[loss as usize] = tally(loss, count, bytes);
    }

    /// Adds a tick at a whole second.
    pub(crate) fn tick(&mut self, second: u64, samples: &[(u32, SiteCounters)], rss_bytes: u64) {
        let elapsed_ns = second * SECOND_NS;
        self.ticks.push((elapsed_ns, samples.to_vec()));
        self.rss(ProcessId(0), second, rss_bytes);
    }

    /// Adds a look at the memory of a process at a whole second.
    pub(crate) fn rss(&mut self, process: ProcessId, second: u64, rss_bytes: u64) {
        self.rss.push(RssSample {
            process,
            elapsed_ns: second * SECOND_NS,
            rss_bytes,
            anonymous_bytes: Some(rss_bytes / 2),
            file_bytes: None,
            shared_bytes: Some(0),
            swap_bytes: None,
            pss_bytes: None,
        });
    }

    /// Writes the capture as a recorder would.
    pub(crate) fn write(&self, path: &Path) {
        let mut writer = CaptureWriter::create(path, false, &self.header).unwrap();
        for process in &self.processes {
            writer.add_process(process).unwrap();
        }
        for (process, elapsed_ns, end) in &self.ends {
            writer.end_process(*process, *elapsed_ns, *end).unwrap();
        }
        for allocator in &self.allocators {
            writer.add_allocator(allocator).unwrap();
        }
        for class in &self.classes {
            writer.set_site_class(class).unwrap();
        }
        for object in &self.objects {
            writer.add_object(object).unwrap();
        }
        for frame in &self.frames {
            let bare = Frame { locations: Vec::new(), ..frame.clone() };
            writer.add_frame(&bare).unwrap();
        }
        for stack in &self.stacks {
            writer.add_stack(stack).unwrap();
        }
        for (elapsed_ns, samples) in &self.ticks {
            writer.add_samples(*elapsed_ns, samples).unwrap();
            for rss in self.rss.iter().filter(|rss| rss.elapsed_ns == *elapsed_ns) {
                writer.add_rss(rss).unwrap();
            }
            for (_, residents) in self.residents.iter().filter(|(at_ns, _)| at_ns == elapsed_ns) {
                writer.add_residents(residents).unwrap();
            }
            for ledger in self.ledgers.iter().filter(|ledger| ledger.elapsed_ns == *elapsed_ns) {
                writer.add_ledger(ledger).unwrap();
            }
            for figure in self.figures.iter().filter(|figure| figure.elapsed_ns == *elapsed_ns) {
                writer.add_figure(figure).unwrap();
            }
            for limit in self.limits.iter().filter(|limit| limit.elapsed_ns == *elapsed_ns) {
                writer.add_limit(limit).unwrap();
            }
            writer.set_losses(&self.losses).unwrap();
            writer.commit().unwrap();
        }
        for frame in &self.frames {
            writer.set_locations(frame.id, &frame.locations).unwrap();
        }
        writer.add_live_ages(&self.live_ages).unwrap();
        writer.add_sampled_ages(&self.sampled_ages).unwrap();
        writer.add_live_sizes(&self.live_sizes).unwrap();
        writer.add_lifetimes(&self.lifetimes).unwrap();
        for hint in &self.hints {
            writer.add_hint(hint).unwrap();
        }
        if let Some((probe_hits, probe_cpu_ns)) = self.overhead {
            writer.set_overhead(probe_hits, probe_cpu_ns).unwrap();
        }
        if let Some(budget) = &self.budget {
            writer.set_budget(budget).unwrap();
        }
        writer.commit().unwrap();
        if let Some((reason, elapsed_ns)) = self.finish {
            writer.finish(reason, elapsed_ns).unwrap();
        }
    }

    /// The recording as the reader gives it back.
    #[cfg(test)]
    pub(crate) fn capture(&self) -> Capture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fixture.offheap");
        self.write(&path);
        Capture::open(&path).unwrap()
    }
}

fn tally(loss: Loss, count: u64, bytes: u64) -> LossTally {
    LossTally {
        reason: loss.name().into(),
        count,
        bytes,
        is_incomplete: loss.is_incomplete(),
        meaning: loss.meaning().into(),
    }
}

/// One function at a line.
pub(crate) fn at(function: &str, file: &str, line: u32) -> Vec<Location> {
    vec![location(function, file, line, false)]
}

/// A location.
pub(crate) fn location(function: &str, file: &str, line: u32, inlined: bool) -> Location {
    Location { function: Some(function.into()), file: Some(file.into()), line: Some(line), inlined }
}

/// No symbol.
pub(crate) fn nameless() -> Vec<Location> {
    vec![Location { function: None, file: None, line: None, inlined: false }]
}

/// A Node process with a leaking addon: two leaking sites below a common root (one of them in two
/// epochs), a cache that is full, a broken stack, lost stacks, hostile names.
pub(crate) fn leaky() -> Recording {
    let mut recording = Recording::new();
    let node = recording.object("/usr/bin/node", Some("aa11"));
    let addon = recording.object("/app/addon.node", Some("bb22"));
    let libc = recording.object("/usr/lib/x86_64-linux-gnu/libc.so.6", Some("cc33"));
    let evil = recording.object("/tmp/\u{1b}[31mevil\u{202e}\n.so", None);
    let again = recording.object("/app/addon.node", Some("bb22"));

    let start = recording.frame(libc, 0x2_7000, at("__libc_start_main", "libc-start.c", 360));
    let main = recording.frame(node, 0x9000, at("main", "node_main.cc", 97));
    let run =
        recording.frame(node, 0x9100, at("node::SpinEventLoopInternal(node::Environment*)", "api.cc", 40));
    let leak = recording.frame(addon, 0x1200, at("leak_scratch(unsigned long)", "/app/src/addon.cc", 12));
    let leak_again =
        recording.frame(again, 0x1200, at("leak_scratch(unsigned long)", "/app/src/addon.cc", 12));
    let call = recording.frame(
        addon,
        0x1300,
        vec![
            location("Scratch::grow(int)", "/app/src/scratch.h", 33, true),
            location("Init(napi_env__*, napi_callback_info__*)", "/app/src/addon.cc", 80, false),
        ],
    );
    let new = recording.frame(libc, 0x5000, at("operator new(unsigned long)", "new_op.cc", 50));
    let vector = recording.frame(
        addon,
        0x1400,
        vec![
            location("std::__new_allocator<std::pair<int const, std::vector<std::string, std::allocator<std::string> > > >::allocate(unsigned long, void const*)", "new_allocator.h", 151, true),
            location("Cache::remember(std::unordered_map<std::string, std::vector<std::pair<int, long> >, std::hash<std::string> > const&)", "/app/src/cache.cc", 7, false),
        ],
    );
    let broken = recording.frame(evil, 0x10, nameless());

    recording.stack(1, StackEnd::ThreadStart, &[leak, call, run, main, start]);
    recording.stack(2, StackEnd::ThreadStart, &[new, vector, run, main, start]);
    recording.stack(3, StackEnd::ThreadStart, &[leak_again, call, run, main, start]);
    recording.stack(4, StackEnd::NoTable, &[broken]);
    for second in 1..=10 {
        let mut samples =
            vec![(1, blocks(4096, 256 * second, 0)), (4, blocks(100, 50 * second, 50 * second - 5))];
        if second == 3 {
            samples.push((2, blocks(1 << 20, 3, 0)));
        }
        if second == 8 {
            samples.push((3, blocks(4096, 64, 0)));
            samples.push((0, blocks(512, 9, 0)));
        }
        recording.tick(second, &samples, 100 * MIB + second * MIB);
    }
    recording.live_ages = vec![
        LiveAge { site: 1, born_ns: SECOND_NS, count: 1280, bytes: 1280 * 4096 },
        LiveAge { site: 1, born_ns: 8 * SECOND_NS, count: 1280, bytes: 1280 * 4096 },
        LiveAge { site: 2, born_ns: 2_500_000_000, count: 3, bytes: 3 << 20 },
        LiveAge { site: 3, born_ns: 7_400_000_000, count: 64, bytes: 64 * 4096 },
        LiveAge { site: 4, born_ns: 9_900_000_000, count: 5, bytes: 500 },
        LiveAge { site: 0, born_ns: 7_400_000_000, count: 9, bytes: 9 * 512 },
    ];
    let size = |site, size_bytes, count| LiveSize {
        site,
        bucket: LiveSize::bucket_of(size_bytes),
        count,
        bytes: count * size_bytes,
    };
    recording.live_sizes =
        vec![size(0, 512, 9), size(1, 4096, 2560), size(2, 1 << 20, 3), size(3, 4096, 64), size(4, 100, 5)];
    recording.loss(Loss::StackRingFull, 9, 9 * 512);
    recording.loss(Loss::UnknownRelease, 31, 0);
    recording.overhead = Some((12_345, Some(40_000_000)));
    recording.hints = vec!["start node with --perf-basic-prof to see JavaScript function names".into()];
    recording
}

/// A process that holds nothing back.
pub(crate) fn clean() -> Recording {
    let mut recording = Recording::new();
    let object = recording.object("/bin/tidy", Some("dd44"));
    let main = recording.frame(object, 0x400, at("main", "tidy.c", 3));
    recording.stack(1, StackEnd::ThreadStart, &[main]);
    for second in 1..=10 {
        recording.tick(second, &[(1, blocks(64, 1000 * second, 1000 * second))], 10 * MIB);
    }
    recording
}
