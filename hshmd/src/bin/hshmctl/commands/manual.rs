use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use serde::Serialize;

use crate::args::Args;
use crate::exit::Exit;
use crate::ui::Ui;

#[derive(Serialize)]
struct Written {
    pages: Vec<PathBuf>,
}

/// Writes `hshmctl.1` and a page for each command: `hshmctl-create.1`.
pub(super) fn run(directory: &Path, ui: &mut Ui) -> Result<Exit> {
    let mut hshmctl = Args::command().disable_help_subcommand(true);
    hshmctl.build();
    let mut pages = vec![write(&hshmctl, "hshmctl".to_owned(), directory)?];
    for command in hshmctl.get_subcommands().filter(|command| !command.is_hide_set()) {
        pages.push(write(command, format!("hshmctl-{}", command.get_name()), directory)?);
    }
    ui.show(&Written { pages: pages.clone() }, |ui| {
        pages.iter().try_for_each(|page| ui.line(page.display()))
    })?;
    Ok(Exit::Success)
}

fn write(command: &Command, title: String, directory: &Path) -> Result<PathBuf> {
    let page = directory.join(format!("{title}.1"));
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).title(title).render(&mut text)?;
    fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
    Ok(page)
}
