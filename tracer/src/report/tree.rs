//! The call sites as a tree: from the start of the threads down, or from the culprits up.

use serde_json::{Value, json};

use super::head::{line, wrapped};
use super::human::{count, counted, function, middle, percent, size};
use super::stack_tree::{Names, Node, memory_name, outer_names};
use super::table::Paint;
use crate::profile::{Direction, Profile, Site, TreeView};

/// Between a caller and the function it calls.
const DOWN: &str = " → ";
/// Between a function and its caller.
const UP: &str = " ← ";
/// Widest name in a line of several.
const NAME_WIDTH: usize = 56;
/// And where they do not fit.
const NARROW_NAME_WIDTH: usize = 28;
/// Least room for the names of a line.
const LEAST_NAME_WIDTH: usize = 12;
/// Columns of numbers before the names.
const NUMBERS_WIDTH: usize = 32;

/// One line: some frames that only follow each other, or what is not drawn.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    /// For each level above, whether another line of that level follows.
    ancestors: Vec<bool>,
    /// Whether another line of this level follows.
    has_next: bool,
    what: What,
    bytes: u64,
    count: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    /// Numbers of names, in the direction of the tree; never empty.
    Frames(Vec<usize>),
    /// What ends at the frame above.
    Itself,
    /// So many branches that are too small, together.
    LeftOut(usize),
}

/// A tree, cut.
struct Tree {
    root: Node,
    names: Names,
    rows: Vec<Row>,
}

impl Tree {
    fn new(profile: &Profile, view: TreeView) -> Self {
        let (mut root, mut names) = (Node::default(), Names::default());
        for site in profile.drawable_sites().filter(|site| site.outstanding_count > 0) {
            let amount = (site.outstanding_bytes, site.outstanding_count);
            root.add(path(profile, site, view.direction).into_iter(), amount, &mut names);
        }
        let least_bytes = u128::from(root.bytes) * u128::from(view.least_ppm) / 1_000_000;
        let mut rows = Vec::new();
        let least_bytes = u64::try_from(least_bytes).unwrap_or(u64::MAX);
        flatten(&root, least_bytes, &mut Vec::new(), &mut rows);
        Self { root, names, rows }
    }

    /// Branches that are not drawn, bytes, count.
    fn left_out(&self) -> (usize, u64, u64) {
        let left_out = self.rows.iter().filter_map(|row| match row.what {
            What::LeftOut(branches) => Some((branches, row.bytes, row.count)),
            _ => None,
        });
        left_out.fold((0, 0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1, sum.2 + part.2))
    }
}

/// Names from the root of the tree on. Not escaped.
fn path(profile: &Profile, site: &Site, direction: Direction) -> Vec<String> {
    let outer = outer_names(profile, site);
    let labels = profile.stack(site).map(|line| line.label());
    match direction {
        Direction::TopDown => {
            let mut names: Vec<String> = memory_name(site).into_iter().chain(labels).collect();
            names.extend(outer.into_iter().rev());
            names.reverse();
            names
        }
        Direction::BottomUp => {
            let mut names: Vec<String> = labels.skip(site.culprit).collect();
            if let Some(memory) = memory_name(site) {
                match names.first_mut() {
                    Some(culprit) => *culprit = format!("{culprit} {memory}"),
                    None => names.push(memory),
                }
            }
            names.extend(outer.into_iter().rev());
            names
        }
    }
}

/// The lines below a node.
fn flatten(node: &Node, least_bytes: u64, ancestors: &mut Vec<bool>, rows: &mut Vec<Row>) {
    let kept = node.largest(least_bytes);
    let sum = |children: &mut dyn Iterator<Item = &Node>| {
        children.fold((0u64, 0u64), |sum, child| {
            (sum.0.saturating_add(child.bytes), sum.1.saturating_add(child.count))
        })
    };
    let all = sum(&mut node.children.values());
    let drawn = sum(&mut kept.iter().map(|(_, child)| *child));
    // A leaf is its own sum.
    let own = match node.children.is_empty() {
        true => (0, 0),
        false => (node.bytes.saturating_sub(all.0), node.count.saturating_sub(all.1)),
    };
    let mut small = (node.children.len() - kept.len(), all.0 - drawn.0, all.1 - drawn.1);
    let shows_own = own.0 >= least_bytes && own != (0, 0);
    if !shows_own && own != (0, 0) {
        small = (small.0 + 1, small.1 + own.0, small.2 + own.1);
    }
    let last = kept.len() + usize::from(shows_own) + usize::from(small.0 > 0);
    let mut at = 0;
    let mut has_next = || {
        at += 1;
        at < last
    };
    for (name, child) in kept {
        let has_next = has_next();
        let (frames, end) = chain(name, child);
        let (bytes, count) = (child.bytes, child.count);
        rows.push(Row { ancestors: ancestors.clone(), has_next, what: What::Frames(frames), bytes, count });
        ancestors.push(has_next);
        flatten(end, least_bytes, ancestors, rows);
        ancestors.pop();
    }
    let rest =
        [(shows_own, What::Itself, own.0, own.1), (small.0 > 0, What::LeftOut(small.0), small.1, small.2)];
    for (_, what, bytes, count) in rest.into_iter().filter(|rest| rest.0) {
        rows.push(Row { ancestors: ancestors.clone(), has_next: has_next(), what, bytes, count });
    }
}

/// The names up to the next fork, and the node there.
fn chain(name: usize, node: &Node) -> (Vec<usize>, &Node) {
    let (mut names, mut node) = (vec![name], node);
    while node.children.len() == 1 {
        let Some((name, only)) = node.children.iter().next() else { break };
        if (only.bytes, only.count) != (node.bytes, node.count) {
            break;
        }
        names.push(*name);
        node = only;
    }
    (names, node)
}

/// The tree as text. Every name is escaped, no line wider than `width`.
pub(super) fn text(profile: &Profile, view: TreeView, width: usize, paint: Paint) -> String {
    let tree = Tree::new(profile, view);
    let mut text = String::new();
    if tree.root.count == 0 {
        line(&mut text, "Nothing allocated while recording is outstanding.");
        text.push('\n');
        return text;
    }
    let (title, arrow) = match view.direction {
        Direction::TopDown => ("from the start of the threads down to who asked for the memory", DOWN),
        Direction::BottomUp => ("from who asked for the memory up to the start of the threads", UP),
    };
    line(&mut text, &paint.bold(&middle(&format!("tree, {title}"), width)));
    let counts = counts(profile);
    let titles = format!("{:>11} {:>7} {:>11}", held(profile), "share", counts);
    line(&mut text, &paint.dim(&titles));
    let numbers = |bytes, blocks| {
        format!("{:>11} {:>7} {:>11}", size(bytes), percent(bytes, tree.root.bytes), count(blocks))
    };
    line(&mut text, &format!("{}  all", numbers(tree.root.bytes, tree.root.count)));
    for row in &tree.rows {
        let branch = branch(row, (width / 3).min(width.saturating_sub(NUMBERS_WIDTH + LEAST_NAME_WIDTH)));
        let room = width.saturating_sub(NUMBERS_WIDTH + branch.chars().count()).max(LEAST_NAME_WIDTH);
        let what = match &row.what {
            What::Frames(names) => {
                let names: Vec<&str> = names.iter().map(|name| tree.names.name(*name)).collect();
                frames(&names, arrow, room)
            }
            What::Itself if view.direction == Direction::TopDown => paint.dim("[itself]"),
            What::Itself => paint.dim("[begins here]"),
            What::LeftOut(branches) => {
                let branches = counted(*branches as u64, "smaller branch", "smaller branches");
                paint.dim(&format!("… {branches}"))
            }
        };
        line(&mut text, &format!("{} {}{what}", numbers(row.bytes, row.count), paint.dim(&branch)));
    }
    let (branches, bytes, blocks) = tree.left_out();
    if branches > 0 {
        let least = f64::from(view.least_ppm) / 1e4;
        let all = counted(branches as u64, "branch", "branches");
        let said = format!(
            "left out: {all} below {least} %, together {} in {} ({}); --tree-min-percent shows more",
            size(bytes),
            counted(blocks, counts.trim_end_matches('s'), counts),
            percent(bytes, tree.root.bytes),
        );
        line(&mut text, &wrapped(&said, width, "  ", |part| paint.dim(part)));
    }
    text.push('\n');
    text
}

/// What the bytes are.
fn held(profile: &Profile) -> &'static str {
    match (profile.shows_pages(), profile.mapped.outstanding_count > 0) {
        (true, _) => "resident",
        (false, true) if profile.totals.outstanding_count == 0 => "mapped",
        (false, true) => "not freed",
        (false, false) => "unfreed",
    }
}

/// What is counted.
fn counts(profile: &Profile) -> &'static str {
    match held(profile) {
        "resident" => "pages",
        "mapped" => "mappings",
        "unfreed" => "blocks",
        _ => "pieces",
    }
}

/// The lines that lead to a row, at most `room` columns of them: the last ones.
fn branch(row: &Row, room: usize) -> String {
    let levels = room.saturating_sub(4) / 2;
    let hidden = row.ancestors.len().saturating_sub(levels);
    let mut branch = String::from(" ");
    if hidden > 0 {
        branch.push('…');
    }
    for follows in row.ancestors.iter().skip(hidden) {
        branch.push_str(if *follows { "│ " } else { "  " });
    }
    branch.push_str(if row.has_next { "├ " } else { "└ " });
    branch
}

/// Names one after the other, equal ones once. Where there is no room, names get shorter, then those in the middle are
/// left out.
fn frames(names: &[&str], arrow: &str, room: usize) -> String {
    let parts = |width: usize| -> Vec<String> {
        let same = names.chunk_by(|a, b| a == b).map(|same| {
            let name = function(same.first().copied().unwrap_or(""), width.min(room));
            if same.len() > 1 { format!("{name} ×{}", same.len()) } else { name }
        });
        same.collect()
    };
    let fits = |text: &String| text.chars().count() <= room;
    let [wide, narrow] = [NAME_WIDTH, NARROW_NAME_WIDTH].map(parts);
    let whole = [&wide, &narrow].map(|parts| parts.join(arrow)).into_iter().find(fits);
    let cut = || {
        let hidden =
            (1..wide.len().saturating_sub(1)).flat_map(|hidden| [(&wide, hidden), (&narrow, hidden)]);
        hidden.map(|(parts, hidden)| without_middle(parts, hidden, arrow)).find(fits)
    };
    whole.or_else(cut).unwrap_or_else(|| nearest(names, arrow, room))
}

/// The name next to the memory, and how many others there are.
fn nearest(names: &[&str], arrow: &str, room: usize) -> String {
    let others = names.len().saturating_sub(1);
    let note = if others > 0 { format!("… {others} …") } else { String::new() };
    let left = room.saturating_sub(note.chars().count() + arrow.chars().count());
    let name = |name: Option<&&str>, room| function(name.copied().unwrap_or(""), room);
    let text = match (others, arrow == DOWN) {
        (0, _) => name(names.first(), room),
        (_, true) => format!("{note}{arrow}{}", name(names.last(), left)),
        (_, false) => format!("{}{arrow}{note}", name(names.first(), left)),
    };
    middle(&text, room)
}

/// Names with so many of those in the middle left out.
fn without_middle(parts: &[String], hidden: usize, arrow: &str) -> String {
    let kept = parts.len().saturating_sub(hidden);
    let note = (hidden > 0).then(|| format!("… {hidden} …"));
    let tail = parts.iter().skip(parts.len() - kept / 2).cloned();
    let head = parts.iter().take(kept.div_ceil(2)).cloned();
    head.chain(note).chain(tail).collect::<Vec<_>>().join(arrow)
}

/// The tree for programs: lines in the order in which they are drawn.
pub(super) fn json(profile: &Profile, view: TreeView) -> Value {
    let tree = Tree::new(profile, view);
    let (branches, bytes, count) = tree.left_out();
    let rows = tree.rows.iter().map(|row| {
        let (kind, frames) = match &row.what {
            What::Frames(names) => {
                ("frames", names.iter().map(|name| tree.names.name(*name)).collect::<Vec<_>>())
            }
            What::Itself => ("itself", Vec::new()),
            What::LeftOut(_) => ("left-out", Vec::new()),
        };
        let branches = match row.what {
            What::LeftOut(branches) => Some(branches),
            _ => None,
        };
        json!({
            "depth": row.ancestors.len(),
            "kind": kind,
            "frames": frames,
            "branches": branches,
            "bytes": row.bytes,
            "count": row.count,
        })
    });
    json!({
        "direction": view.direction.name(),
        "min_percent": f64::from(view.least_ppm) / 1e4,
        "bytes": tree.root.bytes,
        "count": tree.root.count,
        "left_out": { "branches": branches, "bytes": bytes, "count": count },
        "rows": rows.collect::<Vec<_>>(),
    })
}
