//! Durations as Go writes them (`time.ParseDuration`): `20ms`, `1h30m`, `1.5s`.

use std::time::Duration;

/// Reads a duration that is not negative.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is not a duration such as 20ms, 1.5s or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        rest = &rest[letters..];
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_go_are_read() {
        for (text, milliseconds) in
            [("0", 0), ("20ms", 20), ("1.5s", 1500), ("1h30m", 5_400_000), ("2s500ms", 2500), (".5s", 500)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        for text in ["", "+", "5", "ms", "1x", "-1s", "1 s", "1.2.3s", "9999999999999999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
