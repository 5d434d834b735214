//! Sites that the user, or this program, knows to be no leaks: rules in the format of LeakSanitizer.
//!
//! A rule is a line `leak:PATTERN`; lines that begin with `#` are comments. The pattern is searched in the names of
//! every frame of a stack: function, source file, object. `*` stands for any characters, `^` at the begin and `$` at
//! the end tie it to the ends of the name.

use std::collections::HashMap;

use thiserror::Error;

use super::frame::expand;
use super::{Profile, Site, SiteFrame, base_name};
use crate::model::{Frame, FrameId, Object, ObjectId};

/// Most rules of one file.
const MAX_RULES: usize = 10_000;
/// Longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 4096;
/// Blocks up to which an allocation counts as one that happens once for each thread, library or stream.
const MAX_ONE_TIME_BLOCKS: u64 = 4096;

/// What the C library allocates once and keeps, by the function that does it: buffers of streams, thread-local
/// storage, locales, time zones, the loader's own tables.
const BUILT_IN: [&str; 14] = [
    "^_IO_file_doallocate$",
    "^_IO_wfile_doallocate$",
    "^_dl_allocate_tls",
    "^__tls_get_addr$",
    "^allocate_dtv$",
    "^setlocale$",
    "^newlocale$",
    "^_nl_load_locale",
    "^tzset_internal$",
    "^__tzset$",
    "^_dl_new_object$",
    "^_dl_map_object",
    "^_dl_init_paths$",
    "^__gconv_",
];
/// Names of dynamic loaders begin so; what they allocate in their own code is theirs.
const LOADERS: [&str; 2] = ["ld-linux", "ld-musl"];

/// Why a file of rules was not taken.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SuppressionError {
    /// Not a rule for leaks.
    #[error("line {line}: `{text}` is not a rule; write `leak:PATTERN`, or begin a comment with `#`")]
    NotARule {
        /// From 1.
        line: usize,
        /// The begin of it: hostile input.
        text: String,
    },
    /// Nothing behind `leak:`.
    #[error("line {line}: the pattern is empty and would suppress everything; write a name behind `leak:`")]
    Empty {
        /// From 1.
        line: usize,
    },
    /// A bound.
    #[error("line {line}: more than {MAX_RULES} rules, or a pattern of more than {MAX_PATTERN_BYTES} bytes")]
    TooLarge {
        /// From 1.
        line: usize,
    },
}

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleOrigin {
    /// The user's file. It hides whatever it matches.
    User,
    /// This program. It hides nothing that grows.
    BuiltIn,
}

impl RuleOrigin {
    /// The name in reports for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::BuiltIn => "built-in",
        }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Without `leak:`.
    pub pattern: String,
    /// Where it comes from.
    pub origin: RuleOrigin,
}

/// Rules in the order in which they are tried: the first that matches counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions(Vec<Rule>);

impl Suppressions {
    /// The built-in rules.
    pub fn built_in() -> Self {
        let rule = |pattern: &&str| Rule { pattern: (*pattern).to_owned(), origin: RuleOrigin::BuiltIn };
        Self(BUILT_IN.iter().map(rule).collect())
    }

    /// Adds the rules of a file, before the built-in ones.
    ///
    /// # Errors
    /// A line that is no rule. Nothing is added then.
    pub fn add_file(&mut self, text: &str) -> Result<(), SuppressionError> {
        let mut added = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let Some(pattern) = text.strip_prefix("leak:") else {
                return Err(SuppressionError::NotARule { line, text: text.chars().take(80).collect() });
            };
            if pattern.trim_matches(['*', '^', '$']).is_empty() {
                return Err(SuppressionError::Empty { line });
            }
            if added.len() + self.0.len() == MAX_RULES || pattern.len() > MAX_PATTERN_BYTES {
                return Err(SuppressionError::TooLarge { line });
            }
            added.push(Rule { pattern: pattern.to_owned(), origin: RuleOrigin::User });
        }
        added.append(&mut self.0);
        self.0 = added;
        Ok(())
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }
}

/// What one rule has hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// Which.
    pub rule: Rule,
    /// Sites.
    pub sites: usize,
    /// Their bytes.
    pub outstanding_bytes: u64,
    /// Their blocks and mappings.
    pub outstanding_count: u64,
}

/// Tries rules on sites; what is known of a frame is kept.
pub(super) struct Matcher<'a> {
    rules: &'a [Rule],
    frames: HashMap<(FrameId, usize), Option<usize>>,
}

impl<'a> Matcher<'a> {
    pub(super) fn new(suppressions: &'a Suppressions) -> Self {
        Self { rules: &suppressions.0, frames: HashMap::new() }
    }

    /// The first rule that hides a site of `count` blocks. `grows` is asked for rules that hide nothing that grows.
    pub(super) fn hides(
        &mut self,
        stack: &[SiteFrame<'_>],
        culprit: usize,
        count: u64,
        grows: impl Fn() -> bool,
    ) -> Option<Rule> {
        let found = (0..).zip(stack).filter_map(|(depth, line)| self.rule_of(depth, line)).min();
        let in_loader = || {
            let object = stack.get(culprit).and_then(|line| line.object);
            let name = object.map(|object| base_name(&object.path));
            name.is_some_and(|name| LOADERS.iter().any(|loader| name.starts_with(loader)))
        };
        let has_built_in = self.rules.iter().any(|rule| rule.origin == RuleOrigin::BuiltIn);
        let rule = match found.and_then(|index| self.rules.get(index)) {
            Some(rule) => rule.clone(),
            None if has_built_in && in_loader() => {
                Rule { pattern: "ld.so".to_owned(), origin: RuleOrigin::BuiltIn }
            }
            None => return None,
        };
        let is_once = || count <= MAX_ONE_TIME_BLOCKS && !grows();
        (rule.origin == RuleOrigin::User || is_once()).then_some(rule)
    }

    fn rule_of(&mut self, depth: usize, line: &SiteFrame<'_>) -> Option<usize> {
        // A frame has a few functions, the inlined ones; where they stand does not matter, which one it is does.
        let inlined = line.frame.locations.iter().position(|location| std::ptr::eq(location, line.location));
        let rules = self.rules;
        *self.frames.entry((line.frame.id, inlined.unwrap_or(depth))).or_insert_with(|| {
            let location = line.location;
            let object = line.object.map(|object| object.path.as_str());
            let names = [location.function.as_deref(), location.file.as_deref(), object];
            let matches = |rule: &Rule| names.iter().flatten().any(|name| is_match(&rule.pattern, name));
            rules.iter().position(matches)
        })
    }
}

/// Whether a pattern is found in a name.
pub(crate) fn is_match(pattern: &str, name: &str) -> bool {
    let (pattern, from_start) = match pattern.strip_prefix('^') {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let (pattern, to_end) = match pattern.strip_suffix('$') {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let mut parts: Vec<&str> = pattern.split('*').collect();
    let mut rest = name;
    if from_start {
        let Some(behind) = rest.strip_prefix(parts.remove(0)) else { return false };
        rest = behind;
        if parts.is_empty() {
            return !to_end || rest.is_empty();
        }
    }
    let last = if to_end { parts.pop() } else { None };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or("");
    }
    last.is_none_or(|last| rest.ends_with(last))
}

/// Takes the sites that a rule hides out of the list. What was hidden is summed by rule.
pub(super) fn suppress(
    sites: &mut Vec<Site>,
    suppressions: &Suppressions,
    (frames, objects): (&HashMap<FrameId, Frame>, &HashMap<ObjectId, Object>),
    grows: impl Fn(&Site) -> bool,
) -> Vec<Suppressed> {
    let mut matcher = Matcher::new(suppressions);
    let mut hidden: Vec<Suppressed> = Vec::new();
    if suppressions.0.is_empty() {
        return hidden;
    }
    sites.retain(|site| {
        let stack: Vec<_> = expand(&site.frames, frames, objects).collect();
        let Some(rule) = matcher.hides(&stack, site.culprit, site.outstanding_count, || grows(site)) else {
            return true;
        };
        let index = hidden.iter().position(|sum| sum.rule == rule).unwrap_or(hidden.len());
        if index == hidden.len() {
            hidden.push(Suppressed { rule, sites: 0, outstanding_bytes: 0, outstanding_count: 0 });
        }
        if let Some(sum) = hidden.get_mut(index) {
            sum.sites += 1;
            sum.outstanding_bytes = sum.outstanding_bytes.saturating_add(site.outstanding_bytes);
            sum.outstanding_count = sum.outstanding_count.saturating_add(site.outstanding_count);
        }
        false
    });
    // One that holds nothing has hidden nothing.
    hidden.retain(|sum| sum.outstanding_count > 0);
    hidden.sort_by_key(|sum| std::cmp::Reverse(sum.outstanding_bytes));
    hidden
}

impl Profile {
    /// Bytes that rules have hidden.
    pub fn suppressed_bytes(&self) -> u64 {
        self.suppressed.iter().fold(0, |sum, rule| sum.saturating_add(rule.outstanding_bytes))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_leak_sanitizer() {
        for (pattern, name, wanted) in [
            ("leak", "my_leak_site", true),
            ("^leak", "my_leak_site", false),
            ("^my*site$", "my_leak_site", true),
            ("^my*sit$", "my_leak_site", false),
            ("site$", "my_leak_site", true),
            ("sit$", "my_leak_site", false),
            ("^my_leak_site$", "my_leak_site", true),
            ("^my_leak$", "my_leak_site", false),
            ("a*b*c", "xaxbxcx", true),
            ("a*b*c", "xaxcxbx", false),
            ("*.so", "/usr/lib/libz.so.1", true),
            ("ab$", "abab", true),
            ("^a*a$", "a", false),
            ("é*ü", "xéyüz", true),
        ] {
            assert_eq!(is_match(pattern, name), wanted, "{pattern} in {name}");
        }
    }

    #[test]
    fn files_are_read_line_by_line() {
        let mut rules = Suppressions::built_in();
        let count = rules.rules().len();
        rules.add_file("# known\n\nleak:libfoo.so\r\n  leak:^Cache::\n").unwrap();
        let patterns: Vec<_> = rules.rules().iter().take(2).map(|rule| rule.pattern.as_str()).collect();
        assert_eq!((patterns, rules.rules().len()), (vec!["libfoo.so", "^Cache::"], count + 2));
        let failed = |text: &str| Suppressions::default().add_file(text).unwrap_err();
        assert_eq!(failed("leak:a\nrace:b"), SuppressionError::NotARule { line: 2, text: "race:b".into() });
        assert_eq!(failed("leak:*"), SuppressionError::Empty { line: 1 });
        assert_eq!(failed("leak:"), SuppressionError::Empty { line: 1 });
        let long = format!("leak:{}", "x".repeat(5000));
        assert_eq!(failed(&long), SuppressionError::TooLarge { line: 1 });
    }
}
