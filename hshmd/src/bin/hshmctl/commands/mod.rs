//! One module for each thing that the daemon is asked.

mod check;
mod completions;
mod create;
mod destroy;
mod doctor;
mod dump;
mod grow;
mod inspect;
mod list;
mod manual;
mod sessions;
mod status;
mod top;
mod watch;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use hshm_client::Client;

use crate::args::{Args, Command};
use crate::demo;
use crate::exit::Exit;
use crate::text;
use crate::ui::Ui;

/// Carries out what the command line says.
pub(crate) fn run(args: &Args, ui: &mut Ui) -> Result<Exit> {
    match &args.command {
        Command::Demo(demo) => return demo::run(demo, ui),
        Command::DemoPart(part) => return demo::run_part(part).map(|()| Exit::Success),
        Command::Completions { shell } => return completions::run(*shell, ui),
        Command::Manual { directory } => return manual::run(directory, ui),
        Command::Check { name, repair: false } => return check::run(&connect(args)?, name, ui),
        Command::Check { name, repair: true } => return check::repair(&connect(args)?, name, ui),
        Command::Top { interval, once } => {
            let interval = Duration::from_secs((*interval).into());
            return top::run(&connect(args)?, interval, *once, ui);
        }
        Command::Doctor => return doctor::run(connect(args), ui),
        Command::Status => status::run(&connect(args)?, ui),
        Command::List => list::run(&connect(args)?, ui),
        Command::Create(create) => create::run(&connect(args)?, create, ui),
        Command::Inspect { name } => inspect::run(&connect(args)?, name, ui),
        Command::Dump { name, svg } => dump::run(&connect(args)?, name, svg.as_deref(), ui),
        Command::Watch { name } => watch::run(&connect(args)?, name.as_deref(), ui),
        Command::Sessions => sessions::run(&connect(args)?, ui),
        Command::Grow { name, size } => grow::run(&connect(args)?, name, *size, ui),
        Command::Destroy { name, force } => destroy::run(&connect(args)?, name, *force, ui),
    }
    .map(|()| Exit::Success)
}

fn connect(args: &Args) -> Result<Client> {
    let timeout = Duration::from_secs(args.timeout);
    let mut builder = Client::builder().name("hshmctl").timeout(timeout);
    if let Some(socket) = &args.socket {
        builder = builder.socket(socket);
    }
    Ok(builder.connect()?)
}

/// How long ago something was, by the machine's clock.
fn ago(unix_ms: u64) -> String {
    let then = UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    // A clock that was set back makes it "now".
    let passed = then.and_then(|then| SystemTime::now().duration_since(then).ok());
    text::duration(passed.unwrap_or_default())
}

/// Permission bits as `ls` shows them.
fn permissions(mode: u32) -> String {
    let letter = |(i, letter): (u32, char)| if mode >> (8 - i) & 1 == 1 { letter } else { '-' };
    (0..9).zip("rwxrwxrwx".chars()).map(letter).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn permissions_are_shown_as_ls_does() {
        assert_eq!(super::permissions(0o640), "rw-r-----");
        assert_eq!(super::permissions(0o777), "rwxrwxrwx");
    }
}
