//! The price of what was used: pure, integers only.
//!
//! Prices are billionths ("nano") of the tariff's currency unit. Each line is rounded once, half
//! away from zero, from exact arithmetic; totals are sums of rounded lines, so that whoever adds
//! the bill up gets its total. Usage of one app over many periods becomes one line per item before
//! it is rounded, so that the grouping of the query does not change the bill. Amounts beyond `u128`
//! stay at its greatest value; every `u64` quantity at every `u64` price is exact.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize, Serializer};

use super::usage::{Owner, UsageRow};
use crate::model::{AppName, ProviderName, Tariff};

/// Billionths in one unit of a currency.
const NANO: u128 = 1_000_000_000;

/// What a line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Item {
    /// Requests that an instance took; those that were refused cost nothing.
    Requests,
    /// CPU time.
    Cpu,
    /// Memory held while running.
    Memory,
    /// Image bytes held while parked.
    Image,
    /// Bytes sent to clients.
    Egress,
    /// Wakes.
    Wakes,
}

impl Item {
    /// All items, in the order of the bill.
    pub const ALL: [Self; 6] =
        [Self::Requests, Self::Cpu, Self::Memory, Self::Image, Self::Egress, Self::Wakes];

    /// What its quantity counts.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Cpu => "CPU microseconds",
            Self::Memory | Self::Image => "byte-seconds",
            Self::Egress => "bytes",
            Self::Wakes => "wakes",
        }
    }

    /// What its price is for, in words.
    pub const fn price_unit(self) -> &'static str {
        match self {
            Self::Requests => "1,000,000 requests",
            Self::Cpu => "CPU hour",
            Self::Memory | Self::Image => "GiB-hour",
            Self::Egress => "GiB",
            Self::Wakes => "1,000 wakes",
        }
    }

    /// What its price is for, in its unit.
    pub const fn price_quantity(self) -> u128 {
        match self {
            Self::Requests => 1_000_000,
            Self::Cpu => 3_600_000_000,
            Self::Memory | Self::Image => (1 << 30) * 3_600,
            Self::Egress => 1 << 30,
            Self::Wakes => 1_000,
        }
    }

    /// Its price in this tariff.
    pub const fn price_nano(self, tariff: &Tariff) -> u64 {
        match self {
            Self::Requests => tariff.requests_per_million_nano,
            Self::Cpu => tariff.cpu_per_hour_nano,
            Self::Memory => tariff.memory_per_gib_hour_nano,
            Self::Image => tariff.image_per_gib_hour_nano,
            Self::Egress => tariff.egress_per_gib_nano,
            Self::Wakes => tariff.wakes_per_thousand_nano,
        }
    }

    /// How much of it this row holds.
    pub const fn quantity(self, row: &UsageRow) -> u64 {
        match self {
            Self::Requests => row.requests,
            Self::Cpu => row.cpu_micros,
            Self::Memory => row.memory_byte_seconds,
            Self::Image => row.image_byte_seconds,
            Self::Egress => row.bytes_out,
            Self::Wakes => row.wakes,
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Requests => "requests",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Image => "image",
            Self::Egress => "egress",
            Self::Wakes => "wakes",
        })
    }
}

/// What is owed. In JSON the `u128` numbers are text, because most readers of JSON cut a number
/// to 53 bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bill {
    /// The currency of all amounts.
    pub currency: String,
    /// One line per app and item, also where the price or the quantity is 0.
    pub lines: Vec<Line>,
    /// The sum of the lines of each provider.
    pub providers: Vec<ProviderTotal>,
    /// The sum of all lines.
    #[serde(serialize_with = "as_text")]
    pub total_nano: u128,
}

/// One priced line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Who pays.
    pub provider: ProviderName,
    /// The app.
    pub app: AppName,
    /// What for.
    pub item: Item,
    /// How much of it, in `unit`.
    #[serde(serialize_with = "as_text")]
    pub quantity: u128,
    /// What the quantity counts.
    pub unit: &'static str,
    /// The price of [`Item::price_unit`].
    pub price_nano: u64,
    /// Quantity times price, rounded.
    #[serde(serialize_with = "as_text")]
    pub amount_nano: u128,
}

/// What one provider owes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProviderTotal {
    /// Who pays.
    pub provider: ProviderName,
    /// The sum of its lines.
    #[serde(serialize_with = "as_text")]
    pub amount_nano: u128,
}

fn as_text<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// Prices usage. Rows of one app (one per period, say) are summed up first.
pub fn charge(tariff: &Tariff, usage: &[UsageRow]) -> Bill {
    let mut quantities: BTreeMap<Owner, [u128; Item::ALL.len()]> = BTreeMap::new();
    for row in usage {
        let owner = Owner { provider: row.provider.clone(), app: row.app.clone() };
        let sums = quantities.entry(owner).or_default();
        for (sum, item) in sums.iter_mut().zip(Item::ALL) {
            *sum = sum.saturating_add(item.quantity(row).into());
        }
    }

    let mut lines = Vec::new();
    let mut providers: BTreeMap<ProviderName, u128> = BTreeMap::new();
    let mut total_nano = 0_u128;
    for (owner, sums) in quantities {
        for (quantity, item) in sums.into_iter().zip(Item::ALL) {
            let price_nano = item.price_nano(tariff);
            let amount_nano = amount(quantity, price_nano, item.price_quantity());
            total_nano = total_nano.saturating_add(amount_nano);
            let owed = providers.entry(owner.provider.clone()).or_default();
            *owed = owed.saturating_add(amount_nano);
            lines.push(Line {
                provider: owner.provider.clone(),
                app: owner.app.clone(),
                item,
                quantity,
                unit: item.unit(),
                price_nano,
                amount_nano,
            });
        }
    }
    let providers = providers
        .into_iter()
        .map(|(provider, amount_nano)| ProviderTotal { provider, amount_nano })
        .collect();
    Bill { currency: tariff.currency.clone(), lines, providers, total_nano }
}

/// `quantity * price / per`, rounded half up (there are no negative amounts), without forming the
/// product of two large numbers.
fn amount(quantity: u128, price_nano: u64, per: u128) -> u128 {
    let price = u128::from(price_nano);
    let whole = (quantity / per).saturating_mul(price);
    let part = (quantity % per).saturating_mul(price).saturating_add(per / 2) / per;
    whole.saturating_add(part)
}

/// `"12.50 EUR"`: exact, with at least two and at most nine decimals.
pub fn format_money(nano: u128, currency: &str) -> String {
    let fraction = format!("{:09}", nano % NANO);
    let decimals = fraction.trim_end_matches('0').len().max(2);
    let text = format!("{}.{fraction:.decimals$}", nano / NANO);
    if currency.is_empty() { text } else { format!("{text} {currency}") }
}

#[cfg(test)]
mod tests;
