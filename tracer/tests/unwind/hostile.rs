//! Files that lie. The only demands: no panic, and an answer in bounded time.

use std::time::{Duration, Instant};

use offheap::unwind::UnwindError;
use offheap::unwind::reference::FileCfi;
use offheap::unwind::store::TableStore;
use offheap::unwind::table::FileTable;
use proptest::prelude::*;

use super::elf_file::*;
use super::libraries::ROOMY;
use super::own_file;

const KINDS: [Found; 4] = [
    Found::ByEhFrameSection,
    Found::ByEhFrameHeader,
    Found::ByDebugFrameSection,
    Found::ByCompressedDebugFrameSection,
];

fn sample(found: Found) -> Vec<u8> {
    let expression = cfa_expression(&[0x76, 0x78, 0x06]);
    let functions = [
        Function::new(0x1000, 0x40, &[&[ADVANCE_16][..], &expression, &saved_at(6, &[0x76, 0])].concat()),
        Function::new(0x1040, 0x400, &[ADVANCE_16, 0x0a, 0x0e, 32, ADVANCE_16, 0x0b]),
        Function { is_signal: true, ..Function::new(0x2000, 0x10, &[]) },
    ];
    file(&functions, BASE + 0x3000, found)
}

/// Builds everything that can be built from the file.
fn digest(data: &[u8]) {
    let start = Instant::now();
    if let Ok(table) = FileTable::from_elf(data) {
        let mut store = TableStore::new(ROOMY);
        if let Ok(placed) = store.add((), &table) {
            for start in table.rules().iter().take(100) {
                store.lookup(placed.page_base, start.address.wrapping_sub(1));
            }
        }
        table.bias_of(0x7000_0000_0000, 0);
        table.covered_end(u64::MAX, 1);
    }
    let _ = FileCfi::from_elf(data);
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
}

#[test]
fn truncated_anywhere() {
    for found in KINDS {
        let data = sample(found);
        for len in 0..data.len() {
            digest(&data[..len]);
        }
    }
}

#[test]
fn a_real_file_truncated_at_every_boundary() {
    let data = std::fs::read(own_file("ld-linux")).unwrap();
    let sections = u64::from_le_bytes(data[40..48].try_into().unwrap()) as usize;
    let mut boundaries: Vec<usize> = (0..=64).chain((64..64 + 56 * 12).step_by(8)).collect();
    for section in data[sections..].chunks_exact(64) {
        let word = |at: usize| u64::from_le_bytes(section[at..at + 8].try_into().unwrap()) as usize;
        boundaries.extend([word(24), word(24).saturating_add(word(32))]);
    }
    for boundary in boundaries {
        for len in [boundary.saturating_sub(1), boundary, boundary + 1] {
            digest(&data[..len.min(data.len())]);
        }
    }
}

/// A file whose one long FDE is interrupted by `count` others.
fn many_over_one_long(count: u64) -> Vec<u8> {
    let long = [0x0a, 0x0b].repeat(200_000);
    let outer = Function::new(0x1000, MEMORY_BYTES - 0x1000, &long);
    let inner = (0..count).map(|i| Function::new(0x1010 + i * 32, 16, &[]));
    let functions: Vec<_> = std::iter::once(outer).chain(inner).collect();
    file(&functions, 0, Found::ByEhFrameSection)
}

#[test]
fn one_fde_cut_into_many_pieces_is_not_evaluated_for_ever() {
    let data = many_over_one_long(20_000);
    let start = Instant::now();
    let result = FileTable::from_elf(&data);
    assert!(matches!(result, Err(UnwindError::OverLimit { .. })), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn wide_segments_and_claimed_sizes_are_refused() {
    let mut data = sample(Found::ByEhFrameSection);
    // p_memsz of the only segment.
    data[64 + 40..64 + 48].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert!(matches!(FileTable::from_elf(&data), Err(UnwindError::OverLimit { .. })));
    data[64 + 40..64 + 48].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(FileTable::from_elf(&data), Err(UnwindError::Malformed { .. })));

    let mut data = sample(Found::ByCompressedDebugFrameSection);
    // ch_size of the compression header.
    data[0x128..0x130].copy_from_slice(&(1u64 << 50).to_le_bytes());
    assert!(matches!(FileTable::from_elf(&data), Err(UnwindError::OverLimit { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn mutated(
        found in prop::sample::select(&KINDS[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut data = sample(found);
        for (index, byte) in changes {
            let index = index.index(data.len());
            data[index] = byte;
        }
        digest(&data);
    }

    #[test]
    fn mutated_call_frames(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40)) {
        let mut data = sample(Found::ByEhFrameHeader);
        let frames = data.len() - 0x120;
        for (index, byte) in changes {
            data[0x120 + index.index(frames)] = byte;
        }
        digest(&data);
    }
}
