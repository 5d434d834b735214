//! Which allocator functions an object defines, and where.

use object::{
    Object as _, ObjectSegment as _, ObjectSymbol as _, SegmentFlags, SymbolFlags,
    elf::{PF_X, STB_LOCAL, STT_FUNC, STT_GNU_IFUNC},
};
use tracer_common::func::{FUNCTIONS, Function};

/// Longest function body that is looked at, in bytes.
const MAX_BODY_BYTES: u64 = 64 << 10;

/// A function that an object defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The function; of several names for one address the first of the table.
    pub function: &'static Function,
    /// All names of the table that stand for this address.
    pub names: Vec<&'static str>,
    /// Virtual address.
    pub address: u64,
    /// Offset of its first byte in the file.
    pub file_offset: u64,
    /// Its code, at most 64 KiB of it.
    pub body: Vec<u8>,
}

/// A function that is defined, but not probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Symbol.
    pub name: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// What an object defines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definitions {
    /// Functions, in the order of the table.
    pub found: Vec<Definition>,
    /// Functions that are left alone.
    pub skipped: Vec<Skipped>,
}

/// Looks for the functions of the table among the dynamic symbols, and with `all_symbols` (the main
/// executable, whose calls bind to its own global functions whether they are exported or not) also in the
/// full symbol table. An undefined symbol is no definition, nor is a local one.
pub fn definitions(elf: &object::File<'_>, all_symbols: bool) -> Definitions {
    let mut definitions = Definitions::default();
    let full = all_symbols.then(|| elf.symbols()).into_iter().flatten();
    let mut addresses: Vec<(usize, u64, u64, bool)> = Vec::new();
    for symbol in elf.dynamic_symbols().chain(full) {
        let SymbolFlags::Elf { st_info, .. } = symbol.flags() else { continue };
        let (binding, kind) = (st_info.st_bind(), st_info.st_type());
        if symbol.is_undefined() || binding == STB_LOCAL || symbol.address() == 0 {
            continue;
        }
        let Some(index) = symbol.name().ok().and_then(|name| FUNCTIONS.iter().position(|f| f.name == name))
        else {
            continue;
        };
        if kind == STT_FUNC || kind == STT_GNU_IFUNC {
            addresses.push((index, symbol.address(), symbol.size(), kind == STT_GNU_IFUNC));
        }
    }
    addresses.sort_unstable();
    addresses.dedup_by_key(|(index, address, ..)| (*index, *address));
    for (index, address, size, is_ifunc) in addresses {
        let function = &FUNCTIONS[index];
        if is_ifunc {
            let reason = "an indirect function: its symbol is a resolver, not the function";
            definitions.skipped.push(Skipped { name: function.name, reason });
        } else if let Some(known) = definitions.found.iter_mut().find(|known| known.address == address) {
            if known.function.shape == function.shape {
                known.names.push(function.name);
            } else {
                let reason = "shares its code with a function of another shape";
                definitions.skipped.push(Skipped { name: function.name, reason });
            }
        } else if let Some((file_offset, body)) = code_at(elf, address, size) {
            definitions.found.push(Definition {
                function,
                names: vec![function.name],
                address,
                file_offset,
                body,
            });
        } else {
            let reason = "its address lies in no executable segment";
            definitions.skipped.push(Skipped { name: function.name, reason });
        }
    }
    definitions
}

/// File offset of an address in an executable segment, and the bytes of the function there.
fn code_at(elf: &object::File<'_>, address: u64, size: u64) -> Option<(u64, Vec<u8>)> {
    elf.segments().find_map(|segment| {
        let SegmentFlags::Elf { p_flags, .. } = segment.flags() else { return None };
        let (file_start, file_bytes) = segment.file_range();
        let distance = address.checked_sub(segment.address())?;
        if p_flags.0 & PF_X.0 == 0 || distance >= file_bytes {
            return None;
        }
        // Without a size, enough to find the first instructions.
        let wanted = if size == 0 { 64 } else { size.min(MAX_BODY_BYTES) };
        let body = segment.data_range(address, wanted.min(file_bytes - distance)).ok()??;
        Some((file_start.checked_add(distance)?, body.to_vec()))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn libc() -> Vec<u8> {
        let entries = crate::attach::maps::read(std::process::id()).unwrap();
        let entry = entries.iter().find(|e| e.display_name().contains("/libc.so.6")).unwrap();
        std::fs::read(entry.display_name()).unwrap()
    }

    #[test]
    fn libc_defines_the_classic_functions() {
        let bytes = libc();
        let elf = object::File::parse(&*bytes).unwrap();
        let found = definitions(&elf, false).found;
        for name in
            ["malloc", "calloc", "realloc", "reallocarray", "posix_memalign", "valloc", "pvalloc", "free"]
        {
            let definition = found.iter().find(|d| d.names.contains(&name)).unwrap();
            let at = usize::try_from(definition.file_offset).unwrap();
            assert_eq!(definition.body[..], bytes[at..at + definition.body.len()], "{name}");
        }
        assert!(
            found.iter().enumerate().all(|(i, d)| found[..i].iter().all(|other| other.address != d.address))
        );
    }

    #[test]
    fn a_program_that_only_imports_malloc_defines_none() {
        let bytes = std::fs::read("/bin/ls").unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        assert_eq!(definitions(&elf, true), Definitions::default());
    }
}
