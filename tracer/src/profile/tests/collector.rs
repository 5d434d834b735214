//! What a garbage collector frees, with and without one at work.

use super::super::{ProcessKind, SiteKind};
use super::*;

const SECONDS: u64 = 30;

/// A buffer of 1000 bytes is made every second, below `function`; a collector allocates at the given seconds.
fn buffers(function: &str, collections: &[u64], freed_count: u64) -> Profile {
    let mut recording = Recording::new();
    let object = recording.object("/usr/bin/node", Some("ee55"));
    let maker = recording.frame(object, 0x100, at(function, "buffer.cc", 1));
    let main = recording.frame(object, 0x200, at("main", "main.cc", 2));
    let collect = recording.frame(
        object,
        0x300,
        at("v8::internal::Heap::CollectGarbage(v8::internal::AllocationSpace)", "heap.cc", 3),
    );
    recording.stack(1, StackEnd::ThreadStart, &[maker, main]);
    recording.stack(2, StackEnd::ThreadStart, &[collect, main]);
    for second in 0..=SECONDS {
        let collected = collections.iter().filter(|at| **at <= second).count() as u64;
        let samples =
            [(1, blocks(1000, second, freed_count.min(second))), (2, blocks(8, collected, collected))];
        recording.tick(second, &samples, 50 * MIB + second * 1000);
    }
    recording.finish = Some((crate::model::EndReason::Duration, SECONDS * 1_000_000_000));
    profile(&recording, Filter::default())
}

fn kind(profile: &Profile) -> (SiteKind, bool) {
    let verdict = profile.sites[0].verdict.as_ref().unwrap();
    (verdict.kind, verdict.awaits_collection)
}

#[test]
fn garbage_is_no_leak_before_the_collector_has_run() {
    const STORE: &str = "node::NodeArrayBufferAllocator::Allocate(unsigned long)";
    let without = buffers(STORE, &[], 0);
    assert_eq!(kind(&without), (SiteKind::Undetermined, true));
    assert_ne!(without.verdicts[0].kind, ProcessKind::NativeLeak);
    assert_eq!(kind(&buffers(STORE, &[3], 0)), (SiteKind::Undetermined, true), "too long ago");
    let with = buffers(STORE, &[3, 20], 0);
    assert_eq!(kind(&with), (SiteKind::Leak, false));
    assert_eq!(with.verdicts[0].kind, ProcessKind::NativeLeak);
    assert_eq!(kind(&buffers("addon_leak(unsigned long)", &[], 0)), (SiteKind::Leak, false));
}
