//! Stacks merged into a tree, for the flame graph of the page.

use serde_json::{Value, json};

use crate::profile::{Profile, Site};
use crate::report::stack_tree::{Names, Node, memory_name, outer_names};

/// Least share of the whole that a frame must have: at 1,500 pixels, a third of one. The rest shows as a gap.
const LEAST_SHARE: u64 = 5_000;

/// The sites as nested arrays `[name, bytes, children]`, the largest child first; `None` where they hold nothing.
pub(super) fn tree<'a>(
    profile: &Profile,
    sites: impl Iterator<Item = &'a Site>,
    names: &mut Names,
) -> Option<Value> {
    let mut root = Node::default();
    for site in sites.filter(|site| site.outstanding_bytes > 0) {
        let mut stack: Vec<String> = memory_name(site).into_iter().collect();
        stack.extend(profile.stack(site).map(|line| line.label()));
        stack.extend(outer_names(profile, site).into_iter().rev());
        let amount = (site.outstanding_bytes, site.outstanding_count);
        root.add(stack.into_iter().rev(), amount, names);
    }
    let least = root.bytes / LEAST_SHARE;
    (root.bytes > 0).then(|| value(names.id("all".into()), &root, least))
}

fn value(name: usize, node: &Node, least_bytes: u64) -> Value {
    let children = node.largest(least_bytes);
    let children: Vec<Value> =
        children.into_iter().map(|(name, child)| value(name, child, least_bytes)).collect();
    json!([name, node.bytes, children])
}
