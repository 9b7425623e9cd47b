//! Tests of the configuration: precedence, and what a wrong file is told.

use std::fs;
use std::path::Path;

use super::*;

fn read(text: &str) -> Result<FileConfig, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hshmd.toml");
    fs::write(&path, text).unwrap();
    FileConfig::read(&path).map_err(|error| error.to_string())
}

fn user() -> Environment {
    Environment {
        uid: 7,
        xdg_runtime_dir: Some("/run/user/7".into()),
        home: Some("/home/u".into()),
        ..Environment::default()
    }
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = Config::resolve(Overrides::default(), read("").unwrap(), &user()).unwrap();
    assert_eq!(config.socket, Path::new("/run/user/7/hshm/hshmd.sock"));
    assert_eq!(config.state_dir, Path::new("/home/u/.local/state/hshm"));
    assert!(config.create_socket_dir && !config.remove_on_shutdown);
    assert_eq!(config.limits, Limits::default());
}

#[test]
fn options_go_before_the_file_and_the_file_before_the_environment() {
    let text = r#"
        socket = "/file.sock"
        state_dir = "/file-state"
        socket_mode = 0o640
        socket_group = "hshm"
        sweep_interval_ms = 50
        [limits]
        max_segments = 3
        max_segment_bytes = "1G"
        max_total_bytes = 4096
        max_sessions = 5
        [log]
        format = "json"
        level = "debug"
    "#;
    let env = Environment { hshm_socket: Some("/env.sock".into()), ..user() };
    let config = Config::resolve(Overrides::default(), read(text).unwrap(), &env).unwrap();
    assert_eq!(config.socket, Path::new("/file.sock"));
    assert_eq!(config.socket_mode, 0o640);
    assert_eq!(config.socket_group.as_deref(), Some("hshm"));
    assert_eq!(config.sweep_interval, Duration::from_millis(50));
    assert_eq!(config.limits.max_segment_bytes, Some(1 << 30));
    assert_eq!(config.limits.max_total_bytes, Some(4096));
    assert_eq!((config.limits.max_segments, config.limits.max_sessions), (3, 5));
    assert_eq!(config.log, LogConfig { format: LogFormat::Json, level: "debug".into() });

    let options = Overrides {
        socket: Some("/option.sock".into()),
        log_format: Some(LogFormat::Human),
        ephemeral: true,
        ..Overrides::default()
    };
    let config = Config::resolve(options, read(text).unwrap(), &env).unwrap();
    assert_eq!(config.socket, Path::new("/option.sock"));
    assert_eq!(config.log.format, LogFormat::Human);
    assert!(config.remove_on_shutdown);

    let config = Config::resolve(Overrides::default(), FileConfig::default(), &env).unwrap();
    assert_eq!(config.socket, Path::new("/env.sock"));
    assert!(!config.create_socket_dir, "a directory that the user named is not made up");
}

#[test]
fn a_wrong_file_is_told_which_line_and_why() {
    for (text, part) in [
        ("sokcet = \"/x\"", "line 1: unknown field `sokcet`"),
        ("\n[limits]\nmax_segment = 1", "line 3: unknown field `max_segment`"),
        ("socket_mode = \"9\"", "is no mode"),
        ("socket_mode = 0o7777", "is no mode"),
        ("socket_mode = true", "permission bits, such as 0o660"),
        ("[limits]\nmax_total_bytes = \"many\"", "line 2: \"many\" is no size"),
        ("[limits]\nmax_total_bytes = -1", "a negative number"),
        ("sweep_interval_ms = 1", "out of range"),
        ("[log]\nformat = \"xml\"", "line 2: unknown variant `xml`"),
        ("[log]\nlevel = \"lou=d=er\"", "line 2: log level"),
        // Taken for the name of a part of the program it would have nothing logged.
        ("[log]\nlevel = \"warning\"", "\"warning\" is no level"),
        ("[log]\nlevel = \"info, hshmd\"", "\"hshmd\" is no level"),
        ("[limits]\nmax_sessions = 0", "line 2: invalid value: integer `0`"),
        ("socket = ", "line 1"),
        ("\"a\\nb\\u001b[31m\" = 1", "unknown field `a\\nb\\u{1b}[31m`"),
        ("log.\"fo\\trmat\" = 1", "unknown field `fo\\trmat`"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(part), "{text:?} gives {error:?}, expected {part:?} in it");
        assert!(!error.contains('\n'), "{error:?} is one line");
    }
    let error = FileConfig::read(Path::new("/nonexistent/x.toml")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/x.toml") && error.contains("No such file"), "{error}");
}

#[test]
fn without_a_home_the_state_directory_must_be_given() {
    let env = Environment { uid: 7, ..Environment::default() };
    let error = Config::resolve(Overrides::default(), FileConfig::default(), &env).unwrap_err();
    assert!(error.to_string().contains("--state-dir"), "{error}");
    let options = Overrides { state_dir: Some("rel".into()), ..Overrides::default() };
    let config = Config::resolve(options, FileConfig::default(), &env).unwrap();
    assert!(config.state_dir.is_absolute());
}

#[test]
fn later_files_replace_what_earlier_ones_said_key_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("hshmd.toml");
    fs::write(&main, "socket_mode = 0o600\n[limits]\nmax_segments = 1\nmax_sessions = 2\n")
        .unwrap();
    let beside = dir.path().join("hshmd.toml.d");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("20-b.toml"), "[limits]\nmax_segments = 20\n").unwrap();
    fs::write(beside.join("10-a.toml"), "[limits]\nmax_segments = 10\n[log]\nlevel = \"warn\"\n")
        .unwrap();
    fs::write(beside.join("notes.txt"), "this is no configuration").unwrap();
    let file = FileConfig::read(&main).unwrap();
    let config = Config::resolve(Overrides::default(), file, &user()).unwrap();
    assert_eq!((config.limits.max_segments, config.limits.max_sessions), (20, 2));
    assert_eq!((config.socket_mode, config.log.level.as_str()), (0o600, "warn"));

    fs::write(beside.join("30-c.toml"), "[limits]\nmax_segment = 3\n").unwrap();
    let error = FileConfig::read(&main).unwrap_err().to_string();
    assert!(error.contains("30-c.toml") && error.contains("line 2"), "{error}");
}

#[test]
fn an_unknown_key_is_told_which_one_was_probably_meant() {
    let error = read("sokcet = \"/x\"\n").unwrap_err();
    assert!(error.ends_with("did you mean `socket`?"), "{error}");
    let error = read("[limits]\nmax_sesions = 4\n").unwrap_err();
    assert!(error.ends_with("did you mean `max_sessions`?"), "{error}");
    let error = read("zzz = 4\n").unwrap_err();
    assert!(!error.contains("did you mean"), "{error}");
}
