//! The file format of speedscope: what is outstanding and what was allocated, as two profiles of the same stacks.

use std::collections::HashMap;
use std::io::Write;

use serde_json::{Value, json};

use super::ExportError;
use crate::profile::{Profile, Site};
use crate::report::stack_tree::outer_names;
use crate::report::{escape, who};

/// What the format calls itself.
const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

/// Writes the sites as samples, weighted by their bytes.
pub fn speedscope(profile: &Profile, mut out: impl Write) -> Result<(), ExportError> {
    let mut frames = Frames::default();
    let sites: Vec<(Vec<usize>, &Site)> =
        profile.drawable_sites().map(|site| (frames.stack(profile, site), site)).collect();
    let weighed = |name: &str, weight: &dyn Fn(&Site) -> u64| {
        let rows: Vec<_> = sites.iter().filter(|(_, site)| weight(site) > 0).collect();
        json!({
            "type": "sampled",
            "name": name,
            "unit": "bytes",
            "startValue": 0,
            "endValue": rows.iter().fold(0u64, |sum, (_, site)| sum.saturating_add(weight(site))),
            "samples": rows.iter().map(|(stack, _)| stack).collect::<Vec<_>>(),
            "weights": rows.iter().map(|(_, site)| weight(site)).collect::<Vec<_>>(),
        })
    };
    let names = if profile.shows_pages() { ["resident", "touched"] } else { ["not freed", "allocated"] };
    let profiles = json!([
        weighed(names[0], &|site| site.outstanding_bytes),
        weighed(names[1], &|site| site.counters.allocated_bytes),
    ]);
    let file = json!({
        "$schema": SCHEMA,
        "name": format!("{}: {}", names[0], who(profile)),
        "exporter": format!("offheap@{}", env!("CARGO_PKG_VERSION")),
        "activeProfileIndex": 0,
        "shared": { "frames": frames.frames },
        "profiles": profiles,
    });
    serde_json::to_writer(&mut out, &file).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Frames by their number.
#[derive(Default)]
struct Frames {
    ids: HashMap<(String, Option<String>, Option<u32>), usize>,
    frames: Vec<Value>,
}

impl Frames {
    /// Numbers of the frames of a stack, root first.
    fn stack(&mut self, profile: &Profile, site: &Site) -> Vec<usize> {
        let mut ids: Vec<usize> = outer_names(profile, site)
            .iter()
            .map(|name| self.id(escape(name).into_owned(), None, None))
            .collect();
        let lines: Vec<_> = profile.stack(site).collect();
        for line in lines.iter().rev() {
            let file = line.location.file.as_ref().or(line.object.map(|object| &object.path));
            let file = file.map(|file| escape(file).into_owned());
            // Without a source file, the line would be that of the object.
            let number = line.location.line.filter(|_| line.location.file.is_some());
            ids.push(self.id(escape(&line.label()).into_owned(), file, number));
        }
        ids
    }

    fn id(&mut self, name: String, file: Option<String>, line: Option<u32>) -> usize {
        let frames = &mut self.frames;
        *self.ids.entry((name, file, line)).or_insert_with_key(|(name, file, line)| {
            let mut frame = json!({ "name": name });
            if let Some(file) = file {
                frame["file"] = file.as_str().into();
            }
            if let Some(line) = line {
                frame["line"] = (*line).into();
            }
            frames.push(frame);
            frames.len() - 1
        })
    }
}
