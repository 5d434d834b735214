//! The code of an object: its bytes by address, where functions end, and where calls lead.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection};
use iced_x86::{Code as Opcode, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::{
    Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _, ObjectSymbolTable as _,
    RelocationFlags, RelocationTarget, SegmentFlags,
    elf::{PF_X, R_AARCH64_RELATIVE, R_X86_64_RELATIVE},
};
use tracer_common::func::Function;

use super::{aarch64, selection::Names};
use crate::model::Machine;

/// Most relocations that are read.
const MAX_RELOCATIONS: usize = 4 << 20;
/// Largest `.eh_frame` that is read, in bytes, after decompression.
const MAX_FRAMES_BYTES: u64 = 256 << 20;
/// Most of its entries.
const MAX_FRAMES: usize = 4_000_000;
/// Longest CIE, in bytes: it is parsed again for every FDE.
const MAX_CIE_BYTES: usize = 4096;
/// Longest x86 instruction.
const MAX_INSTRUCTION_BYTES: usize = 15;

/// Functions behind which there is nothing: what follows a call of them is not reached by it.
const NEVER_RETURN: &[&str] = &[
    "abort",
    "exit",
    "_exit",
    "__assert_fail",
    "__stack_chk_fail",
    "__fortify_fail",
    "__chk_fail",
    "__cxa_throw",
    "__cxa_rethrow",
    "__cxa_throw_bad_array_new_length",
    "__cxa_bad_cast",
    "__cxa_call_unexpected",
    "__cxa_call_terminate",
    "__clang_call_terminate",
    "_Unwind_Resume",
    "_ZSt9terminatev",
    "_ZSt17__throw_bad_allocv",
    "_ZSt28__throw_bad_array_new_lengthv",
    "_ZSt20__throw_length_errorPKc",
];

/// Where a call or jump leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    /// To a function of the table, by whatever way; with its address if this object defines it.
    Table(&'static Function, Option<u64>),
    /// To a function that never returns.
    NeverReturns,
    /// To code of this object.
    Inside(u64),
    /// Elsewhere.
    Outside,
}

struct Segment<'d> {
    address: u64,
    file_offset: u64,
    bytes: &'d [u8],
}

/// The code of an object. What costs much to read is read when it is first needed.
pub struct Code<'d> {
    elf: &'d object::File<'d>,
    machine: Machine,
    names: &'d Names,
    segments: Vec<Segment<'d>>,
    known: HashMap<u64, Callee>,
    ends: BTreeMap<u64, u64>,
    slots: OnceCell<HashMap<u64, Callee>>,
    frames: OnceCell<BTreeMap<u64, u64>>,
}

impl<'d> Code<'d> {
    /// The executable segments of an object.
    pub fn new(elf: &'d object::File<'d>, names: &'d Names) -> Self {
        let segments = elf
            .segments()
            .filter_map(|segment| {
                let SegmentFlags::Elf { p_flags, .. } = segment.flags() else { return None };
                let (file_offset, _) = segment.file_range();
                let bytes = segment.data().ok()?;
                (p_flags.0 & PF_X.0 != 0).then_some(Segment {
                    address: segment.address(),
                    file_offset,
                    bytes,
                })
            })
            .collect();
        let machine = match elf.architecture() {
            object::Architecture::Aarch64 => Machine::Aarch64,
            _ => Machine::X86_64,
        };
        Self {
            elf,
            machine,
            names,
            segments,
            known: HashMap::new(),
            ends: BTreeMap::new(),
            slots: OnceCell::new(),
            frames: OnceCell::new(),
        }
    }

    /// The processor that the code is for.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Tells of a symbol of this object: calls that lead to its address lead to that function.
    pub fn learn(&mut self, name: &[u8], address: u64, size: u64) {
        if let Some(callee) = self.by_name(name, Some(address)) {
            self.known.entry(address).or_insert(callee);
        }
        if let Some(end) = address.checked_add(size).filter(|end| *end > address) {
            self.ends.entry(address).or_insert(end);
        }
    }

    /// Whether [`Code::learn`] is of use for a symbol.
    pub fn wants(&self, name: &[u8]) -> bool {
        self.by_name(name, None).is_some()
    }

    fn by_name(&self, name: &[u8], address: Option<u64>) -> Option<Callee> {
        if let Some(function) = self.names.function(name) {
            return Some(Callee::Table(function, address));
        }
        NEVER_RETURN.iter().any(|known| known.as_bytes() == name).then_some(Callee::NeverReturns)
    }

    /// The bytes from an address of executable code to the end of its segment.
    pub fn bytes_at(&self, address: u64) -> Option<&'d [u8]> {
        self.segments.iter().find_map(|segment| {
            let distance = usize::try_from(address.checked_sub(segment.address)?).ok()?;
            segment.bytes.get(distance..).filter(|bytes| !bytes.is_empty())
        })
    }

    /// Offset in the file of an address of executable code.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let distance = address.checked_sub(segment.address)?;
            (distance < segment.bytes.len() as u64).then(|| segment.file_offset.checked_add(distance))?
        })
    }

    /// The instruction of x86-64 at an address; `None` if there is none.
    pub fn instruction(&self, address: u64) -> Option<Instruction> {
        let bytes = self.bytes_at(address)?;
        let bytes = bytes.get(..MAX_INSTRUCTION_BYTES).unwrap_or(bytes);
        let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// From the first to behind the last byte of the function that an address lies in: by the size of its symbol if it
    /// is a known function, else by the unwind table.
    pub fn extent(&self, address: u64) -> Option<Range<u64>> {
        let holding = |ends: &BTreeMap<u64, u64>| {
            let (start, end) = ends.range(..=address).next_back()?;
            (address < *end).then_some(*start..*end)
        };
        holding(&self.ends).or_else(|| holding(self.frames.get_or_init(|| frames(self.elf))))
    }

    /// Where a direct or memory-indirect call or jump leads. `None`: only the processor knows.
    pub fn destination(&self, instruction: &Instruction) -> Option<Callee> {
        match instruction.op0_kind() {
            OpKind::NearBranch64 => Some(self.callee(instruction.near_branch_target())),
            OpKind::Memory if instruction.memory_base() == Register::RIP => {
                self.slot(instruction.ip_rel_memory_address())
            }
            _ => None,
        }
    }

    /// What an address of this object stands for; a stub of the procedure linkage table for what it jumps to.
    pub fn callee(&self, address: u64) -> Callee {
        if let Some(known) = self.known.get(&address) {
            return *known;
        }
        match self.stub(address) {
            // A slot that nobody fills by name: somewhere else.
            Some(slot) => self.slot(slot).unwrap_or(Callee::Outside),
            None if self.bytes_at(address).is_some() => Callee::Inside(address),
            None => Callee::Outside,
        }
    }

    /// The slot that the stub at an address jumps through, if it is one.
    fn stub(&self, address: u64) -> Option<u64> {
        if self.machine == Machine::Aarch64 {
            return aarch64::stub_slot(self.bytes_at(address)?, address);
        }
        let mut instruction = self.instruction(address)?;
        if instruction.code() == Opcode::Endbr64 {
            instruction = self.instruction(instruction.next_ip())?;
        }
        let is_stub = instruction.mnemonic() == Mnemonic::Jmp
            && instruction.op0_kind() == OpKind::Memory
            && instruction.memory_base() == Register::RIP;
        is_stub.then(|| instruction.ip_rel_memory_address())
    }

    fn slot(&self, slot: u64) -> Option<Callee> {
        match self.slots.get_or_init(|| self.read_slots()).get(&slot).copied()? {
            Callee::Inside(address) => {
                Some(self.known.get(&address).copied().unwrap_or(Callee::Inside(address)))
            }
            callee => Some(callee),
        }
    }

    /// What the dynamic linker will write where.
    fn read_slots(&self) -> HashMap<u64, Callee> {
        let symbols = self.elf.dynamic_symbol_table();
        let Some(relocations) = self.elf.dynamic_relocations() else { return HashMap::new() };
        let relative = match self.machine {
            Machine::X86_64 => R_X86_64_RELATIVE,
            Machine::Aarch64 => R_AARCH64_RELATIVE,
        };
        let callee = |relocation: &object::Relocation| match relocation.target() {
            RelocationTarget::Symbol(index) => {
                let symbol = symbols.as_ref()?.symbol_by_index(index).ok()?;
                let address = (!symbol.is_undefined()).then(|| symbol.address());
                let otherwise = || address.map_or(Callee::Outside, Callee::Inside);
                Some(self.by_name(symbol.name_bytes().ok()?, address).unwrap_or_else(otherwise))
            }
            _ => {
                let RelocationFlags::Elf { r_type } = relocation.flags() else { return None };
                let address = u64::try_from(relocation.addend()).ok()?;
                (r_type == relative && self.bytes_at(address).is_some()).then_some(Callee::Inside(address))
            }
        };
        relocations
            .take(MAX_RELOCATIONS)
            .filter_map(|(slot, relocation)| Some((slot, callee(&relocation)?)))
            .collect()
    }
}

/// First and behind-the-last address of every function that has an entry in `.eh_frame`.
fn frames(elf: &object::File<'_>) -> BTreeMap<u64, u64> {
    let mut frames = BTreeMap::new();
    let Some(section) = elf.section_by_name(".eh_frame") else { return frames };
    // What a compressed section says of its size is taken for granted by who decompresses it.
    let Ok(data) = section.compressed_data() else { return frames };
    if data.uncompressed_size > MAX_FRAMES_BYTES {
        return frames;
    }
    let Ok(bytes) = data.decompress() else { return frames };
    let table = EhFrame::new(&bytes, LittleEndian);
    let text = elf.section_by_name(".text").map_or(0, |text| text.address());
    let bases = BaseAddresses::default().set_eh_frame(section.address()).set_text(text);
    let mut entries = table.entries(&bases);
    while let (Ok(Some(entry)), true) = (entries.next(), frames.len() < MAX_FRAMES) {
        let CieOrFde::Fde(partial) = entry else { continue };
        let cie = |section: &EhFrame<_>, bases: &_, offset: gimli::EhFrameOffset| {
            let is_short = entry_bytes(&bytes, offset.0).is_some_and(|length| length <= MAX_CIE_BYTES);
            if is_short { section.cie_from_offset(bases, offset) } else { Err(gimli::Error::NotCieId(0)) }
        };
        let Ok(fde) = partial.parse(cie) else { continue };
        if let Some(end) =
            fde.initial_address().checked_add(fde.len()).filter(|end| *end > fde.initial_address())
        {
            frames.insert(fde.initial_address(), end);
        }
    }
    frames
}

/// The length that an entry of call frame information gives itself, without the field that says so.
pub(crate) fn entry_bytes(section: &[u8], offset: usize) -> Option<usize> {
    let at = |from: usize| section.get(offset.checked_add(from)?..);
    let length = u32::from_le_bytes(*at(0)?.first_chunk()?);
    if length != u32::MAX {
        return usize::try_from(length).ok();
    }
    usize::try_from(u64::from_le_bytes(*at(4)?.first_chunk()?)).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// Address at which the code of [`with_code`] begins.
    pub(in super::super) const BASE: u64 = 0x1000;

    /// An object that has nothing but code. `functions` are name, offset and size.
    pub(in super::super) fn with_code<T>(
        code: &[u8],
        functions: &[(&str, u64, u64)],
        look: impl FnOnce(&Code<'_>) -> T,
    ) -> T {
        with_code_for(Machine::X86_64, code, functions, look)
    }

    /// The same for a machine.
    pub(in super::super) fn with_code_for<T>(
        machine: Machine,
        code: &[u8],
        functions: &[(&str, u64, u64)],
        look: impl FnOnce(&Code<'_>) -> T,
    ) -> T {
        let bytes = elf_with(machine, code);
        let elf = object::File::parse(&*bytes).unwrap();
        let names = Names::new(&[]);
        let mut code = Code::new(&elf, &names);
        for (name, offset, size) in functions {
            code.learn(name.as_bytes(), BASE + offset, *size);
        }
        look(&code)
    }

    /// A header, one executable segment, no sections.
    fn elf_with(machine: Machine, code: &[u8]) -> Vec<u8> {
        const HEADER_BYTES: u64 = 64 + 56;
        let size = code.len() as u64;
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let [low, high] = machine.e_machine().to_le_bytes();
        elf.extend([3, 0, low, high, 1, 0, 0, 0]); // shared, machine, version
        elf.extend([0u64, 64, 0].iter().flat_map(|value| value.to_le_bytes())); // entry, headers, sections
        elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, r-x
        let fields = [HEADER_BYTES, BASE, BASE, size, size, 0x1000];
        elf.extend(fields.iter().flat_map(|value| value.to_le_bytes()));
        elf.extend_from_slice(code);
        elf
    }

    #[test]
    fn calls_are_known_by_name_and_functions_by_size() {
        // call +0 (malloc at 6); ret; ret
        with_code(&[0xe8, 1, 0, 0, 0, 0xc3, 0xc3], &[("malloc", 6, 1), ("abort", 5, 1)], |code| {
            let call = code.instruction(BASE).unwrap();
            let malloc = tracer_common::func::by_name("malloc").unwrap();
            assert_eq!(code.destination(&call), Some(Callee::Table(malloc, Some(BASE + 6))));
            assert_eq!(code.callee(BASE + 5), Callee::NeverReturns);
            assert_eq!(code.callee(BASE), Callee::Inside(BASE));
            assert_eq!(code.callee(BASE + 100), Callee::Outside);
            assert_eq!(code.extent(BASE + 6), Some(BASE + 6..BASE + 7));
            assert_eq!(code.extent(BASE), None, "no symbol, no unwind table");
            assert_eq!(code.file_offset(BASE + 2), Some(122));
        });
    }
}
