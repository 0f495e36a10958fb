//! The records of the meter: one per request, one per instance and window, and their sums.
//!
//! A [`RequestRecord`] is written once. A [`WindowRecord`] replaces an earlier one of the same
//! writer, instance and window, so that sending it again is harmless. A [`UsageRow`] is what both
//! add up to. Times are wall-clock times in UTC, because bills are; nothing here reads a clock.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{AppName, InstanceId, ProviderName};

/// Who pays for what an instance uses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The provider.
    pub provider: ProviderName,
    /// Its app.
    pub app: AppName,
}

/// What one request did and used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// When it ended, in Unix milliseconds.
    pub time_ms: u64,
    /// Who pays.
    pub provider: ProviderName,
    /// For which app it was.
    pub app: AppName,
    /// Which instance took it; none if it got none. Then it is counted as refused, and that is all.
    pub instance: Option<InstanceId>,
    /// The route of the policy that it took.
    #[serde(with = "shared_text")]
    pub route: Arc<str>,
    /// The HTTP status that the client got.
    pub status: u16,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// From its first byte to its end.
    pub duration_micros: u64,
    /// How long of that it waited for an instance.
    pub wait_micros: u64,
    /// What it waited for.
    pub wake: WakeKind,
}

/// An `Arc<str>` as text (serde's own way needs its feature `rc` for the whole program).
mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Arc::from)
    }
}

/// What a request had to wait for before an instance took it. It explains response times; wakes
/// are billed from [`WindowRecord::wakes`], once per wake and not per waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WakeKind {
    /// A running instance had a free slot.
    #[default]
    None,
    /// It waited for a slot of an instance that was full.
    Waited,
    /// It waited while its instance was restored from an appshot; all who wait for one wake say so.
    Restored,
    /// It waited while its instance was started anew.
    Started,
}

impl WakeKind {
    /// Its lower-case word, the same in JSON and in the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Waited => "waited",
            Self::Restored => "restored",
            Self::Started => "started",
        }
    }
}

/// What one instance used in one window of the wall clock, as far as its writer knows. The key is
/// (instance, window), and the writer in the ledger: what several wrote adds up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowRecord {
    /// The start of the window in Unix seconds, a multiple of [`super::WINDOW_SECONDS`].
    pub window: u64,
    /// Who pays.
    pub provider: ProviderName,
    /// Of which app it is an instance.
    pub app: AppName,
    /// The instance, running or parked.
    pub instance: InstanceId,
    /// CPU time used.
    pub cpu_micros: u64,
    /// Memory held, times how long.
    pub memory_byte_seconds: u64,
    /// Image bytes held while parked, times how long.
    pub image_byte_seconds: u64,
    /// How often it was woken.
    pub wakes: u64,
}

/// Which usage to sum up. An empty query asks for everything, one row per app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Query {
    /// Only of this provider.
    pub provider: Option<ProviderName>,
    /// Only of this app.
    pub app: Option<AppName>,
    /// Only requests that ended, and windows that began, at or after this Unix millisecond.
    pub since_ms: Option<u64>,
    /// Only requests that ended, and windows that began, before this Unix millisecond.
    pub until_ms: Option<u64>,
    /// One row per app and period instead of one per app.
    pub by: Option<Period>,
}

/// A period of UTC by which usage is grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// Full hours.
    Hour,
    /// Full days.
    Day,
}

impl Period {
    /// Its length.
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }
}

/// The sums of one app, over all time asked for or over one period of it. A sum beyond `u64` stays
/// at its greatest value and is counted in `edgepoint_meter_saturated_total`: 2^64 byte-seconds
/// are 544 years of 1 GiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Who pays.
    pub provider: ProviderName,
    /// The app.
    pub app: AppName,
    /// Where the period begins, in Unix milliseconds; none if the query names no period.
    pub period_start_ms: Option<u64>,
    /// Requests that an instance took.
    pub requests: u64,
    /// Those of them that were answered with a status of 500 or more.
    pub errors: u64,
    /// Requests that got no instance: refused, or given up while they waited. They are in no other
    /// number of this row, and cost nothing.
    pub refused: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Wakes of instances.
    pub wakes: u64,
    /// CPU time.
    pub cpu_micros: u64,
    /// Memory held, times how long.
    pub memory_byte_seconds: u64,
    /// Image bytes held while parked, times how long.
    pub image_byte_seconds: u64,
    /// The durations of requests.
    pub duration_micros_sum: u64,
    /// The waits of requests.
    pub wait_micros_sum: u64,
}

impl UsageRow {
    /// A row in which nothing was used.
    pub fn zero(owner: Owner, period_start_ms: Option<u64>) -> Self {
        Self {
            provider: owner.provider,
            app: owner.app,
            period_start_ms,
            requests: 0,
            errors: 0,
            refused: 0,
            bytes_in: 0,
            bytes_out: 0,
            wakes: 0,
            cpu_micros: 0,
            memory_byte_seconds: 0,
            image_byte_seconds: 0,
            duration_micros_sum: 0,
            wait_micros_sum: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_wake_is_one_lower_case_word_everywhere() {
        for kind in [WakeKind::None, WakeKind::Waited, WakeKind::Restored, WakeKind::Started] {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.as_str()));
            assert_eq!(serde_json::from_str::<WakeKind>(&json).unwrap(), kind);
        }
    }

    #[test]
    fn a_record_of_a_request_survives_being_written() {
        let record = RequestRecord {
            time_ms: 1,
            provider: ProviderName::new("acme").unwrap(),
            app: AppName::new("shop").unwrap(),
            instance: None,
            route: "checkout".into(),
            status: 503,
            bytes_in: 2,
            bytes_out: u64::MAX,
            duration_micros: 4,
            wait_micros: 5,
            wake: WakeKind::Restored,
        };
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains(r#""route":"checkout""#) && json.contains(r#""wake":"restored""#));
        assert_eq!(serde_json::from_str::<RequestRecord>(&json).unwrap(), record);
    }

    #[test]
    fn a_record_of_a_window_survives_being_written() {
        let record = WindowRecord {
            window: 60,
            provider: ProviderName::new("acme").unwrap(),
            app: AppName::new("shop").unwrap(),
            instance: InstanceId::new(u64::MAX),
            cpu_micros: 1,
            memory_byte_seconds: u64::MAX,
            image_byte_seconds: 3,
            wakes: 4,
        };
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<WindowRecord>(&json).unwrap(), record);
    }
}
