//! Looks at where the memory of the recorded processes lies, now and then.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::RecordError;
use crate::{
    capture::CaptureWriter,
    ledger::{Depth, LedgerReader, limit},
    model::ProcessId,
};

/// Shortest time between two looks: a trend wants a dozen of them, also in a short recording.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// The longer it has run, the rarer they are, by this part of the time: an hour has 300 and not 3,600.
const AGE_PAUSES: u32 = 60;
/// A look may take one part of so many of the time: it is CPU that the machine's owner did not ask to be spent.
const COST_PAUSES: u32 = 100;
/// Time after which no further process is looked at: events wait meanwhile. Those that are left out come first the
/// next time.
const MAX_LOOK: Duration = Duration::from_millis(200);

/// Time after which the heaps of no further process are looked into.
const MAX_HEAPS: Duration = Duration::from_secs(5);

/// The readers of all programs, and when they are asked next.
#[derive(Debug, Default)]
pub(super) struct MemoryLooks {
    readers: BTreeMap<ProcessId, LedgerReader>,
    next: Duration,
    /// Where the last look stopped.
    first: usize,
}

impl MemoryLooks {
    /// Whether a look is due. The first always is.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// Looks at the programs that run in these processes. One that cannot be read has no ledger.
    ///
    /// # Errors
    /// [`RecordError::Capture`].
    pub(super) fn look(
        &mut self,
        running: &[(u32, ProcessId)],
        now: Duration,
        writer: &mut CaptureWriter,
    ) -> Result<(), RecordError> {
        let begin = Instant::now();
        let elapsed_ns = super::clock::nanoseconds(now);
        self.readers.retain(|program, _| running.iter().any(|(_, id)| id == program));
        let first = if running.is_empty() { 0 } else { self.first % running.len() };
        let (later, sooner) = running.split_at(first);
        for (tgid, program) in sooner.iter().chain(later) {
            if begin.elapsed() > MAX_LOOK {
                break;
            }
            self.first = self.first.wrapping_add(1);
            let reader = self.readers.entry(*program).or_insert_with(|| LedgerReader::new(*tgid));
            if let Ok(reading) = reader.read(*program, elapsed_ns, Depth::Ranges) {
                writer.add_ledger(&reading.ledger)?;
                for figure in &reading.figures {
                    writer.add_figure(figure)?;
                }
            }
            if let Some(limit) = limit::of_process(*tgid, &limit::read_file) {
                writer.add_limit(&limit.for_process(*program, elapsed_ns))?;
            }
        }
        let pause = MIN_PAUSE.max(now / AGE_PAUSES);
        self.next = now + pause.max(begin.elapsed().saturating_mul(COST_PAUSES));
        Ok(())
    }

    /// Looks into the heaps, for what is free inside of the allocator: seconds for gigabytes, so only once, when no
    /// probe is left and no event waits.
    ///
    /// # Errors
    /// [`RecordError::Capture`].
    pub(super) fn look_into_heaps(
        &mut self,
        running: &[(u32, ProcessId)],
        now: Duration,
        writer: &mut CaptureWriter,
    ) -> Result<(), RecordError> {
        let elapsed_ns = super::clock::nanoseconds(now);
        let begin = Instant::now();
        for (tgid, program) in running {
            if begin.elapsed() > MAX_HEAPS {
                break;
            }
            let reader = self.readers.entry(*program).or_insert_with(|| LedgerReader::new(*tgid));
            let Ok(reading) = reader.read(*program, elapsed_ns, Depth::Heaps) else { continue };
            for figure in reading.figures.iter().chain(&reading.slack_figure()) {
                writer.add_figure(figure)?;
            }
        }
        Ok(())
    }
}
