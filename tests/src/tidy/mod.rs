//! The rules of the repository that no compiler checks. Each is a function over text, so that it can
//! be shown to find a planted breach; `tests/tidy.rs` applies them to the files that there are.

mod rules;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};

pub use self::rules::{
    ATOMICS_EXCEPT, LONGEST_FILE, MayDependOn, atomics_by_one_door, daemon_stays_off_the_data_path,
    dependencies, forbids_unsafe, ignored_tests_have_a_reason, length, library_is_quiet,
    marks_of_unfinished_work,
};
pub use self::source::{code_only, structs, without_tests};

/// A rule that something breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// The file, from the repository's root.
    pub file: String,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// A text file of the repository.
#[derive(Clone, Debug)]
pub struct TextFile {
    /// Its path from the root, with slashes.
    pub path: String,
    /// What it says.
    pub text: String,
}

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All text files of the repository: what git ignores, build outputs and hidden folders of tools
/// aside, by their place rather than by asking git, which a release's archive lacks.
///
/// # Panics
/// If the repository cannot be read.
#[must_use]
pub fn files() -> Vec<TextFile> {
    let mut found = Vec::new();
    collect(&root(), "", &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<TextFile>) {
    for entry in std::fs::read_dir(folder).expect("the repository can be read") {
        let entry = entry.expect("the repository can be read");
        let Ok(name) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type().expect("the repository can be read");
        let path = format!("{prefix}{name}");
        if kind.is_dir() {
            let is_output = name == "target" || name.starts_with('.') && name != ".ci";
            if !is_output {
                collect(&entry.path(), &format!("{path}/"), found);
            }
        } else if kind.is_file()
            && let Ok(text) = std::fs::read_to_string(entry.path())
        {
            found.push(TextFile { path, text });
        }
    }
}
