//! Small tables in a given width: columns get narrower, and the least important ones are left out.

use super::human::middle;

/// Blanks between two columns.
const GAP: usize = 2;

/// One column.
pub(super) struct Column {
    /// Empty: none.
    pub title: &'static str,
    /// Numbers are aligned to the right.
    pub is_number: bool,
    /// 0: always there. Of the others, the highest is left out first where there is not room for all.
    pub importance: u8,
    /// Least width it can be cut to; `None`: it is not cut.
    pub least_width: Option<usize>,
    /// One for each row; safe to print.
    pub cells: Vec<String>,
}

impl Column {
    /// A column of numbers that is always there.
    pub(super) fn number(title: &'static str, cells: Vec<String>) -> Self {
        Self { title, is_number: true, importance: 0, least_width: None, cells }
    }

    /// A column of names that is always there and can be cut.
    pub(super) fn name(title: &'static str, least_width: usize, cells: Vec<String>) -> Self {
        Self { title, is_number: false, importance: 0, least_width: Some(least_width), cells }
    }

    /// A column of words that are not cut.
    pub(super) fn word(title: &'static str, cells: Vec<String>) -> Self {
        Self { title, is_number: false, importance: 0, least_width: None, cells }
    }

    /// The same, but it may be left out; the higher, the sooner.
    pub(super) fn dispensable(self, importance: u8) -> Self {
        Self { importance, ..self }
    }

    fn width(&self) -> usize {
        self.cells
            .iter()
            .map(|cell| cell.chars().count())
            .chain([self.title.chars().count()])
            .max()
            .unwrap_or(0)
    }
}

/// The lines: titles, if there are any, then the rows. None is longer than `width`.
pub(super) fn lines(mut columns: Vec<Column>, indent: usize, width: usize) -> Vec<String> {
    let room = width.saturating_sub(indent);
    let mut widths = loop {
        let widths: Vec<usize> = columns.iter().map(Column::width).collect();
        let least: usize = columns
            .iter()
            .zip(&widths)
            .map(|(column, width)| column.least_width.map_or(*width, |least| least.min(*width)))
            .sum();
        let gaps = GAP * columns.len().saturating_sub(1);
        let last = columns.iter().enumerate().filter(|(_, column)| column.importance > 0);
        match last.max_by_key(|(_, column)| column.importance).map(|(index, _)| index) {
            Some(index) if least + gaps > room => drop(columns.remove(index)),
            _ => break widths,
        }
    };
    let mut excess =
        (widths.iter().sum::<usize>() + GAP * columns.len().saturating_sub(1)).saturating_sub(room);
    // The last of the names gives way first: it says the least.
    for (column, width) in columns.iter().zip(&mut widths).rev() {
        if let Some(least) = column.least_width {
            let given = excess.min(width.saturating_sub(least));
            *width -= given;
            excess -= given;
        }
    }
    let row = |cell: &dyn Fn(&Column) -> String| {
        let cells = columns.iter().zip(&widths).map(|(column, width)| {
            let text = middle(&cell(column), *width);
            if column.is_number { format!("{text:>width$}") } else { format!("{text:<width$}") }
        });
        let line = cells.collect::<Vec<_>>().join(&" ".repeat(GAP));
        middle(format!("{}{line}", " ".repeat(indent)).trim_end(), width)
    };
    let has_titles = columns.iter().any(|column| !column.title.is_empty());
    let titles = has_titles.then(|| row(&|column| column.title.to_owned()));
    let rows = columns.first().map_or(0, |column| column.cells.len());
    let rows = (0..rows).map(|index| row(&|column| column.cells.get(index).cloned().unwrap_or_default()));
    titles.into_iter().chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        let cells = |texts: [&str; 2]| texts.map(str::to_owned).to_vec();
        vec![
            Column::number("pid", cells(["7", "4242"])),
            Column::name("name", 5, cells(["a-very-long-name", "b"])),
            Column::word("state", cells(["running", "exited"])).dispensable(1),
            Column::number("bytes", cells(["1.0 MiB", "12 B"])).dispensable(2),
        ]
    }

    #[test]
    fn numbers_stand_right_and_names_left() {
        let expected = [
            "   pid  name              state      bytes",
            "     7  a-very-long-name  running  1.0 MiB",
            "  4242  b                 exited      12 B",
        ];
        assert_eq!(lines(columns(), 2, 80), expected);
    }

    #[test]
    fn names_are_cut_before_columns_go() {
        assert_eq!(lines(columns(), 2, 40)[1], "     7  a-very-…g-name  running  1.0 MiB");
        assert_eq!(lines(columns(), 2, 30)[1], "     7  a-very…g-name  running");
        assert_eq!(lines(columns(), 2, 14)[1], "     7  a-v…me");
        for width in 1..60 {
            assert!(lines(columns(), 2, width).iter().all(|line| line.chars().count() <= width));
        }
    }

    #[test]
    fn nothing_gives_no_lines() {
        assert!(lines(Vec::new(), 2, 80).is_empty());
        assert!(lines(vec![Column::name("", 3, Vec::new())], 2, 80).is_empty());
    }
}
