use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Args;
use crate::exit::Exit;
use crate::ui::Ui;

pub(super) fn run(shell: Shell, ui: &mut Ui) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "hshmctl", &mut script);
    ui.text(&script)?;
    Ok(Exit::Success)
}
