//! A bill as a client of the API reads it back: `meter::Bill` is only written, because its unit
//! texts belong to the program; here they are owned.
//!
//! It relies on the bill's JSON form, in which numbers beyond 53 bits are texts. It computes nothing.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    meter::{Bill, Item},
    model::{AppName, ProviderName},
};

/// What is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The currency of all amounts.
    pub currency: String,
    /// One line per app and item.
    pub lines: Vec<StatementLine>,
    /// The sum of the lines of each provider.
    pub providers: Vec<Owed>,
    /// The sum of all lines, in billionths.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub total_nano: u128,
}

/// One priced line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementLine {
    /// Who pays.
    pub provider: ProviderName,
    /// The app.
    pub app: AppName,
    /// What for.
    pub item: Item,
    /// How much of it, in `unit`.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub quantity: u128,
    /// What the quantity counts.
    pub unit: String,
    /// The price of [`Item::price_unit`], in billionths.
    pub price_nano: u64,
    /// Quantity times price, rounded, in billionths.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub amount_nano: u128,
}

/// What one provider owes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owed {
    /// Who pays.
    pub provider: ProviderName,
    /// The sum of its lines, in billionths.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub amount_nano: u128,
}

fn as_text<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

impl From<Bill> for Statement {
    fn from(bill: Bill) -> Self {
        let lines = bill.lines.into_iter().map(|line| StatementLine {
            provider: line.provider,
            app: line.app,
            item: line.item,
            quantity: line.quantity,
            unit: line.unit.to_owned(),
            price_nano: line.price_nano,
            amount_nano: line.amount_nano,
        });
        let providers = bill
            .providers
            .into_iter()
            .map(|owed| Owed { provider: owed.provider, amount_nano: owed.amount_nano });
        Self {
            currency: bill.currency,
            lines: lines.collect(),
            providers: providers.collect(),
            total_nano: bill.total_nano,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        meter::{Owner, UsageRow, charge},
        model::Tariff,
    };

    #[test]
    fn a_bill_is_read_back_as_it_was_written() {
        let owner = Owner {
            provider: ProviderName::new("acme").unwrap(),
            app: AppName::new("shop").unwrap(),
        };
        let row = UsageRow { requests: u64::MAX, wakes: 3, ..UsageRow::zero(owner, None) };
        let tariff = Tariff {
            currency: "EUR".into(),
            requests_per_million_nano: u64::MAX,
            wakes_per_thousand_nano: 1_000,
            ..Tariff::default()
        };
        let bill = charge(&tariff, &[row]);
        let json = serde_json::to_string(&bill).unwrap();
        let read: Statement = serde_json::from_str(&json).unwrap();
        assert!(read.total_nano > u128::from(u64::MAX));
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        assert_eq!(Statement::from(bill), read);
    }
}
