//! A frame on a screen.

use std::time::Duration;

use hshmd::size::format_size;
use ratatui::Frame as Screen;
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, TableState};

use super::sample::{Frame, Row};
use crate::text::{self, counted, percent, printable};

/// What the segments are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Name,
    Allocated,
    Allocations,
    RemoteFrees,
}

impl Sort {
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Name => Self::Allocated,
            Self::Allocated => Self::Allocations,
            Self::Allocations => Self::RemoteFrees,
            Self::RemoteFrees => Self::Name,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Allocated => "allocated bytes",
            Self::Allocations => "allocations",
            Self::RemoteFrees => "remote frees",
        }
    }

    fn apply(self, rows: &mut [Row]) {
        let rate = |row: &Row| match (self, row.rates) {
            (Self::Allocations, Some(rates)) => rates.allocations,
            (Self::RemoteFrees, Some(rates)) => rates.remote_frees,
            _ => 0.0,
        };
        match self {
            Self::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
            Self::Allocated => rows.sort_by_key(|row| std::cmp::Reverse(row.allocated_bytes)),
            Self::Allocations | Self::RemoteFrees => {
                rows.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
            }
        }
    }
}

/// What the person has chosen.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) sort: Sort,
    pub(super) help: bool,
    pub(super) colour: bool,
    pub(super) table: TableState,
}

/// Titles of the columns.
pub(super) const TITLES: [&str; 9] = [
    "SEGMENT",
    "SIZE",
    "ALLOCATED",
    "OCCUPANCY",
    "ALLOCS/s",
    "FREES/s",
    "REMOTE/s",
    "WORKERS",
    "IN USE BY",
];

const HELP: &str = "\
q, Esc, Ctrl-C   end
s                sort by the next column: name, allocated bytes, allocations, remote frees
up, down, k, j   select a segment
?, h             this text, or not

OCCUPANCY: # is allocated, - is held by pages and not allocated, . is free.
REMOTE/s: blocks freed by another worker than the one whose page they are of.
Rates are of what workers have counted: a worker counts at times, not at each block.";

pub(super) fn draw(screen: &mut Screen<'_>, frame: &Frame, view: &mut View) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)])
            .areas(screen.area());
    screen.render_widget(Paragraph::new(heading(frame).map(Line::from).to_vec()), head);
    let keys = format!("q end  s sort by {}  ? help", view.sort.next().name());
    screen.render_widget(Paragraph::new(keys), foot);
    if view.help {
        screen.render_widget(Paragraph::new(HELP), body);
        return;
    }
    let mut rows = frame.segments.clone();
    view.sort.apply(&mut rows);
    if rows.is_empty() {
        screen.render_widget(Paragraph::new("no segments"), body);
        return;
    }
    let widths = [24, 9, 9, 12, 9, 9, 9, 7, 9].map(Constraint::Max);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let table = Table::new(rows.iter().map(|row| table_row(row, view.colour)), widths)
        .header(TableRow::new(TITLES).style(bold))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    screen.render_stateful_widget(table, body, &mut view.table);
}

fn table_row(row: &Row, colour: bool) -> TableRow<'static> {
    let full = row.usable_bytes.zip(row.held_bytes);
    let style = match full {
        _ if !colour => Style::new(),
        None => Style::new().fg(Color::Red),
        Some((usable, held)) if held / 9 >= usable / 10 => Style::new().fg(Color::Yellow),
        Some(_) => Style::new(),
    };
    let cells = cells(row).into_iter().enumerate().map(|(column, text)| {
        let side = if matches!(column, 0 | 3) { Alignment::Left } else { Alignment::Right };
        Cell::from(Line::from(text).alignment(side))
    });
    TableRow::new(cells.collect::<Vec<_>>()).style(style)
}

/// What is said of the daemon, in two lines.
pub(super) fn heading(frame: &Frame) -> [String; 2] {
    let daemon = &frame.daemon;
    let died = if daemon.recovered_processes == 1 { "process" } else { "processes" };
    [
        format!(
            "hshmd {}, up {}: {} of {} in all",
            daemon.server_version,
            text::duration(Duration::from_millis(daemon.uptime_ms)),
            counted(daemon.segments, "segment"),
            format_size(daemon.committed_bytes),
        ),
        format!(
            "{}, {} watched; recovered {} {died} that died, {}",
            counted(daemon.connections, "session"),
            text::count(daemon.watched_processes),
            text::count(daemon.recovered_processes),
            counted(daemon.recovered_slots, "slot"),
        ),
    ]
}

/// A segment's cells, below [`TITLES`].
pub(super) fn cells(row: &Row) -> [String; 9] {
    let rate = |of: fn(&super::sample::Rates) -> f64| {
        row.rates.as_ref().map_or_else(|| "-".to_owned(), |rates| short(of(rates)))
    };
    let workers = row.workers.map_or_else(|| "-".to_owned(), text::count);
    [
        printable(&row.name).into_owned(),
        format_size(row.committed_bytes),
        row.allocated_bytes.map_or_else(|| "-".to_owned(), format_size),
        bar(row),
        rate(|rates| rates.allocations),
        rate(|rates| rates.local_frees),
        rate(|rates| rates.remote_frees),
        workers,
        row.holders.max(row.sessions).to_string(),
    ]
}

/// Ten places: allocated, held by pages, free.
fn bar(row: &Row) -> String {
    const PLACES: u64 = 10;
    let (Some(usable), Some(held), Some(allocated)) =
        (row.usable_bytes, row.held_bytes, row.allocated_bytes)
    else {
        return if row.problem.is_some() { "unusable" } else { "-" }.to_owned();
    };
    if usable == 0 {
        return percent(0, 0);
    }
    let places = |bytes: u64| {
        let places = u128::from(bytes) * u128::from(PLACES) / u128::from(usable);
        usize::try_from(places.min(PLACES.into())).unwrap_or(0)
    };
    let (allocated, held) = (places(allocated), places(held));
    let dashes = held.saturating_sub(allocated);
    let dots = usize::try_from(PLACES).unwrap_or(0).saturating_sub(allocated.max(held));
    format!("{}{}{}", "#".repeat(allocated), "-".repeat(dashes), ".".repeat(dots))
}

/// A rate in at most seven letters.
fn short(rate: f64) -> String {
    let scaled = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let found = scaled.into_iter().find(|(unit, _)| rate >= *unit);
    found.map_or_else(|| format!("{rate:.0}"), |(unit, name)| format!("{:.1}{name}", rate / unit))
}

#[cfg(test)]
mod tests {
    use hshm_client::StatusInfo;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::sample::Rates;
    use super::*;

    fn row(name: &str, allocated: u64, remote_frees: f64) -> Row {
        Row {
            name: name.into(),
            committed_bytes: 1 << 20,
            usable_bytes: Some(1000),
            allocated_bytes: Some(allocated),
            held_bytes: Some(allocated + 200),
            workers: Some(2),
            sessions: 1,
            holders: 2,
            rates: Some(Rates { allocations: 1_234_567.0, local_frees: 12.0, remote_frees }),
            problem: None,
        }
    }

    fn frame() -> Frame {
        let daemon = StatusInfo {
            server_version: "1.2.3".into(),
            protocol_min: 1,
            protocol_max: 1,
            layout_version: 1,
            pid: 1,
            uid: 0,
            socket: "s".into(),
            state_dir: "d".into(),
            uptime_ms: 125_000,
            segments: 2,
            unusable_segments: 0,
            committed_bytes: 2 << 20,
            connections: 3,
            watched_processes: 4,
            recovered_processes: 1,
            recovered_slots: 2,
        };
        let segments = vec![row("small", 100, 9.0), row("large\x1b[31m", 500, 1.0)];
        Frame { daemon, measured_seconds: 1.0, segments }
    }

    fn screen(view: &mut View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|screen| draw(screen, &frame(), view)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn the_screen_shows_the_daemon_and_each_segment() {
        let lines = screen(&mut View::default(), 110, 8);
        assert_eq!(lines[0], "hshmd 1.2.3, up 2 min 5 s: 2 segments of 2 MiB in all");
        assert_eq!(lines[1], "3 sessions, 4 watched; recovered 1 process that died, 2 slots");
        assert!(lines[2].starts_with("SEGMENT"), "{lines:?}");
        assert!(lines[3].starts_with("large\\u{1b}[31m"), "{lines:?}");
        assert!(lines[3].contains("#####--...") && lines[3].contains("1.2M"), "{lines:?}");
        assert!(lines[4].starts_with("small") && lines[4].contains("#--......."), "{lines:?}");
        assert!(lines[7].starts_with("q end"), "{lines:?}");
    }

    #[test]
    fn the_order_is_what_was_chosen() {
        let first = |sort| {
            let lines = screen(&mut View { sort, ..View::default() }, 110, 8);
            lines[3].chars().take(5).collect::<String>()
        };
        assert_eq!(first(Sort::Allocated), "large");
        assert_eq!(first(Sort::RemoteFrees), "small");
        let mut sort = Sort::default();
        for _ in 0..4 {
            sort = sort.next();
        }
        assert_eq!(sort, Sort::Name);
    }

    #[test]
    fn any_size_of_screen_will_do() {
        for (width, height) in [(1, 1), (5, 2), (20, 4), (300, 100)] {
            screen(&mut View::default(), width, height);
            screen(&mut View { help: true, ..View::default() }, width, height);
        }
        let lines = screen(&mut View { help: true, ..View::default() }, 100, 14);
        assert!(lines.iter().any(|line| line.contains("select a segment")), "{lines:?}");
    }

    #[test]
    fn rates_are_short() {
        assert_eq!(short(0.4), "0");
        assert_eq!(short(999.0), "999");
        assert_eq!(short(1_500.0), "1.5k");
        assert_eq!(short(2.5e9), "2.5G");
    }
}
