//! Where the output goes, and in which form.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use anyhow::Result;
use serde::Serialize;

/// Standard output, for people or for programs.
pub(crate) struct Ui {
    out: BufWriter<StdoutLock<'static>>,
    json: bool,
    form: Form,
}

/// What the reader can take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// Whether to use colour.
    pub(crate) colour: bool,
    /// Columns of the terminal; no limit if it is none.
    pub(crate) width: Option<u16>,
}

/// Output that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the output")]
struct Unwritable(#[source] io::Error);

/// Whether the reason for a failure is that nobody reads the output any more.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let unwritable = error.downcast_ref::<Unwritable>();
    unwritable.is_some_and(|Unwritable(source)| source.kind() == io::ErrorKind::BrokenPipe)
}

impl Ui {
    pub(crate) fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        // https://no-color.org: present and not empty.
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        // Some terminals do not know their width and say 0; in very narrow ones, columns of single
        // letters would be worse than lines that wrap.
        let width = comfy_table::Table::new().width().filter(|width| terminal && *width >= 40);
        let form = Form { colour: terminal && !dumb && !set("NO_COLOR"), width };
        Self { out: BufWriter::new(stdout.lock()), json, form }
    }

    /// Whether a program reads the output.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Writes `value` for a program, or what `human` writes for a person.
    pub(crate) fn show<T: Serialize>(
        &mut self,
        value: &T,
        human: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if !self.json {
            return human(self);
        }
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        self.out.write_all(text.as_bytes()).map_err(Unwritable)?;
        Ok(())
    }

    /// Writes text as it is, which a program reads in any case.
    pub(crate) fn text(&mut self, text: &[u8]) -> Result<()> {
        self.out.write_all(text).map_err(Unwritable)?;
        Ok(())
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, line: impl fmt::Display) -> Result<()> {
        writeln!(self.out, "{line}").map_err(Unwritable)?;
        Ok(())
    }

    /// Writes a line that stands out.
    pub(crate) fn heading(&mut self, line: &str) -> Result<()> {
        if self.form.colour {
            self.line(format_args!("\x1b[1m{line}\x1b[0m"))
        } else {
            self.line(line)
        }
    }

    /// Writes out what is buffered.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.out.flush().map_err(Unwritable)?;
        Ok(())
    }
}
