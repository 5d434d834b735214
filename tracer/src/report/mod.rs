//! What a person or a program reads: the table and the JSON.

mod block;
mod escape;
pub(crate) mod human;
mod json;
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub use escape::escape;
pub use json::{SCHEMA, json, json_text};
pub use table::{DEFAULT_TABLE_SITES, TableOptions, table};
