//! Made-up files: every rule, gaps, overlaps, the entry stub, every place the information can be.

use offheap::unwind::UnwindError;
use offheap::unwind::reference::FileCfi;
use offheap::unwind::store::{Change, StoreLimits, TableStore};
use offheap::unwind::table::FileTable;
use proptest::prelude::*;
use tracer_common::abi::*;
use tracer_common::row::*;

use super::elf_file::*;
use super::libraries::ROOMY;

const RBP: u8 = 6;
const RSP: u8 = 7;
const UNSUPPORTED: Rule = rule(KIND_ESCAPE, ESCAPE_UNSUPPORTED, 0);
const FRAME_POINTER: Rule = rule(KIND_FRAME_POINTER, 0, 0);
const PLAIN: Rule = rule(KIND_SP, 1, 0);

fn table_of(functions: &[Function]) -> FileTable {
    FileTable::from_elf(&file(functions, 0, Found::ByEhFrameSection)).unwrap()
}

/// The rule that one row with these instructions gets, and its escape rule.
fn expressed(function: Function) -> (Rule, Option<EscapeRule>) {
    let table = table_of(&[function]);
    let rule = table.rule_at(BASE + 0x1000);
    (rule, table.escapes().get(cfa_field(rule) as usize).copied().filter(|_| kind(rule) == KIND_ESCAPE))
}

fn expressed_by(instructions: &[Vec<u8>]) -> (Rule, Option<EscapeRule>) {
    expressed(Function::new(0x1000, 0x100, &instructions.concat()))
}

#[test]
fn ordinary_rows_fit() {
    assert_eq!(expressed_by(&[]), (PLAIN, None));
    assert_eq!(expressed_by(&[def_cfa(RSP, 48), saved_below(RBP, 2)]), (rule(KIND_SP, 6, 2), None));
    assert_eq!(expressed_by(&[def_cfa(RBP, 16), saved_below(RBP, 2)]), (rule(KIND_FP, 2, 2), None));
    assert_eq!(expressed_by(&[def_cfa(RSP, 65_528)]), (rule(KIND_SP, 0x1fff, 0), None));
    assert_eq!(expressed_by(&[saved_below(RBP, 63)]), (rule(KIND_SP, 1, 63), None));
    assert_eq!(expressed_by(&[vec![0x07, 16]]), (rule(KIND_END, 0, 0), None));
    assert_eq!(expressed_by(&[cfa_expression(&[0x77, 16])]), (rule(KIND_SP, 2, 0), None));
}

#[test]
fn linkage_tables_have_their_threshold() {
    let expression =
        |literal| cfa_expression(&[0x77, 8, 0x80, 0, 0x3f, 0x1a, literal, 0x2a, 0x33, 0x24, 0x22]);
    assert_eq!(expressed_by(&[expression(0x3b)]), (rule(KIND_PLT, 11, 0), None));
    assert_eq!(expressed_by(&[expression(0x3a)]), (rule(KIND_PLT, 10, 0), None));
    assert_eq!(expressed_by(&[expression(0x40)]), (UNSUPPORTED, None));
}

#[test]
fn what_does_not_fit_escapes() {
    let escape =
        |cfa_base, cfa_offset, fp_rule, fp_offset| EscapeRule { cfa_base, cfa_offset, fp_rule, fp_offset };
    let first = rule(KIND_ESCAPE, 0, 0);
    let (sp, fp) = (ESCAPE_BASE_STACK_POINTER, ESCAPE_BASE_FRAME_POINTER);
    let cases = [
        (vec![def_cfa(RSP, 65_536)], escape(sp, 65_536, ESCAPE_FP_SAME, 0)),
        (vec![def_cfa(RSP, 540_128), saved_below(RBP, 2)], escape(sp, 540_128, ESCAPE_FP_AT_CFA, -16)),
        (vec![def_cfa(RSP, 20)], escape(sp, 20, ESCAPE_FP_SAME, 0)),
        (vec![def_cfa(RBP, 16), saved_below(RBP, 64)], escape(fp, 16, ESCAPE_FP_AT_CFA, -512)),
        (
            vec![cfa_expression(&[0x76, 0x78, 0x06]), saved_at(RBP, &[0x76, 0])],
            escape(fp | ESCAPE_DEREFERENCE, -8, ESCAPE_FP_AT_FP, 0),
        ),
        (vec![cfa_expression(&[0x77, 24, 0x06])], escape(sp | ESCAPE_DEREFERENCE, 24, ESCAPE_FP_SAME, 0)),
    ];
    for (instructions, escape) in cases {
        assert_eq!(expressed_by(&instructions), (first, Some(escape)), "{instructions:x?}");
    }
}

#[test]
fn what_cannot_be_followed_says_so() {
    let cases = [
        def_cfa(10, 0),
        def_cfa(RSP, 1 << 40),
        saved_below(16, 2),
        vec![0x09, 16, 0],
        vec![0x09, RBP, 3],
        vec![0x07, RBP],
        saved_at(RBP, &[0x77, 8]),
        cfa_expression(&[0x77, 8, 0x06, 0x23, 8]),
        cfa_expression(&[0x77]),
        cfa_expression(&[]),
        cfa_expression(&[0x96; 100]),
        // An instruction that does not exist.
        vec![0x3f],
    ];
    for instructions in cases {
        assert_eq!(
            expressed_by(std::slice::from_ref(&instructions)),
            (UNSUPPORTED, None),
            "{instructions:x?}"
        );
    }
}

#[test]
fn only_the_kernels_signal_frame_is_one() {
    let kernel_frame = [
        cfa_expression(&[0x77, 0xa0, 0x01, 0x06]),
        saved_at(16, &[0x77, 0xa8, 0x01]),
        saved_at(RBP, &[0x77, 0xf8, 0x00]),
    ];
    let signal = |instructions: &[u8]| {
        expressed(Function { is_signal: true, ..Function::new(0x1000, 0x10, instructions) })
    };
    assert_eq!(signal(&kernel_frame.concat()), (rule(KIND_SIGNAL, 0, 0), None));
    assert_eq!(signal(&[]), (UNSUPPORTED, None));
    assert_eq!(expressed_by(&kernel_frame).0, UNSUPPORTED);
}

#[test]
fn gaps_are_padding_or_code_without_information() {
    let table = table_of(&[
        Function::new(0x1000, 0x10, &[]),
        Function::new(0x1010 + 15, 0x10, &def_cfa(RSP, 16)),
        Function::new(0x1100, 0x10, &def_cfa(RSP, 24)),
    ]);
    let starts: Vec<_> = table.rules().iter().map(|start| (start.address - BASE, start.rule)).collect();
    let expected = [
        (0x1000, PLAIN),
        (0x101f, rule(KIND_SP, 2, 0)),
        (0x102f, FRAME_POINTER),
        (0x1100, rule(KIND_SP, 3, 0)),
        (0x1110, FRAME_POINTER),
    ];
    assert_eq!(starts, expected);
    assert_eq!(table.rule_at(BASE), FRAME_POINTER);
}

#[test]
fn neighbours_are_sorted_and_merged_and_dropped_functions_ignored() {
    let table = table_of(&[
        Function::new(0x1010, 0x10, &[ADVANCE_16 - 8, 0x0e, 8]),
        Function::new(0x1000, 0x10, &[]),
        Function::new(0u64.wrapping_sub(BASE), 0x1000, &def_cfa(RSP, 64)),
        Function::new(MEMORY_BYTES, 0x10, &def_cfa(RSP, 64)),
        Function::new(0x1020, 0, &def_cfa(RSP, 64)),
    ]);
    assert_eq!(table.rules().len(), 2);
    assert_eq!((table.stats().fde_count, table.rules()[1].address), (2, BASE + 0x1020));
}

#[test]
fn an_inner_function_interrupts_the_outer_one() {
    let outer = [vec![ADVANCE_16], def_cfa(RSP, 16), vec![ADVANCE_16, ADVANCE_16], def_cfa(RSP, 24)].concat();
    let table =
        table_of(&[Function::new(0x1000, 0x100, &outer), Function::new(0x1018, 0x20, &def_cfa(RSP, 80))]);
    let at = |offset| cfa_field(table.rule_at(BASE + offset));
    assert_eq!([0x1000, 0x1010, 0x1017, 0x1018, 0x1037, 0x1038, 0x10ff].map(at), [1, 2, 2, 10, 10, 3, 3]);
    assert_eq!(table.rule_at(BASE + 0x1100), FRAME_POINTER);
}

#[test]
fn code_behind_a_broken_instruction_is_unsupported() {
    let table = table_of(&[Function::new(0x1000, 0x40, &[ADVANCE_16, 0x3f])]);
    assert_eq!(table.rule_at(BASE + 0x100f), PLAIN);
    assert_eq!(table.rule_at(BASE + 0x1010), UNSUPPORTED);
    assert_eq!((table.stats().row_count, table.stats().unsupported_row_count), (2, 1));
}

#[test]
fn the_entry_stub_reaches_to_the_next_function() {
    let functions = [Function::new(0x1000, 0x10, &[]), Function::new(0x1080, 0x10, &[])];
    let at_entry =
        |offset| FileTable::from_elf(&file(&functions, BASE + offset, Found::ByEhFrameSection)).unwrap();
    let end = rule(KIND_END, 0, 0);

    let near = at_entry(0x1040);
    assert_eq!(
        [0x103f, 0x1040, 0x107f, 0x1080].map(|at| near.rule_at(BASE + at)),
        [FRAME_POINTER, end, end, PLAIN]
    );
    let last = at_entry(0x2000);
    assert_eq!(
        [0x1fff, 0x2000, 0x20ff, 0x2100].map(|at| last.rule_at(BASE + at)),
        [FRAME_POINTER, end, end, FRAME_POINTER]
    );
    assert_eq!(at_entry(0x1008).rule_at(BASE + 0x1008), PLAIN);
    assert_eq!(at_entry(MEMORY_BYTES).rules().len(), at_entry(0x1008).rules().len());
}

#[test]
fn the_information_is_found_wherever_it_is() {
    let functions = [Function::new(0x1000, 0x40, &[ADVANCE_16, 0x0e, 32])];
    let expected = FileTable::from_elf(&file(&functions, 0, Found::ByEhFrameSection)).unwrap();
    assert_eq!(expected.rules().len(), 3);
    for found in [Found::ByEhFrameHeader, Found::ByDebugFrameSection, Found::ByCompressedDebugFrameSection] {
        let data = file(&functions, 0, found);
        assert_eq!(FileTable::from_elf(&data).unwrap().rules(), expected.rules(), "{found:?}");
        assert!(!FileCfi::from_elf(&data).unwrap().is_empty());
    }
    // An .eh_frame without any FDE does not count.
    for (functions, found) in [(&functions[..0], Found::ByEhFrameSection), (&functions, Found::Nowhere)] {
        let data = file(functions, BASE + 0x1000, found);
        assert!(
            FileTable::from_elf(&data).unwrap().is_empty() && FileCfi::from_elf(&data).unwrap().is_empty()
        );
    }
}

#[test]
fn other_machines_are_told_from_no_elf_file() {
    let mut data = file(&[], 0, Found::Nowhere);
    data[18] = 183;
    assert!(matches!(FileTable::from_elf(&data), Err(UnwindError::Machine { machine: 183 })));
    data[4] = 1;
    assert!(matches!(FileTable::from_elf(&data), Err(UnwindError::NotElf)));
}

#[test]
fn a_high_address_wastes_no_pages() {
    let mut store = TableStore::new(StoreLimits { page_chunks: 4, row_chunks: 1, escapes: 0 });
    let table = table_of(&[Function::new(0x1000, 0x10, &[])]);
    let first = store.add(1, &table).unwrap();
    let second = store.add(2, &table).unwrap();
    assert_eq!(first.page_base, 0u32.wrapping_sub((BASE >> 10) as u32));
    assert_eq!(second.page_base.wrapping_sub(first.page_base), (MEMORY_BYTES >> 10) as u32);
    assert_eq!(store.add(2, &table).unwrap(), second);
    for placed in [first, second] {
        assert_eq!(store.lookup(placed.page_base, BASE + 0x1008), PLAIN);
        assert_eq!(store.lookup(placed.page_base, BASE + 0x1010), FRAME_POINTER);
    }
    assert!(matches!(
        store.add(3, &table),
        Err(UnwindError::TableFull { map: "PAGES", needed: 3072, limit: 2048 })
    ));
    assert_eq!(store.get(&3), None);
}

#[test]
fn a_mapping_is_cut_off_behind_its_file() {
    let table = table_of(&[]);
    let end = 0x7000_0000_0000 + MEMORY_BYTES;
    let bias = table.bias_of(0x7000_0000_0000, 0).unwrap();
    assert_eq!(table.covered_end(end - 0x1000, bias), end - 0x1000);
    assert_eq!(table.covered_end(end + 0x5000, bias), end);
    assert_eq!(table.bias_of(0x7000_0000_0000, 0x100_0000), None);
}

#[test]
fn full_maps_leave_the_store_as_it_was() {
    let fits = table_of(&[Function::new(0x1000, 0x10, &def_cfa(RSP, 20))]);
    let rows: Vec<u8> = (0..900u32).flat_map(|i| [0x41, 0x0e, if i % 2 == 0 { 8 } else { 16 }]).collect();
    let many_rows = table_of(&[Function::new(0x2000, 0x400, &rows), Function::new(0x3000, 0x400, &rows)]);
    let escapes = [def_cfa(RSP, 20), vec![ADVANCE_16], def_cfa(RSP, 28)].concat();
    let many_escapes = table_of(&[Function::new(0x1000, 0x100, &escapes)]);
    let mut store = TableStore::new(StoreLimits { page_chunks: 16, row_chunks: 1, escapes: 1 });
    store.add("fits", &fits).unwrap();
    store.drain_changes().for_each(drop);
    let used = store.usage();
    let error = store.add("rows", &many_rows).unwrap_err();
    assert!(matches!(error, UnwindError::TableFull { map: "ROWS", needed: 2, limit: 1 }), "{error}");
    let error = store.add("escapes", &many_escapes).unwrap_err();
    assert!(matches!(error, UnwindError::TableFull { map: "ESCAPES", needed: 2, limit: 1 }), "{error}");
    assert_eq!((store.usage(), store.drain_changes().count()), (used, 0));
}

/// What the kernel has after all changes were written.
#[derive(Default)]
struct Written {
    pages: std::collections::HashMap<u32, PageChunk>,
    rows: std::collections::HashMap<u32, RowChunk>,
    escapes: std::collections::HashMap<u32, EscapeRule>,
}

impl Written {
    /// Also checks that nothing refers to what is not there yet.
    fn write(&mut self, store: &mut TableStore<usize>) {
        for change in store.drain_changes() {
            match change {
                Change::Escape(index, escape) => drop(self.escapes.insert(index, escape)),
                Change::Rows(index, rows) => {
                    let is_known = |row: &&u32| {
                        kind(**row) != KIND_ESCAPE
                            || cfa_field(**row) == ESCAPE_UNSUPPORTED
                            || self.escapes.contains_key(&cfa_field(**row))
                    };
                    assert!(rows.iter().all(|row| is_known(&row)));
                    self.rows.insert(index, *rows);
                }
                Change::Pages(index, pages) => {
                    assert!(
                        pages.iter().all(|entry| *entry == 0 || self.rows.contains_key(&(*entry as u32)))
                    );
                    self.pages.insert(index, *pages);
                }
            }
        }
    }

    /// One row after the other, from the front.
    fn rule(&self, page_base: u32, address: u64) -> Rule {
        let page = page_base.wrapping_add((address >> PAGE_SHIFT) as u32);
        let entry = self.pages[&(page / 512)][page as usize % 512];
        if entry == 0 {
            return FRAME_POINTER;
        }
        let (len, start) = ((entry >> 48) as usize, (entry >> 32) as usize & 0xffff);
        let rows = &self.rows[&(entry as u32)][start..start + len];
        assert_eq!(page_offset(rows[0]), 0, "the first row of a page carries in");
        assert!(rows.windows(2).all(|pair| page_offset(pair[0]) < page_offset(pair[1])));
        let row = rows.iter().rfind(|row| page_offset(**row) <= (address & 1023) as u32).unwrap();
        row & RULE_MASK
    }
}

/// Functions at random places, back to back or with gaps, with random rows; some escape.
fn functions() -> impl Strategy<Value = Vec<Function>> {
    let row = (1u8..63, prop_oneof![8 => (1u64..40).prop_map(|k| k * 8), 1 => 1u64..1 << 20]);
    let function = (prop_oneof![Just(0u64), 1..40u64, 1000..3000u64], prop::collection::vec(row, 0..20));
    prop::collection::vec(function, 1..25).prop_map(|list| {
        let mut end = 0x1000;
        let place = |(gap, rows): (u64, Vec<(u8, u64)>)| {
            let size_bytes = 1 + rows.iter().map(|row| u64::from(row.0)).sum::<u64>();
            let instructions: Vec<_> = rows
                .iter()
                .flat_map(|&(advance, cfa)| [vec![0x40 | advance], def_cfa(RSP, cfa)].concat())
                .collect();
            let function = Function::new(end + gap, size_bytes, &instructions);
            end += gap + size_bytes;
            function
        };
        list.into_iter().map(place).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn store_kernel_image_and_table_agree_at_every_address(files in prop::collection::vec(functions(), 1..4)) {
        let mut store = TableStore::new(ROOMY);
        let mut written = Written::default();
        let tables: Vec<_> = files.iter().map(|functions| table_of(functions)).collect();
        let mut bases = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            bases.push(store.add(index, table).unwrap().page_base);
            written.write(&mut store);
        }
        for (table, base) in tables.iter().zip(bases) {
            let last = table.rules().last().unwrap().address;
            for address in BASE..last + 3000 {
                let expected = table.rule_at(address);
                let found = store.lookup(base, address);
                prop_assert_eq!(found, written.rule(base, address));
                if kind(expected) == KIND_ESCAPE && expected != UNSUPPORTED {
                    let escape = table.escapes()[cfa_field(expected) as usize];
                    prop_assert_eq!(store.escape(found), Some(escape));
                    prop_assert_eq!(written.escapes[&cfa_field(found)], escape);
                } else {
                    prop_assert_eq!(found, expected, "at {:#x}", address);
                }
            }
        }
    }

    #[test]
    fn the_table_is_the_linear_reading_of_its_rules(functions in functions()) {
        let table = table_of(&functions);
        let rules = table.rules();
        prop_assert!(rules.windows(2).all(|pair| pair[0].address < pair[1].address && pair[0].rule != pair[1].rule));
        for function in &functions {
            for address in BASE + function.start - 1..BASE + function.start + function.size_bytes + 1 {
                let linear = rules.iter().rfind(|start| start.address <= address);
                prop_assert_eq!(table.rule_at(address), linear.map_or(FRAME_POINTER, |start| start.rule));
            }
        }
    }
}
