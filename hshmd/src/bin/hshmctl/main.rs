//! `hshmctl`: looks at what `hshmd` has, changes it, and shows what it is for (`hshmctl demo`).

mod args;
mod commands;
mod demo;
mod exit;
mod table;
mod text;
mod ui;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;
use crate::exit::Exit;
use crate::ui::Ui;

fn main() -> ExitCode {
    let args = Args::parse();
    let mut ui = Ui::new(args.json);
    let done = commands::run(&args, &mut ui).and_then(|exit| ui.finish().map(|()| exit));
    match done {
        Ok(exit) => exit.into(),
        // Whoever read our output has seen enough: `hshmctl list | head`.
        Err(error) if ui::is_closed_pipe(&error) => Exit::Success.into(),
        Err(error) => {
            // If standard error is closed too, the exit code alone must do.
            let _ = writeln!(io::stderr().lock(), "hshmctl: error: {}", text::one_line(&error));
            Exit::Failed.into()
        }
    }
}
