//! Checked access to the columns of a row that somebody else may have written.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

/// Longest string that is taken over; C++ names of some kilobytes are real.
pub(super) const MAX_TEXT_BYTES: usize = 64 * 1024;

/// A value that is not negative.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> Option<u64> {
    match row.get_ref(column) {
        Ok(ValueRef::Integer(value)) => u64::try_from(value).ok(),
        _ => None,
    }
}

/// A value of 32 bits.
pub(super) fn id(row: &Row<'_>, column: usize) -> Option<u32> {
    unsigned(row, column).and_then(|value| u32::try_from(value).ok())
}

/// An address or offset: all 64 bits count, so the upper half is stored as negative numbers.
pub(super) fn bits(row: &Row<'_>, column: usize) -> Option<u64> {
    match row.get_ref(column) {
        Ok(ValueRef::Integer(value)) => Some(value.cast_unsigned()),
        _ => None,
    }
}

/// A string; invalid UTF-8 is replaced, and what is longer than [`MAX_TEXT_BYTES`] is cut.
pub(super) fn text(row: &Row<'_>, column: usize) -> Option<String> {
    match row.get_ref(column) {
        Ok(ValueRef::Text(bytes)) => {
            Some(String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT_BYTES)]).into_owned())
        }
        _ => None,
    }
}

/// A column that may be NULL: `Some(None)` for NULL, `None` for a value that `get` refuses.
pub(super) fn nullable<T>(
    row: &Row<'_>,
    column: usize,
    get: impl Fn(&Row<'_>, usize) -> Option<T>,
) -> Option<Option<T>> {
    match row.get_ref(column) {
        Ok(ValueRef::Null) => Some(None),
        _ => get(row, column).map(Some),
    }
}

/// Runs `sql` and hands each row to `take`, at most `limit` of them. Returns the number of rows that
/// `take` refused; rows behind the limit count as refused, one for all.
pub(super) fn each(
    connection: &Connection,
    sql: &str,
    limit: usize,
    mut take: impl FnMut(&Row<'_>) -> Option<()>,
) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let (mut taken, mut refused) = (0usize, 0u64);
    while let Some(row) = rows.next()? {
        if taken == limit {
            return Ok(refused + 1);
        }
        taken += 1;
        if take(row).is_none() {
            refused += 1;
        }
    }
    Ok(refused)
}
