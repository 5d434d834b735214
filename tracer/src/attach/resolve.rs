//! Which allocator functions an object defines, where, and which of them belong together.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use object::{
    Object as _, ObjectSymbol as _, SymbolFlags,
    elf::{STT_FUNC, STT_GNU_IFUNC},
};
use tracer_common::func::Function;

use super::{
    calls::{Called, forwards_to},
    code::Code,
    group::{Group, Sorting},
    selection::{Mark, Meaning, Names},
};

/// Longest function body that is looked at, in bytes.
const MAX_BODY_BYTES: u64 = 64 << 10;
/// Most symbols of the table that are looked at in one object; glibc has some forty.
const MAX_SYMBOLS: usize = 4096;
/// Most functions of one object.
const MAX_DEFINITIONS: usize = 512;
/// Enough of a function without a size to find its first instructions.
const UNSIZED_BODY_BYTES: u64 = 64;

/// A function that an object defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The function; of several names for one address the first of the table.
    pub function: &'static Function,
    /// Its symbol.
    pub symbol: String,
    /// All symbols that stand for this address.
    pub names: Vec<String>,
    /// The prefixes of those symbols; operator new and delete have none.
    pub prefixes: BTreeSet<Arc<str>>,
    /// Whether an exception may leave it.
    pub may_throw: bool,
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
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What an object defines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definitions {
    /// Its allocators.
    pub groups: Vec<Group>,
    /// Functions that belong to none.
    pub skipped: Vec<Skipped>,
    /// Signs of what allocator it is, with the prefix they stand under.
    pub marks: HashSet<(Mark, Option<Arc<str>>)>,
}

/// A symbol of the table.
struct Symbol {
    function: &'static Function,
    name: String,
    prefix: Option<Arc<str>>,
    rank: usize,
    address: u64,
    size: u64,
    is_ifunc: bool,
}

/// Looks for the functions of the table in both symbol tables, local symbols among them: whoever links an allocator
/// into a library often hides it.
///
/// Functions whose code is shared, or of which one is a mere jump to the other, are of one allocator, as are those with one
/// prefix. Only what both allocates and releases is taken for an allocator, unless it `is_named` by the user: a function
/// that is called `free` may be anything.
pub fn definitions<'d>(
    elf: &'d object::File<'d>,
    code: &mut Code<'d>,
    names: &Names,
    is_named: bool,
) -> Definitions {
    let mut definitions = Definitions::default();
    let symbols = read_symbols(elf, code, names, &mut definitions);
    let mut found: Vec<Definition> = Vec::new();
    let mut sorting = Sorting::default();
    for symbol in symbols {
        add_symbol(symbol, code, &mut found, &mut sorting);
    }
    let forwarded: Vec<Option<Called>> = found
        .iter()
        .map(|definition| {
            let Definition { function, address, .. } = definition;
            forwards_to(code, *address, function.shape, function.forwards)
        })
        .collect();
    for (definition, callee) in found.iter().zip(&forwarded) {
        sorting.join(definition, *callee, &found);
    }
    sorting.distribute(found, forwarded, names, is_named, &mut definitions);
    definitions
}

fn read_symbols<'d>(
    elf: &'d object::File<'d>,
    code: &mut Code<'d>,
    names: &Names,
    definitions: &mut Definitions,
) -> Vec<Symbol> {
    let mut symbols = Vec::new();
    for symbol in elf.dynamic_symbols().chain(elf.symbols()) {
        let SymbolFlags::Elf { st_info, .. } = symbol.flags() else { continue };
        let Ok(bytes) = symbol.name_bytes() else { continue };
        if symbol.is_undefined() || symbol.address() == 0 {
            continue;
        }
        let kind = st_info.st_type();
        let is_function = kind == STT_FUNC || kind == STT_GNU_IFUNC;
        let named = names.get(bytes);
        if is_function && (named.is_some() || code.wants(bytes)) {
            code.learn(bytes, symbol.address(), symbol.size());
        }
        match named.map(|named| (&named.meaning, named)) {
            Some((Meaning::Mark(mark), named)) => {
                definitions.marks.insert((*mark, named.prefix.clone()));
            }
            Some((Meaning::Function(function), named)) if is_function => symbols.push(Symbol {
                function,
                name: String::from_utf8_lossy(bytes).into_owned(),
                rank: named.prefix.as_deref().map_or(usize::MAX, |prefix| names.rank(prefix)),
                prefix: named.prefix.clone(),
                address: symbol.address(),
                size: symbol.size(),
                is_ifunc: kind == STT_GNU_IFUNC,
            }),
            _ => {}
        }
        // A file may call everything in it malloc.
        if symbols.len() >= MAX_SYMBOLS {
            break;
        }
    }
    symbols.sort_by(|a, b| {
        (a.function.id, a.rank, a.address, &a.name).cmp(&(b.function.id, b.rank, b.address, &b.name))
    });
    symbols.dedup_by(|a, b| a.name == b.name && a.address == b.address);
    symbols
}

fn add_symbol(symbol: Symbol, code: &Code<'_>, found: &mut Vec<Definition>, sorting: &mut Sorting) {
    let Symbol { function, name, prefix, address, size, is_ifunc, .. } = symbol;
    let mut skip = |name, reason: &str| {
        sorting.leave_out(prefix.clone(), Skipped { name, reason: reason.to_owned() });
    };
    if is_ifunc {
        return skip(name, "an indirect function: its symbol is a resolver, not the function");
    }
    if let Some(known) = found.iter_mut().find(|known| known.address == address) {
        if known.function.shape != function.shape {
            return skip(name, "shares its code with a function of another shape");
        }
        known.may_throw |= function.may_throw;
        known.prefixes.extend(prefix);
        known.names.push(name);
        return;
    }
    if found.len() >= MAX_DEFINITIONS {
        return skip(name, "its object defines more functions of these names than are probed");
    }
    let wanted = if size == 0 { UNSIZED_BODY_BYTES } else { size.min(MAX_BODY_BYTES) };
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let (Some(file_offset), Some(bytes)) = (code.file_offset(address), code.bytes_at(address)) else {
        return skip(name, "its address lies in no executable segment");
    };
    found.push(Definition {
        function,
        symbol: name.clone(),
        names: vec![name],
        prefixes: prefix.into_iter().collect(),
        may_throw: function.may_throw,
        address,
        file_offset,
        body: bytes.get(..wanted).unwrap_or(bytes).to_vec(),
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn look<T>(path: &str, look: impl FnOnce(&Definitions) -> T) -> T {
        let bytes = std::fs::read(path).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let names = Names::new(&[]);
        let mut code = Code::new(&elf, &names);
        look(&definitions(&elf, &mut code, &names, false))
    }

    fn mapped(name: &str) -> String {
        let entries = crate::attach::maps::read(std::process::id()).unwrap();
        entries.iter().find(|entry| entry.display_name().contains(name)).unwrap().display_name()
    }

    #[test]
    fn libc_defines_the_classic_functions() {
        let path = mapped("/libc.so.6");
        let bytes = std::fs::read(&path).unwrap();
        look(&path, |definitions| {
            assert_eq!(definitions.groups.len(), 1);
            let found = &definitions.groups[0].found;
            for name in
                ["malloc", "calloc", "realloc", "reallocarray", "posix_memalign", "valloc", "pvalloc", "free"]
            {
                let definition = found.iter().find(|d| d.names.iter().any(|known| known == name)).unwrap();
                let at = usize::try_from(definition.file_offset).unwrap();
                assert_eq!(definition.body[..], bytes[at..at + definition.body.len()], "{name}");
            }
            let addresses: HashSet<u64> = found.iter().map(|definition| definition.address).collect();
            assert_eq!(addresses.len(), found.len(), "one probe per address");
            assert!(definitions.marks.contains(&(Mark::Glibc, None)));
        });
    }

    #[test]
    fn a_program_that_only_imports_malloc_defines_none() {
        look("/bin/ls", |definitions| assert_eq!(*definitions, Definitions::default()));
    }

    /// Functions of a library that are probed, and those that are not, with why.
    fn sides(library: &str) -> Option<(Vec<String>, Vec<String>)> {
        let path = format!("/usr/lib/x86_64-linux-gnu/{library}");
        if !std::path::Path::new(&path).exists() {
            eprintln!("skipped: {library} is not installed");
            return None;
        }
        Some(look(&path, |definitions| {
            let groups = definitions.groups.iter();
            let probed =
                groups.clone().flat_map(|group| group.found.iter().map(|d| d.symbol.clone())).collect();
            let skipped = groups.flat_map(|group| &group.skipped).chain(&definitions.skipped);
            (probed, skipped.map(|skipped| format!("{} {}", skipped.name, skipped.reason)).collect())
        }))
    }

    #[test]
    fn the_operators_of_the_standard_library_go_through_malloc() {
        let Some((probed, skipped)) = sides("libstdc++.so.6") else { return };
        assert_eq!(probed, Vec::<String>::new());
        for line in [
            "_Znwm goes through malloc",
            "_Znam goes through _Znwm",
            "_ZnwmRKSt9nothrow_t goes through _Znwm",
            "_ZnwmSt11align_val_t goes through aligned_alloc",
            "_ZdlPv goes through free",
            "_ZdaPvmSt11align_val_t goes through _ZdaPvSt11align_val_t",
        ] {
            assert!(skipped.iter().any(|known| known == line), "{line}: {skipped:#?}");
        }
        assert_eq!(skipped.len(), 20, "all forms: {skipped:#?}");
    }

    #[test]
    fn the_operators_of_jemalloc_are_its_own() {
        let Some((probed, skipped)) = sides("libjemalloc.so.2") else { return };
        let has = |names: &[String], name: &str| names.iter().any(|known| known == name);
        for name in ["malloc", "mallocx", "xallocx", "sdallocx", "_Znwm", "_ZnwmRKSt9nothrow_t", "_ZdlPvm"] {
            assert!(has(&probed, name), "{name}: {probed:?}");
        }
        for line in [
            "_Znam goes through _Znwm",
            "_ZnwmSt11align_val_t goes through aligned_alloc",
            "_ZdlPv goes through free",
            "_ZdaPvRKSt9nothrow_t goes through free",
        ] {
            assert!(has(&skipped, line), "{line}: {skipped:#?}");
        }
    }

    #[test]
    fn one_library_with_two_prefixes_is_one_allocator() {
        for (library, prefix) in [("libmimalloc.so.2", "mi_"), ("libtcmalloc_minimal.so.4", "tc_")] {
            let path = format!("/usr/lib/x86_64-linux-gnu/{library}");
            if !std::path::Path::new(&path).exists() {
                eprintln!("skipped: {library} is not installed");
                continue;
            }
            look(&path, |definitions| {
                let prefixes: Vec<&[Arc<str>]> =
                    definitions.groups.iter().map(|group| &group.prefixes[..]).collect();
                assert_eq!(prefixes, [[Arc::from(""), Arc::from(prefix)]], "{library}");
                let found = &definitions.groups[0].found;
                let new = found.iter().find(|d| d.names.iter().any(|name| name == "_Znwm")).unwrap();
                assert!(new.may_throw, "{new:?}");
            });
        }
    }
}
