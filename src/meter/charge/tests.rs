//! The rules of the bill: what a line costs, and that lines, totals and grouping agree.

use proptest::prelude::*;

use super::*;

fn row(provider: &str, app: &str) -> UsageRow {
    let provider = ProviderName::new(provider).unwrap();
    UsageRow::zero(Owner { provider, app: AppName::new(app).unwrap() }, None)
}

fn tariff(price: u64) -> Tariff {
    Tariff {
        currency: "EUR".into(),
        requests_per_million_nano: price,
        cpu_per_hour_nano: price,
        memory_per_gib_hour_nano: price,
        image_per_gib_hour_nano: price,
        egress_per_gib_nano: price,
        wakes_per_thousand_nano: price,
    }
}

fn line(bill: &Bill, item: Item) -> &Line {
    bill.lines.iter().find(|line| line.item == item).unwrap()
}

#[test]
fn one_unit_of_each_item_costs_its_price() {
    let mut row = row("acme", "shop");
    row.requests = 1_000_000;
    row.cpu_micros = 3_600_000_000;
    row.memory_byte_seconds = (1 << 30) * 3_600;
    row.image_byte_seconds = (1 << 30) * 3_600;
    row.bytes_out = 1 << 30;
    row.wakes = 1_000;
    let bill = charge(&tariff(123_456_789), &[row]);
    assert_eq!(bill.lines.len(), Item::ALL.len());
    for line in &bill.lines {
        assert_eq!(line.amount_nano, 123_456_789, "{}", line.item);
    }
    assert_eq!(bill.total_nano, 6 * 123_456_789);
    assert_eq!(bill.providers.len(), 1);
}

#[test]
fn a_line_is_rounded_once_and_half_goes_up() {
    for (requests, price, amount) in [
        (0, 1, 0),
        (499_999, 1, 0),
        (500_000, 1, 1),
        (1_499_999, 1, 1),
        (1_500_000, 1, 2),
        (1, 1_000_000, 1),
        (3, 333_333, 1),
    ] {
        let mut row = row("acme", "shop");
        row.requests = requests;
        let bill = charge(&tariff(price), &[row]);
        assert_eq!(line(&bill, Item::Requests).amount_nano, amount, "{requests} at {price}");
    }
}

#[test]
fn periods_of_one_app_are_summed_before_rounding() {
    let mut half = row("acme", "shop");
    half.requests = 250_000;
    let bill = charge(&tariff(1), &[half.clone(), half]);
    assert_eq!(line(&bill, Item::Requests).amount_nano, 1);
    assert_eq!(line(&bill, Item::Requests).quantity, 500_000);
}

#[test]
fn an_item_without_a_price_is_shown_with_amount_0() {
    let mut row = row("acme", "shop");
    row.bytes_out = 5;
    let bill = charge(&tariff(0), &[row]);
    let line = line(&bill, Item::Egress);
    assert_eq!((line.quantity, line.price_nano, line.amount_nano), (5, 0, 0));
    assert_eq!(bill.total_nano, 0);
}

#[test]
fn money_is_printed_exactly_with_two_to_nine_decimals() {
    for (nano, text) in [
        (0, "0.00 EUR"),
        (1, "0.000000001 EUR"),
        (1_234_567, "0.001234567 EUR"),
        (10_000_000, "0.01 EUR"),
        (100_000_000, "0.10 EUR"),
        (1_500_000_000, "1.50 EUR"),
        (12_000_000_000, "12.00 EUR"),
        (u128::MAX, "340282366920938463463374607431.768211455 EUR"),
    ] {
        assert_eq!(format_money(nano, "EUR"), text);
    }
    assert_eq!(format_money(1, ""), "0.000000001");
}

#[test]
fn large_numbers_are_text_in_json() {
    let mut row = row("acme", "shop");
    row.wakes = u64::MAX;
    let json = serde_json::to_value(charge(&tariff(u64::MAX), &[row])).unwrap();
    assert_eq!(json["lines"][5]["quantity"], u64::MAX.to_string());
    assert_eq!(json["lines"][5]["item"], "wakes");
    assert!(json["total_nano"].is_string());
}

/// Any row, small and greatest values included.
fn any_row() -> impl Strategy<Value = UsageRow> {
    let number = || prop_oneof![0..2_000_000_u64, any::<u64>(), Just(u64::MAX)];
    let names = (0..3_usize, 0..3_usize);
    (names, number(), number(), number(), number(), number(), number()).prop_map(
        |((provider, app), requests, cpu, memory, image, egress, wakes)| {
            let mut row = row(["a", "b", "c"][provider], ["x", "y", "z"][app]);
            row.requests = requests;
            row.cpu_micros = cpu;
            row.memory_byte_seconds = memory;
            row.image_byte_seconds = image;
            row.bytes_out = egress;
            row.wakes = wakes;
            row
        },
    )
}

fn rows() -> impl Strategy<Value = Vec<UsageRow>> {
    prop::collection::vec(any_row(), 0..12)
}

proptest! {
    #[test]
    fn the_bill_adds_up(rows in rows(), price in any::<u64>()) {
        let bill = charge(&tariff(price), &rows);
        prop_assert_eq!(bill.lines.iter().map(|line| line.amount_nano).sum::<u128>(), bill.total_nano);
        prop_assert_eq!(bill.providers.iter().map(|p| p.amount_nano).sum::<u128>(), bill.total_nano);
        for owed in &bill.providers {
            let lines = bill.lines.iter().filter(|line| line.provider == owed.provider);
            prop_assert_eq!(lines.map(|line| line.amount_nano).sum::<u128>(), owed.amount_nano);
        }
    }

    #[test]
    fn the_order_of_the_rows_does_not_matter(rows in rows(), price in any::<u64>()) {
        let reversed: Vec<_> = rows.iter().rev().cloned().collect();
        prop_assert_eq!(charge(&tariff(price), &rows), charge(&tariff(price), &reversed));
    }

    #[test]
    fn more_usage_never_costs_less(rows in rows(), more in any_row(), price in any::<u64>()) {
        let before = charge(&tariff(price), &rows).total_nano;
        let after = charge(&tariff(price), &[rows, vec![more]].concat()).total_nano;
        prop_assert!(before <= after);
    }

    #[test]
    fn an_amount_is_within_half_a_nano_of_the_exact_value(
        quantity in any::<u64>(),
        price in any::<u64>(),
        item in 0..Item::ALL.len(),
    ) {
        let per = Item::ALL[item].price_quantity();
        // Two u64 multiply within u128, and half of `per` still fits on top of that.
        let exact = u128::from(quantity) * u128::from(price);
        prop_assert_eq!(amount(quantity.into(), price, per), (exact + per / 2) / per);
    }
}
