//! What the book says is so: its shell sessions are run, against a daemon of their own, its links lead
//! somewhere, and its examples are among the documentation tests (`tests/src/book.rs`).
//!
//! A block marked `console` has commands after `$ ` and what they print. `…` stands for any text within a
//! line, and alone on a line for any lines. One daemon serves all blocks of a page, in their order.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hshm_tests::process::{binary, wait_until};
use hshm_tests::tidy::root;
use hshmd::paths::Namespace;
use tempfile::TempDir;

const WORKER: &str = env!("CARGO_BIN_EXE_hshm-test-worker");

fn book() -> PathBuf {
    root().join("docs/book/src")
}

/// The book's pages, by their paths below its source folder, as its summary lists them.
fn pages() -> Vec<String> {
    let summary = fs::read_to_string(book().join("SUMMARY.md")).unwrap();
    let pages: Vec<_> = links(&summary).map(str::to_owned).collect();
    assert!(pages.len() > 10, "{pages:?}");
    pages
}

fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

fn files_below(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, into) } else { into.push(path) }
    }
}

#[test]
fn every_page_is_in_the_summary_and_every_link_leads_somewhere() {
    let pages = pages();
    let mut files = Vec::new();
    files_below(&book(), &mut files);
    for file in files {
        let name = file.strip_prefix(book()).unwrap().to_str().unwrap().to_owned();
        let is_page = file.extension().is_some_and(|extension| extension == "md");
        if !is_page {
            continue;
        }
        assert!(name == "SUMMARY.md" || pages.contains(&name), "{name} is not in the summary");
        let text = fs::read_to_string(&file).unwrap();
        let included = text.split("{{#include ").skip(1).filter_map(|rest| rest.split('}').next());
        for link in links(&text).chain(included) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            assert!(file.parent().unwrap().join(path).exists(), "{name}: {link} leads nowhere");
        }
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let page = fs::read_to_string(book().join("operator/troubles.md")).unwrap();
    let files = hshm_tests::tidy::files();
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        for test in tests.split('`').filter(|word| word.contains('_')) {
            let definition = format!("fn {test}(");
            assert!(files.iter().any(|file| file.text.contains(&definition)), "{test} is no test");
            named += 1;
        }
    }
    assert!(named >= 18, "{named} tests are named");
}

#[test]
fn every_example_in_rust_is_a_documentation_test() {
    let listed = include_str!("../src/book.rs");
    for page in pages() {
        let text = fs::read_to_string(book().join(&page)).unwrap();
        let has_rust = text.contains("\n```rust");
        let is_listed = listed.contains(&format!("\"{page}\""));
        assert_eq!(has_rust, is_listed, "{page}");
    }
}

/// A daemon, and the environment of a shell that finds it.
struct Shell {
    folder: TempDir,
    daemon: Child,
}

impl Shell {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("hshm-book-").tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        let mut command = Command::new(binary("hshmd", WORKER));
        command.arg("--socket").arg(folder.path().join("socket"));
        command.arg("--state-dir").arg(folder.path().join("state"));
        command.args(["--log-level", "warn"]).stdin(Stdio::null());
        let daemon = command.spawn().unwrap();
        let shell = Self { folder, daemon };
        wait_until("the daemon answers", || shell.run("hshmctl status").1);
        shell
    }

    /// What a command line prints, on both outputs, and whether it succeeds.
    fn run(&self, line: &str) -> (String, bool) {
        let programs = binary("hshmctl", WORKER).parent().unwrap().to_path_buf();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec 2>&1; {line}")]).current_dir(self.folder.path());
        command.env("PATH", path).env("HSHM_SOCKET", self.folder.path().join("socket"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = Namespace::of(&self.folder.path().join("state")).unwrap().purge();
    }
}

/// The commands of a page's shell sessions, each with the lines that it is said to print.
fn sessions(text: &str) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    for block in text.split("\n```console\n").skip(1) {
        let block = block.split("\n```").next().unwrap_or_default();
        let mut is_continued = false;
        for line in block.lines() {
            let last = commands.last_mut();
            match (line.strip_prefix("$ "), last) {
                (Some(command), _) => commands.push((command.to_owned(), Vec::new())),
                (None, Some((command, _))) if is_continued => *command += &format!("\n{line}"),
                (None, Some((_, printed))) => printed.push(line.to_owned()),
                (None, None) => panic!("a session begins with {line:?}"),
            }
            is_continued = line.ends_with('\\');
        }
    }
    commands
}

/// Whether `found` is what `expected` says, with its gaps.
fn agrees(expected: &[&str], found: &[&str]) -> bool {
    match (expected.split_first(), found.split_first()) {
        (None, None) => true,
        (Some((&"…", rest)), _) => {
            (0..=found.len()).any(|gap| found.get(gap..).is_some_and(|found| agrees(rest, found)))
        }
        (Some((line, rest)), Some((there, others))) => {
            line_agrees(line, there) && agrees(rest, others)
        }
        _ => false,
    }
}

fn line_agrees(expected: &str, found: &str) -> bool {
    let mut parts = expected.trim_end().split('…');
    let Some(mut rest) = found.trim_end().strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(part) = last.replace(part) {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

#[test]
fn gaps_stand_for_any_text_and_nothing_else_does() {
    assert!(line_agrees("a…c", "abc") && line_agrees("…", "") && line_agrees("a…b…", "a-b-"));
    assert!(!line_agrees("a…c", "abd") && !line_agrees("ab", "abc") && !line_agrees("a…c", "xac"));
    assert!(agrees(&["a", "…", "d"], &["a", "b", "c", "d"]) && agrees(&["…"], &[]));
    assert!(!agrees(&["a", "…", "d"], &["a", "b"]) && !agrees(&["a"], &["a", "b"]));
}

#[test]
fn shell_sessions_go_as_the_book_shows_them() {
    let mut run = 0;
    for page in pages() {
        let commands = sessions(&fs::read_to_string(book().join(&page)).unwrap());
        if commands.is_empty() {
            continue;
        }
        let shell = Shell::start();
        for (command, expected) in commands {
            let (found, _) = shell.run(&command);
            let expected: Vec<_> = expected.iter().map(String::as_str).collect();
            let lines: Vec<_> = found.lines().collect();
            assert!(agrees(&expected, &lines), "{page}: $ {command}\nprinted\n{found}");
            run += 1;
        }
    }
    assert!(run > 10, "only {run} commands");
}
