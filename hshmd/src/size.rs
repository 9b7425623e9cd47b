//! Sizes as people write them: `64M`, `1.5G`, `4096`.

/// Reads a size: a number, with a fraction if a unit follows, and a unit of `K`, `M`, `G` or `T`
/// (powers of 1024; `KiB` and `kb` mean the same) or none for bytes.
///
/// # Errors
/// A sentence that says what is wrong with `text`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let wrong =
        || format!("{text:?} is no size: write a number of bytes, or one with K, M, G or T");
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let too_large = || format!("{text:?} is too large a size");
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || number == "." || fraction.contains('.') {
        return Err(wrong());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large())? };
    let bytes = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    if fraction.is_empty() {
        return Ok(bytes);
    }
    if shift == 0 || fraction.len() > 6 {
        return Err(wrong());
    }
    // At most six digits of at most 2^40: no overflow.
    let numerator: u64 = fraction.parse().map_err(|_| wrong())?;
    let denominator = fraction.bytes().fold(1_u64, |n, _| n * 10);
    bytes.checked_add((numerator << shift) / denominator).ok_or_else(too_large)
}

/// A size for people: the largest unit of which there is at least one, with one decimal if it is
/// not whole.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in units {
        let whole = bytes >> shift;
        if whole == 0 {
            continue;
        }
        let rest = bytes & ((1 << shift) - 1);
        // At most 2^40 times ten.
        let tenths = (rest * 10) >> shift;
        return if tenths == 0 {
            format!("{whole} {unit}")
        } else {
            format!("{whole}.{tenths} {unit}")
        };
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 64 << 10),
            ("64 KiB", 64 << 10),
            ("1.5G", 3 << 29),
            ("2t", 2 << 40),
            (".5M", 1 << 19),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", ".", "1.2.3M", "K", "-1", "1X", "1.5", "99999999999999999999", "16777216T", "1G1"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 20, "1 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }
}
