//! The price list.

use serde::{Deserialize, Serialize};

/// The currency of the edgepoint's first home; prices are zero until somebody writes them.
pub const DEFAULT_CURRENCY: &str = "EUR";

/// The price list, in billionths of the currency unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tariff {
    /// Three upper-case letters (ISO 4217).
    pub currency: String,
    /// For a million requests.
    pub requests_per_million_nano: u64,
    /// For one core, one hour.
    pub cpu_per_hour_nano: u64,
    /// For one GiB of memory, one hour.
    pub memory_per_gib_hour_nano: u64,
    /// For one GiB of stored appshots, one hour.
    pub image_per_gib_hour_nano: u64,
    /// For one GiB sent to clients.
    pub egress_per_gib_nano: u64,
    /// For a thousand wakes.
    pub wakes_per_thousand_nano: u64,
}

impl Default for Tariff {
    /// Everything is free.
    fn default() -> Self {
        Self {
            currency: DEFAULT_CURRENCY.into(),
            requests_per_million_nano: 0,
            cpu_per_hour_nano: 0,
            memory_per_gib_hour_nano: 0,
            image_per_gib_hour_nano: 0,
            egress_per_gib_nano: 0,
            wakes_per_thousand_nano: 0,
        }
    }
}
