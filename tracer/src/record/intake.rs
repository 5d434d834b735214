//! What comes in while a recording runs: events of the programs, changes of mappings, new code.

use std::{
    num::NonZeroU32,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use tokio::io::unix::AsyncFd;

use super::{
    RecordError,
    classes::MappingStack,
    event::{self, Event},
    fault::Change,
    mapping::{MappingBook, MappingHooks},
    mmap_watch::Changes,
    session::Session,
    wait::watched,
};
use crate::{
    attach::maps,
    model::{Lens, Stack},
};

/// Shortest time between two looks at the mappings.
pub(super) const REFRESH_PAUSE: Duration = Duration::from_millis(2);
/// Longest, for targets whose mappings change all the time without new code.
const REFRESH_PAUSE_MAX: Duration = Duration::from_millis(100);
/// How long a program may take to write an event: it can be preempted meanwhile.
const WRITING: Duration = Duration::from_millis(10);
const LOOK_AGAIN: Duration = Duration::from_micros(200);

impl Session {
    pub(super) fn watch_fds(&self) -> std::io::Result<Vec<AsyncFd<OwnedFd>>> {
        self.watches.iter().map(|watch| watched(watch.as_fd().try_clone_to_owned()?)).collect()
    }

    /// Reads the mapping events of all CPUs.
    pub(super) fn drain_watches(&mut self) {
        let mut changes = Changes::default();
        self.watches.iter_mut().for_each(|watch| watch.drain(&mut changes));
        self.losses.mapping_events += changes.lost;
        for member in self.roster.alive_mut() {
            member.is_dirty |= changes.lost > 0 || changes.tgids.contains(&member.tgid.get());
        }
    }

    /// Looks again at the processes whose mappings have changed.
    pub(super) fn refresh(&mut self) -> Result<(), RecordError> {
        let dirty: Vec<NonZeroU32> =
            self.roster.alive().filter(|member| member.is_dirty).map(|member| member.tgid).collect();
        for tgid in dirty {
            match self.synchronize_one(tgid) {
                Ok(_) => {}
                // The exit is seen by the loop; the state until then is still good.
                Err(error) if error.is_absent() => self.doubt_absence(tgid.get()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adapts the pause between two looks: short after a change, longer the longer nothing was new.
    pub(super) fn adapt_pause(&mut self, changed: bool) {
        self.refresh_pause =
            if changed { REFRESH_PAUSE } else { (self.refresh_pause * 2).min(REFRESH_PAUSE_MAX) };
    }

    /// Takes out of the event ring what has been written until now, also what is just being written. False if that did not end in
    /// time.
    pub(super) fn drain_written_events(&mut self) -> Result<bool, RecordError> {
        let written = self.programs.events.written();
        let deadline = Instant::now() + WRITING;
        loop {
            self.drain_events()?;
            if self.programs.events.has_read(written) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // The one that writes needs a CPU, this one perhaps.
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Takes everything out of the event ring that is complete.
    pub(super) fn drain_events(&mut self) -> Result<(), RecordError> {
        self.programs.flush_log();
        let mut events = Vec::new();
        // What is written meanwhile is for the next time: programs may write faster than this reads.
        let written = self.programs.events.written();
        while !self.programs.events.has_read(written)
            && let Some(item) = self.programs.events.next()
        {
            events.extend(event::decode(&item));
        }
        let mut new = Vec::new();
        for event in events {
            match event {
                Event::Stack { tgid, site, epoch, end, lens, origin, frames } => {
                    let Some(member) = self.roster.find(tgid) else { continue };
                    let program = member.program_of_epoch(epoch).id;
                    let (lens, allocator) = event::lens_and_allocator(lens, origin);
                    let added = self.book.add(
                        member.code.space(),
                        (program, epoch),
                        (site, lens, allocator),
                        &frames,
                        end,
                    );
                    for frame in &added.frames {
                        self.writer.add_frame(frame)?;
                    }
                    self.roster.announce(program, &added.frames);
                    self.writer.add_stack(&added.stack)?;
                    if lens != Lens::Malloc {
                        let Stack { process, allocator, frames, .. } = added.stack;
                        self.mapping_stacks.insert(site, MappingStack { process, allocator, frames });
                    }
                }
                Event::Mapping(event) => {
                    if let Some(member) = self.roster.get_mut(event.header.tgid) {
                        member.mappings.apply(&event);
                    }
                }
                Event::FaultRange(event) => self.fault_changes.push(Change::Range(event)),
                Event::FaultsPending => self.are_faults_pending = true,
                Event::Refresh { tgid } => {
                    if let Some(member) = self.roster.get_mut(tgid) {
                        member.is_dirty = true;
                    }
                }
                Event::Fork { tgid, parent, epoch, has_executed } => {
                    if self.follow((tgid, parent), epoch, has_executed)? {
                        new.push(tgid);
                    }
                }
                Event::Exec { tgid, time_ns } => {
                    self.fault_changes.push(Change::Exec { tgid, time_ns });
                    self.next_program_of(tgid, time_ns)?;
                }
            }
        }
        // Probes of new processes do not wait for the next look.
        for tgid in new.into_iter().filter_map(NonZeroU32::new) {
            match self.synchronize_one(tgid) {
                Ok(_) => {}
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Attaches the programs that follow mappings, once.
    pub(super) fn follow_mappings(&mut self) {
        if self.hooks.is_some() || self.is_without_mappings {
            return;
        }
        match MappingHooks::attach(&mut self.programs.bpf) {
            Ok(hooks) => self.hooks = Some(hooks),
            Err(error) => {
                self.hints.insert(format!("mappings are not recorded: {error}"));
                self.losses.without_mappings = 1;
                self.is_without_mappings = true;
            }
        }
    }

    /// Whether mappings are recorded.
    pub(super) fn follows_mappings(&self) -> bool {
        self.hooks.is_some()
    }

    /// Compares the books that want it with what the kernel says. The ring is emptied before and behind.
    pub(super) fn look_at_mappings(
        &mut self,
        wants: impl Fn(&MappingBook) -> bool,
    ) -> Result<(), RecordError> {
        let Some(hooks) = &self.hooks else { return Ok(()) };
        let skipped = hooks.skipped_runs(&self.programs.bpf)?;
        let has_skipped = skipped > self.losses.skipped_mapping_runs;
        self.losses.skipped_mapping_runs = skipped;
        self.look(|book| has_skipped || wants(book), Some(has_skipped))
    }

    /// The same; `has_skipped` is `None` where nobody has asked the kernel.
    pub(super) fn look(
        &mut self,
        wants: impl Fn(&MappingBook) -> bool,
        has_skipped: Option<bool>,
    ) -> Result<(), RecordError> {
        let wanting = self.roster.alive().filter(|member| wants(&member.mappings));
        let wanting = wanting.map(|member| member.tgid.get());
        let wanting: Vec<u32> = wanting.collect();
        for tgid in wanting {
            self.drain_events()?;
            if let Some(member) = self.roster.get_mut(tgid) {
                member.mappings.begin_look();
            }
            // A process that has just ended says nothing: what it had mapped stays in the book.
            let entries = maps::read(tgid).unwrap_or_default();
            self.drain_events()?;
            if let Some(member) = self.roster.get_mut(tgid) {
                member.mappings.reconcile(&entries, has_skipped);
            }
        }
        Ok(())
    }
}
