//! The series of a recording: one line of each at every tick, with the losses and the cost so far.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use tracer_common::abi::{Loss, SiteCounters, Tally};

use super::{
    RecordError,
    clock::nanoseconds,
    fault::FaultLens,
    load::Purpose,
    losses::{self, OwnLosses},
    mapping::MappingBook,
    options::Progress,
    rss,
    session::Session,
};
use crate::{attach::absence::Absence, model::ProcessId};

impl Session {
    /// One line of every series.
    pub(super) fn sample(&mut self, elapsed: Duration, is_last: bool) -> Result<(), RecordError> {
        let begun = Instant::now();
        self.drain_events()?;
        self.look_at_mappings(MappingBook::wants_look)?;
        if self.faults.as_ref().is_some_and(FaultLens::is_attached) {
            self.look_at_faults(false)?;
        }
        self.poll_perf_maps();
        self.ends.purge(&self.programs.blocks, &mut self.ended, &mut self.ages)?;
        let elapsed_ns = nanoseconds(elapsed);
        self.progress = Progress {
            elapsed,
            processes: u32::try_from(self.roster.len()).unwrap_or(u32::MAX),
            sites: self.programs.site_count()?.min(self.options.limits.max_sites - 1),
            rss_bytes: self.progress.rss_bytes,
            ..Progress::default()
        };
        let mapped: HashMap<u32, SiteCounters> =
            self.roster.all().flat_map(|member| member.mappings.sites()).collect();
        let touched = self.faults.as_ref().map(FaultLens::counters).unwrap_or_default();
        let weighing = self.options.weighing();
        let mut changed = Vec::new();
        for site in 0..=self.progress.sites {
            let Some(now) = self.programs.sites.get(site) else { break };
            let mut now = weighing.counters(now);
            if let Some(ended) = self.ended.get(&site) {
                now.freed_bytes = now.freed_bytes.saturating_add(ended.bytes);
                now.freed_count = now.freed_count.saturating_add(ended.count());
            }
            self.progress.outstanding_bytes += now.allocated_bytes.saturating_sub(now.freed_bytes);
            self.progress.outstanding_count += now.allocated_count.saturating_sub(now.freed_count);
            if let Some(mapped) = mapped.get(&site) {
                now = *mapped;
            }
            if let Some(touched) = touched.get(&site) {
                // That of lost stacks belongs to all lenses.
                now.allocated_bytes += touched.allocated_bytes;
                now.allocated_count += touched.allocated_count;
                now.freed_bytes += touched.freed_bytes;
                now.freed_count += touched.freed_count;
            }
            let last = &mut self.last[site as usize];
            if *last != now {
                *last = now;
                changed.push((site, now));
            }
        }
        self.writer.add_samples(elapsed_ns, &changed)?;
        if !is_last {
            self.look_at_memory(elapsed, false)?;
        }
        let mut tallies = self.programs.tallies()?;
        // What was not sampled cannot be told from it: it is not known, and not 0.
        tallies.retain(|(loss, _)| *loss != Loss::UnknownRelease || !weighing.is_estimate());
        let losses = losses::rows(&tallies, &self.own_losses()?);
        self.progress.lost = losses.iter().filter(|loss| loss.is_incomplete).map(|loss| loss.count).sum();
        self.writer.set_losses(&losses)?;
        let account = self.account()?;
        let hits = account.map_or_else(|| self.probe_hits(&tallies), |account| account.cost.hits);
        self.writer.set_overhead(hits, account.map(|account| account.cost.programs_ns as u64))?;
        if let Some(account) = account {
            self.writer.set_budget(&account.into())?;
        }
        self.writer.commit()?;
        let sites = self.progress.sites;
        log::debug!("snapshot of {sites} sites, {} changed: {:?}", changed.len(), begun.elapsed());
        Ok(())
    }

    /// Names frames of code that was made at run time while the map still says what they were.
    pub(super) fn poll_perf_maps(&mut self) {
        for program in self.roster.alive_mut().filter_map(|member| member.programs.last_mut()) {
            // What cannot be read now is tried again, and told of at the end.
            let _ = program.perf_map.as_mut().map(crate::symbolize::PerfMapSource::poll);
        }
    }

    /// Resident memory, and where it lies if that is due.
    pub(super) fn look_at_memory(&mut self, elapsed: Duration, is_last: bool) -> Result<(), RecordError> {
        self.progress.rss_bytes = None;
        self.sample_rss(nanoseconds(elapsed))?;
        if is_last || self.memory_looks.is_due(elapsed) {
            let running = self.running();
            self.memory_looks.look(&running, elapsed, &mut self.writer)?;
        }
        Ok(())
    }

    /// Programs that run, with their processes.
    pub(super) fn running(&self) -> Vec<(u32, ProcessId)> {
        self.roster.alive().map(|member| (member.tgid.get(), member.program().id)).collect()
    }

    pub(super) fn own_losses(&self) -> Result<OwnLosses, RecordError> {
        let mut own = self.losses;
        own.skipped_runs = self.programs.skipped_runs(Purpose::Trace)?;
        own.faults = self.fault_losses()?;
        for member in self.roster.all() {
            own.mappings.add(&member.mappings.tallies());
            // Go's own memory comes from mappings only.
            own.without_allocator += u64::from(member.absence.is_some_and(|why| why != Absence::Go));
        }
        Ok(own)
    }

    pub(super) fn probe_hits(&self, tallies: &[(Loss, Tally)]) -> u64 {
        let mut mapped: HashSet<u32> =
            self.roster.all().flat_map(|member| member.mappings.sites().map(|(site, _)| site)).collect();
        mapped.extend(self.faults.iter().flat_map(|lens| lens.counters().into_keys()));
        let calls =
            self.last.iter().zip(0..).filter(|(_, site)| !mapped.contains(site)).map(|(last, _)| last);
        losses::probe_hits(tallies, calls)
    }

    pub(super) fn sample_rss(&mut self, elapsed_ns: u64) -> Result<(), RecordError> {
        for member in self.roster.alive() {
            let tgid = member.tgid.get();
            if let Some(sample) = rss::sample(tgid, member.program().id, elapsed_ns) {
                self.writer.add_rss(&sample)?;
                *self.progress.rss_bytes.get_or_insert(0) += sample.rss_bytes;
                self.first_rss.entry(tgid).or_insert(sample.rss_bytes);
            }
        }
        Ok(())
    }
}
