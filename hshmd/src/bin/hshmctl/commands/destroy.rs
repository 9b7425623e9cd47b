use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Result, bail};
use hshm_client::{Client, Error, ErrorCode};
use serde::Serialize;

use crate::ui::Ui;

#[derive(Serialize)]
struct Destroyed<'a> {
    name: &'a str,
    destroyed: bool,
}

pub(super) fn run(client: &Client, name: &str, force: bool, ui: &mut Ui) -> Result<()> {
    // The daemon finds out whether it is in use and destroys it in one step; asking first and
    // destroying then would leave a moment between.
    match client.destroy(name, force) {
        Ok(()) => {}
        Err(error) if error.daemon_code() == Some(ErrorCode::InUse) => {
            if !confirmed(&error)? {
                bail!("segment {name:?} was left as it is");
            }
            client.destroy(name, true)?;
        }
        Err(error) => return Err(error.into()),
    }
    ui.show(&Destroyed { name, destroyed: true }, |ui| {
        ui.line(format_args!("destroyed segment {name}"))
    })
}

/// Asks the person at the terminal. Where there is none, the daemon's refusal stands.
fn confirmed(refusal: &Error) -> Result<bool> {
    let Error::Daemon(reply) = refusal else { bail!("{refusal}") };
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        bail!("{}; destroy it with --force if they can do without it", reply.message);
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{}. Destroy it anyway? [y/N] ", reply.message)?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
