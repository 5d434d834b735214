//! What a target knows about itself, and the exact comparison with a report.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::Result;
use crate::report::{MALLOC, Report, Site};

/// What a target prints after `truth `.
#[derive(Debug, Deserialize)]
pub struct Truth {
    /// Nothing but the listed sites has outstanding bytes, of the lens `malloc`: what the C library maps is its
    /// own business.
    pub is_strict: bool,
    /// One entry per function that allocates.
    pub sites: Vec<Expected>,
}

/// What must be reported for all stacks of one function together.
#[derive(Debug, Deserialize)]
pub struct Expected {
    /// Of which sites.
    #[serde(default = "malloc")]
    pub lens: String,
    /// Name of the function, without arguments and scope.
    pub function: String,
    /// Bytes not released.
    pub outstanding_bytes: u64,
    /// Blocks not released.
    pub outstanding_count: u64,
    /// Bytes allocated, where the target can know it.
    pub allocated_bytes: Option<u64>,
    /// Blocks allocated, where the target can know it.
    pub allocated_count: Option<u64>,
}

fn malloc() -> String {
    MALLOC.to_owned()
}

/// Sums over the sites of one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    outstanding_bytes: u64,
    outstanding_count: u64,
    allocated_bytes: u64,
    allocated_count: u64,
}

impl Truth {
    /// Parses `truth {…}`.
    pub fn parse(line: &str) -> Result<Self> {
        let text = line.strip_prefix("truth ").with_context(|| format!("the target says `{line}`"))?;
        serde_json::from_str(text).with_context(|| format!("not a truth: {text}"))
    }

    /// The same of the sites of another lens: for targets that only map.
    pub fn in_lens(mut self, lens: &str) -> Self {
        self.sites.iter_mut().for_each(|expected| lens.clone_into(&mut expected.lens));
        self
    }

    /// Bytes and blocks that must be outstanding at all its sites.
    pub fn outstanding(&self) -> (u64, u64) {
        self.sites.iter().fold((0, 0), |sum, expected| {
            (sum.0 + expected.outstanding_bytes, sum.1 + expected.outstanding_count)
        })
    }

    /// Fails unless the report says exactly this: equality, no tolerance.
    pub fn compare(&self, report: &Report) -> Result {
        let mut found: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
        let mut mistakes = String::new();
        for site in &report.sites {
            ensure!(
                site.allocated_bytes.checked_sub(site.freed_bytes) == Some(site.outstanding_bytes)
                    && site.allocated_count.checked_sub(site.freed_count) == Some(site.outstanding_count),
                "outstanding is not allocated minus freed: {site:?}"
            );
            match self.attribute(site) {
                Some(function) => found.entry((&site.lens, function)).or_default().add(site),
                None if self.is_strict && site.lens == MALLOC && site.outstanding_count > 0 => {
                    let (bytes, count) = (site.outstanding_bytes, site.outstanding_count);
                    writeln!(
                        mistakes,
                        "{bytes} bytes in {count} blocks of a stranger: {:?}",
                        site.functions()
                    )?;
                }
                None => {}
            }
        }
        for expected in &self.sites {
            let key = (expected.lens.as_str(), expected.function.as_str());
            let sum = found.get(&key).copied().unwrap_or_default();
            let wanted = Sum {
                outstanding_bytes: expected.outstanding_bytes,
                outstanding_count: expected.outstanding_count,
                allocated_bytes: expected.allocated_bytes.unwrap_or(sum.allocated_bytes),
                allocated_count: expected.allocated_count.unwrap_or(sum.allocated_count),
            };
            if sum != wanted {
                let Expected { lens, function, .. } = expected;
                writeln!(mistakes, "{function} ({lens}):\n  expected {wanted:?}\n  reported {sum:?}")?;
            }
        }
        if !mistakes.is_empty() {
            bail!("the report differs from the truth\n{mistakes}losses: {:?}", report.losses());
        }
        Ok(())
    }

    /// The innermost function of the stack that the target has named for this lens: what lies below it are
    /// wrappers of the language's library.
    fn attribute(&self, site: &Site) -> Option<&str> {
        site.stack.iter().find_map(|frame| {
            let name = bare_name(frame.function.as_deref()?);
            let named = self.sites.iter().filter(|expected| expected.lens == site.lens);
            named.map(|expected| expected.function.as_str()).find(|function| *function == name)
        })
    }
}

impl Sum {
    fn add(&mut self, site: &Site) {
        self.outstanding_bytes += site.outstanding_bytes;
        self.outstanding_count += site.outstanding_count;
        self.allocated_bytes += site.allocated_bytes;
        self.allocated_count += site.allocated_count;
    }
}

/// The name without return type, scope, template arguments and parameters.
fn bare_name(demangled: &str) -> &str {
    const ANONYMOUS: &str = "(anonymous namespace)::";
    // Only in front of the name: it may also stand among the template's arguments.
    let head = demangled.find('<').unwrap_or(demangled.len());
    let start = demangled[..head].rfind(ANONYMOUS).map_or(0, |at| at + ANONYMOUS.len());
    let name = &demangled[start..];
    let name = name.split(['(', '<', '[']).next().unwrap_or(name);
    let name = name.rsplit(' ').next().unwrap_or(name);
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_bared() {
        assert_eq!(bare_name("site_malloc"), "site_malloc");
        assert_eq!(bare_name("leak_rust::site_rust_box"), "site_rust_box");
        assert_eq!(bare_name("(anonymous namespace)::site_map()"), "site_map");
        assert_eq!(bare_name("void (anonymous namespace)::site_template<Widget>(int)"), "site_template");
        assert_eq!(bare_name("site_template<(anonymous namespace)::Widget>"), "site_template");
        assert_eq!(bare_name("void ns::site_template<std::array<char, 33ul> >(int)"), "site_template");
    }

    fn report(outstanding_count: u64, freed_count: u64) -> Report {
        let text = format!(
            r#"{{"schema":"offheap.report/1","completeness":{{"complete":true,"losses":[],"stacks":{{"total":1,"whole":1}}}},
            "sites":[{{"rank":1,"outstanding_bytes":10,"outstanding_count":{outstanding_count},"allocated_bytes":30,
            "allocated_count":3,"freed_bytes":20,"freed_count":{freed_count},"stack_end":"thread-start",
            "stack":[{{"function":"operator new(unsigned long)"}},{{"function":"site_a"}},{{"function":"main"}}]}}]}}"#
        );
        Report::parse(&text).unwrap()
    }

    fn truth(outstanding_count: u64) -> Truth {
        let text = format!(
            r#"truth {{"is_strict":true,"sites":[{{"function":"site_a","outstanding_bytes":10,
            "outstanding_count":{outstanding_count},"allocated_bytes":30}}]}}"#
        );
        Truth::parse(&text).unwrap()
    }

    #[test]
    fn equality_is_demanded() {
        truth(1).compare(&report(1, 2)).unwrap();
        truth(2).compare(&report(1, 2)).unwrap_err();
        truth(1).compare(&report(1, 1)).unwrap_err();
    }

    #[test]
    fn strangers_are_refused_where_the_truth_is_strict() {
        let mut truth = truth(1);
        truth.sites[0].function = "site_b".to_owned();
        truth.sites[0].outstanding_bytes = 0;
        truth.sites[0].outstanding_count = 0;
        truth.sites[0].allocated_bytes = None;
        truth.compare(&report(1, 2)).unwrap_err();
        truth.is_strict = false;
        truth.compare(&report(1, 2)).unwrap();
    }

    /// A mapping of 4096 bytes by `function`, beside the block of `site_a`.
    fn with_mapping(function: &str) -> Report {
        let mut report = report(1, 2);
        let mut mapping = Report::parse(
            &serde_json::json!({
                "schema": "offheap.report/1",
                "completeness": {"complete": true, "losses": [], "stacks": {"total": 1, "whole": 1}},
                "sites": [{"rank": 2, "lens": "mmap", "class": "mmap", "outstanding_bytes": 4096,
                    "outstanding_count": 1, "allocated_bytes": 4096, "allocated_count": 1, "freed_bytes": 0,
                    "freed_count": 0, "stack_end": "thread-start",
                    "stack": [{"function": "mmap"}, {"function": function}]}],
            })
            .to_string(),
        )
        .unwrap();
        report.sites.append(&mut mapping.sites);
        report
    }

    #[test]
    fn mappings_are_compared_where_they_are_expected() {
        truth(1).compare(&with_mapping("site_b")).unwrap();
        truth(1).compare(&with_mapping("site_a")).unwrap();
        let mapped = |bytes| {
            let mut truth = truth(1);
            let text = format!(
                r#"truth {{"is_strict":false,"sites":[{{"lens":"mmap","function":"site_a",
                "outstanding_bytes":{bytes},"outstanding_count":1}}]}}"#
            );
            truth.sites.append(&mut Truth::parse(&text).unwrap().sites);
            truth
        };
        mapped(4096).compare(&with_mapping("site_a")).unwrap();
        mapped(8192).compare(&with_mapping("site_a")).unwrap_err();
        mapped(4096).compare(&with_mapping("site_b")).unwrap_err();
        mapped(4096).compare(&report(1, 2)).unwrap_err();
        assert_eq!(with_mapping("x").outstanding(), (10, 1));
        assert_eq!(with_mapping("x").outstanding_in(crate::report::MMAP), (4096, 1));
    }

    #[test]
    fn a_broken_target_is_an_error() {
        Truth::parse("broken: block").unwrap_err();
    }
}
