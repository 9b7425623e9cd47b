use anyhow::Result;
use hshm_client::{Client, SessionInfo, SessionState};

use super::ago;
use crate::table::{Side, grid};
use crate::text;
use crate::ui::Ui;

const COLUMNS: [(&str, Side); 7] = [
    ("SESSION", Side::Right),
    ("PID", Side::Right),
    ("USER", Side::Left),
    ("CLIENT", Side::Left),
    ("STATE", Side::Left),
    ("SINCE", Side::Right),
    ("SEGMENTS", Side::Left),
];

pub(super) fn run(client: &Client, ui: &mut Ui) -> Result<()> {
    let sessions = client.sessions()?;
    ui.show(&sessions, |ui| ui.line(grid(ui.form(), &COLUMNS, sessions.iter().map(row).collect())))
}

fn row(session: &SessionInfo) -> Vec<String> {
    let state = match session.state {
        SessionState::Connected => "connected",
        SessionState::Holding => "holding",
        SessionState::Recovering => "recovering",
        _ => "other",
    };
    let mut segments = session.segments.join(" ");
    let shown = u32::try_from(session.segments.len()).unwrap_or(u32::MAX);
    if session.segments_total > shown {
        segments.push_str(&format!(" and {} more", session.segments_total - shown));
    }
    vec![
        session.session.to_string(),
        session.process.pid.to_string(),
        session.uid.map_or_else(|| "-".into(), text::user),
        session.client_name.clone(),
        state.into(),
        ago(session.since_unix_ms),
        if segments.is_empty() { "-".into() } else { segments },
    ]
}
