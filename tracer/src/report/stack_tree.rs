//! Stacks merged into a tree, and what stands at the ends of a stack besides its functions.

use std::collections::HashMap;

use super::escape;
use crate::model::Lens;
use crate::profile::{Profile, Site};

/// Frames below each other that are kept; a frame deeper down is a part of the one above.
const MAX_DEPTH: usize = 400;

/// One frame, with what lies behind it.
#[derive(Default)]
pub(crate) struct Node {
    /// Bytes of all stacks that go through it.
    pub bytes: u64,
    /// Their blocks, mappings or pages.
    pub count: u64,
    /// By number of the name.
    pub children: HashMap<usize, Node>,
}

impl Node {
    /// Adds a stack, whose names (not escaped) go away from this node.
    pub(crate) fn add(
        &mut self,
        path: impl Iterator<Item = String>,
        (bytes, count): (u64, u64),
        names: &mut Names,
    ) {
        let mut node = self;
        node.grow(bytes, count);
        for name in path.take(MAX_DEPTH) {
            node = node.children.entry(names.id(escape(&name).into_owned())).or_default();
            node.grow(bytes, count);
        }
    }

    fn grow(&mut self, bytes: u64, count: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.count = self.count.saturating_add(count);
    }

    /// The children that have at least so many bytes, the largest first; then by number.
    pub(crate) fn largest(&self, least_bytes: u64) -> Vec<(usize, &Self)> {
        let mut children: Vec<_> = self
            .children
            .iter()
            .filter(|(_, child)| child.bytes >= least_bytes)
            .map(|(name, child)| (*name, child))
            .collect();
        children.sort_by_key(|(name, child)| (std::cmp::Reverse(child.bytes), *name));
        children
    }
}

/// Names, each once; safe to print.
#[derive(Default)]
pub(crate) struct Names {
    ids: HashMap<String, usize>,
    names: Vec<String>,
}

impl Names {
    /// Number of a name that is safe to print.
    pub(crate) fn id(&mut self, name: String) -> usize {
        let next = self.names.len();
        let names = &mut self.names;
        *self.ids.entry(name).or_insert_with_key(|name| {
            names.push(name.clone());
            next
        })
    }

    /// The name with this number.
    pub(crate) fn name(&self, id: usize) -> &str {
        self.names.get(id).map_or("", String::as_str)
    }

    pub(crate) fn into_names(self) -> Vec<String> {
        self.names
    }
}

/// What stands outside of the outermost frame: the process, where there are several, and why the stack is not
/// whole. Not escaped.
pub(crate) fn outer_names(profile: &Profile, site: &Site) -> Vec<String> {
    let mut names = Vec::new();
    if profile.processes.len() > 1 && !site.is_lost {
        names.push(process(profile, site));
    }
    if site.is_lost {
        names.push("[stack lost]".into());
    } else if !site.end.is_whole() {
        names.push(format!("[stack breaks off: {}]", site.end.name()));
    }
    names
}

/// What the memory of a mapping or a page is: stands inside of the innermost frame. `None` for blocks.
pub(crate) fn memory_name(site: &Site) -> Option<String> {
    match site.lens {
        Lens::Malloc => None,
        Lens::Mmap => Some(format!("[mapped: {}]", site.class.phrase())),
        Lens::Faults => Some(format!("[resident: {}]", site.class.phrase())),
    }
}

/// `node (1234)`; of merged sites how many processes there are.
fn process(profile: &Profile, site: &Site) -> String {
    let first = site.processes.first().and_then(|id| profile.process(*id));
    let Some(target) = first.map(|row| &row.process.target) else { return "[process not known]".into() };
    match site.processes.len() {
        1 => format!("{} ({})", target.comm, target.tgid),
        several => format!("{} ({several} processes)", target.comm),
    }
}
