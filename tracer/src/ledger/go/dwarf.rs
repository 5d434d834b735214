//! Where members of Go's structures are, by the program's DWARF.

use std::borrow::Cow;
use std::collections::HashMap;

use gimli::{AttributeValue, EndianSlice, LittleEndian};
use object::{Object as _, ObjectSection as _};

/// Most entries that are looked at: some millions are in the largest programs.
const MAX_ENTRIES: usize = 20_000_000;
/// Largest section that is unpacked.
const MAX_SECTION_BYTES: u64 = 512 << 20;

/// Offsets of members, by the names of structure and member.
pub(super) type Members = HashMap<(String, String), u64>;

/// Offsets of the members of the structures with these names.
pub(super) fn members(program: &[u8], wanted: &[&str]) -> Option<Members> {
    let file = object::File::parse(program).ok()?;
    let section = |id: gimli::SectionId| -> Result<Cow<'_, [u8]>, gimli::Error> {
        let section = file.section_by_name(id.name());
        let is_sane = |section: &object::Section<'_, '_>| section.size() <= MAX_SECTION_BYTES;
        let data = section.filter(is_sane).and_then(|section| section.uncompressed_data().ok());
        Ok(data.unwrap_or(Cow::Borrowed(&[])))
    };
    let sections = gimli::DwarfSections::load(section).ok()?;
    let dwarf = sections.borrow(|bytes| EndianSlice::new(bytes, LittleEndian));
    let mut members = Members::new();
    let mut left = MAX_ENTRIES;
    let mut units = dwarf.units();
    while let Ok(Some(header)) = units.next() {
        let Ok(unit) = dwarf.unit(header) else { continue };
        collect(&dwarf, &unit, wanted, &mut members, &mut left);
        let is_found = |name: &str| members.keys().any(|(structure, _)| structure == name);
        if left == 0 || wanted.iter().all(|name| is_found(name)) {
            break;
        }
    }
    (!members.is_empty()).then_some(members)
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Adds the members of those structures that are in one unit.
fn collect(
    dwarf: &gimli::Dwarf<Slice<'_>>,
    unit: &gimli::Unit<Slice<'_>>,
    wanted: &[&str],
    members: &mut Members,
    left: &mut usize,
) {
    let name_of = |value: Option<AttributeValue<Slice<'_>>>| {
        let name = dwarf.attr_string(unit, value?).ok()?;
        name.to_string().ok().map(str::to_owned)
    };
    let mut structure: Option<String> = None;
    let mut entries = unit.entries();
    while let Ok(Some(entry)) = entries.next_dfs() {
        *left = left.saturating_sub(1);
        if *left == 0 {
            return;
        }
        match entry.tag() {
            gimli::DW_TAG_structure_type => {
                let name = name_of(entry.attr_value(gimli::DW_AT_name));
                structure = name.filter(|name| wanted.contains(&name.as_str()));
            }
            gimli::DW_TAG_member => {
                let Some(of) = &structure else { continue };
                let offset = match entry.attr_value(gimli::DW_AT_data_member_location) {
                    Some(value) => value.udata_value(),
                    None => None,
                };
                if let (Some(name), Some(offset)) = (name_of(entry.attr_value(gimli::DW_AT_name)), offset) {
                    members.insert((of.clone(), name), offset);
                }
            }
            _ => structure = None,
        }
    }
}
