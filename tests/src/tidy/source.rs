//! As much of Rust's grammar as the rules need: what is code, and what of it is tests.

/// The source with comments and the contents of literals blanked out. Lines stay where they are.
#[must_use]
pub fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let skipped = match rest {
            [b'/', b'/', ..] => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => block_comment(rest),
            [b'r', b'"' | b'#', ..] if !is_in_word(bytes, at) => raw_string(rest).unwrap_or(0),
            [b'"', ..] => string(rest),
            [b'\'', ..] => character(rest).unwrap_or(0),
            _ => 0,
        };
        if skipped == 0 {
            // Anything but ASCII stands in comments and literals alone.
            code.push(char::from(bytes[at]));
            at += 1;
        } else {
            let blank = |&b: &u8| if b == b'\n' { '\n' } else { ' ' };
            code.extend(rest[..skipped].iter().map(blank));
            at += skipped;
        }
    }
    code
}

/// Whether the byte before `at` belongs to a word, which then goes on: the r of `for"` is no prefix.
fn is_in_word(bytes: &[u8], at: usize) -> bool {
    // In `br"`, the b is the prefix's.
    let before = at.checked_sub(1).map(|before| bytes[before]);
    let before = match before {
        Some(b'b') => at.checked_sub(2).map(|before| bytes[before]),
        other => other,
    };
    before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match rest.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
    let end: Vec<u8> = [b'"'].into_iter().chain(std::iter::repeat_n(b'#', hashes)).collect();
    let start = 1 + hashes;
    if rest.get(start) != Some(&b'"') {
        return None;
    }
    let body = &rest[start + 1..];
    let len = body.windows(end.len()).position(|window| window == end).unwrap_or(body.len());
    Some((start + 1 + len + end.len()).min(rest.len()))
}

/// A character literal, rather than a lifetime.
fn character(rest: &[u8]) -> Option<usize> {
    match rest.get(1)? {
        b'\\' => rest.iter().skip(3).position(|&b| b == b'\'').map(|end| end + 4),
        _ => {
            // One character of up to four bytes, and the closing quote.
            let end = rest.iter().skip(2).take(4).position(|&b| b == b'\'')? + 2;
            let text = std::str::from_utf8(rest.get(1..end)?).ok()?;
            (text.chars().count() == 1).then_some(end + 1)
        }
    }
}

/// Code without the items that are compiled for tests alone. `code` has no comments and literals.
#[must_use]
pub fn without_tests(code: &str) -> String {
    let mut left = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        let (before, item) = rest.split_at(start);
        left.push_str(before);
        // The item ends with its body, or with a semicolon if it has none.
        let body = item.find('{').unwrap_or(item.len());
        let semicolon = item.find(';').unwrap_or(item.len());
        let end =
            if semicolon < body { semicolon + 1 } else { body + closing_brace(&item[body..]) };
        left.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    left + rest
}

fn closing_brace(text: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// The names of the structs that the code defines.
#[must_use]
pub fn structs(code: &str) -> Vec<String> {
    let names = words(code).zip(words(code).skip(1)).filter(|(word, _)| *word == "struct");
    names.map(|(_, name)| name.to_owned()).collect()
}

/// The words of code: identifiers, keywords and numbers.
pub(super) fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        let source = "let a = \"x // \\\" y\"; // tokio\nb /* c /* d */ e */ f r#\"g \"h\" i\"# 'j' '\\'' 'k";
        let code = code_only(source);
        let kept: Vec<_> = words(&code).collect();
        assert_eq!(kept, ["let", "a", "b", "f", "k"]);
        assert_eq!(code.lines().count(), 2);
        let code = code_only("fn f<'a>(x: &'a str) -> char { '{' } for\"\" br\"z\"");
        let kept: Vec<_> = words(&code).collect();
        assert_eq!(kept, ["fn", "f", "a", "x", "a", "str", "char", "for", "b"]);
    }

    #[test]
    fn tests_are_left_out() {
        let code = "a\n#[cfg(test)]\nmod tests {\n { b } c\n}\nd\n#[cfg(test)]\nmod e;\nf";
        let left = without_tests(code);
        assert_eq!(words(&left).collect::<Vec<_>>(), ["a", "d", "f"]);
        assert_eq!(left.lines().count(), code.lines().count());
    }

    #[test]
    fn structs_are_named() {
        assert_eq!(structs("pub struct A { b: C } struct D;"), ["A", "D"]);
    }
}
