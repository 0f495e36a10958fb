//! Nouns that every part shares: names, ids, the app, units, usage of resources.
//!
//! Behaviour here ends at parsing and printing; nothing in this folder does I/O, reads a clock or
//! knows who uses it.

mod app;
mod id;
mod tariff;
mod units;
mod usage;

pub use app::{
    App, Concurrency, Health, Limits, OnLostState, Process, Scale, Sleep, Snapshot, State, Wake,
};
pub use id::{AppName, AppshotId, InstanceId, InvalidName, ProviderName, ReleaseId};
pub use tariff::{DEFAULT_CURRENCY, Tariff};
pub use units::{Bytes, ParseUnitError, format_duration, parse_duration};
pub use usage::{Pressure, ResourceUse};
