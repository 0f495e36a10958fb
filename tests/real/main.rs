//! The whole edgepoint on real parts: CRIU, namespaces, control groups, sockets, SQLite. Needs root
//! and what `make setup` installs; without them every test here fails and says so.
//!
//! Each test has an edgepoint of its own in a temporary directory; one runs at a time. With
//! `EDGEPOINT_PROVE=DIRECTORY` the measurements run in full and leave their samples there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, missing_docs)]

mod agree;
mod clients;
mod clones;
mod cycles;
mod faults;
mod harness;
mod herd;
mod host;
mod isolation;
mod wake;
