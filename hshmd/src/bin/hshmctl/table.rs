//! Tables: columns two blanks apart, numbers to the right, no frames, so that they read well and
//! `awk` understands them.

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table};

use crate::text::printable;
use crate::ui::Form;

/// On which side a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table with a header.
pub(crate) fn grid(form: Form, columns: &[(&str, Side)], rows: Vec<Vec<String>>) -> String {
    let header = columns.iter().map(|(title, _)| {
        let cell = Cell::new(title);
        if form.colour { cell.add_attribute(Attribute::Bold) } else { cell }
    });
    let mut table = plain(form);
    table.set_header(header.collect::<Vec<_>>());
    fill(table, columns.iter().map(|(_, side)| *side), rows)
}

/// Labels, and what belongs to them.
pub(crate) fn sheet(form: Form, rows: Vec<(&str, String)>) -> String {
    let rows = rows.into_iter().map(|(label, value)| vec![format!("  {label}"), value]).collect();
    fill(plain(form), [Side::Left, Side::Left], rows)
}

fn plain(form: Form) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    // Neither is found out anew here: the output may be no terminal.
    if form.colour {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    match form.width {
        Some(width) => table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table
}

fn fill(mut table: Table, sides: impl IntoIterator<Item = Side>, rows: Vec<Vec<String>>) -> String {
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell).into_owned()).collect::<Vec<_>>());
    }
    for (column, side) in table.column_iter_mut().zip(sides) {
        column.set_padding((0, 2));
        column.set_cell_alignment(match side {
            Side::Left => CellAlignment::Left,
            Side::Right => CellAlignment::Right,
        });
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: Form = Form { colour: false, width: None };

    #[test]
    fn numbers_stand_to_the_right_and_lines_end_without_blanks() {
        let rows = vec![vec!["a".into(), "7".into()], vec!["bcd".into(), "1234".into()]];
        let text = grid(PIPE, &[("NAME", Side::Left), ("SIZE", Side::Right)], rows);
        assert_eq!(text, "NAME  SIZE\na        7\nbcd   1234");
    }

    #[test]
    fn a_cell_cannot_reach_the_terminal() {
        let text = grid(PIPE, &[("A", Side::Left)], vec![vec!["\x1b[31mred\n".into()]]);
        assert!(!text.contains('\x1b'), "{text:?}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_narrow_terminal_gets_lines_that_fit() {
        let form = Form { colour: true, width: Some(24) };
        let rows = vec![vec!["word ".repeat(10), "1".into()]];
        let text = grid(form, &[("TEXT", Side::Left), ("N", Side::Right)], rows);
        assert!(text.contains("\x1b[1m"), "the header is bold: {text:?}");
        assert!(text.lines().skip(1).all(|line| line.chars().count() <= 24), "{text}");
    }
}
