//! Sizes and times as people write them in TOML: `"64MiB"`, `"30s"`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// A number of bytes. Written with a binary unit: `"512KiB"`, `"64MiB"`, `"2GiB"`, or `"100B"`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Why a text is no size or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseUnitError {
    message: &'static str,
}

/// Splits `"30s"` into the number and its unit.
fn split(text: &str) -> Result<(u64, &str), ParseUnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number = digits
        .parse()
        .map_err(|_| ParseUnitError { message: "expected a whole number followed by a unit" })?;
    Ok((number, unit.trim_start()))
}

impl std::str::FromStr for Bytes {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let (number, unit) = split(text.trim())?;
        let factor: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => {
                return Err(ParseUnitError { message: "the unit must be B, KiB, MiB, GiB or TiB" });
            }
        };
        number.checked_mul(factor).map(Self).ok_or(ParseUnitError { message: "too large" })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] =
            [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (factor, unit) in UNITS {
            if self.0 >= factor {
                let tenths =
                    (u128::from(self.0) * 10 + u128::from(factor) / 2) / u128::from(factor);
                return if tenths % 10 == 0 {
                    write!(f, "{} {unit}", tenths / 10)
                } else {
                    write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// Reads `"250ms"`, `"30s"`, `"5m"`, `"2h"`, `"1d"`.
pub fn parse_duration(text: &str) -> Result<Duration, ParseUnitError> {
    let (number, unit) = split(text.trim())?;
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(ParseUnitError { message: "the unit must be ms, s, m, h or d" });
        }
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or(ParseUnitError { message: "too large" })
}

/// Prints a duration the way [`parse_duration`] reads it, in its largest whole unit.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (factor, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if millis >= factor && millis.is_multiple_of(factor) {
            return format!("{}{unit}", millis / factor);
        }
    }
    format!("{millis}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes, printed) in [
            ("0B", 0, "0 B"),
            ("64MiB", 64 << 20, "64 MiB"),
            ("1536 KiB", 1536 << 10, "1.5 MiB"),
            ("2GiB", 2 << 30, "2 GiB"),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes));
            assert_eq!(Bytes(bytes).to_string(), printed);
        }
        for bad in ["", "64", "64MB", "-1MiB", "1.5GiB", "99999999999TiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn durations_read_and_print() {
        for (text, millis) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1d", 86_400_000)]
        {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(millis));
            assert_eq!(format_duration(duration), text);
        }
        for bad in ["", "30", "30sec", "-1s", "1.5s"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
