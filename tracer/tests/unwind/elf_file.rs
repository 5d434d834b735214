//! Makes small ELF files with chosen call frame information.

/// Address of the file's first byte; the whole file is one executable segment.
pub const BASE: u64 = 0x40_0000;
/// Bytes of the segment in memory.
pub const MEMORY_BYTES: u64 = 0x10_0000;

/// How call frame information is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    ByEhFrameSection,
    /// No section headers.
    ByEhFrameHeader,
    ByDebugFrameSection,
    ByCompressedDebugFrameSection,
    Nowhere,
}

/// A function, or rather its FDE.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// Relative to [`BASE`].
    pub start: u64,
    pub size_bytes: u64,
    pub instructions: Vec<u8>,
    pub is_signal: bool,
}

impl Function {
    pub fn new(start: u64, size_bytes: u64, instructions: &[u8]) -> Self {
        Self { start, size_bytes, instructions: instructions.to_vec(), is_signal: false }
    }
}

/// `DW_CFA_advance_loc` by 16.
pub const ADVANCE_16: u8 = 0x40 | 16;

pub fn uleb(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// `DW_CFA_def_cfa`.
pub fn def_cfa(register: u8, offset: u64) -> Vec<u8> {
    [vec![0x0c, register], uleb(offset)].concat()
}

/// `DW_CFA_def_cfa_expression`.
pub fn cfa_expression(expression: &[u8]) -> Vec<u8> {
    [vec![0x0f, expression.len() as u8], expression.to_vec()].concat()
}

/// `DW_CFA_expression`.
pub fn saved_at(register: u8, expression: &[u8]) -> Vec<u8> {
    [vec![0x10, register, expression.len() as u8], expression.to_vec()].concat()
}

/// `DW_CFA_offset`; in the factored unit of 8 bytes below the CFA.
pub fn saved_below(register: u8, eighths: u64) -> Vec<u8> {
    [vec![0x80 | register], uleb(eighths)].concat()
}

/// Builds a file.
pub fn file(functions: &[Function], entry: u64, found: Found) -> Vec<u8> {
    let is_eh = matches!(found, Found::ByEhFrameSection | Found::ByEhFrameHeader);
    let frames = match found {
        Found::Nowhere => Vec::new(),
        Found::ByCompressedDebugFrameSection => compressed(&call_frames(functions, false)),
        _ => call_frames(functions, is_eh),
    };
    let (header_offset, frames_offset) = (0x100u64, 0x120u64);
    let names_offset = frames_offset + frames.len() as u64;
    let names = b"\0.eh_frame\0.debug_frame\0.shstrtab\0";
    let sections_offset = (names_offset + names.len() as u64).next_multiple_of(8);
    let has_sections = found != Found::ByEhFrameHeader;

    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    let words = [entry, 64, if has_sections { sections_offset } else { 0 }];
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    let halves: [u16; 8] =
        [0, 0, 64, 56, 2, 64, if has_sections { 3 } else { 0 }, 2 * u16::from(has_sections)];
    out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    let file_bytes = sections_offset;
    out.extend(program_header(1, 0, BASE, file_bytes, MEMORY_BYTES));
    let header_kind = if found == Found::ByEhFrameHeader { 0x6474_e550 } else { 0 };
    out.extend(program_header(header_kind, header_offset, BASE + header_offset, 0x20, 0x20));
    out.resize(header_offset as usize, 0);
    // Version 1; the pointer is an absolute word; neither count nor table.
    out.extend([1, 0x04, 0xff, 0xff]);
    out.extend((BASE + frames_offset).to_le_bytes());
    out.resize(frames_offset as usize, 0);
    out.extend(&frames);
    out.extend(names);
    out.resize(sections_offset as usize, 0);
    if has_sections {
        let (name, address) = if is_eh { (1, BASE + frames_offset) } else { (11, 0) };
        let flags = if found == Found::ByCompressedDebugFrameSection { 0x800 } else { 0 };
        out.extend([0; 64]);
        out.extend(section_header(name, 1, flags, address, frames_offset, frames.len() as u64));
        out.extend(section_header(24, 3, 0, 0, names_offset, names.len() as u64));
    }
    out
}

fn program_header(kind: u32, offset: u64, address: u64, file_bytes: u64, memory_bytes: u64) -> Vec<u8> {
    let mut out = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
    let words = [offset, address, address, file_bytes, memory_bytes, 8];
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    out
}

fn section_header(name: u32, kind: u32, flags: u64, address: u64, offset: u64, size_bytes: u64) -> Vec<u8> {
    let mut out = [name.to_le_bytes(), kind.to_le_bytes()].concat();
    out.extend([flags, address, offset, size_bytes].iter().flat_map(|word| word.to_le_bytes()));
    out.extend([0; 8]);
    out.extend([8u64, 0].iter().flat_map(|word| word.to_le_bytes()));
    out
}

/// One CIE for plain functions and one for signal frames, CFA = rsp + 8, return address below it.
fn call_frames(functions: &[Function], is_eh: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let id: u32 = if is_eh { 0 } else { u32::MAX };
    let mut cies = Vec::new();
    for augmentation in [&b"zR\0"[..], b"zRS\0"] {
        cies.push(out.len() as u32);
        let mut cie = id.to_le_bytes().to_vec();
        cie.push(1);
        cie.extend(augmentation);
        cie.extend([1, 0x78, 16, 1, 0x04]);
        cie.extend([0x0c, 7, 8, 0x80 | 16, 1]);
        push_entry(&mut out, cie);
    }
    for function in functions {
        let cie = cies[usize::from(function.is_signal)];
        let pointer = if is_eh { out.len() as u32 + 4 - cie } else { cie };
        let mut fde = pointer.to_le_bytes().to_vec();
        fde.extend(BASE.wrapping_add(function.start).to_le_bytes());
        fde.extend(function.size_bytes.to_le_bytes());
        fde.push(0);
        fde.extend(&function.instructions);
        push_entry(&mut out, fde);
    }
    if is_eh {
        out.extend([0; 4]);
    }
    out
}

fn push_entry(out: &mut Vec<u8>, mut entry: Vec<u8>) {
    entry.resize(entry.len().next_multiple_of(4), 0);
    out.extend((entry.len() as u32).to_le_bytes());
    out.extend(entry);
}

/// A compression header, and zlib without compression.
fn compressed(data: &[u8]) -> Vec<u8> {
    let mut out = [1u64, data.len() as u64, 8].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let size = data.len() as u16;
    out.extend([0x78, 0x01, 0x01]);
    out.extend(size.to_le_bytes());
    out.extend((!size).to_le_bytes());
    out.extend(data);
    let (a, b) = data.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (a + b) % 65_521)
    });
    out.extend((b << 16 | a).to_be_bytes());
    out
}
