//! What the ledger means, and what to do about it.

use super::glibc::Malloc;
use super::rows::WHOLE_PAGES;
use crate::model::{Ledger, LedgerClass, Runtime};

/// One piece of advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// For programs: `allocator-retention`…
    pub kind: &'static str,
    /// What it is about, and what can be done.
    pub text: String,
}

/// First sentence.
pub fn headline(_ledger: &Ledger) -> String {
    String::new()
}

pub(super) fn advise(ledger: &Ledger, malloc: Option<&Malloc>, runtime: Option<&Runtime>, _tgid: u32) -> Vec<Advice> {
    let _ = (ledger, malloc, runtime, WHOLE_PAGES, LedgerClass::ALL);
    Vec::new()
}
