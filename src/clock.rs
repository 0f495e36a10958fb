//! The only place that reads time. Pure parts get time as an argument; adapters ask here.

#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant, SystemTime};

/// The monotonic clock: for durations and deadlines.
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock as time since 1970: for records that people read. A clock set before 1970 reads
/// as 1970.
pub fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
