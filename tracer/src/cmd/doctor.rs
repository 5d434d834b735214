//! `offheap doctor`: what this kernel, these privileges and a process allow, and what would be attached.

use std::{io::Write, num::NonZeroU32, sync::Arc};

use anyhow::Result;

use super::ExitStatus;
use crate::{
    attach::{
        discover::{Allocator, Discoverer, Probed},
        feature::{self, Feature},
        target,
    },
    report::escape,
};

/// Prints the findings; [`ExitStatus::Failed`] if something stands in the way of a recording.
///
/// # Errors
/// A process that cannot be traced says why.
pub fn run(tgid: Option<NonZeroU32>, out: &mut impl Write) -> Result<ExitStatus> {
    let mut is_usable = true;
    writeln!(out, "This machine")?;
    for (name, feature) in feature::survey() {
        let (mark, text) = match &feature {
            Feature::Available(text) => ("ok", text),
            Feature::Unsupported(text) => ("--", text),
            Feature::NotPermitted(text) => ("no", text),
        };
        // tracefs is told for completeness; nothing needs it.
        is_usable &= matches!(feature, Feature::Available(_)) || name == "tracefs";
        writeln!(out, "  {mark}  {name:<11} {text}")?;
    }
    if let Some(tgid) = tgid {
        is_usable &= process(tgid, out)?;
    } else {
        writeln!(out, "\nNext: offheap doctor PID")?;
    }
    Ok(if is_usable { ExitStatus::Done } else { ExitStatus::Failed })
}

fn process(tgid: NonZeroU32, out: &mut impl Write) -> Result<bool> {
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
    let mut discoverer = Discoverer::default();
    let allocators = discoverer.discover(tgid.get())?;
    for allocator in &allocators {
        describe(allocator, out)?;
    }
    for error in discoverer.unread() {
        writeln!(out, "\nNot looked at: {}", escape(&error.to_string()))?;
    }
    let found = allocators.iter().any(|allocator| allocator.allocates());
    if !found {
        writeln!(out, "\nNo allocator was found: none of its files defines malloc")?;
    } else if slow(&allocators).next().is_some() {
        writeln!(
            out,
            "\n`slow`: the kernel single-steps the instruction instead of emulating it; each call of such a function \
             costs\nsome 4 to 20 µs in a virtual machine. That matters only if the program calls it often."
        )?;
    }
    if found {
        writeln!(out, "\nNext: offheap record {tgid} --duration 30s")?;
    }
    Ok(found)
}

fn slow(allocators: &[Arc<Allocator>]) -> impl Iterator<Item = &Probed> {
    allocators.iter().flat_map(|allocator| &allocator.probed).filter(|probed| !probed.placement.is_emulated)
}

fn describe(allocator: &Allocator, out: &mut impl Write) -> Result<()> {
    let id = allocator.file.build_id().unwrap_or("none");
    writeln!(out, "\nAllocator {} (build id {})", escape(allocator.file.path()), escape(id))?;
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["", "function", "offset", "instruction", "probes", ""]);
    for probed in &allocator.probed {
        table.add_row(row(probed));
    }
    for line in table.lines() {
        writeln!(out, " {}", line.trim_end())?;
    }
    for skipped in &allocator.skipped {
        writeln!(out, "  not   {:<22} {}", skipped.name, skipped.reason)?;
    }
    Ok(())
}

fn row(probed: &Probed) -> [String; 6] {
    let placement = &probed.placement;
    let function = probed.definition.function;
    let place = match placement.offset {
        0 => function.name.to_owned(),
        offset => format!("{}+{offset:#x}", function.name),
    };
    let also: Vec<&str> =
        probed.definition.names.iter().copied().filter(|name| *name != function.name).collect();
    let note = match (placement.is_emulated, also.is_empty()) {
        (false, _) => placement.reason.clone(),
        (true, false) => format!("also known as {}", also.join(", ")),
        (true, true) => String::new(),
    };
    [
        if placement.is_emulated { "fast" } else { "slow" }.to_owned(),
        place,
        format!("{:#x}", probed.file_offset()),
        placement.instruction.clone(),
        if function.shape.returns_block() { "entry, return" } else { "entry" }.to_owned(),
        note,
    ]
}
