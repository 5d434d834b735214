//! Go.

use super::Told;
use super::claim::Claims;
use super::context::Context;

pub(super) fn tell(_tgid: u32, _context: &Context<'_>, _claims: &mut Claims, _told: &mut Told) {}
pub(super) fn claim(_tgid: u32, _context: &Context<'_>, _claims: &mut Claims) {}
