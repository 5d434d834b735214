//! `offheap verify-programs`: for developers, and for reports that a kernel refuses offheap.

use std::io::Write;

use anyhow::Result;

use super::ExitStatus;
use crate::{record, report::escape};

/// Prints a line for each program: its name, the instructions that the verifier has processed, the time it took, and whether
/// the kernel has its types; [`ExitStatus::Failed`] if one is refused.
///
/// # Errors
/// The object cannot be loaded at all.
pub fn run(out: &mut impl Write) -> Result<ExitStatus> {
    let mut status = ExitStatus::Done;
    for one in record::verify_programs()? {
        let instructions = one.instructions.map_or("?".to_owned(), |count| count.to_string());
        let types = if one.has_btf { "with types" } else { "without types" };
        let milliseconds = one.duration.as_secs_f64() * 1e3;
        match &one.refused {
            None => {
                writeln!(out, "{} {instructions} instructions, {milliseconds:.1} ms, {types}", one.program)?
            }
            Some(error) => {
                status = ExitStatus::Failed;
                writeln!(out, "{} refused: {}", one.program, escape(&error.to_string()))?;
            }
        }
    }
    Ok(status)
}
