//! The unwind table of one file: sorted rules, each valid from its address to the next one's.

use std::collections::HashMap;

use tracer_common::abi::EscapeRule;
use tracer_common::row::{
    ESCAPE_UNSUPPORTED, KIND_END, KIND_ESCAPE, KIND_FRAME_POINTER, KIND_SIGNAL, MAX_ESCAPES, Rule, rule,
};

use super::UnwindError;
use super::cfi::{Cfi, Unwind};
use super::elf::{CodeSegments, Elf, check_limit};
use super::go;
use super::rule::{Expressed, express};
use super::sigreturn;
use crate::model::Machine;

/// Most rules of one file.
const MAX_RULES: u64 = 8_000_000;
/// Largest gap between two FDEs, in bytes, that is padding; behind it the rule before goes on. A larger
/// gap is code without an FDE.
const MAX_PADDING_BYTES: u64 = 15;

/// Code without unwind information.
pub(super) const FRAME_POINTER: Rule = rule(KIND_FRAME_POINTER, 0, 0);
/// Code whose unwind information cannot be followed.
pub(super) const UNSUPPORTED: Rule = rule(KIND_ESCAPE, ESCAPE_UNSUPPORTED, 0);

/// A rule and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleStart {
    /// First virtual address.
    pub address: u64,
    /// The rule; the index of an escape rule is one into [`FileTable::escapes`].
    pub rule: Rule,
}

/// What a table was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// FDEs read.
    pub fde_count: u64,
    /// FDEs that are malformed.
    pub malformed_fde_count: u64,
    /// Rows of the DWARF tables.
    pub row_count: u64,
    /// Rows that need an escape rule.
    pub escape_row_count: u64,
    /// Rows that cannot be expressed.
    pub unsupported_row_count: u64,
}

/// The unwind table of one file.
#[derive(Clone, Debug, Default)]
pub struct FileTable {
    rules: Vec<RuleStart>,
    escapes: Vec<EscapeRule>,
    segments: CodeSegments,
    stats: TableStats,
}

impl FileTable {
    /// Builds the table of an ELF file from its `.eh_frame`, else its `.debug_frame`. Where a Go program changes
    /// stacks, the functions that do so say how.
    ///
    /// A file without any of it gives an empty table; its mappings are `MAPPING_FRAME_POINTER`.
    ///
    /// # Errors
    /// The file is no ELF file for this machine, contradicts itself, or is over a limit. A malformed FDE
    /// is no error: its code is unsupported, and [`TableStats`] counts it.
    pub fn from_elf(data: &[u8]) -> Result<Self, UnwindError> {
        Self::from_elf_for(data, Machine::HOST)
    }

    /// The same for a file of some machine, whose rules are of use only there.
    ///
    /// # Errors
    /// As [`FileTable::from_elf`].
    pub fn from_elf_for(data: &[u8], machine: Machine) -> Result<Self, UnwindError> {
        let elf = Elf::parse(data, machine)?;
        let mut builder = Builder::default();
        if let Some((cfi, coverage)) = Cfi::locate(&elf)? {
            builder.table.stats.fde_count = coverage.fde_count;
            builder.table.stats.malformed_fde_count = coverage.malformed_count;
            builder.table.rules.reserve(coverage.ranges.len());
            cfi.visit_rows(&coverage.ranges, |start, end, unwind| {
                let rule = match unwind {
                    Unwind::EntryStub => rule(KIND_END, 0, 0),
                    Unwind::Malformed => builder.count(Expressed::Unsupported),
                    Unwind::Row(traits, row) => builder.count(express(machine, traits, row, cfi.bytes())),
                };
                builder.push(start, end, rule)
            })?;
            builder.finish();
        } else if let Some((start, end)) = sigreturn::find(&elf) {
            builder.push(start, end, rule(KIND_SIGNAL, 0, 0))?;
            builder.finish();
        }
        builder.overlay(&go::specials(&elf));
        builder.table.segments = elf.code;
        Ok(builder.table)
    }

    /// Whether the file has no unwind information at all.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, sorted by address, no two neighbours equal. Before the first and from the last one on
    /// there is no unwind information.
    pub fn rules(&self) -> &[RuleStart] {
        &self.rules
    }

    /// The escape rules that [`FileTable::rules`] refers to.
    pub fn escapes(&self) -> &[EscapeRule] {
        &self.escapes
    }

    /// The executable segments, for instance to find the bias of a mapping.
    pub fn segments(&self) -> &CodeSegments {
        &self.segments
    }

    /// See [`CodeSegments::bias_of`].
    pub fn bias_of(&self, mapping_start: u64, mapping_file_offset: u64) -> Option<u64> {
        self.segments.bias_of(mapping_start, mapping_file_offset)
    }

    /// Where a mapping that ends at `mapping_end` and has this bias must be cut off, so that the page
    /// entries behind those of this file, which belong to another one, are never looked at.
    pub fn covered_end(&self, mapping_end: u64, bias: u64) -> u64 {
        let past_bytes = mapping_end.wrapping_sub(bias).saturating_sub(self.segments.span().1);
        mapping_end.saturating_sub(past_bytes)
    }

    /// The rule at a virtual address.
    pub fn rule_at(&self, address: u64) -> Rule {
        let behind = self.rules.partition_point(|start| start.address <= address);
        behind.checked_sub(1).map_or(FRAME_POINTER, |index| self.rules[index].rule)
    }

    /// What the table was made of.
    pub fn stats(&self) -> TableStats {
        self.stats
    }
}

/// A table while its rows come in.
#[derive(Default)]
struct Builder {
    table: FileTable,
    escape_index: HashMap<EscapeRule, u32>,
    /// End of the last row.
    end: u64,
}

impl Builder {
    /// Counts a row and gives it its rule.
    fn count(&mut self, expressed: Expressed) -> Rule {
        let stats = &mut self.table.stats;
        stats.row_count += 1;
        match expressed {
            Expressed::Rule(rule) => return rule,
            Expressed::Escape(escape) => {
                if let Some(index) = self.intern(escape) {
                    self.table.stats.escape_row_count += 1;
                    return rule(KIND_ESCAPE, index, 0);
                }
            }
            Expressed::Unsupported => {}
        }
        self.table.stats.unsupported_row_count += 1;
        UNSUPPORTED
    }

    fn intern(&mut self, escape: EscapeRule) -> Option<u32> {
        if let Some(index) = self.escape_index.get(&escape) {
            return Some(*index);
        }
        let index = u32::try_from(self.table.escapes.len()).ok().filter(|index| *index < MAX_ESCAPES)?;
        self.table.escapes.push(escape);
        self.escape_index.insert(escape, index);
        Some(index)
    }

    fn push(&mut self, start: u64, end: u64, rule: Rule) -> Result<(), UnwindError> {
        if start > self.end + MAX_PADDING_BYTES && !self.table.rules.is_empty() {
            self.push_rule(self.end, FRAME_POINTER);
        }
        self.push_rule(start, rule);
        self.end = end;
        check_limit("unwind rule count", self.table.rules.len() as u64, MAX_RULES)
    }

    fn push_rule(&mut self, address: u64, rule: Rule) {
        if self.table.rules.last().is_none_or(|last| last.rule != rule) {
            self.table.rules.push(RuleStart { address, rule });
        }
    }

    /// Puts ranges that go before call frame information over it.
    fn overlay(&mut self, specials: &[go::Special]) {
        if specials.is_empty() {
            return;
        }
        let mut over: Vec<RuleStart> = Vec::with_capacity(2 * specials.len());
        for special in specials {
            let rule = self.count(special.rule);
            // Where a range begins at the end of the one before, that one's end is void.
            if over.last().is_some_and(|last| last.address == special.start) {
                over.pop();
            }
            over.push(RuleStart { address: special.start, rule });
            over.push(RuleStart { address: special.end, rule: self.table.rule_at(special.end) });
        }
        let covered = |address| go::find(specials, address).is_some();
        let is_end = |address| specials.binary_search_by_key(&address, |special| special.end).is_ok();
        let mut rules = std::mem::take(&mut self.table.rules);
        rules.retain(|start| !covered(start.address) && !is_end(start.address));
        rules.extend(over);
        rules.sort_by_key(|start| start.address);
        rules.dedup_by_key(|start| start.rule);
        self.table.rules = rules;
    }

    fn finish(&mut self) {
        self.push_rule(self.end, FRAME_POINTER);
    }
}
