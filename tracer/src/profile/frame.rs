//! Frames of a site with everything that is known about them.

use std::collections::HashMap;

use crate::model::{Frame, FrameId, FrameKind, Location, Object, ObjectId};

/// One function of a stack. All names are as the target has them: escape them before they are printed.
#[derive(Clone, Copy, Debug)]
pub struct SiteFrame<'a> {
    /// The program counter it was found at.
    pub frame: &'a Frame,
    /// Function, file, line.
    pub location: &'a Location,
    /// The file it lies in.
    pub object: Option<&'a Object>,
}

impl SiteFrame<'_> {
    /// Function, or else where the code is: file and offset, or the address.
    pub fn label(&self) -> String {
        match (&self.location.function, self.object, self.frame.file_offset) {
            (Some(function), _, _) => function.clone(),
            (None, Some(object), Some(offset)) => format!("{}+{offset:#x}", base_name(&object.path)),
            (None, _, _) => match self.frame.kind {
                FrameKind::Native | FrameKind::Unknown => format!("{:#x}", self.frame.address),
                kind => format!("{} code at {:#x}", kind.name(), self.frame.address),
            },
        }
    }
}

/// Last part of a path.
pub(crate) fn base_name(path: &str) -> &str {
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path)
}

/// The functions of a list of frames, innermost first, with inlined ones.
pub(super) fn expand<'a>(
    ids: &'a [FrameId],
    frames: &'a HashMap<FrameId, Frame>,
    objects: &'a HashMap<ObjectId, Object>,
) -> impl Iterator<Item = SiteFrame<'a>> {
    ids.iter().filter_map(|id| frames.get(id)).flat_map(|frame| {
        let object = frame.object.and_then(|object| objects.get(&object));
        frame.locations.iter().map(move |location| SiteFrame { frame, location, object })
    })
}
