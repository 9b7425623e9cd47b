//! The segments, live.

mod draw;
mod sample;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hshm_client::Client;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::draw::{TITLES, View, cells, draw, heading};
use self::sample::{Frame, Sample};
use crate::demo::signals::{Interrupted, Signals};
use crate::exit::Exit;
use crate::table::{Side, grid};
use crate::ui::Ui;

/// How often to look for a signal.
const GLANCE: Duration = Duration::from_millis(100);

pub(super) fn run(client: &Client, interval: Duration, once: bool, ui: &mut Ui) -> Result<Exit> {
    if once || ui.is_json() || !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
        let before = Sample::take(client)?;
        std::thread::sleep(interval);
        let frame = Sample::take(client)?.since(Some(&before));
        return print(&frame, ui).map(|()| Exit::Success);
    }
    // What can fail without a screen does so before there is one.
    let first = Sample::take(client)?;
    let signals = Signals::take_over()?;
    // A panic restores the terminal too.
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let view = View { colour: ui.form().colour, ..View::default() };
    let ended = live(client, interval, first, view, &signals, &mut terminal);
    ratatui::restore();
    match ended {
        Ok(()) => Ok(Exit::Success),
        Err(error) => match error.downcast::<Interrupted>() {
            Ok(interrupted) => Ok(interrupted.exit()),
            Err(error) => Err(error),
        },
    }
}

/// Draws until the person has seen enough.
fn live(
    client: &Client,
    interval: Duration,
    first: Sample,
    mut view: View,
    signals: &Signals,
    terminal: &mut DefaultTerminal,
) -> Result<()> {
    let mut sample = first;
    let mut frame = sample.since(None);
    let mut due = Instant::now() + interval;
    loop {
        terminal.draw(|screen| draw(screen, &frame, &mut view)).context("cannot draw")?;
        loop {
            signals.check()?;
            let left = due.saturating_duration_since(Instant::now());
            if event::poll(left.min(GLANCE)).context("cannot read keys")? {
                let event = event::read().context("cannot read keys")?;
                // Another event may mean another size.
                if let Event::Key(key) = event
                    && key.kind == KeyEventKind::Press
                {
                    if is_end(key) {
                        return Ok(());
                    }
                    choose(key.code, &mut view);
                }
                break;
            }
            if left.is_zero() {
                let now = Sample::take(client)?;
                frame = now.since(Some(&sample));
                sample = now;
                due = Instant::now() + interval;
                break;
            }
        }
    }
}

fn is_end(key: KeyEvent) -> bool {
    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    interrupt || key.code == KeyCode::Esc || key.code == KeyCode::Char('q')
}

fn choose(key: KeyCode, view: &mut View) {
    if key == KeyCode::Char('s') {
        view.sort = view.sort.next();
    } else if matches!(key, KeyCode::Char('?' | 'h')) {
        view.help = !view.help;
    } else if matches!(key, KeyCode::Up | KeyCode::Char('k')) {
        view.table.select_previous();
    } else if matches!(key, KeyCode::Down | KeyCode::Char('j')) {
        view.table.select_next();
    }
}

/// One frame as text.
fn print(frame: &Frame, ui: &mut Ui) -> Result<()> {
    ui.show(frame, |ui| {
        for line in heading(frame) {
            ui.line(line)?;
        }
        let sides = [Side::Left, Side::Right, Side::Right, Side::Left];
        let sides = sides.into_iter().chain(std::iter::repeat(Side::Right));
        let columns: Vec<_> = TITLES.into_iter().zip(sides).collect();
        let rows = frame.segments.iter().map(|row| cells(row).to_vec()).collect::<Vec<_>>();
        if rows.is_empty() {
            return ui.line("no segments");
        }
        ui.line(grid(ui.form(), &columns, rows))
    })
}
