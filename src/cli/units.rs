//! Quantities as people read them: pure, integers only, never rounded to zero without saying so.

use crate::{meter::Item, model::Bytes};

/// Byte-seconds in one GiB-hour.
const GIB_HOUR: u128 = (1 << 30) * 3_600;
/// Millionths in one.
const MICRO: u128 = 1_000_000;

/// A reason without its repetition: who passes one on may have put the same words behind it, CRIU's
/// with a time stamp. `x: y: y` is `x: y`.
pub fn once(reason: &str) -> &str {
    for (at, _) in reason.match_indices(": ") {
        let (said, again) = reason.split_at(at);
        let again = without_stamp(again.trim_start_matches(": ")).trim();
        if !again.is_empty() && said.contains(again) {
            return said.trim_end();
        }
    }
    reason
}

/// The text after a `(00.012345)`.
fn without_stamp(text: &str) -> &str {
    let after = text.strip_prefix('(').and_then(|text| text.split_once(')'));
    match after {
        Some((stamp, rest)) if stamp.bytes().all(|b| b.is_ascii_digit() || b == b'.') => rest,
        _ => text,
    }
}

/// A reason in one line: once, and without what steers a terminal, because it may quote an app.
pub fn plain(reason: &str) -> String {
    once(reason).replace(char::is_control, " ")
}

/// What stands in a cell that has no value.
pub const NONE: &str = "-";

/// `value / unit` with six decimals; what is more than nothing never reads as nothing.
fn decimal(value: u128, unit: u128) -> String {
    let micros = (value / unit)
        .saturating_mul(MICRO)
        .saturating_add((value % unit).saturating_mul(MICRO).saturating_add(unit / 2) / unit);
    if micros == 0 && value > 0 {
        return "<0.000001".into();
    }
    format!("{}.{:06}", micros / MICRO, micros % MICRO)
}

/// Byte-seconds as GiB-hours: `0.000174`.
pub fn gib_hours(byte_seconds: impl Into<u128>) -> String {
    decimal(byte_seconds.into(), GIB_HOUR)
}

/// Microseconds of CPU as seconds: `0.412 s`.
pub fn cpu(micros: impl Into<u128>) -> String {
    let micros = micros.into();
    format!("{}.{:03} s", micros / MICRO, micros % MICRO / 1_000)
}

/// A wait: `80 ms`, `12.3 s`.
pub fn millis(millis: u64) -> String {
    if millis < 10_000 {
        format!("{millis} ms")
    } else {
        format!("{}.{} s", millis / 1_000, millis % 1_000 / 100)
    }
}

/// The mean of `count` durations that add up to `sum` microseconds: `0.84 ms`.
pub fn mean(sum_micros: u64, count: u64) -> String {
    match sum_micros.checked_div(count) {
        None => NONE.into(),
        Some(micros) if micros < 10_000_000 => {
            format!("{}.{:02} ms", micros / 1_000, micros % 1_000 / 10)
        }
        Some(micros) => millis(micros / 1_000),
    }
}

/// A quantity of a bill in the unit of its kind.
pub fn quantity(item: Item, quantity: u128) -> String {
    match item {
        Item::Requests | Item::Wakes => quantity.to_string(),
        Item::Cpu => cpu(quantity),
        Item::Memory | Item::Image => format!("{} GiB·h", gib_hours(quantity)),
        Item::Egress => Bytes(u64::try_from(quantity).unwrap_or(u64::MAX)).to_string(),
    }
}

/// A value, or a dash.
pub fn or_none<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NONE.into(), text)
}

/// `1 app`, `2 apps`.
pub fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_usage_is_still_visible() {
        for (byte_seconds, expected) in [
            (0_u128, "0.000000"),
            (1, "<0.000001"),
            // 64 MiB for 10 s.
            ((64 << 20) * 10, "0.000174"),
            (GIB_HOUR, "1.000000"),
            (GIB_HOUR * 3 / 2, "1.500000"),
        ] {
            assert_eq!(gib_hours(byte_seconds), expected, "{byte_seconds}");
        }
        assert!(!gib_hours(u128::MAX).is_empty());
    }

    #[test]
    fn a_reason_is_said_once() {
        for (reason, expected) in [
            ("no such file", "no such file"),
            ("no such file: no such file", "no such file"),
            ("cannot read x: no such file: no such file", "cannot read x: no such file"),
            (
                "CRIU failed with 16: Error (a.c:9): can't dump 5\n: (00.0123) Error (a.c:9): can't dump 5",
                "CRIU failed with 16: Error (a.c:9): can't dump 5",
            ),
            (
                "CRIU failed with 16: : (00.0123) Error (a.c:9): can't dump 5",
                "CRIU failed with 16: : (00.0123) Error (a.c:9): can't dump 5",
            ),
            ("a: b: c", "a: b: c"),
            ("", ""),
            (": ", ": "),
        ] {
            assert_eq!(once(reason), expected, "{reason:?}");
        }
        assert_eq!(plain("a\nb: a\nb"), "a b");
    }

    #[test]
    fn times_read_as_people_say_them() {
        assert_eq!(cpu(412_345_u64), "0.412 s");
        assert_eq!(cpu(61_000_000_u64), "61.000 s");
        assert_eq!((millis(80), millis(12_345)), ("80 ms".into(), "12.3 s".into()));
        assert_eq!((mean(840, 1), mean(1_690_000, 2)), ("0.84 ms".into(), "845.00 ms".into()));
        assert_eq!((mean(0, 0), mean(30_000_000, 2)), ("-".into(), "15.0 s".into()));
    }

    #[test]
    fn a_quantity_has_the_unit_of_its_item() {
        for (item, number, expected) in [
            (Item::Requests, 12, "12"),
            (Item::Cpu, 1_500_000, "1.500 s"),
            (Item::Memory, GIB_HOUR, "1.000000 GiB·h"),
            (Item::Egress, 1536, "1.5 KiB"),
            (Item::Wakes, 3, "3"),
        ] {
            assert_eq!(quantity(item, number), expected);
        }
        assert_eq!((count(1, "route"), count(0, "app")), ("1 route".into(), "0 apps".into()));
    }
}
