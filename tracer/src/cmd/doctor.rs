//! `offheap doctor`: what this kernel, these privileges and a process allow, and what would be attached.

use std::{borrow::Cow, collections::BTreeMap, io::Write, num::NonZeroU32, sync::Arc};

use anyhow::Result;

use super::ExitStatus;
use crate::{
    attach::{
        discover::{Allocator, Discoverer, End, Probed},
        feature::{self, Feature},
        preflight,
        resolve::Skipped,
        selection::Selection,
        target,
    },
    report::escape,
    symbolize::demangle,
};

/// Columns of the lists of functions that are not probed.
const LIST_COLUMNS: usize = 110;

/// Prints the findings, and what traps cost where that is asked for; [`ExitStatus::Failed`] if something stands in the way of a recording.
///
/// # Errors
/// A process that cannot be traced says why.
pub fn run(
    tgid: Option<NonZeroU32>,
    selection: &Selection,
    calibrates: bool,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let mut is_usable = true;
    writeln!(out, "This machine")?;
    for (name, feature) in feature::survey() {
        let (mark, text) = match &feature {
            Feature::Available(text) => ("ok", text),
            Feature::Unsupported(text) => ("--", text),
            Feature::NotPermitted(text) => ("no", text),
        };
        // Without tracepoints allocator calls can still be recorded, and without links for many places by perf events.
        is_usable &=
            matches!(feature, Feature::Available(_)) || ["tracepoints", "probe kind"].contains(&name);
        writeln!(out, "  {mark}  {name:<11} {text}")?;
    }
    if calibrates {
        feature::require_tracing()?;
        super::calibrate::run(out)?;
    }
    if let Some(tgid) = tgid {
        is_usable &= process(tgid, selection, out)?;
    } else {
        writeln!(out, "\nNext: offheap doctor PID")?;
    }
    Ok(if is_usable { ExitStatus::Done } else { ExitStatus::Failed })
}

fn process(tgid: NonZeroU32, selection: &Selection, out: &mut impl Write) -> Result<bool> {
    let process = target::examine(tgid.get())?;
    let target = &process.target;
    writeln!(out, "\nProcess {tgid}")?;
    writeln!(out, "  name        {}", escape(&target.comm))?;
    writeln!(out, "  executable  {}", escape(target.exe.as_deref().unwrap_or("?")))?;
    if let Some(inner) = target.inner_tgid {
        writeln!(out, "  pid inside  {inner}")?;
    }
    let runtime = target.runtime.as_ref().map_or_else(
        || "none recognised".to_owned(),
        |runtime| format!("{} {}", runtime.name, runtime.version.as_deref().unwrap_or("(version unknown)")),
    );
    writeln!(out, "  runtime     {}", escape(&runtime))?;
    let is_go = target.runtime.as_ref().is_some_and(|runtime| runtime.name == "go");
    preflight::require_survival(tgid.get(), process.facts)?;
    let mut discoverer = Discoverer::new(selection.clone());
    let allocators = discoverer.discover(tgid.get())?;
    let others = preflight::foreign_breakpoints(tgid.get(), &allocators);
    for finding in preflight::findings(tgid.get(), process.facts, is_go, others) {
        let mark = if finding.is_notable { "!!" } else { "ok" };
        writeln!(out, "  {mark}  {:<11} {}", finding.name, finding.text)?;
    }
    for allocator in &allocators {
        describe(allocator, out)?;
    }
    for passed in discoverer.passed_over() {
        writeln!(out, "\nNo allocator: {}", escape(passed.file.path()))?;
        list_skipped(&passed.skipped, out)?;
    }
    for error in discoverer.unread() {
        writeln!(out, "\nNot looked at: {}", escape(&error.to_string()))?;
    }
    for path in discoverer.unmatched_objects() {
        writeln!(out, "\nNot mapped by this process: {}", escape(&path.to_string_lossy()))?;
    }
    let found = allocators.iter().any(|allocator| allocator.allocates());
    if !found {
        writeln!(out, "\nNo allocator was found: {}", discoverer.absence(is_go).hint())?;
    }
    explain(&allocators, out)?;
    if found {
        writeln!(out, "\nNext: offheap record {tgid} --duration 30s")?;
    }
    Ok(found)
}

/// What the marks in the tables mean, as far as they occur.
fn explain(allocators: &[Arc<Allocator>], out: &mut impl Write) -> Result<()> {
    let mut probed = allocators.iter().flat_map(|allocator| &allocator.probed);
    if probed.clone().any(|probed| !probed.placement.is_emulated) {
        writeln!(
            out,
            "\n`slow`: the kernel single-steps the instruction instead of emulating it; each call of such a function \
             costs\nsome 4 to 20 µs in a virtual machine. That matters only if the program calls it often."
        )?;
    }
    if probed.any(|probed| matches!(probed.end, End::Exits(_))) {
        writeln!(
            out,
            "\n`exits`: an exception may leave the function, and would end the program at a return probe. Its `ret` \
             instructions\nare probed instead, each of which the kernel single-steps (`slow`)."
        )?;
    }
    Ok(())
}

fn describe(allocator: &Allocator, out: &mut impl Write) -> Result<()> {
    let id = allocator.file.build_id().unwrap_or("none");
    let path = escape(allocator.file.path());
    let prefixes: Vec<Cow<'_, str>> = allocator
        .prefixes
        .iter()
        .filter(|prefix| !prefix.is_empty())
        .map(|prefix| Cow::Owned(format!("`{}`", escape(prefix))))
        .collect();
    let prefixes = match (prefixes.is_empty(), allocator.prefix().is_empty()) {
        (true, _) => String::new(),
        (false, true) => format!(", also as {}", prefixes.join(", ")),
        (false, false) => format!(", as {}", prefixes.join(", ")),
    };
    writeln!(out, "\nAllocator {}: {}{prefixes}", allocator.number, allocator.name)?;
    writeln!(out, "  in {path} (build id {})", escape(id))?;
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["", "function", "offset", "instruction", "end", ""]);
    for probed in &allocator.probed {
        table.add_row(row(probed));
    }
    for line in table.lines() {
        writeln!(out, " {}", line.trim_end())?;
    }
    list_skipped(&allocator.skipped, out)
}

fn row(probed: &Probed) -> [String; 6] {
    let (placement, definition) = (&probed.placement, &probed.definition);
    let name = readable(&definition.symbol);
    let place = match placement.offset {
        0 => name,
        offset => format!("{name}+{offset:#x}"),
    };
    let mut notes = Vec::new();
    if !placement.is_emulated {
        notes.push(placement.reason.clone());
    }
    let also: Vec<String> = definition
        .names
        .iter()
        .filter(|name| **name != definition.symbol)
        .map(|name| readable(name))
        .collect();
    if !also.is_empty() {
        notes.push(format!("also {}", also.join(", ")));
    }
    let end = match &probed.end {
        End::Unneeded => "-".to_owned(),
        End::Return => "return probe".to_owned(),
        End::Exits(exits) => {
            notes.extend(exits.gaps.iter().map(|gap| format!("calls are missed where {gap}")));
            format!("{} exits", exits.file_offsets.len())
        }
    };
    [
        if placement.is_emulated { "fast" } else { "slow" }.to_owned(),
        place,
        format!("{:#x}", probed.file_offset()),
        placement.instruction.clone(),
        end,
        notes.join("; "),
    ]
}

/// Functions that are not probed, by reason.
fn list_skipped(skipped: &[Skipped], out: &mut impl Write) -> Result<()> {
    const FORWARD: &str = "always go on to another function, whose probe sees them";
    let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for Skipped { name, reason } in skipped {
        let (reason, name) = match reason.strip_prefix("goes through ") {
            Some(callee) => (FORWARD, format!("{} -> {}", readable(name), readable(callee))),
            None => (&**reason, readable(name)),
        };
        by_reason.entry(reason).or_default().push(name);
    }
    for (reason, names) in by_reason {
        writeln!(out, "  not   {reason}:")?;
        let mut line = String::new();
        for (index, name) in names.iter().enumerate() {
            let comma = if index + 1 < names.len() { "," } else { "" };
            if !line.is_empty() && line.len() + name.len() + 2 > LIST_COLUMNS {
                writeln!(out, "        {line}")?;
                line.clear();
            }
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(name);
            line.push_str(comma);
        }
        writeln!(out, "        {line}")?;
    }
    Ok(())
}

/// The name of a function as a person knows it, safe to print.
fn readable(symbol: &str) -> String {
    escape(&demangle(symbol)).replace("std::nothrow_t const&", "nothrow").replace("unsigned long", "size_t")
}
