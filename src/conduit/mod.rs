//! The conduit: the control API of one edgepoint, HTTP/1.1 with JSON over a UNIX socket, and the
//! small listener that a metrics scraper asks.
//!
//! `server` puts the manager and the ledger behind routes, `client` is its other end, `problem` is
//! what both say when something fails, `statement` is a bill as it is read back. Whoever may open
//! the socket file may do everything: root and the proxy's own user. The only home of axum and
//! hyper; it decides nothing that the manager or the meter should decide.

pub mod client;
mod listener;
mod problem;
pub mod server;
mod statement;

use serde::{Deserialize, Serialize};

pub use client::Client;
pub use problem::Problem;
pub use server::Api;
pub use statement::{Owed, Statement, StatementLine};

use crate::model::ReleaseId;

/// The file name of the control socket in the run directory.
pub const SOCKET: &str = "control.sock";

/// The body of `POST /v1/deploy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The release, as the agent registered it.
    pub release: ReleaseId,
}
