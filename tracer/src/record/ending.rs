//! The end of a recording: what is left is read, frames get their names, the capture is closed.

use std::{collections::HashMap, time::Instant};

use super::{
    RecordError,
    classes::{Names, class_of, place_of},
    clock::nanoseconds,
    link::Links,
    live::{self, Ages},
    member::Member,
    naming::name_frames,
    options::Outcome,
    rights::{Stage, shed},
    session::Session,
};
use crate::{
    attach::maps,
    managed,
    model::{EndReason, FrameId, Lens, Location, Target},
};

/// Growth of RSS without a single probe hit, in bytes, from which the self-test speaks.
const SILENT_GROWTH_BYTES: u64 = 256 << 10;

impl Session {
    /// Asks the runtimes of those that live which ranges are theirs, for what they have mapped.
    pub(super) fn ask_runtimes(&mut self) {
        let maps_something = |member: &&mut Member| member.mappings.sites().next().is_some();
        for member in self.roster.alive_mut().filter(maps_something) {
            let Some(runtime) = &member.program().target.runtime else { continue };
            let tgid = member.tgid.get();
            member.regions =
                maps::read(tgid).ok().and_then(|entries| managed::regions(tgid, runtime, &entries));
        }
    }

    /// Takes the probes off, reads what is left, names the frames, closes the capture.
    pub(super) fn finish(mut self, reason: EndReason) -> Result<Outcome, RecordError> {
        let stopped = Instant::now();
        // Before the probes go, which takes a while: all that is read is the state of now.
        self.programs.stop()?;
        self.end_windows();
        let elapsed = self.started.elapsed();
        self.look_at_memory(elapsed, true)?;
        self.look_at_mappings(|_| true)?;
        self.ask_runtimes();
        self.ask_runtimes_of_faults();
        self.finish_faults()?;
        if let Some(hooks) = &mut self.hooks {
            hooks.detach();
        }
        Links::detach_all(self.roster.all_mut().map(|member| &mut member.links));
        // Nobody is followed any more.
        self.options.follow = false;
        self.refresh()?;
        self.doubt_starting(stopped);
        self.sample(elapsed, true)?;
        let running = self.running();
        self.memory_looks.look_into_heaps(&running, elapsed, &mut self.writer)?;
        let begun = Instant::now();
        live::read_ages(&self.programs.blocks, &mut self.ages)?;
        log::debug!("live blocks: {:?}", begun.elapsed());
        for member in self.roster.all() {
            member.mappings.add_ages(&mut self.ages);
        }
        let ages = std::mem::replace(&mut self.ages, Ages::new(0, self.options.weighing()));
        self.writer.add_sampled_ages(&ages.sampled())?;
        let (ages, sizes) = ages.into_rows();
        self.writer.add_live_ages(&ages)?;
        self.writer.add_live_sizes(&sizes)?;
        self.writer.add_lifetimes(&live::lifetimes(&self.programs.lifetimes, self.progress.sites))?;
        for object in self.store.take_new_objects() {
            self.writer.add_object(&object)?;
        }
        self.hints.extend(self.store.take_problems());
        // The target's files are parsed from here on, and nothing else of it is read.
        shed(Stage::Naming);
        self.name_frames()?;
        let probe_hits = match self.account()? {
            Some(account) => account.cost.hits,
            None => self.probe_hits(&self.programs.tallies()?),
        };
        self.hints.extend(self.silence(probe_hits));
        for member in self.roster.all() {
            self.hints.extend(member.absence.map(|why| {
                let Target { comm, tgid, .. } = &member.program().target;
                format!(
                    "no allocator was found in process {tgid} (`{comm}`), so only its mappings are here: {}; `--lens \
                     faults` shows by call stack what becomes resident, without an allocator",
                    why.hint()
                )
            }));
        }
        for hint in &self.hints {
            self.writer.add_hint(hint)?;
        }
        self.writer.finish(reason, nanoseconds(elapsed))?;
        for thread in self.retired_links.drain(..) {
            // Detaching cannot fail; a panic there has been printed.
            let _ = thread.join();
        }
        Ok(Outcome {
            output: self.options.output,
            reason,
            progress: self.progress,
            probe_hits,
            hints: self.hints.into_iter().collect(),
        })
    }

    pub(super) fn name_frames(&mut self) -> Result<(), RecordError> {
        let roster = &self.roster;
        let placed = self.book.place_unknown(|process| roster.space_of(process));
        for frame in &placed {
            self.writer.update_frame(frame)?;
        }
        let programs = self.roster.all_mut().flat_map(|member| &mut member.programs);
        let naming = name_frames(&self.book, &self.store, programs);
        for (frame, locations) in &naming.locations {
            self.writer.set_locations(*frame, locations)?;
        }
        for (id, kind) in naming.kinds {
            if let Some(frame) = self.book.set_kind(id, kind) {
                self.writer.update_frame(frame)?;
            }
        }
        self.hints.extend(naming.hints);
        let locations = naming.locations.iter().map(|(frame, found)| (*frame, found.as_slice())).collect();
        self.classify_mappings(&locations)?;
        self.classify_faults(&locations)
    }

    /// Says of every site of mappings what they are.
    pub(super) fn classify_mappings(
        &mut self,
        locations: &HashMap<FrameId, &[Location]>,
    ) -> Result<(), RecordError> {
        let objects = self.book.frames().filter_map(|(frame, ..)| Some((frame.id, frame.object?))).collect();
        let names =
            Names { locations, objects: &objects, paths: &self.store.paths(), allocators: &self.allocators };
        for member in self.roster.all() {
            let ranges = member.mappings.ranges_by_site();
            for (site, facts) in member.mappings.facts() {
                let stack = self.mapping_stacks.get(&site);
                let program = member
                    .programs
                    .iter()
                    .find(|program| stack.is_some_and(|stack| stack.process == program.id))
                    .unwrap_or_else(|| member.program());
                let runtime = program.target.runtime.as_ref();
                let ranges = ranges.get(&site).map_or(&[][..], Vec::as_slice);
                let place = place_of(member.regions.as_deref(), ranges);
                self.writer.set_site_class(&class_of(site, &facts, stack, &names, runtime, place))?;
            }
        }
        Ok(())
    }

    /// The self-test: memory that moves while no probe fires means that the allocator was not found.
    pub(super) fn silence(&self, probe_hits: u64) -> Option<String> {
        let (tgid, first) = self.first_rss.first_key_value()?;
        let moved = first.abs_diff(self.progress.rss_bytes?);
        let has_probes = self.options.lenses.contains(&Lens::Malloc);
        (has_probes && self.first_rss.len() == 1 && probe_hits == 0 && moved >= SILENT_GROWTH_BYTES).then(|| {
            format!(
                "RSS moved by {} KiB and no probe fired: the program allocates by other means than the functions \
                 that were probed (see `offheap doctor {tgid}`)",
                moved / 1024,
            )
        })
    }
}
