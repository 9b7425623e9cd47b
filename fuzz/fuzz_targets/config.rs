//! Whatever stands in the configuration and in what is dropped in beside it: an error of one line, or
//! settings. Files that say the same, all in one or each key in another, give the same settings.
#![no_main]

use std::fs;
use std::path::Path;

use hshm_proto::Environment;
use hshmd::config::{Config, FileConfig, Overrides};
use libfuzzer_sys::fuzz_target;

/// What parts the files of the input.
const PART: char = '\u{1}';

fn resolve(main: &Path) -> Option<Config> {
    let env = Environment { uid: 7, home: Some("/home/u".into()), ..Environment::default() };
    let config =
        FileConfig::read(main).and_then(|file| Config::resolve(Overrides::default(), file, &env));
    match config {
        Ok(config) => Some(config),
        Err(error) => {
            let error = error.to_string();
            assert!(!error.chars().any(char::is_control), "{error:?} is one line");
            assert!(error.len() < 8 << 10, "{} bytes of error", error.len());
            None
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::TempDir::new_in("/dev/shm").unwrap();
    let text = String::from_utf8_lossy(data);
    let (main, beside) = (dir.path().join("hshmd.toml"), dir.path().join("hshmd.toml.d"));
    let mut parts = text.split(PART);
    let first = parts.next().unwrap_or_default();
    // Raw, as it came, for those that are no text at all.
    let raw = data.split(|byte| *byte == 1).next().unwrap_or_default();
    fs::write(&main, raw).unwrap();
    let alone = resolve(&main);
    fs::create_dir(&beside).unwrap();

    // What a file says, it says as well under one that says nothing, or over one.
    if let Some(alone) = &alone {
        let dropped = beside.join("10.toml");
        fs::write(&dropped, "").unwrap();
        assert_eq!(resolve(&main).as_ref(), Some(alone));
        fs::write(&main, "").unwrap();
        fs::write(&dropped, first).unwrap();
        assert_eq!(resolve(&main).as_ref(), Some(alone));
        fs::write(&main, first).unwrap();
        fs::remove_file(&dropped).unwrap();
    }
    for (at, part) in parts.take(4).enumerate() {
        fs::write(beside.join(format!("{at}.toml")), part).unwrap();
        let now = resolve(&main);
        assert_eq!(resolve(&main), now);
    }
});
