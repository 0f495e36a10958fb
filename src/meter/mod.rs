//! The meter: what requests and instances used, where that is kept, and what it costs.
//!
//! `usage` is the records, `windows` makes them out of samples, `outbox` takes them to the `ledger`,
//! which keeps them (the only home of SQLite), `charge` prices what the ledger summed up. `usage`,
//! `windows` and `charge` are pure: time comes in as an argument, and every number is an integer.
//! The meter knows no configuration, no HTTP and no kernel; who samples and who sends the bill is
//! decided above it.

mod charge;
mod ledger;
mod outbox;
mod usage;
mod windows;

pub use charge::{Bill, Item, Line, ProviderTotal, charge, format_money};
pub use ledger::{Error, Handle, Ledger, Reader};
pub use outbox::Outbox;
pub use usage::{Owner, Period, Query, RequestRecord, UsageRow, WakeKind, WindowRecord};
pub use windows::{Full, Settings, WINDOW_SECONDS, Windows};
