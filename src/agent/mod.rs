//! The agent: a small privileged process that takes appshots (snapd), restores them (restored) and
//! samples what instances use (perfd), and the client by which the others reach it.
//!
//! It is the only part that runs with rights over processes. Between it and the proxy stands one
//! message socket that carries opaque ids: never a path, never a command line. It imports `model`,
//! `appshot`, `os` and the clock, and nothing else of this crate.

pub mod client;
mod criu;
mod instance;
pub mod perfd;
pub mod probe;
pub mod protocol;
mod release;
mod restored;
mod sandbox;
pub mod server;
mod snapd;
pub mod stage;
