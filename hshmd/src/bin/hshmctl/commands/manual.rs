use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use serde::Serialize;

use crate::args::Args;
use crate::exit::Exit;
use crate::ui::Ui;

/// What holds for each command.
const EVERY_COMMAND: &[u8] = include_bytes!("../../../../manual/hshmctl.1");
const SEE_ALSO: &[u8] = b".SH SEE ALSO\n.BR hshmd (8),\n.BR hshmd.toml (5)\n";
const SEE_ALSO_HSHMCTL: &[u8] = b".SH SEE ALSO\n.BR hshmctl (1),\n.BR hshmd (8)\n";

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
    let is_main = command.get_name() == "hshmctl";
    let man = clap_mangen::Man::new(command.clone()).title(title).manual("hshm");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if is_main {
        man.render_subcommands_section(&mut text)?;
    } else if command.get_after_help().is_some() {
        man.render_extra_section(&mut text)?;
    }
    text.extend_from_slice(EVERY_COMMAND);
    text.extend_from_slice(if is_main { SEE_ALSO } else { SEE_ALSO_HSHMCTL });
    fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
    Ok(page)
}
