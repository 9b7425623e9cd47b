//! What a person at the terminal sees meanwhile.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ui::Ui;

/// A line on standard error, if that is a terminal.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn new(ui: &Ui) -> Self {
        let target = if ui.is_json() {
            ProgressDrawTarget::hidden()
        } else {
            // Draws only on a terminal.
            ProgressDrawTarget::stderr()
        };
        Self(ProgressBar::with_draw_target(None, target))
    }

    /// Begins something whose length is not known.
    pub(super) fn begin(&self, what: &'static str) {
        self.style("{spinner} {msg}");
        self.0.set_message(what);
        self.0.enable_steady_tick(Duration::from_millis(100));
    }

    /// Begins something that will handle so many bytes.
    pub(super) fn begin_bytes(&self, what: &'static str, bytes: u64) {
        self.0.set_length(bytes);
        self.0.set_position(0);
        self.0.set_message(what);
        self.style("{spinner} {msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}");
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Says what is going on now.
    pub(super) fn say(&self, what: String) {
        self.0.set_message(what);
    }

    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }

    fn style(&self, template: &str) {
        // The templates are fixed and right; were one wrong, the default would do.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style.progress_chars("=> "));
        }
    }
}

impl Drop for Progress {
    /// Also on the way out after a failure, so that the error stands on a line of its own.
    fn drop(&mut self) {
        self.end();
    }
}
