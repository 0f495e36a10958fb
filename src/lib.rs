//! Edgepoint: a programmable edge proxy that wakes apps from snapshots of their running processes.
//!
//! ```text
//! client ─▶ listener ─▶ policy ─▶ manager.acquire(app) ─▶ upstream ─▶ answer ─▶ meter ─▶ ledger
//!           dispatch/local  pure    │ running: one atomic                        
//!                                   └ parked: waiting room ─▶ agent ─▶ CRIU
//! ```
//! The modules in the order of that way; `src/docs/architecture.md` has the walls between them.

pub mod cli;
pub mod docs;
pub mod supervisor;

pub mod edgepoint;

pub mod conduit;
pub mod dispatch;
pub mod policy;

pub mod manager;

pub mod agent;
pub mod appshot;

pub mod meter;

pub mod config;
pub mod report;

pub mod clock;
pub mod model;
pub mod os;
pub mod telemetry;
