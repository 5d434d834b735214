//! Which allocator it is, by what it calls itself.

use std::{collections::HashSet, sync::Arc};

use super::selection::Mark;

/// Name of an allocator that nothing tells.
pub const CUSTOM: &str = "custom";

/// The name of the allocator that has functions with these prefixes, in an object with these marks.
///
/// An object may hold several: a static program has its C library's beside the one it has chosen. So a mark counts only
/// for the functions that can be its own.
pub fn name_of(prefixes: &[Arc<str>], marks: &HashSet<(Mark, Option<Arc<str>>)>) -> &'static str {
    let has_prefix = |prefix: &str| prefixes.iter().any(|known| &**known == prefix);
    let has_mark = |mark| marks.contains(&(mark, None));
    let is_jemalloc =
        prefixes.iter().any(|prefix| marks.contains(&(Mark::Jemalloc, Some(Arc::clone(prefix)))));
    if is_jemalloc || has_prefix("_rjem_") {
        "jemalloc"
    } else if has_prefix("mi_") {
        "mimalloc"
    } else if has_prefix("sn_") {
        "snmalloc"
    } else if has_prefix("scalable_") {
        "TBB malloc"
    } else if has_prefix("rp") {
        "rpmalloc"
    } else if has_prefix("tc_") || (has_prefix("") && has_mark(Mark::Tcmalloc)) {
        "tcmalloc"
    } else if has_prefix("") && has_mark(Mark::Musl) {
        "musl malloc"
    } else if has_prefix("") && has_mark(Mark::Glibc) {
        "glibc malloc"
    } else {
        CUSTOM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(prefixes: &[&str], marks: &[(Mark, Option<&str>)]) -> &'static str {
        let prefixes: Vec<Arc<str>> = prefixes.iter().map(|prefix| Arc::from(*prefix)).collect();
        let marks = marks.iter().map(|(mark, prefix)| (*mark, prefix.map(Arc::from))).collect();
        name_of(&prefixes, &marks)
    }

    #[test]
    fn each_is_known_by_its_signs() {
        assert_eq!(named(&[""], &[(Mark::Glibc, None)]), "glibc malloc");
        assert_eq!(named(&[""], &[(Mark::Musl, None)]), "musl malloc");
        assert_eq!(named(&["", "tc_"], &[(Mark::Tcmalloc, None)]), "tcmalloc");
        assert_eq!(named(&[""], &[(Mark::Tcmalloc, None)]), "tcmalloc");
        assert_eq!(named(&["", "mi_"], &[(Mark::Mimalloc, None)]), "mimalloc");
        assert_eq!(named(&[""], &[(Mark::Jemalloc, Some(""))]), "jemalloc");
        assert_eq!(named(&["pool_"], &[(Mark::Jemalloc, Some("pool_"))]), "jemalloc");
        assert_eq!(named(&[""], &[]), CUSTOM);
    }

    /// A static program with its C library's allocator and another.
    #[test]
    fn a_mark_counts_for_its_own_functions_only() {
        let marks = [(Mark::Glibc, None), (Mark::Jemalloc, Some("je_")), (Mark::Mimalloc, None)];
        assert_eq!(named(&[""], &marks), "glibc malloc");
        assert_eq!(named(&["je_"], &marks), "jemalloc");
        assert_eq!(named(&["mi_"], &marks), "mimalloc");
        assert_eq!(named(&["x_"], &marks), CUSTOM);
    }
}
