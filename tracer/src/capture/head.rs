//! Reads what describes a recording: header, processes, allocators, and what the memory of sites is.

use std::collections::HashMap;

use rusqlite::Row;

use super::Header;
use super::read::{Ended, Loader, MAX_HEAD_ROWS, MAX_ROWS, ProcessRow};
use super::row::{id, nullable, text, unsigned};
use crate::model::{
    Allocator, AllocatorId, MemoryClass, Process, ProcessEnd, ProcessId, Runtime, SiteClass, Target,
};

/// Most processes of a recording.
const MAX_PROCESSES: usize = 100_000;
/// Most arguments of one process.
const MAX_ARGUMENTS: usize = 10_000;

/// What describes a recording.
pub(super) struct Head {
    pub header: Header,
    /// Never empty; the first is the header's target.
    pub processes: Vec<ProcessRow>,
    pub allocators: Vec<Allocator>,
}

impl Loader<'_> {
    /// `None` for a file without a header or a process.
    pub(super) fn head(&mut self) -> rusqlite::Result<Option<Head>> {
        let processes = self.processes()?;
        let allocators = self.allocators()?;
        let settings =
            self.all("SELECT name, value FROM setting ORDER BY position", MAX_HEAD_ROWS, |row| {
                Some((text(row, 0)?, text(row, 1)?))
            })?;
        let Some(first) = processes.first() else { return Ok(None) };
        let target = first.process.target.clone();
        let header = self.first(
            "SELECT start_realtime_ns, interval_ns, kernel_release, offheap_version, machine FROM recording",
            |row| {
                Some(Header {
                    target: target.clone(),
                    start_realtime_ns: unsigned(row, 0)?,
                    interval_ns: unsigned(row, 1)?,
                    settings: settings.clone(),
                    kernel_release: text(row, 2)?,
                    offheap_version: text(row, 3)?,
                    machine: text(row, 4)?,
                })
            },
        )?;
        Ok(header.map(|header| Head { header, processes, allocators }))
    }

    fn processes(&mut self) -> rusqlite::Result<Vec<ProcessRow>> {
        let mut rows: Vec<ProcessRow> = Vec::new();
        self.each(self.queries.processes, MAX_PROCESSES, |row| {
            let process = process(row)?;
            // Of version 1, a second target.
            if rows.last().is_some_and(|last| last.process.id >= process.id) {
                return None;
            }
            let (end_ns, how) = (nullable(row, 9, unsigned), nullable(row, 10, text));
            let ended = match (end_ns, how) {
                (Some(None), Some(None)) => Some(None),
                (Some(Some(elapsed_ns)), Some(Some(how))) => {
                    ProcessEnd::from_name(&how).map(|how| Some(Ended { how, elapsed_ns }))
                }
                _ => None,
            };
            rows.push(ProcessRow { process, ended: ended.flatten() });
            // The process stands, an end that makes no sense does not.
            ended.map(|_| ())
        })?;
        self.each(self.queries.arguments, MAX_ROWS, |row| {
            let process = ProcessId(id(row, 0)?);
            let index = rows.binary_search_by_key(&process, |row| row.process.id).ok()?;
            let cmdline = &mut rows.get_mut(index)?.process.target.cmdline;
            if cmdline.len() == MAX_ARGUMENTS {
                return None;
            }
            cmdline.push(text(row, 1)?);
            Some(())
        })?;
        self.check_parents(&mut rows);
        Ok(rows)
    }

    /// The processes stand, references to nobody or to oneself do not.
    fn check_parents(&mut self, rows: &mut [ProcessRow]) {
        let ids: Vec<ProcessId> = rows.iter().map(|row| row.process.id).collect();
        for row in rows {
            let is_known =
                |parent: &ProcessId| *parent != row.process.id && ids.binary_search(parent).is_ok();
            let known = row.process.parent.filter(is_known);
            if known != row.process.parent {
                row.process.parent = known;
                self.skipped_rows = self.skipped_rows.saturating_add(1);
            }
        }
    }

    fn allocators(&mut self) -> rusqlite::Result<Vec<Allocator>> {
        let Some(sql) = self.queries.allocators else { return Ok(Vec::new()) };
        self.all(sql, MAX_HEAD_ROWS, |row| {
            Some(Allocator {
                id: AllocatorId(id(row, 0)?),
                name: text(row, 1)?,
                prefix: text(row, 2)?,
                path: text(row, 3)?,
                build_id: nullable(row, 4, text)?,
            })
        })
    }

    pub(super) fn classes(&mut self) -> rusqlite::Result<HashMap<u32, SiteClass>> {
        let mut classes = HashMap::new();
        let Some(sql) = self.queries.classes else { return Ok(classes) };
        self.each(sql, MAX_ROWS, |row| {
            let site = id(row, 0)?;
            let class = MemoryClass::from_name(&text(row, 1)?)?;
            classes.insert(site, SiteClass { site, class, label: nullable(row, 2, text)? });
            Some(())
        })?;
        Ok(classes)
    }
}

fn process(row: &Row<'_>) -> Option<Process> {
    let version = nullable(row, 7, text)?;
    let target = Target {
        tgid: id(row, 2)?,
        inner_tgid: nullable(row, 3, id)?,
        comm: text(row, 4)?,
        cmdline: Vec::new(),
        exe: nullable(row, 5, text)?,
        runtime: nullable(row, 6, text)?.map(|name| Runtime { name, version }),
    };
    let parent = nullable(row, 1, id)?.map(ProcessId);
    Some(Process { id: ProcessId(id(row, 0)?), parent, target, start_ns: unsigned(row, 8)? })
}
