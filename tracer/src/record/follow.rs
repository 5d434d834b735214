//! Processes join and leave a recording: fork, exec, exit, control groups.

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use super::{
    RecordError,
    clock::{monotonic_ns, nanoseconds},
    link::{Links, Probe},
    load::Purpose,
    mapping::{MappingBook, read_break},
    member::{Member, Program},
    probe::probes_of,
    process_code::ProcessCode,
    roster::Roster,
    session::Session,
};
use crate::{
    attach::{
        AttachError,
        absence::Absence,
        discover, preflight,
        target::{self, TargetProcess},
    },
    model::{Allocator, AllocatorId, Lens, Process, ProcessEnd, ProcessId, Target},
    symbolize::PerfMapSource,
};

/// A process whose dynamic linker has mapped no allocator for longer than this does without one.
const LONGEST_START: Duration = Duration::from_secs(10);

/// A process that was asked for.
pub(super) fn root(
    process: TargetProcess,
    roster: &mut Roster,
    hints: &mut BTreeSet<String>,
) -> Result<Member, RecordError> {
    let tgid = NonZeroU32::new(process.target.tgid).ok_or(AttachError::NoProcess { tgid: 0 })?;
    let row = roster.next_row();
    Ok(Member { is_root: true, ..member(tgid, process, row, 0, hints) })
}

fn member(
    tgid: NonZeroU32,
    process: TargetProcess,
    row: ProcessId,
    epoch: u32,
    hints: &mut BTreeSet<String>,
) -> Member {
    Member {
        tgid,
        is_root: false,
        programs: vec![program(process.target, process.uid, row, epoch, hints)],
        code: ProcessCode::new(tgid, epoch),
        began: Instant::now(),
        mappings: MappingBook::default(),
        regions: None,
        absence: None,
        links: Links::default(),
        is_dirty: true,
        exit: Some(process.exit),
    }
}

fn program(
    target: Target,
    uid: u32,
    id: ProcessId,
    first_epoch: u32,
    hints: &mut BTreeSet<String>,
) -> Program {
    let inner_tgid = target.inner_tgid.unwrap_or(target.tgid);
    let perf_map = match PerfMapSource::open(target.tgid, inner_tgid, uid) {
        Ok(source) => Some(source),
        Err(error) => {
            // Of a process that has gone meanwhile nothing is expected.
            if std::path::Path::new(&format!("/proc/{}/exe", target.tgid)).exists() {
                hints.insert(format!("no names from the perf map: {error}"));
            }
            None
        }
    };
    Program { id, first_epoch, target, perf_map }
}

fn describe(allocator: &discover::Allocator) -> Allocator {
    Allocator {
        id: AllocatorId(u32::from(allocator.number)),
        name: allocator.name.to_owned(),
        prefix: allocator.prefix().to_owned(),
        path: allocator.file.path().to_owned(),
        build_id: allocator.file.build_id().map(str::to_owned),
    }
}

/// The row of what a process runs now.
pub(super) fn row(member: &Member, parent: Option<ProcessId>, start_ns: u64) -> Process {
    let program = member.program();
    Process { id: program.id, parent, target: program.target.clone(), start_ns }
}

impl Session {
    /// Brings the kernel's tables and the probes of all processes up to what is mapped now. Returns the number of
    /// probes that were added.
    ///
    /// # Errors
    /// Everything that can stand in the way; a process that has exited meanwhile is one of them.
    pub fn synchronize(&mut self) -> Result<usize, RecordError> {
        self.look_around()?;
        let all: Vec<NonZeroU32> = self.roster.alive().map(|member| member.tgid).collect();
        let added = all
            .into_iter()
            .try_fold(0, |sum, tgid| Ok::<_, RecordError>(sum + self.synchronize_one(tgid)?))?;
        // After the probes: what maps inside an allocator call is to be known as such.
        self.follow_mappings();
        self.follow_faults()?;
        Ok(added)
    }

    /// Notes what may go wrong with the processes that were asked for. Once, before any probe is placed: afterwards a
    /// breakpoint may be our own.
    fn look_around(&mut self) -> Result<(), RecordError> {
        for (tgid, facts) in std::mem::take(&mut self.unexamined) {
            let allocators = match self.options.lenses.contains(&Lens::Malloc) {
                true => self.discoverer.discover(tgid.get())?,
                false => Vec::new(),
            };
            let others = preflight::foreign_breakpoints(tgid.get(), &allocators);
            let findings = preflight::findings(tgid.get(), facts, false, others);
            let notable = findings.into_iter().filter(|finding| finding.is_notable);
            self.hints.extend(notable.map(|finding| finding.text));
        }
        Ok(())
    }

    /// The same for one process. Tables come before probes.
    pub(super) fn synchronize_one(&mut self, tgid: NonZeroU32) -> Result<usize, RecordError> {
        let Some(member) = self.roster.get_mut(tgid.get()) else { return Ok(0) };
        member.is_dirty = false;
        let changed = member.code.survey(&mut self.store)?;
        // Without a free chunk for the new set the old one stays until those of replaced sets come back.
        let is_published = member.code.publish(&mut self.store, &mut self.programs)?;
        member.is_dirty |= !is_published;
        for object in self.store.take_new_objects() {
            self.writer.add_object(&object)?;
        }
        self.hints.extend(self.store.take_problems());
        if !member.mappings.knows_break()
            && let Some(address) = read_break(tgid.get())
        {
            member.mappings.set_break(address);
        }
        let mut added = 0;
        if self.options.lenses.contains(&Lens::Malloc) && (changed || member.links.is_empty()) {
            added = self.place_probes(tgid)?;
            let Some(member) = self.roster.get_mut(tgid.get()) else { return Ok(added) };
            let runtime = member.program().target.runtime.as_ref();
            let is_go = runtime.is_some_and(|runtime| runtime.name == "go");
            // Of a process that was about to exit nothing was found, and nothing can be said.
            let is_there = || crate::attach::maps::read(tgid.get()).is_ok_and(|entries| !entries.is_empty());
            let is_absent = member.links.is_empty() && is_there();
            member.absence = is_absent.then(|| self.discoverer.absence(is_go));
        }
        if changed && is_published {
            log::info!("followed the code of process {tgid}");
        }
        if added > 0 {
            log::info!("placed {added} probes in process {tgid}");
        }
        self.adapt_pause(changed && is_published);
        Ok(added)
    }

    /// Finds the allocators of a process, and places the probes that are to be there and are not. Returns how many.
    fn place_probes(&mut self, tgid: NonZeroU32) -> Result<usize, RecordError> {
        let allocators = self.discoverer.discover(tgid.get())?;
        for allocator in &allocators {
            if self.allocators.insert(allocator.number, allocator.name).is_none() {
                self.writer.add_allocator(&describe(allocator))?;
                self.steps.add(allocator);
            }
        }
        let Some(member) = self.roster.get_mut(tgid.get()) else { return Ok(0) };
        let is_wanted = |probe: &Probe<'_>| self.windows_are_open || probe.stays();
        let probes: Vec<_> =
            allocators.iter().flat_map(|allocator| probes_of(allocator)).filter(is_wanted).collect();
        member.links.place(&mut self.programs, Purpose::Trace, tgid, &probes)
    }

    /// Places the probes of allocations again, in every process.
    pub(super) fn place_allocations(&mut self) -> Result<(), RecordError> {
        let all: Vec<NonZeroU32> = self.roster.alive().map(|member| member.tgid).collect();
        for tgid in all {
            match self.place_probes(tgid) {
                Ok(_) => {}
                // The exit is seen by the loop.
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Refuses to go on if nothing at all can be seen: no allocator, and no mappings either.
    ///
    /// # Errors
    /// [`AttachError::NoAllocator`].
    pub fn require_probes(&mut self) -> Result<(), RecordError> {
        if self.follows_mappings() || self.faults.is_some() || self.probe_count() > 0 {
            return Ok(());
        }
        let Some(member) = self.roster.alive().next() else { return Ok(()) };
        let Some(absence) = member.absence else { return Ok(()) };
        Err(RecordError::Discover(AttachError::NoAllocator {
            tgid: member.tgid.get(),
            comm: member.program().target.comm.clone(),
            hint: absence.hint(),
        }))
    }

    /// Follows to a child, whose mapping set the kernel has copied. False if it is not recorded.
    pub(super) fn follow(
        &mut self,
        (tgid, parent): (u32, u32),
        epoch: u32,
        has_executed: bool,
    ) -> Result<bool, RecordError> {
        let Some(number) = NonZeroU32::new(tgid) else { return Ok(false) };
        if self.roster.contains(tgid) {
            return Ok(false);
        }
        let parent = self.roster.find(parent).map(|member| member.program());
        let is_over = self.roster.len() >= self.options.max_processes as usize;
        let (Some(parent), true, false) = (parent, self.options.follow, is_over) else {
            self.losses.unfollowed += u64::from(is_over && self.options.follow);
            self.forget(tgid)?;
            return Ok(false);
        };
        let parent_row = parent.id;
        let examined =
            if has_executed { target::examine(tgid) } else { target::examine_child(tgid, &parent.target) };
        // One that the kernel would kill is left alone.
        let examined = examined.and_then(|process| {
            preflight::require_survival(tgid, process.facts)?;
            Ok(process)
        });
        let Ok(process) = examined else {
            self.losses.short_lived += 1;
            self.forget(tgid)?;
            return Ok(false);
        };
        let id = self.roster.next_row();
        let member = member(number, process, id, epoch, &mut self.hints);
        self.enter(member, Some(parent_row))?;
        log::info!("process {tgid} is a child of one that is recorded");
        if has_executed {
            log::info!("process {tgid} runs another program");
        }
        Ok(true)
    }

    fn enter(&mut self, member: Member, parent: Option<ProcessId>) -> Result<(), RecordError> {
        let elapsed_ns = nanoseconds(self.started.elapsed());
        self.writer.add_process(&row(&member, parent, elapsed_ns))?;
        let failed = |source| RecordError::System { operation: "watch for exits", source };
        self.roster.add(member).map_err(failed)
    }

    /// Processes that have joined the control group or container are recorded too.
    pub(super) fn join_scope(&mut self) -> Result<(), RecordError> {
        let Some(scope) = self.options.scope.clone() else { return Ok(()) };
        for tgid in scope.members()? {
            if self.roster.contains(tgid) {
                continue;
            }
            if self.roster.len() >= self.options.max_processes as usize {
                self.losses.unfollowed += 1;
                break;
            }
            let Ok(process) = target::examine(tgid) else { continue };
            if preflight::require_survival(tgid, process.facts).is_err() {
                self.losses.unfollowed += 1;
                continue;
            }
            let member = root(process, &mut self.roster, &mut self.hints)?;
            let number = member.tgid;
            self.enter(member, None)?;
            match self.synchronize_one(number) {
                Ok(_) => {}
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Exec ends all records of a process; what it runs now gets a row of its own.
    pub(super) fn next_program_of(&mut self, tgid: u32, time_ns: u64) -> Result<(), RecordError> {
        self.ends.executed(tgid, time_ns);
        let Some(member) = self.roster.get_mut(tgid) else { return Ok(()) };
        member.code.next_program();
        member.mappings.end_program();
        member.is_dirty = true;
        let (old, epoch) = (member.program().id, member.code.space().epoch());
        // Gone or refused: what was recorded stays, the exit is seen by the loop.
        let Ok(process) = target::examine(tgid) else { return Ok(()) };
        self.write_end(old, ProcessEnd::Executed)?;
        let id = self.roster.next_row();
        let program = program(process.target, process.uid, id, epoch, &mut self.hints);
        let Some(member) = self.roster.get_mut(tgid) else { return Ok(()) };
        member.programs.push(program);
        member.began = Instant::now();
        log::info!("process {tgid} runs another program");
        let row = row(member, Some(old), nanoseconds(self.started.elapsed()));
        Ok(self.writer.add_process(&row)?)
    }

    /// The process has executed another program before the recording began: nothing of the old one counts.
    ///
    /// # Errors
    /// Writing the capture.
    pub fn next_program(&mut self, process: &TargetProcess) -> Result<(), RecordError> {
        let Some(member) = self.roster.get_mut(process.target.tgid) else { return Ok(()) };
        member.code.next_program();
        let epoch = member.code.space().epoch();
        let id = member.program().id;
        let program = program(process.target.clone(), process.uid, id, epoch, &mut self.hints);
        let Some(member) = self.roster.get_mut(process.target.tgid) else { return Ok(()) };
        member.programs = vec![program];
        let row = row(member, None, 0);
        Ok(self.writer.add_process(&row)?)
    }

    /// Those that have exited leave. What they had not freed stays booked.
    pub(super) fn end_processes(&mut self) -> Result<(), RecordError> {
        let failed = |source| RecordError::System { operation: "wait for the target", source };
        loop {
            let exited = self.roster.exited().map_err(failed)?;
            if exited.is_empty() {
                return Ok(());
            }
            self.drain_events()?;
            self.drain_watches();
            for tgid in exited {
                self.end_faults(tgid)?;
                if self.roster.get_mut(tgid).is_some_and(|member| member.is_dirty) {
                    self.doubt_absence(tgid);
                }
                let Some(member) = self.roster.end(tgid) else { continue };
                member.code.end(&mut self.store);
                let links = std::mem::take(&mut member.links);
                let row = member.program().id;
                // Closing a probe takes the kernel some tenths of a second: not on this thread.
                self.retired_links.push(std::thread::spawn(move || drop(links)));
                self.ends.exited(tgid, monotonic_ns());
                self.forget(tgid)?;
                self.write_end(row, ProcessEnd::Exited)?;
                log::info!("process {tgid} has exited");
            }
            self.retired_links.retain(|thread| !thread.is_finished());
        }
    }

    /// A process has ended with code that was never looked at, the C library perhaps, which is loaded only after an exec: that no
    /// allocator was found in what was there before says nothing.
    pub(super) fn doubt_absence(&mut self, tgid: u32) {
        let member = self.roster.get_mut(tgid);
        if member.is_some_and(|member| member.absence.take().is_some()) {
            self.losses.short_lived += 1;
        }
    }

    /// The same of children that have only just executed a program when the recording ends.
    pub(super) fn doubt_starting(&mut self, stopped: Instant) {
        let is_starting = |member: &&Member| {
            !member.is_root
                // Libraries are mapped one after the other, the C library perhaps as the last one.
                && matches!(member.absence, Some(Absence::Starting | Absence::Nothing))
                && stopped.saturating_duration_since(member.began) < LONGEST_START
        };
        let starting: Vec<u32> =
            self.roster.alive().filter(is_starting).map(|member| member.tgid.get()).collect();
        starting.into_iter().for_each(|tgid| self.doubt_absence(tgid));
    }

    /// Takes a process out of the kernel's maps.
    fn forget(&mut self, tgid: u32) -> Result<(), RecordError> {
        // What is not there need not be removed.
        let _ = self.programs.execs.remove(&tgid);
        self.programs.remove_process(tgid)
    }
}
