//! Why no allocator was found: what it can be, and what can be done.

/// What is known of a process in which no allocator was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// It is a Go program.
    pub is_go: bool,
    /// Its executable is linked statically: it names no dynamic linker.
    pub is_static: bool,
    /// Its executable has a symbol table.
    pub has_symbols: bool,
    /// Functions of the table are defined, but in no object do they make an allocator.
    pub has_candidates: bool,
    /// An object of it could not be read.
    pub has_unread: bool,
    /// It has a dynamic linker, and nothing but these two is mapped.
    pub is_bare: bool,
}

/// Why no allocator was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Not all of its objects could be read.
    Unread,
    /// Its allocator's functions have names, but not those of both sides.
    OneSided,
    /// A Go program without C code.
    Go,
    /// A static program without symbols.
    StrippedStatic,
    /// A static program whose symbols tell of no allocator.
    Static,
    /// Nothing is mapped but a program and its dynamic linker: it has just been started.
    Starting,
    /// Nothing that is mapped defines one.
    Nothing,
}

impl Absence {
    /// The likeliest reason.
    pub const fn of(evidence: Evidence) -> Self {
        match evidence {
            Evidence { has_unread: true, .. } => Self::Unread,
            Evidence { has_candidates: true, .. } => Self::OneSided,
            Evidence { is_go: true, .. } => Self::Go,
            Evidence { is_static: true, has_symbols: false, .. } => Self::StrippedStatic,
            Evidence { is_static: true, .. } => Self::Static,
            Evidence { is_bare: true, .. } => Self::Starting,
            Evidence { .. } => Self::Nothing,
        }
    }

    /// What that means and what to do, as the second half of a sentence.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Unread => "not all of its files can be read; `offheap doctor` tells which, and why",
            Self::OneSided => {
                "functions of an allocator's names either only allocate or only release; `offheap doctor` lists them, \
                 and `--object FILE` has them probed all the same"
            }
            Self::Go => {
                "it is a Go program without C code; Go's own heap does not go through malloc and cannot have return \
                 probes: use Go's pprof"
            }
            Self::StrippedStatic => {
                "it is a static program without symbols, so that no name tells which of its functions allocate; a build \
                 that is not stripped can be traced"
            }
            Self::Static => {
                "it is a static program, and none of its symbols is an allocator's; `--allocator-prefix PREFIX` finds \
                 functions such as PREFIXmalloc"
            }
            Self::Starting => {
                "it has only just been started, or uses no library at all: then `--allocator-prefix PREFIX` finds functions \
                 such as PREFIXmalloc"
            }
            Self::Nothing => {
                "none of its files defines malloc; `--allocator-prefix PREFIX` finds functions such as PREFIXmalloc"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Evidence = Evidence {
        is_go: false,
        is_static: false,
        has_symbols: false,
        has_candidates: false,
        has_unread: false,
        is_bare: false,
    };

    #[test]
    fn each_evidence_has_its_reason() {
        let cases = [
            (Evidence { has_unread: true, is_go: true, ..NONE }, Absence::Unread, "offheap doctor"),
            (Evidence { has_candidates: true, is_static: true, ..NONE }, Absence::OneSided, "--object"),
            (Evidence { is_go: true, is_static: true, ..NONE }, Absence::Go, "pprof"),
            (Evidence { is_static: true, ..NONE }, Absence::StrippedStatic, "not stripped"),
            (Evidence { is_static: true, has_symbols: true, ..NONE }, Absence::Static, "--allocator-prefix"),
            (Evidence { is_bare: true, ..NONE }, Absence::Starting, "only just been started"),
            (NONE, Absence::Nothing, "defines malloc"),
        ];
        for (evidence, absence, word) in cases {
            assert_eq!(Absence::of(evidence), absence);
            assert!(absence.hint().contains(word), "{absence:?}: {}", absence.hint());
        }
    }
}
