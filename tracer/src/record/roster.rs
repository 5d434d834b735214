//! The processes of a recording: those that live, and those that have ended.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use super::{address_space::AddressSpace, exit_watch::ExitWatch, member::Member};
use crate::model::{Frame, FrameKind, ProcessId};

/// All processes.
pub struct Roster {
    alive: BTreeMap<u32, Member>,
    ended: Vec<Member>,
    exits: ExitWatch,
    rows: u32,
}

impl Roster {
    /// Nobody yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { alive: BTreeMap::new(), ended: Vec::new(), exits: ExitWatch::new()?, rows: 0 })
    }

    /// The next row of the capture.
    pub fn next_row(&mut self) -> ProcessId {
        let row = ProcessId(self.rows);
        self.rows += 1;
        row
    }

    /// Adds a process, and watches for its exit.
    pub fn add(&mut self, member: Member) -> io::Result<()> {
        if let Some(exit) = &member.exit {
            self.exits.add(member.tgid.get(), exit.as_fd())?;
        }
        self.alive.insert(member.tgid.get(), member);
        Ok(())
    }

    /// Moves a process to those that have ended, and gives it for its last rites.
    pub fn end(&mut self, tgid: u32) -> Option<&mut Member> {
        let mut member = self.alive.remove(&tgid)?;
        // The exit watch forgets it with that.
        member.exit = None;
        self.ended.push(member);
        self.ended.last_mut()
    }

    /// Readable when a process has exited.
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.exits.as_fd()
    }

    /// Those that live in the books and have exited.
    pub fn exited(&self) -> io::Result<Vec<u32>> {
        self.exits.exited()
    }

    /// Processes that live.
    pub fn len(&self) -> usize {
        self.alive.len()
    }

    /// Whether one of those that were asked for lives.
    pub fn has_root(&self) -> bool {
        self.alive.values().any(|member| member.is_root)
    }

    /// Whether the process is recorded now.
    pub fn contains(&self, tgid: u32) -> bool {
        self.alive.contains_key(&tgid)
    }

    /// A process that lives.
    pub fn get_mut(&mut self, tgid: u32) -> Option<&mut Member> {
        self.alive.get_mut(&tgid)
    }

    /// A process that lives, or the last one of that number that did.
    pub fn find(&self, tgid: u32) -> Option<&Member> {
        self.alive.get(&tgid).or_else(|| self.ended.iter().rev().find(|member| member.tgid.get() == tgid))
    }

    /// Tells the perf map of a program of frames in code that was made at run time.
    pub fn announce(&mut self, row: ProcessId, frames: &[Frame]) {
        if frames.iter().all(|frame| frame.kind != FrameKind::Jit) {
            return;
        }
        let programs = self.alive.values_mut().flat_map(|member| &mut member.programs);
        if let Some(map) =
            programs.filter(|program| program.id == row).find_map(|program| program.perf_map.as_mut())
        {
            frames
                .iter()
                .filter(|frame| frame.kind == FrameKind::Jit)
                .for_each(|frame| map.seen(frame.address));
        }
    }

    /// What addresses mean in the memory of a row of the capture.
    pub fn space_of(&self, row: ProcessId) -> Option<&AddressSpace> {
        let has_row = |member: &&Member| member.programs.iter().any(|program| program.id == row);
        self.alive.values().chain(&self.ended).find(has_row).map(|member| member.code.space())
    }

    /// Those that live, by process id.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.alive.values()
    }

    /// The same, to be changed.
    pub fn alive_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.alive.values_mut()
    }

    /// All, those that have ended first.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.ended.iter().chain(self.alive.values())
    }

    /// The same, to be changed.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.ended.iter_mut().chain(self.alive.values_mut())
    }
}
