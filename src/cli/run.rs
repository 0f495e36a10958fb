//! `edgepoint run`: the edgepoint itself; and `serve`, the proxy process that it starts.

use std::{io::IsTerminal as _, net::TcpListener, os::unix::net::UnixListener};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use super::context::Context;
use crate::{
    config,
    edgepoint::{self, Sockets},
    os::{caps, process},
    supervisor::{self, ProxySettings},
};

/// Run the edgepoint until it is told to stop (SIGTERM or ctrl-c)
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  edgepoint run --config edgepoint.toml\n\nOn SIGTERM requests \
finish, apps that keep their state are parked, and the next\nrun goes on from there.")]
pub struct Arguments {}

/// Checks the configuration and becomes the supervisor.
pub fn run(context: &Context, _: &Arguments) -> anyhow::Result<()> {
    let path = context.config_path();
    let loaded = config::load(&path)?;
    if !loaded.warnings.is_empty() {
        eprint!("{}", loaded.warnings);
    }
    Ok(supervisor::run(&path, &loaded.config)?)
}

/// The proxy process. Reads what it needs as root, then gives every right up.
pub fn serve() -> anyhow::Result<()> {
    let settings: ProxySettings = serde_json::from_reader(std::io::stdin())
        .context("the supervisor starts this, nobody else")?;
    let loaded = config::load(&settings.config)?;
    let mut fds = (process::FIRST_FD..).map(process::inherited);
    let mut next = || fds.next().context("a socket is missing")?.context("a socket is missing");
    let mut http = Vec::new();
    for _ in 0..settings.http {
        http.push(TcpListener::from(next()?));
    }
    let control = UnixListener::from(next()?);
    let metrics = settings.metrics.then(next).transpose()?.map(TcpListener::from);
    caps::become_nobody(settings.uid, settings.gid).context("cannot give up rights")?;
    // After the change of user, which would clear it.
    process::end_with_parent()?;
    let filter = EnvFilter::try_from_env("EDGEPOINT_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,edgepoint=info"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    log.with_writer(std::io::stderr).init();
    Ok(edgepoint::run(loaded, Sockets { http, control, metrics })?)
}
