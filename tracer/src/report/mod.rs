//! What a person or a program reads: the table and the JSON.

mod block;
mod check;
mod diff;
mod escape;
pub(crate) mod estimate;
mod evidence;
mod grid;
mod head;
pub(crate) mod human;
mod json;
mod memory;
mod rss;
mod section;
pub(crate) mod stack_tree;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod tree;
pub(crate) mod verdict;

pub use check::{CHECK_SCHEMA, check_json, check_text, github, junit};
pub use diff::{DEFAULT_DIFF_ROWS, diff_json, diff_table};
pub use escape::escape;
pub(crate) use head::who;
pub use json::{SCHEMA, json, json_text};
pub use rss::{RSS_SCHEMA, RssOptions, rss_json, rss_text};
pub(crate) use table::warnings;
pub use table::{DEFAULT_TABLE_SITES, TableOptions, table};
