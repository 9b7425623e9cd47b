//! Names of shared-memory objects.

use super::BackendError;

/// The longest name a segment can have, in bytes: with a prefix it stays below `NAME_MAX`.
pub const MAX_NAME_BYTES: usize = 128;

/// Whether `name` can be a segment's name.
///
/// One path component, of letters, digits and `.`, `_`, `-`: it is a file's name in `/dev/shm`, a
/// word on command lines and a label in metrics.
///
/// # Errors
/// [`BackendError::BadName`].
///
/// # Examples
/// ```
/// use hshm_memory::backend::validate_name;
///
/// assert!(validate_name("sensor-data.0").is_ok());
/// assert!(validate_name("../etc").is_err());
/// ```
pub fn validate_name(name: &str) -> Result<(), BackendError> {
    let bad = |why| {
        let shown = name.chars().take(40).collect::<String>();
        let name = if shown.len() < name.len() { format!("{shown}…") } else { shown };
        Err(BackendError::BadName { name, why })
    };
    if name.is_empty() {
        return bad("is empty");
    }
    if name.len() > MAX_NAME_BYTES {
        return bad("is too long");
    }
    if name.starts_with('.') {
        return bad("begins with a dot");
    }
    if name.contains('/') {
        return bad("contains a slash");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return bad("contains a character that is not allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_words_are_names() {
        for good in ["a", "sensor-data.0", "A_b", &"x".repeat(MAX_NAME_BYTES)] {
            validate_name(good).unwrap();
        }
        let long = "x".repeat(300);
        for bad in ["", ".", "..", ".hidden", "a/b", "/a", "a b", "a\n", "ä", "a\0", &long] {
            let error = validate_name(bad).unwrap_err();
            assert!(matches!(error, BackendError::BadName { .. }));
            assert!(error.to_string().len() < 300, "a message stays one line: {error}");
        }
    }
}
