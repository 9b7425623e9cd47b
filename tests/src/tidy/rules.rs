//! The rules themselves.

use serde_json::Value;

use super::source::{code_only, without_tests, words};
use super::{Breach, TextFile};

/// Lines that a source file may have. About 500 is where a reader tires.
pub const LONGEST_FILE: usize = 700;

fn breach(file: &TextFile, line: usize, what: impl Into<String>) -> Breach {
    Breach { file: file.path.clone(), line, what: what.into() }
}

/// The lines of code, without tests, that `finds` something in.
fn in_code(file: &TextFile, finds: impl Fn(&str) -> Option<String>) -> Vec<Breach> {
    let code = without_tests(&code_only(&file.text));
    let lines = code.lines().enumerate();
    lines.filter_map(|(at, line)| Some(breach(file, at + 1, finds(line)?))).collect()
}

/// No file is longer than a reader bears.
#[must_use]
pub fn length(file: &TextFile) -> Vec<Breach> {
    let lines = file.text.lines().count();
    if lines <= LONGEST_FILE {
        return Vec::new();
    }
    vec![breach(file, lines, format!("{lines} lines; divide it, {LONGEST_FILE} is the most"))]
}

/// No mark of work that is not done stands anywhere.
#[must_use]
pub fn marks_of_unfinished_work(file: &TextFile) -> Vec<Breach> {
    // Put together here, so that this file has none of them.
    let marks = [
        ["FIX", "ME"],
        ["XX", "X"],
        ["TO", "DO"],
        ["HA", "CK"],
        ["db", "g!"],
        ["to", "do!"],
        ["unimplement", "ed!"],
    ]
    .map(|halves| halves.concat());
    let mut found = Vec::new();
    for (at, line) in file.text.lines().enumerate() {
        for mark in marks.iter().filter(|mark| stands_alone(line, mark)) {
            found.push(breach(file, at + 1, format!("{mark}: do it, or open an issue")));
        }
    }
    found
}

/// Whether `mark` stands in the line, and not as a part of a longer word.
fn stands_alone(line: &str, mark: &str) -> bool {
    line.match_indices(mark).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + mark.len()..].chars().next();
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        !is_word(before) && (mark.ends_with('!') || !is_word(after))
    })
}

/// A test that is not run says why.
#[must_use]
pub fn ignored_tests_have_a_reason(file: &TextFile) -> Vec<Breach> {
    in_code_with_tests(file, |line| {
        let bare = line.contains(concat!("#[", "ignore]"));
        bare.then(|| "an ignored test without a reason: #[ignore = \"...\"]".into())
    })
}

fn in_code_with_tests(file: &TextFile, finds: impl Fn(&str) -> Option<String>) -> Vec<Breach> {
    let code = code_only(&file.text);
    let lines = code.lines().enumerate();
    lines.filter_map(|(at, line)| Some(breach(file, at + 1, finds(line)?))).collect()
}

/// The one file of the memory library that prints: a test whose thread hangs cannot fail in any other
/// way than by ending the process, past the harness that would have shown its output.
const OUTPUT_EXCEPT: &str = "hshm-memory/src/allocator/thread_local/hostile.rs";

/// The memory library has no runtime, no socket and no output.
#[must_use]
pub fn library_is_quiet(file: &TextFile) -> Vec<Breach> {
    if file.path == OUTPUT_EXCEPT {
        return Vec::new();
    }
    let never = [
        "tokio",
        "async",
        "await",
        "tracing",
        "log",
        "println",
        "eprintln",
        "print",
        "eprint",
        "stdout",
        "stderr",
        "UnixStream",
        "UnixListener",
        "UnixDatagram",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "socket",
    ];
    in_code(file, |line| {
        let word = words(line).find(|word| never.contains(word))?;
        Some(format!("{word}: the memory library has no runtime, sockets or output"))
    })
}

/// Files of the memory library that use the standard library's atomics for what is theirs alone.
/// Shared memory, and whatever a model checker is to see, goes through `crate::sync`.
pub const ATOMICS_EXCEPT: &[(&str, &str)] = &[
    ("hshm-memory/src/sync.rs", "the door itself"),
    ("hshm-memory/src/sync/model.rs", "how a model's threads die, which no model sees"),
    ("hshm-memory/src/allocator/thread_local/hostile.rs", "what its threads tell one another"),
    ("hshm-memory/src/crash.rs", "which crash point is armed, for this process"),
    ("hshm-memory/src/backend/fault.rs", "which mappings a signal handler knows"),
    ("hshm-memory/src/backend/place.rs", "where this process's mappings are"),
    ("hshm-memory/src/process.rs", "who this process is"),
    (
        "hshm-memory/src/allocator/thread_local/heap.rs",
        "whether a heap was released, a private word",
    ),
    (
        "hshm-memory/src/allocator/thread_local/cache.rs",
        "the rows of who has none, which are nowhere",
    ),
    ("hshm-memory/src/allocator/thread_local/mod.rs", "who this process is"),
    (
        "hshm-memory/src/allocator/thread_local/create.rs",
        "who this process is, and a counter of keys",
    ),
    ("hshm-memory/src/allocator/thread_local/tls.rs", "forks of this process, and turns"),
    ("hshm-memory/src/allocator/malloc.rs", "forks of this process, and counters of its own"),
    ("hshm-memory/src/thread_model/argobots.rs", "which library and keys this process has"),
    ("hshm-memory/src/gpu/library.rs", "which process has a driver"),
    ("hshm-memory/src/gpu/registration.rs", "which process registered its mapping"),
    ("hshm-memory/src/robust/holder.rs", "whether this process's forks are watched"),
];

/// Atomics come through `crate::sync`, where they can be a model checker's, but for those of
/// [`ATOMICS_EXCEPT`], each of which is in use.
#[must_use]
pub fn atomics_by_one_door(file: &TextFile) -> Vec<Breach> {
    let excepted = ATOMICS_EXCEPT.iter().any(|(path, _)| *path == file.path);
    let uses = in_code(file, |line| {
        let used = line.contains("std::sync::atomic") || line.contains("core::sync::atomic");
        used.then(|| "atomics come through crate::sync".into())
    });
    match (excepted, uses.is_empty()) {
        (true, true) => {
            vec![breach(file, 0, "an exception for atomics that is not needed any more")]
        }
        (true, false) => Vec::new(),
        (false, _) => uses,
    }
}

/// The crate refuses unsafe code.
#[must_use]
pub fn forbids_unsafe(file: &TextFile) -> Vec<Breach> {
    if code_only(&file.text).contains("#![forbid(unsafe_code)]") {
        return Vec::new();
    }
    vec![breach(file, 1, "the crate must say #![forbid(unsafe_code)]")]
}

/// The daemon neither uses the client library, nor names what stands in shared memory, nor
/// allocates or looks at blocks. `layout` are the structs of a segment's layout.
#[must_use]
pub fn daemon_stays_off_the_data_path(file: &TextFile, layout: &[String]) -> Vec<Breach> {
    let blocks = [
        "allocate",
        "allocate_into",
        "aligned_allocate",
        "reallocate",
        "free_from",
        "resolve",
        "custom_header",
    ];
    in_code(file, |line| {
        if words(line).any(|word| word == "hshm_client") {
            return Some("the daemon never uses the client library".into());
        }
        let layout = words(line).find(|word| layout.iter().any(|name| name == word));
        if let Some(name) = layout {
            return Some(format!("{name} is a struct of the segment's layout, not the daemon's"));
        }
        let called = |name: &&str| line.contains(&format!(".{name}("));
        blocks.iter().find(|name| called(name)).map(|name| {
            format!(".{name}(): the daemon is not on the data path and touches no block")
        })
    })
}

/// Which crates of the workspace one of them may depend on.
#[derive(Clone, Copy, Debug)]
pub struct MayDependOn {
    /// The crate.
    pub name: &'static str,
    /// Those of ours that it may depend on.
    pub ours: &'static [&'static str],
    /// Whether it may depend on the asynchronous runtime.
    pub tokio: bool,
}

/// What `cargo metadata` says, against the table: each crate of the workspace is in it, and depends
/// on nothing of ours that it may not. Dependencies for tests count.
///
/// # Panics
/// If the metadata cannot be understood.
#[must_use]
pub fn dependencies(metadata: &Value, table: &[MayDependOn]) -> Vec<Breach> {
    let packages = metadata["packages"].as_array().expect("packages");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ours: Vec<String> = packages.iter().map(|package| text(&package["name"])).collect();
    let mut found = Vec::new();
    for package in packages {
        let name = text(&package["name"]);
        let mut broken = |what: String| {
            found.push(Breach { file: format!("{name}/Cargo.toml"), line: 0, what });
        };
        let Some(may) = table.iter().find(|may| may.name == name) else {
            broken("a crate that the table of dependencies does not know".into());
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = text(&dependency["name"]);
            if ours.contains(&on) && !may.ours.contains(&on.as_str()) {
                broken(format!("depends on {on}, which it must not know"));
            }
            if on == "tokio" && !may.tokio {
                broken("depends on tokio: the runtime is the daemon's alone".into());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> TextFile {
        TextFile { path: path.into(), text: text.into() }
    }

    fn lines(breaches: &[Breach]) -> Vec<usize> {
        breaches.iter().map(|breach| breach.line).collect()
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(length(&file("a.rs", &"x\n".repeat(LONGEST_FILE))), []);
        assert_eq!(length(&file("a.rs", &"x\n".repeat(LONGEST_FILE + 1))).len(), 1);
    }

    #[test]
    fn unfinished_work_is_found() {
        let marks =
            [["FIX", "ME: later"], ["// XX", "X"], ["db", "g!(x)"], ["unimplement", "ed!()"]];
        for mark in marks.map(|halves| halves.concat()) {
            let found = marks_of_unfinished_work(&file("a.rs", &format!("x\n{mark}\n")));
            assert_eq!(lines(&found), [2], "{mark}");
        }
        assert_eq!(marks_of_unfinished_work(&file("a.rs", "mktemp -t aXXXXXX; todo_list")), []);
    }

    #[test]
    fn an_ignored_test_without_a_reason_is_found() {
        let bare = ["#[", "ignore]"].concat();
        let found =
            ignored_tests_have_a_reason(&file("a.rs", &format!("#[test]\n{bare}\nfn f() {{}}")));
        assert_eq!(lines(&found), [2]);
        assert_eq!(ignored_tests_have_a_reason(&file("a.rs", "#[ignore = \"slow\"]")), []);
    }

    #[test]
    fn output_and_sockets_in_the_library_are_found() {
        let text = "// tokio in prose\nfn f() {\n    println!(\"x\");\n}\nuse std::os::unix::net::UnixStream;\n\
                    #[cfg(test)]\nmod tests { fn g() { println!() } }\nconst LOG2: u32 = 1;";
        assert_eq!(lines(&library_is_quiet(&file("a.rs", text))), [3, 5]);
    }

    #[test]
    fn atomics_by_another_door_are_found() {
        let text = "use std::sync::atomic::AtomicU64;";
        assert_eq!(lines(&atomics_by_one_door(&file("hshm-memory/src/x.rs", text))), [1]);
        assert_eq!(atomics_by_one_door(&file("hshm-memory/src/sync.rs", text)), []);
        assert_eq!(lines(&atomics_by_one_door(&file("hshm-memory/src/sync.rs", "fn f() {}"))), [0]);
        let by_the_door = file("hshm-memory/src/x.rs", "use crate::sync::AtomicU64;");
        assert_eq!(atomics_by_one_door(&by_the_door), []);
    }

    #[test]
    fn a_crate_that_allows_unsafe_code_is_found() {
        assert_eq!(forbids_unsafe(&file("a.rs", "#![forbid(unsafe_code)]\nmod x;")), []);
        assert_eq!(forbids_unsafe(&file("a.rs", "// #![forbid(unsafe_code)]\nmod x;")).len(), 1);
    }

    #[test]
    fn a_daemon_on_the_data_path_is_found() {
        let layout = ["Descriptor".to_owned()];
        let text = "use hshm_client::Client;\nlet x: Descriptor = y;\nheap.resolve(p, 8)?;\nConfig::resolve();\n\
                    // hshm_client\nheap.report();";
        let found = daemon_stays_off_the_data_path(&file("hshmd/src/x.rs", text), &layout);
        assert_eq!(lines(&found), [1, 2, 3]);
    }

    #[test]
    fn a_dependency_against_the_direction_is_found() {
        let table = [
            MayDependOn { name: "low", ours: &[], tokio: false },
            MayDependOn { name: "high", ours: &["low"], tokio: true },
        ];
        let metadata = |low: &str, high: &str| {
            let text = format!(
                r#"{{"packages": [
                    {{"name": "low", "dependencies": [{{"name": "{low}"}}]}},
                    {{"name": "high", "dependencies": [{{"name": "{high}"}}]}}
                ]}}"#
            );
            serde_json::from_str::<Value>(&text).unwrap()
        };
        assert_eq!(dependencies(&metadata("libc", "low"), &table), []);
        assert_eq!(dependencies(&metadata("libc", "tokio"), &table), []);
        assert_eq!(dependencies(&metadata("high", "low"), &table)[0].file, "low/Cargo.toml");
        assert_eq!(dependencies(&metadata("tokio", "low"), &table).len(), 1);
        assert_eq!(dependencies(&metadata("libc", "low"), &table[..1]).len(), 1);
    }
}
