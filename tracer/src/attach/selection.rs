//! Which functions of which objects are looked for: the table under its prefixes, and what the user adds.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracer_common::func::{FUNCTIONS, Family, Function, PREFIXES};

/// What the user adds to what is looked for anyhow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Prefixes behind which the C functions of the table are looked for: `foo_` for `foo_malloc`.
    pub prefixes: Vec<String>,
    /// Objects whose functions are probed in any case, also if they do not look like those of an allocator: as the
    /// target sees the path, or as this process does.
    pub objects: Vec<PathBuf>,
}

impl Selection {
    /// Device and inode of the objects that were named, as far as they are there, in the order in which they were named.
    pub(super) fn named_files(&self, tgid: u32) -> Vec<Vec<(u64, u64)>> {
        let root = PathBuf::from(format!("/proc/{tgid}/root"));
        let both = |path: &Path| {
            let inside = path.strip_prefix("/").map(|path| root.join(path));
            [inside.ok(), Some(path.to_path_buf())]
                .into_iter()
                .flatten()
                .filter_map(|path| fs::metadata(path).ok())
                .map(|file| (file.dev(), file.ino()))
                .collect()
        };
        self.objects.iter().map(|path| both(path)).collect()
    }
}

/// Which allocator a symbol betrays, whoever calls the functions of the table what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// jemalloc.
    Jemalloc,
    /// gperftools or tcmalloc.
    Tcmalloc,
    /// mimalloc.
    Mimalloc,
    /// musl's C library.
    Musl,
    /// The GNU C library.
    Glibc,
}

/// What a symbol's name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A function of the table.
    Function(&'static Function),
    /// A sign of an allocator.
    Mark(Mark),
}

/// A name that is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// What it means.
    pub meaning: Meaning,
    /// The prefix in front of the table's name; `None` for operator new and delete, which never have one.
    pub prefix: Option<Arc<str>>,
}

/// Symbols that tell an allocator by their name alone.
const MARKS: &[(&str, Mark)] = &[
    ("MallocExtension_GetStats", Mark::Tcmalloc),
    ("MallocExtension_ReleaseFreeMemory", Mark::Tcmalloc),
    ("TCMalloc_SystemTaken", Mark::Tcmalloc),
    ("mi_version", Mark::Mimalloc),
    ("__malloc_donate", Mark::Musl),
    ("__malloc_atfork", Mark::Musl),
    ("__libc_malloc_impl", Mark::Musl),
    ("__dls2", Mark::Musl),
    ("__dls2b", Mark::Musl),
    ("_dlstart", Mark::Musl),
    ("gnu_get_libc_version", Mark::Glibc),
    ("_int_malloc", Mark::Glibc),
    ("__libc_mallopt", Mark::Glibc),
];

/// Every name that is looked for.
#[derive(Debug)]
pub struct Names {
    by_name: HashMap<Vec<u8>, Named>,
    prefixes: Vec<Arc<str>>,
}

impl Names {
    /// The table under its own prefixes and the user's.
    pub fn new(user_prefixes: &[String]) -> Self {
        let mut names = Self { by_name: HashMap::new(), prefixes: Vec::new() };
        let own = PREFIXES.iter().map(|(prefix, family)| (*prefix, *family));
        for (prefix, family) in own.chain(user_prefixes.iter().map(|prefix| (prefix.as_str(), None))) {
            names.add_prefix(&Arc::from(prefix), family);
        }
        for function in FUNCTIONS.iter().filter(|function| function.family == Family::Cpp) {
            names.add(function.name.to_owned(), Meaning::Function(function), None);
        }
        for (name, mark) in MARKS {
            names.add((*name).to_owned(), Meaning::Mark(*mark), None);
        }
        names
    }

    fn add_prefix(&mut self, prefix: &Arc<str>, family: Option<Family>) {
        self.prefixes.push(Arc::clone(prefix));
        let has = |function: &&Function| function.family == Family::C || Some(function.family) == family;
        for function in FUNCTIONS.iter().filter(has) {
            let name = format!("{prefix}{}", function.name);
            self.add(name, Meaning::Function(function), Some(Arc::clone(prefix)));
        }
        for jemalloc_only in ["mallctl", "mallctlbymib"] {
            self.add(
                format!("{prefix}{jemalloc_only}"),
                Meaning::Mark(Mark::Jemalloc),
                Some(Arc::clone(prefix)),
            );
        }
    }

    /// The first meaning of a name stays.
    fn add(&mut self, name: String, meaning: Meaning, prefix: Option<Arc<str>>) {
        self.by_name.entry(name.into_bytes()).or_insert(Named { meaning, prefix });
    }

    /// What a symbol means, if anything.
    pub fn get(&self, symbol: &[u8]) -> Option<&Named> {
        self.by_name.get(symbol)
    }

    /// The function that a symbol stands for.
    pub fn function(&self, symbol: &[u8]) -> Option<&'static Function> {
        match self.get(symbol)?.meaning {
            Meaning::Function(function) => Some(function),
            Meaning::Mark(_) => None,
        }
    }

    /// Place of a prefix in the order in which they are tried.
    pub(super) fn rank(&self, prefix: &str) -> usize {
        self.prefixes.iter().position(|known| &**known == prefix).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn meaning(names: &Names, symbol: &str) -> Option<(&'static str, Option<String>)> {
        let named = names.get(symbol.as_bytes())?;
        let function = names.function(symbol.as_bytes())?;
        Some((function.name, named.prefix.as_deref().map(str::to_owned)))
    }

    #[test]
    fn each_family_has_its_prefix() {
        let names = Names::new(&["pool_".to_owned()]);
        let prefixed = |name, prefix: &str| Some((name, Some(prefix.to_owned())));
        assert_eq!(meaning(&names, "malloc"), prefixed("malloc", ""));
        assert_eq!(meaning(&names, "_rjem_mallocx"), prefixed("mallocx", "_rjem_"));
        assert_eq!(meaning(&names, "mi_heap_malloc"), prefixed("heap_malloc", "mi_"));
        assert_eq!(meaning(&names, "tc_new"), prefixed("new", "tc_"));
        assert_eq!(meaning(&names, "rpfree"), prefixed("free", "rp"));
        assert_eq!(meaning(&names, "pool_calloc"), prefixed("calloc", "pool_"));
        assert_eq!(meaning(&names, "_ZnwmSt11align_val_t"), Some(("_ZnwmSt11align_val_t", None)));
        for none in ["zalloc", "pool_new", "je__Znwm", "new", "mi_delete", "xmalloc"] {
            assert_eq!(meaning(&names, none), None, "{none}");
        }
        assert!(names.rank("") < names.rank("mi_") && names.rank("mi_") < names.rank("pool_"));
        assert_eq!(
            names.get(b"je_mallctl").map(|named| &named.meaning),
            Some(&Meaning::Mark(Mark::Jemalloc))
        );
    }

    #[test]
    fn a_named_object_is_found_by_either_path() {
        let exe = fs::canonicalize("/proc/self/exe").unwrap();
        let selection =
            Selection { objects: vec![exe.clone(), PathBuf::from("/no/such/file")], ..Selection::default() };
        let file = fs::metadata(exe).unwrap();
        let named = selection.named_files(std::process::id());
        assert!(named[0].contains(&(file.dev(), file.ino())));
        assert_eq!(named[1], []);
    }
}
