//! `[tariff]`: what usage costs. Prices are written as decimal texts and kept as integers in
//! billionths of the currency unit, because money is exact: a float could not even hold `0.1`.
//!
//! It relies on [`super::reader`]. It charges nobody: `meter::charge` multiplies.

use super::reader::{Table, Text};
use crate::model::{DEFAULT_CURRENCY, Tariff};

/// Billionths: a price has as many decimals as this has zeros.
const NANO: u64 = 1_000_000_000;
const DECIMALS: usize = 9;

/// Reads the table `[tariff]`.
pub(super) fn read(root: &mut Table<'_>) -> Tariff {
    let mut table = root.table("tariff");
    let tariff = Tariff {
        currency: currency(&mut table).unwrap_or_else(|| DEFAULT_CURRENCY.into()),
        requests_per_million_nano: price(&mut table, "requests_per_million"),
        cpu_per_hour_nano: price(&mut table, "cpu_per_hour"),
        memory_per_gib_hour_nano: price(&mut table, "memory_per_gib_hour"),
        image_per_gib_hour_nano: price(&mut table, "image_per_gib_hour"),
        egress_per_gib_nano: price(&mut table, "egress_per_gib"),
        wakes_per_thousand_nano: price(&mut table, "wakes_per_thousand"),
    };
    table.finish();
    tariff
}

fn currency(table: &mut Table<'_>) -> Option<String> {
    let Text { text, span } = table.text("currency")?;
    if text.len() != 3 || !text.chars().all(|c| c.is_ascii_uppercase()) {
        let hint = "three upper-case letters, such as \"EUR\"";
        table.error_hint(Some(span), format!("bad currency {text:?}"), hint);
        return None;
    }
    Some(text.to_owned())
}

fn price(table: &mut Table<'_>, key: &'static str) -> u64 {
    let Some(value) = table.value(key) else {
        return 0;
    };
    let number = match (value.get_ref().as_integer(), value.get_ref().as_float()) {
        (Some(integer), _) => Some(integer.to_string()),
        (_, Some(float)) => Some(float.as_str().to_owned()),
        _ => None,
    };
    if let Some(number) = number {
        let hint = format!("money is exact, put it in quotes: {key} = \"{number}\"");
        table.mismatch(value, "a price", Some(hint));
        return 0;
    }
    let Some(Text { text, span }) = table.text(key) else {
        return 0;
    };
    match nano(text) {
        Ok(nano) => nano,
        Err(reason) => {
            let message = format!("bad price {text:?}: {reason}");
            table.error_hint(Some(span), message, "a decimal number, such as \"0.20\"");
            0
        }
    }
}

/// Reads `12.50` exactly.
fn nano(text: &str) -> Result<u64, &'static str> {
    if text.starts_with('-') {
        return Err("a price is not negative");
    }
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) {
        return Err("only digits and one '.' are allowed");
    }
    if decimals.len() > DECIMALS {
        return Err("at most 9 decimals are allowed");
    }
    let whole: Option<u64> = whole.parse().ok();
    let fraction: Option<u64> = format!("{decimals:0<DECIMALS$}").parse().ok();
    whole
        .and_then(|whole| whole.checked_mul(NANO))
        .and_then(|whole| whole.checked_add(fraction?))
        .ok_or("too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_read_exactly_or_refused() {
        for (text, expected) in [
            ("0", Ok(0)),
            ("0.20", Ok(200_000_000)),
            ("0.0001", Ok(100_000)),
            ("12", Ok(12_000_000_000)),
            ("0.000000001", Ok(1)),
            ("007.50", Ok(7_500_000_000)),
            ("18446744073.709551615", Ok(u64::MAX)),
            ("18446744073.709551616", Err("too large")),
            ("99999999999999999999", Err("too large")),
            ("0.0000000001", Err("at most 9 decimals are allowed")),
            ("-1", Err("a price is not negative")),
            ("", Err("only digits and one '.' are allowed")),
            (".5", Err("only digits and one '.' are allowed")),
            ("5.", Err("only digits and one '.' are allowed")),
            ("1.2.3", Err("only digits and one '.' are allowed")),
            ("1e3", Err("only digits and one '.' are allowed")),
            ("+1", Err("only digits and one '.' are allowed")),
            ("1,50", Err("only digits and one '.' are allowed")),
            ("١", Err("only digits and one '.' are allowed")),
        ] {
            assert_eq!(nano(text), expected, "{text:?}");
        }
    }
}
