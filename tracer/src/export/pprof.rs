//! The format of `go tool pprof`: gzip around the protobuf message `Profile` of google/pprof's `profile.proto`.
//!
//! Locations stand at `file offset + a base per file`, not where the target had mapped the file: so captures of two
//! runs compare, and an address minus the start of its mapping is the offset that a symbolizer looks for.

use std::collections::HashMap;
use std::io::Write;

use flate2::{Compression, GzBuilder};

use super::ExportError;
use crate::model::{FrameId, Lens, Object};
use crate::profile::{Profile, Site, SiteFrame};
use crate::report::escape;

/// Distance of the bases of two files: none is larger.
const BASE_DISTANCE: u64 = 1 << 40;
const PAGE_BYTES: u64 = 4096;

/// Writes allocated and outstanding objects and bytes of every site; of resident pages, where nothing else was
/// observed or asked for.
pub fn pprof(profile: &Profile, out: impl Write) -> Result<(), ExportError> {
    let mut builder = Builder::new();
    let mut message = Message::default();
    for (kind, unit) in [
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ] {
        message.message(field::SAMPLE_TYPE, &builder.value_type(kind, unit));
    }
    for site in profile.drawable_sites().filter(|site| site.counters.allocated_count > 0) {
        let sample = builder.sample(profile, site);
        message.message(field::SAMPLE, &sample);
    }
    let comments = builder.comments(profile);
    message.uint(field::DEFAULT_SAMPLE_TYPE, builder.string("inuse_space"));
    message.bytes.extend(builder.mappings());
    message.bytes.extend(&builder.locations.bytes);
    message.bytes.extend(&builder.functions.bytes);
    message.uint(field::TIME_NANOS, profile.header.start_realtime_ns);
    message.uint(field::DURATION_NANOS, profile.window.elapsed_ns);
    message.packed(field::COMMENT, &comments);
    for string in &builder.strings {
        message.string(field::STRING_TABLE, string);
    }
    let mut gzip = GzBuilder::new().mtime(0).write(out, Compression::default());
    gzip.write_all(&message.bytes)?;
    gzip.finish()?.flush()?;
    Ok(())
}

/// Field numbers of the message `Profile`.
mod field {
    pub const SAMPLE_TYPE: u64 = 1;
    pub const SAMPLE: u64 = 2;
    pub const MAPPING: u64 = 3;
    pub const LOCATION: u64 = 4;
    pub const FUNCTION: u64 = 5;
    pub const STRING_TABLE: u64 = 6;
    pub const TIME_NANOS: u64 = 9;
    pub const DURATION_NANOS: u64 = 10;
    pub const COMMENT: u64 = 13;
    pub const DEFAULT_SAMPLE_TYPE: u64 = 14;
}

/// A protobuf message in the making: varints and length-delimited fields are all that the format needs.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn uint(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn delimited(&mut self, field: u64, bytes: &[u8]) {
        self.varint((field << 3) | 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: &Message) {
        self.delimited(field, &message.bytes);
    }

    fn string(&mut self, field: u64, string: &str) {
        self.delimited(field, string.as_bytes());
    }

    fn packed(&mut self, field: u64, values: &[u64]) {
        let mut inner = Message::default();
        for value in values {
            inner.varint(*value);
        }
        self.message(field, &inner);
    }
}

/// A file of the profile.
struct Mapping {
    path: u64,
    build_id: u64,
    base: u64,
    end: u64,
}

/// The tables that samples refer to.
struct Builder {
    strings: Vec<String>,
    string_ids: HashMap<String, u64>,
    mappings: Vec<Mapping>,
    mapping_ids: HashMap<(String, Option<String>), u64>,
    function_ids: HashMap<(u64, u64), u64>,
    functions: Message,
    /// By frame, and whether it is where memory was touched and no return address.
    location_ids: HashMap<(FrameId, bool), u64>,
    /// Locations that say something and are nowhere.
    pseudo_ids: HashMap<String, u64>,
    locations: Message,
}

impl Builder {
    fn new() -> Self {
        let mut builder = Self {
            strings: Vec::new(),
            string_ids: HashMap::new(),
            mappings: Vec::new(),
            mapping_ids: HashMap::new(),
            function_ids: HashMap::new(),
            functions: Message::default(),
            location_ids: HashMap::new(),
            pseudo_ids: HashMap::new(),
            locations: Message::default(),
        };
        // The format wants the empty string first.
        builder.string("");
        builder
    }

    /// Index of a string, escaped: what reads it prints it to a terminal.
    fn string(&mut self, value: &str) -> u64 {
        let value = escape(value);
        if let Some(id) = self.string_ids.get(value.as_ref()) {
            return *id;
        }
        let id = self.strings.len() as u64;
        self.strings.push(value.clone().into_owned());
        self.string_ids.insert(value.into_owned(), id);
        id
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> Message {
        let mut message = Message::default();
        message.uint(1, self.string(kind));
        message.uint(2, self.string(unit));
        message
    }

    fn sample(&mut self, profile: &Profile, site: &Site) -> Message {
        let mut locations = self.stack(profile, site);
        // The pseudo-frames that folded stacks have, too.
        if site.is_lost {
            locations.push(self.pseudo("[stack lost]"));
        } else if !site.end.is_whole() {
            locations.push(self.pseudo(&format!("[stack breaks off: {}]", site.end.name())));
        }
        let mut message = Message::default();
        message.packed(1, &locations);
        message.packed(
            2,
            &[
                site.counters.allocated_count,
                site.counters.allocated_bytes,
                site.outstanding_count,
                site.outstanding_bytes,
            ],
        );
        for (key, value) in labels(profile, site) {
            let mut label = Message::default();
            label.uint(1, self.string(key));
            match value {
                Label::Text(text) => label.uint(2, self.string(&text)),
                Label::Number(number) => label.uint(3, number),
            }
            message.message(3, &label);
        }
        message
    }

    /// Locations of a stack, innermost first; functions inlined into one frame are lines of one location.
    fn stack(&mut self, profile: &Profile, site: &Site) -> Vec<u64> {
        let lines: Vec<SiteFrame<'_>> = profile.stack(site).collect();
        // A recursion has one frame several times in a row: a frame begins anew at what is not inlined.
        let frames = lines.chunk_by(|line, next| line.location.inlined && line.frame.id == next.frame.id);
        frames
            .enumerate()
            .filter_map(|(index, lines)| {
                let is_exact = index == 0 && site.lens == Lens::Faults;
                Some(self.location(lines.first()?, lines, is_exact))
            })
            .collect()
    }

    fn location(&mut self, first: &SiteFrame<'_>, lines: &[SiteFrame<'_>], is_exact: bool) -> u64 {
        if let Some(id) = self.location_ids.get(&(first.frame.id, is_exact)) {
            return *id;
        }
        // Behind a call stands the next line: what called is one byte before.
        let back = u64::from(!is_exact);
        let (mapping, address) = match (first.object, first.frame.file_offset) {
            (Some(object), Some(offset)) => self.place(object, offset.saturating_sub(back)),
            _ => (0, first.frame.address.saturating_sub(back)),
        };
        let mut message = Message::default();
        let id = self.next_location();
        message.uint(1, id);
        message.uint(2, mapping);
        message.uint(3, address);
        for line in lines {
            let function = self.function(&line.label(), line.location.file.as_deref().unwrap_or_default());
            let mut inner = Message::default();
            inner.uint(1, function);
            inner.uint(2, u64::from(line.location.line.unwrap_or(0)));
            message.message(4, &inner);
        }
        self.locations.message(field::LOCATION, &message);
        self.location_ids.insert((first.frame.id, is_exact), id);
        id
    }

    /// A location that says something and is nowhere.
    fn pseudo(&mut self, name: &str) -> u64 {
        if let Some(id) = self.pseudo_ids.get(name) {
            return *id;
        }
        let mut message = Message::default();
        let id = self.next_location();
        message.uint(1, id);
        let mut inner = Message::default();
        inner.uint(1, self.function(name, ""));
        message.message(4, &inner);
        self.locations.message(field::LOCATION, &message);
        self.pseudo_ids.insert(name.to_owned(), id);
        id
    }

    fn next_location(&self) -> u64 {
        (self.location_ids.len() + self.pseudo_ids.len()) as u64 + 1
    }

    fn function(&mut self, name: &str, file: &str) -> u64 {
        let key = (self.string(name), self.string(file));
        let next = self.function_ids.len() as u64 + 1;
        let id = *self.function_ids.entry(key).or_insert(next);
        if id == next {
            let mut message = Message::default();
            message.uint(1, id);
            message.uint(2, key.0);
            message.uint(3, key.0);
            message.uint(4, key.1);
            self.functions.message(field::FUNCTION, &message);
        }
        id
    }

    /// Number of a file's mapping, and the address of an offset in it.
    fn place(&mut self, object: &Object, offset: u64) -> (u64, u64) {
        let key = (object.path.clone(), object.build_id.clone());
        let id = match self.mapping_ids.get(&key) {
            Some(id) => *id,
            None => {
                let id = self.mappings.len() as u64 + 1;
                let path = self.string(&object.path);
                let build_id = self.string(object.build_id.as_deref().unwrap_or_default());
                let base = id.saturating_mul(BASE_DISTANCE);
                self.mappings.push(Mapping { path, build_id, base, end: base });
                self.mapping_ids.insert(key, id);
                id
            }
        };
        let index = usize::try_from(id - 1).unwrap_or(usize::MAX);
        let Some(mapping) = self.mappings.get_mut(index) else { return (0, offset) };
        // An offset beyond what a file can have is hostile: it must not fall into another file.
        let address = mapping.base + offset.min(BASE_DISTANCE - 2 * PAGE_BYTES);
        mapping.end = mapping.end.max((address / PAGE_BYTES + 1) * PAGE_BYTES);
        (id, address)
    }

    fn mappings(&self) -> Vec<u8> {
        let mut all = Message::default();
        for (id, mapping) in (1..).zip(&self.mappings) {
            let mut message = Message::default();
            message.uint(1, id);
            message.uint(2, mapping.base);
            message.uint(3, mapping.end);
            message.uint(5, mapping.path);
            message.uint(6, mapping.build_id);
            // Functions, files, lines and inlined frames are there: nothing is left to symbolize.
            for known in 7..=10 {
                message.uint(known, 1);
            }
            all.message(field::MAPPING, &message);
        }
        all.bytes
    }

    /// What is missing, and who wrote it.
    fn comments(&mut self, profile: &Profile) -> Vec<u64> {
        let mut comments = vec![format!(
            "recorded by offheap {} of {}",
            profile.header.offheap_version,
            crate::report::who(profile)
        )];
        comments.extend(crate::report::warnings(profile));
        comments.iter().map(|comment| self.string(comment)).collect()
    }
}

enum Label {
    Text(String),
    Number(u64),
}

/// What is known about a site besides its stack.
fn labels(profile: &Profile, site: &Site) -> Vec<(&'static str, Label)> {
    let mut labels = vec![
        ("lens", Label::Text(site.lens.name().into())),
        ("class", Label::Text(site.class.name().into())),
    ];
    if let Some(row) = site.allocator.and_then(|id| profile.allocator(id)) {
        labels.push(("allocator", Label::Text(row.allocator.name.clone())));
    }
    if let ([only], true) = (site.processes.as_slice(), profile.processes.len() > 1)
        && let Some(row) = profile.process(*only)
    {
        labels.push(("process", Label::Text(row.process.target.comm.clone())));
        labels.push(("pid", Label::Number(u64::from(row.process.target.tgid))));
    }
    labels
}
