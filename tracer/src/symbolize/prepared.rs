//! One object made ready for lookups. Lives on the worker thread, as blazesym's state cannot leave it.

use std::any::Any;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized};

use super::debug_file::find_debug_file;
use super::demangle::{bounded, demangle};
use super::elf::ElfFacts;
use super::rewrite::{Links, rewrite};
use super::{SymbolizeError, nowhere};
use crate::attach::plain_file::{fd_path, reopen};
use crate::model::Location;
use crate::unwind::GoFunctions;

/// Bytes of a stripped Go program that are read; the largest have some 200 MB.
const MAX_GO_BYTES: u64 = 1 << 30;

/// An object as the front end keeps it: cheap to hand to a worker, and to a second one if the first is lost.
#[derive(Clone, Debug)]
pub(super) struct KeptObject {
    pub file: Arc<File>,
    pub display_path: PathBuf,
    /// Roots below which debug files are looked for, and whether what is installed there is trusted.
    pub roots: Vec<(Arc<File>, Links)>,
}

/// What a lookup gave, and what went wrong on the way to it.
pub(super) struct Answer {
    pub locations: Vec<Location>,
    pub problem: Option<SymbolizeError>,
}

/// The object, and its debug file where it has one.
pub(super) struct Prepared {
    facts: ElfFacts,
    /// In the order in which they are asked.
    layers: Vec<Layer>,
    /// Functions of a stripped Go program; they go before what little the dynamic symbols know.
    go: Option<GoFunctions>,
    /// Why something that is there is not used.
    problem: Option<SymbolizeError>,
}

impl Prepared {
    pub fn open(object: &KeptObject) -> Result<Self, SymbolizeError> {
        let file = reopen(object.file.as_fd()).map_err(|source| SymbolizeError::Open {
            path: object.display_path.display().to_string(),
            source,
        })?;
        let facts = ElfFacts::read(&file)?;
        let (mut layers, mut problem) = (Vec::new(), None);
        if !has_debug_info(&facts) {
            let found = object.roots.iter().find_map(|(root, links)| {
                let found = find_debug_file(root.as_fd(), &facts, &object.display_path)?;
                // Beside the object, also on the host, the target may have put it.
                let links = if found.is_installed { *links } else { Links::Untrusted };
                Some((found, links))
            });
            if let Some((found, links)) = found {
                match Layer::new(found.file, &found.facts, links) {
                    Ok(layer) => layers.push(layer),
                    Err(error) => problem = Some(error),
                }
            }
        }
        let has_symbols = facts.has_section(".symtab") || !layers.is_empty();
        let go = if has_symbols { None } else { read_go_functions(&file, &facts) };
        layers.push(Layer::new(file, &facts, Links::Untrusted)?);
        Ok(Self { facts, layers, go, problem })
    }

    pub fn lookup(&mut self, file_offset: u64) -> Answer {
        let mut problem = self.problem.take();
        let address = self.facts.address_of(file_offset).filter(|&address| !self.facts.is_plt(address));
        let locations = address.and_then(|address| {
            if let Some(function) = self.go.as_ref().and_then(|go| go.find(address)) {
                let function = Some(bounded(function.name));
                return Some(vec![Location { function, file: None, line: None, inlined: false }]);
            }
            self.layers.iter_mut().find_map(|layer| match layer.lookup(address) {
                Ok(locations) => locations,
                Err(error) => {
                    problem.get_or_insert(error);
                    None
                }
            })
        });
        Answer { locations: locations.unwrap_or_else(nowhere), problem }
    }
}

/// What is done with a file before blazesym sees it: its headers, the copy without what it cannot take. Gives whether there
/// was anything to be read.
#[cfg(any(test, fuzzing))]
pub(crate) fn prepare_headers(bytes: &[u8]) -> bool {
    use std::io::Write as _;
    let Ok(mut file) = super::rewrite::memory_file() else { return false };
    if file.write_all(bytes).is_err() {
        return false;
    }
    let Ok(facts) = ElfFacts::read(&file) else { return false };
    for links in [Links::Trusted, Links::Untrusted] {
        let _ = rewrite(&file, &facts, true, links);
    }
    let _ = facts.address_of(bytes.len() as u64 / 2).map(|address| facts.is_plt(address));
    let _ = GoFunctions::from_elf(bytes).map(|go| go.iter().count());
    true
}

/// The functions of a Go program by the table that its runtime needs, which is never stripped.
fn read_go_functions(file: &File, facts: &ElfFacts) -> Option<GoFunctions> {
    if !facts.has_section(".go.buildinfo") {
        return None;
    }
    let mut bytes = Vec::new();
    let mut reader: &File = file;
    reader.seek(SeekFrom::Start(0)).and_then(|_| reader.take(MAX_GO_BYTES).read_to_end(&mut bytes)).ok()?;
    GoFunctions::from_elf(&bytes)
}

fn has_debug_info(facts: &ElfFacts) -> bool {
    facts.has_section(".debug_info")
}

/// Errors after which a file's debug information is left alone: blazesym reads it anew at every attempt.
const MAX_DEBUG_ERRORS: u32 = 4;

/// One ELF file with symbols.
struct Layer {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    blazesym: blazesym::symbolize::Symbolizer,
    /// Zero where there is no debug information to be used.
    debug_attempts: u32,
}

impl Layer {
    fn new(file: File, facts: &ElfFacts, links: Links) -> Result<Self, SymbolizeError> {
        let wants_debug_info = has_debug_info(facts);
        match Self::with(&file, facts, wants_debug_info, links) {
            // Symbols without lines are better than nothing.
            Err(_) if wants_debug_info => Self::with(&file, facts, false, links),
            other => other,
        }
    }

    fn with(file: &File, facts: &ElfFacts, debug_info: bool, links: Links) -> Result<Self, SymbolizeError> {
        let file = match rewrite(file, facts, debug_info, links)? {
            Some(copy) => copy,
            None => file.try_clone().map_err(SymbolizeError::Copy)?,
        };
        Ok(Self {
            path: fd_path(file.as_fd()),
            size_bytes: file.metadata().map_err(SymbolizeError::Copy)?.len(),
            file,
            blazesym: new_blazesym(),
            debug_attempts: if debug_info { MAX_DEBUG_ERRORS } else { 0 },
        })
    }

    /// The locations of an address as linked, innermost first.
    fn lookup(&mut self, address: u64) -> Result<Option<Vec<Location>>, SymbolizeError> {
        // blazesym reads the file through a mapping, where bytes that are no longer there are a SIGBUS. A
        // package upgrade that writes over a library in use does this; the window that remains is short.
        if self.file.metadata().is_ok_and(|status| status.len() < self.size_bytes) {
            return Err(SymbolizeError::Truncated);
        }
        if self.debug_attempts > 0 {
            match self.ask(address, true) {
                Ok(Some(mut locations)) => {
                    if let Some(last) = locations.last_mut().filter(|last| is_unqualified(last)) {
                        let symbol = self.ask(address, false).ok().flatten();
                        let symbol = symbol.and_then(|mut symbol| symbol.pop()?.function);
                        if let Some(name) = symbol.filter(|name| says_more(name, last.function.as_deref())) {
                            last.function = Some(name);
                        }
                    }
                    return Ok(Some(locations));
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    log::debug!("debug information of `{}`: {error}", self.path.display());
                    self.debug_attempts -= 1;
                }
            }
        }
        self.ask(address, false)
    }

    fn ask(&mut self, address: u64, debug_info: bool) -> Result<Option<Vec<Location>>, SymbolizeError> {
        let mut elf = Elf::new(&self.path);
        elf.debug_syms = debug_info;
        let source = Source::Elf(elf);
        // After a panic the symbolizer is thrown away, so no broken state of it is seen.
        let answer = catch_unwind(AssertUnwindSafe(|| {
            self.blazesym.symbolize_single(&source, Input::VirtOffset(address)).map(|symbol| match symbol {
                Symbolized::Sym(symbol) => Some(locations_of(&symbol)),
                Symbolized::Unknown(_) => None,
            })
        }));
        match answer {
            Ok(Ok(locations)) => Ok(locations),
            Ok(Err(error)) => Err(SymbolizeError::Refused(bounded(&error.to_string()))),
            Err(payload) => {
                self.blazesym = new_blazesym();
                self.debug_attempts = 0;
                Err(SymbolizeError::Panicked(bounded(panic_message(payload.as_ref()))))
            }
        }
    }
}

/// Whether debug information may have left out where the function belongs to: line tables alone do
/// (`-g1`, `line-tables-only`), and C++ has no linkage names for functions of a file's own.
fn is_unqualified(location: &Location) -> bool {
    location.function.as_deref().is_none_or(|name| !name.contains("::"))
}

/// Whether the symbol's name is the debug information's with more around it. Another name is that of an
/// alias, or of a function that was split off: then the debug information is right.
fn says_more(symbol: &str, known: Option<&str>) -> bool {
    known.is_none_or(|known| {
        symbol.contains("::") && symbol.contains(known.split('<').next().unwrap_or(known))
    })
}

fn new_blazesym() -> blazesym::symbolize::Symbolizer {
    // Names are demangled here, within a bound. Reloading compares times of files that cannot change for us.
    blazesym::symbolize::Symbolizer::builder().enable_demangling(false).enable_auto_reload(false).build()
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// blazesym lists the function first and what was inlined into it after, outermost first.
fn locations_of(symbol: &Sym<'_>) -> Vec<Location> {
    let inlined =
        symbol.inlined.iter().rev().map(|callee| location(&callee.name, callee.code_info.as_ref(), true));
    inlined.chain([location(&symbol.name, symbol.code_info.as_deref(), false)]).collect()
}

fn location(name: &str, code: Option<&CodeInfo<'_>>, inlined: bool) -> Location {
    Location {
        function: Some(demangle(name)).filter(|name| !name.is_empty()),
        file: code.map(|code| bounded(&code.to_path().to_string_lossy())).filter(|file| !file.is_empty()),
        line: code.and_then(|code| code.line).filter(|&line| line > 0),
        inlined,
    }
}
