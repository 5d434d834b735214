//! Which functions of an object are one allocator.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    calls::Called,
    resolve::{Definition, Definitions, Skipped},
    selection::Names,
};

/// Functions of one object that are one allocator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Prefixes of its functions, in the order in which they are tried; never empty.
    pub prefixes: Vec<Arc<str>>,
    /// Functions to probe, in the order of the table.
    pub found: Vec<Definition>,
    /// Functions that are left alone.
    pub skipped: Vec<Skipped>,
}

/// Sorts definitions into allocators. The key of a group is a prefix, `None` for operator new and delete; `parent` tells
/// which keys are of one group.
#[derive(Default)]
pub(super) struct Sorting {
    parent: HashMap<Option<Arc<str>>, Option<Arc<str>>>,
    left_out: Vec<(Option<Arc<str>>, Skipped)>,
}

impl Sorting {
    fn root(&self, key: &Option<Arc<str>>) -> Option<Arc<str>> {
        let mut key = key;
        while let Some(parent) = self.parent.get(key).filter(|parent| *parent != key) {
            key = parent;
        }
        key.clone()
    }

    fn unite(&mut self, a: &Option<Arc<str>>, b: &Option<Arc<str>>) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent.entry(a.clone()).or_insert_with(|| a.clone());
        if a != b {
            // Operator new and delete never stand for a group that has a prefix.
            let (child, parent) = if b.is_none() { (b, a) } else { (a, b) };
            self.parent.insert(child, parent);
        }
    }

    /// A function that cannot be probed.
    pub(super) fn leave_out(&mut self, prefix: Option<Arc<str>>, skipped: Skipped) {
        self.left_out.push((prefix, skipped));
    }

    /// Unites the prefixes of one function, and those of a function and what it jumps to, if that is defined here.
    pub(super) fn join(&mut self, definition: &Definition, callee: Option<Called>, all: &[Definition]) {
        let key = key_of(definition);
        for prefix in &definition.prefixes {
            self.unite(&key, &Some(Arc::clone(prefix)));
        }
        if definition.names.iter().any(|name| name.starts_with("_Z")) {
            self.unite(&key, &None);
        }
        if let Some(callee) = callee.and_then(|callee| defined_in(all, callee)) {
            self.unite(&key, &key_of(callee));
        }
    }

    /// Makes the groups, and tells apart allocators and the rest.
    pub(super) fn distribute(
        mut self,
        found: Vec<Definition>,
        forwarded: Vec<Option<Called>>,
        names: &Names,
        is_named: bool,
        definitions: &mut Definitions,
    ) {
        // Operator new and delete with code of their own belong to the allocator beside them: to malloc, else to
        // the only one there is.
        let others: BTreeSet<Arc<str>> =
            found.iter().filter_map(|definition| self.root(&key_of(definition))).collect();
        let beside = others.iter().find(|prefix| prefix.is_empty()).or(match others.len() {
            1 => others.first(),
            _ => None,
        });
        if let Some(beside) = beside
            && self.root(&None).is_none()
        {
            self.unite(&None, &Some(Arc::clone(beside)));
        }
        let through: Vec<Option<String>> = forwarded
            .iter()
            .map(|callee| {
                let (function, _) = (*callee)?;
                let symbol = defined_in(&found, (*callee)?).map(|definition| definition.symbol.clone());
                Some(symbol.unwrap_or_else(|| function.name.to_owned()))
            })
            .collect();
        let mut groups: BTreeMap<Option<Arc<str>>, (Group, [bool; 2])> = BTreeMap::new();
        for (definition, callee) in found.into_iter().zip(through) {
            let (group, sides) = groups.entry(self.root(&key_of(&definition))).or_default();
            sides[usize::from(definition.function.shape.returns_block())] = true;
            for prefix in &definition.prefixes {
                if !group.prefixes.contains(prefix) {
                    group.prefixes.push(Arc::clone(prefix));
                }
            }
            match callee {
                Some(callee) => group.skipped.extend(
                    definition
                        .names
                        .into_iter()
                        .map(|name| Skipped { name, reason: format!("goes through {callee}") }),
                ),
                None => group.found.push(definition),
            }
        }
        for (prefix, skipped) in std::mem::take(&mut self.left_out) {
            groups.entry(self.root(&prefix)).or_default().0.skipped.push(skipped);
        }
        for (mut group, [releases, allocates]) in groups.into_values() {
            group.prefixes.sort_by_key(|prefix| names.rank(prefix));
            if group.prefixes.is_empty() {
                group.prefixes.push(Arc::from(""));
            }
            let reason = match (allocates, releases) {
                (true, false) if !is_named => "its object has nothing that would release what it allocates",
                (false, true) if !is_named => "its object has nothing that allocates",
                _ if group.found.is_empty() => {
                    definitions.skipped.append(&mut group.skipped);
                    continue;
                }
                _ => {
                    definitions.groups.push(group);
                    continue;
                }
            };
            definitions.skipped.append(&mut group.skipped);
            definitions.skipped.extend(
                group
                    .found
                    .into_iter()
                    .flat_map(|definition| definition.names)
                    .map(|name| Skipped { name, reason: reason.to_owned() }),
            );
        }
    }
}

fn defined_in(all: &[Definition], (_, address): Called) -> Option<&Definition> {
    all.iter().find(|definition| Some(definition.address) == address)
}

fn key_of(definition: &Definition) -> Option<Arc<str>> {
    definition.prefixes.first().cloned()
}
