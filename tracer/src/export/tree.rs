//! Stacks merged into a tree, for the flame graph of the page.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::fold::outer_names;
use crate::model::Lens;
use crate::profile::{Profile, Site};
use crate::report::escape;

/// Frames below each other that are kept; a frame deeper down is a part of the one above.
const MAX_DEPTH: usize = 400;
/// Least share of the whole that a frame must have: at 1,500 pixels, a third of one. The rest shows as a gap.
const LEAST_SHARE: u64 = 5_000;

/// One frame, with what its callees hold.
#[derive(Default)]
struct Node {
    bytes: u64,
    /// By number of the name.
    children: HashMap<usize, Node>,
}

/// Names, each once.
#[derive(Default)]
pub(super) struct Names {
    ids: HashMap<String, usize>,
    names: Vec<String>,
}

impl Names {
    fn id(&mut self, name: String) -> usize {
        let next = self.names.len();
        let names = &mut self.names;
        *self.ids.entry(name).or_insert_with_key(|name| {
            names.push(name.clone());
            next
        })
    }

    pub(super) fn into_names(self) -> Vec<String> {
        self.names
    }
}

/// The sites as nested arrays `[name, bytes, children]`, the largest child first; `None` where they hold nothing.
pub(super) fn tree<'a>(
    profile: &Profile,
    sites: impl Iterator<Item = &'a Site>,
    names: &mut Names,
) -> Option<Value> {
    let mut root = Node::default();
    for site in sites.filter(|site| site.outstanding_bytes > 0) {
        let mut stack: Vec<String> = profile.stack(site).map(|line| line.label()).collect();
        stack.extend(outer_names(profile, site).into_iter().rev());
        let mut node = &mut root;
        node.bytes = node.bytes.saturating_add(site.outstanding_bytes);
        let leaf = match site.lens {
            Lens::Malloc => None,
            Lens::Mmap => Some(format!("[mapped: {}]", site.class.phrase())),
            Lens::Faults => Some(format!("[resident: {}]", site.class.phrase())),
        };
        for name in stack.into_iter().rev().chain(leaf).take(MAX_DEPTH) {
            node = node.children.entry(names.id(escape(&name).into_owned())).or_default();
            node.bytes = node.bytes.saturating_add(site.outstanding_bytes);
        }
    }
    let least = root.bytes / LEAST_SHARE;
    (root.bytes > 0).then(|| value(names.id("all".into()), &root, least))
}

fn value(name: usize, node: &Node, least_bytes: u64) -> Value {
    let mut children: Vec<_> = node.children.iter().filter(|(_, child)| child.bytes >= least_bytes).collect();
    children.sort_by_key(|(name, child)| (std::cmp::Reverse(child.bytes), **name));
    let children: Vec<Value> =
        children.into_iter().map(|(name, child)| value(*name, child, least_bytes)).collect();
    json!([name, node.bytes, children])
}
