//! Drops DWARF from an ELF object: BTF is made from it, and nobody reads it afterwards.

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// The object without its `.debug_*` sections, their relocations and the symbols that name them.
pub fn without_debug_info(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(bytes).context("the BPF object is not an ELF file")?;
    let mut dropped = Vec::new();
    for section in &mut builder.sections {
        let name = section.name.to_string();
        if name.starts_with(".debug_") || name.starts_with(".rel.debug_") {
            section.delete = true;
            dropped.push(section.id());
        }
    }
    for symbol in &mut builder.symbols {
        symbol.delete = symbol.section.is_some_and(|section| dropped.contains(&section));
    }
    // LLVM keeps section names and symbol names in one table, the writer wants two.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the stripped BPF object")?;
    Ok(stripped)
}
