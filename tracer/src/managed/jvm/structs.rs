//! `gHotSpotVMStructs`: the table in which HotSpot describes its own data to whoever reads it from outside (the
//! serviceability agent). Its strides and offsets are exported beside it, so that it can be read in every version.

use std::collections::HashMap;

use super::super::memory::Memory;

/// Entries that are read; JDK 17 has 788.
const MAX_ENTRIES: u64 = 20_000;
/// Largest stride that is believed, in bytes.
const MAX_STRIDE_BYTES: u64 = 1024;

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// A static one: its address.
    Static(u64),
    /// Offset in its object, in bytes.
    Offset(u64),
}

/// The fields that were asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Structs(HashMap<(String, String), Field>);

impl Structs {
    /// Reads the table. `variables` are addresses of the `gHotSpotVMStruct…` variables.
    pub(super) fn read(
        memory: &impl Memory,
        variables: &HashMap<String, u64>,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Option<Self> {
        let value = |name: &str| memory.word(*variables.get(name)?);
        let place = |name: &str| {
            value(&format!("gHotSpotVMStructEntry{name}")).filter(|value| *value < MAX_STRIDE_BYTES)
        };
        let table = value("gHotSpotVMStructs")?;
        let stride = place("ArrayStride").filter(|stride| *stride >= 8)?;
        let (type_name, field_name) = (place("TypeNameOffset")?, place("FieldNameOffset")?);
        let (is_static, offset, address) =
            (place("IsStaticOffset")?, place("OffsetOffset")?, place("AddressOffset")?);
        let mut fields = HashMap::new();
        for index in 0..MAX_ENTRIES {
            let entry = table.checked_add(index * stride)?;
            // The last entry has no name.
            let name = match memory.word(entry.checked_add(type_name)?)? {
                0 => break,
                name => memory.name(name).unwrap_or_default(),
            };
            if !is_wanted(&name) {
                continue;
            }
            let Some(field) = memory.name(memory.word(entry.checked_add(field_name)?)?) else { continue };
            let place = match memory.half(entry.checked_add(is_static)?)? {
                0 => Field::Offset(memory.word(entry.checked_add(offset)?)?),
                _ => Field::Static(memory.word(entry.checked_add(address)?)?),
            };
            fields.insert((name, field), place);
        }
        Some(Self(fields))
    }

    fn field(&self, of: &str, name: &str) -> Option<Field> {
        self.0.get(&(of.to_owned(), name.to_owned())).copied()
    }

    /// Address of a static field.
    pub(super) fn address(&self, of: &str, name: &str) -> Option<u64> {
        match self.field(of, name)? {
            Field::Static(address) => Some(address),
            Field::Offset(_) => None,
        }
    }

    /// Offset of a field, in bytes.
    pub(super) fn offset(&self, of: &str, name: &str) -> Option<u64> {
        match self.field(of, name)? {
            Field::Offset(offset) if offset < 1 << 20 => Some(offset),
            _ => None,
        }
    }
}
