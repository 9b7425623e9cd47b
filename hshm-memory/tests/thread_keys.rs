//! Keys of thread-local storage run out, in a process where nothing else needs one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ptr;

use hshm_memory::thread_model::{ThreadModel, thread_model};

#[test]
fn keys_that_run_out_are_an_error_and_can_be_given_back() {
    let mut keys = Vec::new();
    let error = loop {
        match thread_model().create_tls::<u8>(ptr::null_mut()) {
            Ok(key) => keys.push(key),
            Err(error) => break error,
        }
        // Linux has 1024, macOS 512, Windows 4096.
        assert!(keys.len() < 100_000, "they never run out");
    };
    assert!(error.to_string().contains("thread-local storage"), "{error}");
    keys.pop();
    let mut value = 0;
    let key = thread_model().create_tls(&raw mut value).unwrap();
    assert_eq!(thread_model().get_tls(&key), &raw mut value);
}
