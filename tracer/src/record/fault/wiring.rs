//! The lens within a recording: when it begins, looks and ends.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use tracer_common::abi::LiveBlock;

use super::{
    FaultLens, advice, classes,
    pagemap::Pagemap,
    resident::{self, Block},
    summary::Summary,
};
use crate::{
    attach::maps,
    managed::{self, Region},
    model::{FrameId, Lens, Location, MemoryClass},
    record::{RecordError, clock, session::Session},
};

/// What a site's lost rows say of the lens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultLosses {
    /// 1 if page faults were asked for and cannot be recorded.
    pub without_faults: u64,
    /// Faults at which the kernel did not run the program.
    pub skipped_runs: u64,
    /// Bytes that became resident without a fault that was seen, where they are a part that matters.
    pub unattributed_bytes: u64,
    /// Address space in which is not known what was resident before.
    pub unseen_bytes: u64,
}

impl Session {
    /// Attaches the programs that follow page faults, once, and begins with the processes that are there.
    pub(in crate::record) fn follow_faults(&mut self) -> Result<(), RecordError> {
        if self.faults.is_none() && self.options.lenses.contains(&Lens::Faults) && !self.has_no_faults {
            match FaultLens::attach(&mut self.programs.bpf, self.options.limits.max_fault_pages) {
                Ok((lens, problem)) => {
                    self.faults = Some(lens);
                    self.hints.extend(problem.map(|error| {
                        format!("pages that move or that are populated have no call stack: {error}")
                    }));
                }
                Err(error) => {
                    self.hints.insert(format!("page faults are not recorded: {error}"));
                    self.losses.faults.without_faults = 1;
                    self.has_no_faults = true;
                }
            }
        }
        self.begin_faults()
    }

    /// Looks at what is resident in processes that are new.
    pub(in crate::record) fn begin_faults(&mut self) -> Result<(), RecordError> {
        let Some(lens) = &self.faults else { return Ok(()) };
        let new: Vec<u32> = self
            .roster
            .alive()
            .map(|member| member.tgid.get())
            .filter(|tgid| lens.wants_begin(*tgid))
            .collect();
        for tgid in new {
            let Some(lens) = &self.faults else { return Ok(()) };
            let scan = lens.scan(tgid, true)?;
            self.settle_all_faults()?;
            if let Some(lens) = &mut self.faults {
                lens.begin(tgid, &scan);
            }
        }
        Ok(())
    }

    /// Books what has happened until now. The ring is emptied before the faults are taken: what was touched before it moved
    /// is known then. False if it has to be done again, since a program did not get to the end of its event.
    pub(in crate::record) fn settle_faults(&mut self) -> Result<bool, RecordError> {
        if self.faults.is_none() {
            return Ok(true);
        }
        let now_ns = clock::monotonic_ns();
        let is_emptied = self.drain_written_events()?;
        let changes = std::mem::take(&mut self.fault_changes);
        let Some(lens) = &mut self.faults else { return Ok(true) };
        lens.take()?;
        Ok(lens.apply(changes, now_ns, is_emptied))
    }

    /// The same where there is no next time.
    fn settle_all_faults(&mut self) -> Result<(), RecordError> {
        // The lens gives up waiting in the end.
        while !self.settle_faults()? {}
        Ok(())
    }

    /// Looks at what is resident now, unless it has looked too much already. The last look is at all mappings.
    pub(in crate::record) fn look_at_faults(&mut self, is_last: bool) -> Result<(), RecordError> {
        if is_last {
            self.settle_all_faults()?;
        } else if !self.settle_faults()? {
            return Ok(());
        }
        self.begin_faults()?;
        let Some(lens) = &mut self.faults else { return Ok(()) };
        lens.retain(|tgid| self.roster.contains(tgid));
        if !is_last && !lens.is_due() {
            return Ok(());
        }
        let begun = Instant::now();
        for tgid in lens.alive() {
            let Some(lens) = &self.faults else { break };
            let scan = lens.scan(tgid, is_last)?;
            // What is touched while it is read keeps its fault.
            self.settle_all_faults()?;
            if let Some(lens) = &mut self.faults {
                lens.look(tgid, &scan, is_last);
            }
        }
        if let Some(lens) = &mut self.faults {
            lens.looked_for(begun.elapsed());
        }
        Ok(())
    }

    /// A process has ended.
    pub(in crate::record) fn end_faults(&mut self, tgid: u32) -> Result<(), RecordError> {
        self.settle_all_faults()?;
        if let Some(lens) = &mut self.faults {
            lens.end(tgid);
        }
        Ok(())
    }

    /// The last looks, before anything is taken off. The second one decides of what was on its way at the first.
    pub(in crate::record) fn finish_faults(&mut self) -> Result<(), RecordError> {
        if self.faults.is_none() {
            return Ok(());
        }
        self.look_at_faults(true)?;
        self.look_at_faults(true)?;
        if self.options.lenses.contains(&Lens::Malloc) {
            let (residents, unfreed_bytes) = self.residents()?;
            self.write_residents(&residents, unfreed_bytes);
        }
        let Some(lens) = &mut self.faults else { return Ok(()) };
        lens.detach();
        Ok(())
    }

    /// Of the blocks that are live, the bytes that are resident, by site; and the bytes of all blocks of processes that
    /// could be asked.
    fn residents(&self) -> Result<(Vec<(u32, u64)>, u64), RecordError> {
        let mut blocks: BTreeMap<u32, Vec<Block>> = BTreeMap::new();
        self.programs.blocks.read(|key, block| {
            let LiveBlock { size_bytes, site, .. } = *block;
            blocks.entry(key.tgid).or_default().push(Block { address: key.address, size_bytes, site });
        })?;
        let failed = |source| RecordError::System { operation: "read the page tables of the target", source };
        let (mut sums, mut total) = (BTreeMap::new(), 0u64);
        for (tgid, mut blocks) in blocks {
            // Of a process that has gone it is not known.
            let Ok(mut pagemap) = Pagemap::open(tgid) else { continue };
            blocks.sort_unstable_by_key(|block| block.address);
            let mut runs = Vec::new();
            for (start, end) in resident::ranges(&blocks) {
                pagemap.read(start, end, &mut runs).map_err(failed)?;
            }
            resident::add(&blocks, &runs, &mut sums);
            total = blocks.iter().fold(total, |sum, block| sum.saturating_add(block.size_bytes));
        }
        Ok((sums.into_iter().collect(), total))
    }

    /// Writes how much of what each site holds is resident. (Capture format 3 has `CaptureWriter::add_residents` for it;
    /// until then it is said of all sites together.)
    fn write_residents(&mut self, residents: &[(u32, u64)], unfreed_bytes: u64) {
        if residents.is_empty() {
            return;
        }
        let size = |bytes| humansize::format_size(bytes, humansize::BINARY);
        let resident: u64 = residents.iter().map(|(_, bytes)| bytes).sum();
        self.hints.insert(format!(
            "of {} in unfreed blocks, {} are resident",
            size(unfreed_bytes),
            size(resident)
        ));
    }

    /// What the lens has lost.
    pub(in crate::record) fn fault_losses(&self) -> Result<FaultLosses, RecordError> {
        let mut losses = self.losses.faults;
        let Some(lens) = &self.faults else { return Ok(losses) };
        losses.skipped_runs = lens.skipped_runs(&self.programs.bpf)?;
        for (_, tracked) in lens.all() {
            losses.unseen_bytes += tracked.unseen_bytes;
            losses.unattributed_bytes +=
                Summary::of(tracked).and_then(|summary| summary.missing_bytes()).unwrap_or(0);
        }
        Ok(losses)
    }

    /// Says of every site what its pages are, and of every process what its growth is.
    pub(in crate::record) fn classify_faults(
        &mut self,
        locations: &HashMap<FrameId, &[Location]>,
    ) -> Result<(), RecordError> {
        let Some(lens) = &self.faults else { return Ok(()) };
        for (tgid, tracked) in lens.all() {
            let Some(member) = self.roster.find(tgid) else { continue };
            let target = &member.program().target;
            let regions = if tracked.has_ended { None } else { self.fault_regions.get(&tgid) };
            let regions = regions.map(Vec::as_slice);
            let ranges = tracked.book.resident_ranges();
            let mut heaps: BTreeMap<String, u64> = BTreeMap::new();
            for (site, pages) in tracked.book.sites() {
                let frames = self.mapping_stacks.get(&site).map_or(&[][..], |stack| stack.frames.as_slice());
                let functions: Vec<Option<&str>> = frames
                    .iter()
                    .flat_map(|frame| locations.get(frame).copied().unwrap_or_default())
                    .map(|location| location.function.as_deref())
                    .collect();
                let ranges = ranges.get(&site).map_or(&[][..], Vec::as_slice);
                let class = classes::class_of(site, pages, &functions, ranges, regions);
                classes::add_heaps(ranges, regions, &mut heaps);
                if regions.is_none() && class.class == MemoryClass::ManagedHeap {
                    let label = class.label.clone().unwrap_or_else(|| "the collected heap".to_owned());
                    let bytes = pages.counters.allocated_bytes.saturating_sub(pages.counters.freed_bytes);
                    *heaps.entry(label).or_default() += bytes >> tracked.book.level();
                }
                self.writer.set_site_class(&class)?;
            }
            let runtime = target.runtime.as_ref().map_or("", |runtime| runtime.name.as_str());
            for (label, bytes) in heaps {
                let bytes = bytes << tracked.book.level();
                self.hints.extend(advice::of_heap(runtime, &label, tgid, &target.comm, bytes));
            }
            let comm = target.comm.as_str();
            self.hints.extend(Summary::of(tracked).map(|summary| summary.sentence(tgid, comm)));
            if tracked.has_ended {
                self.hints.insert(format!(
                    "process {tgid} (`{comm}`) has ended: what of it was resident is as at the last look before"
                ));
            }
            if tracked.book.level() > 0 {
                self.hints.insert(sampled(tgid, tracked.book.level(), tracked.book.standard_error_pages()));
            }
        }
        Ok(())
    }

    /// Asks the runtimes which ranges are theirs, while they can be asked.
    pub(in crate::record) fn ask_runtimes_of_faults(&mut self) {
        let mut regions: HashMap<u32, Vec<Region>> = HashMap::new();
        for tgid in self.faults.iter().flat_map(FaultLens::alive) {
            let Some(member) = self.roster.find(tgid) else { continue };
            let Some(runtime) = &member.program().target.runtime else { continue };
            let found = maps::read(tgid).ok().and_then(|entries| managed::regions(tgid, runtime, &entries));
            regions.extend(found.map(|found| (tgid, found)));
        }
        self.fault_regions = regions;
    }
}

fn sampled(tgid: u32, level: u32, error_pages: f64) -> String {
    format!(
        "the pages of process {tgid} were too many to keep: one block of 2 MiB in {} was looked at, drawn by a hash of its \
         address, and stands for as many; the standard error of all that is resident is {:.0} MiB. \
         `--max-fault-pages` raises the limit",
        1u64 << level,
        error_pages / 256.0
    )
}
