//! Moments on the command line and in tables: `24h` ago, RFC 3339, a date, or Unix milliseconds.
//! Everything is UTC, because bills are. Pure: the present comes in as an argument.

use std::time::Duration;

use crate::model::parse_duration;

/// Reads a moment as Unix milliseconds. `now` is the time since 1970.
pub fn parse(text: &str, now: Duration) -> Result<u64, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| format!("{text} milliseconds are too many"));
    }
    if let Ok(ago) = parse_duration(text) {
        return Ok(millis(now.saturating_sub(ago)));
    }
    let midnight = format!("{text}T00:00:00Z");
    let moment = text.parse::<jiff::Timestamp>().or_else(|_| midnight.parse());
    let moment = moment.map_err(|_| {
        format!(
            "{text:?} is no moment: use how long ago (24h, 30m, 7d), a time such as \
             2026-01-31T08:00:00Z, a day such as 2026-01-31, or Unix milliseconds"
        )
    })?;
    u64::try_from(moment.as_millisecond()).map_err(|_| format!("{text:?} is before 1970"))
}

/// Milliseconds of a time since 1970.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The beginning of an hour or day as it is shown: `2026-01-31 08:00`.
pub fn minute(unix_ms: u64) -> String {
    let moment = i64::try_from(unix_ms).ok().map(jiff::Timestamp::from_millisecond);
    let Some(Ok(moment)) = moment else {
        return format!("{unix_ms} ms");
    };
    // `2026-01-31T08:00:00Z`
    let text = moment.to_string();
    text.get(..16).map_or_else(|| text.clone(), |minute| minute.replace('T', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn a_moment_is_read_in_each_of_its_forms() {
        for (text, expected) in [
            ("24h", 1_800_000_000_000 - 86_400_000),
            ("30m", 1_800_000_000_000 - 1_800_000),
            ("0s", 1_800_000_000_000),
            // Longer ago than there was time.
            ("99999d", 0),
            ("24", 24),
            ("1700000000123", 1_700_000_000_123),
            ("1970-01-02T00:00:00Z", 86_400_000),
            ("1970-01-02T00:00:00.5+01:00", 86_400_000 - 3_600_000 + 500),
            ("1970-01-02", 86_400_000),
            (" 1970-01-02 ", 86_400_000),
        ] {
            assert_eq!(parse(text, NOW), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "yesterday",
            "-1h",
            "2026-13-01",
            "2026-01-31T08:00:00",
            "1969-12-31",
            "99999999999999999999",
        ] {
            assert!(parse(bad, NOW).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_hour_is_shown_in_utc() {
        assert_eq!(minute(0), "1970-01-01 00:00");
        assert_eq!(minute(1_800_000_000_000), "2027-01-15 08:00");
        assert!(!minute(u64::MAX).is_empty());
    }
}
