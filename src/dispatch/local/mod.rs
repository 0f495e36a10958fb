//! The local dispatcher: the L7 proxy. The only home of pingora.
//!
//! ```text
//! listener ─▶ proxy (policy, lease) ─▶ upstream (socket inside the instance) ─▶ answer ─▶ meter
//! ```
//! `listener` accepts, one runtime per core; `connection` takes one request after the other;
//! `target` and `framing` look at heads; `proxy` decides per request; `upstream` connects;
//! `answers` writes what is our own; `errands` does what the manager needs over HTTP.

mod answers;
mod connection;
mod errands;
mod framing;
mod listener;
mod proxy;
mod target;
mod upstream;

pub use errands::Client;
pub use listener::{Config, Listeners, serve};
