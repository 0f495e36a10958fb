//! The only file that wires parts together: configuration and sockets in, a serving edgepoint out.
//!
//! Runs in the proxy process, without any right: whatever needs one is the agent's. It owns the
//! instances and the ledger; there is never a second one (the supervisor holds the lock).

use std::{
    io, net::TcpListener, os::unix::net::UnixListener, path::PathBuf, sync::Arc, time::Duration,
};

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::{
    conduit,
    config::Loaded,
    dispatch::local,
    manager,
    meter::{self, Ledger},
    telemetry,
};

/// Name of the agent's socket in the run directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Directory of the proxy below the state directory.
pub const PROXY_STATE: &str = "proxy";
/// The ledger in it.
pub const LEDGER: &str = "ledger.db";

/// How long connections may take to finish the request that they serve when we end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Sockets that the supervisor has bound.
pub struct Sockets {
    /// One per address and core.
    pub http: Vec<TcpListener>,
    /// The control API.
    pub control: UnixListener,
    /// `/metrics`
    pub metrics: Option<TcpListener>,
}

/// Why an edgepoint does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger cannot be opened.
    #[error("cannot open the ledger {}", path.display())]
    Ledger {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: meter::Error,
    },
    /// Something of the host failed.
    #[error("cannot {act}")]
    Host {
        /// What was attempted.
        act: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The metrics recorder cannot be installed.
    #[error("cannot count metrics: {0}")]
    Metrics(String),
}

fn host<T>(act: &'static str, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Host { act, source })
}

/// Serves until SIGTERM, then puts everything to sleep and returns.
pub fn run(loaded: Loaded, sockets: Sockets) -> Result<(), Error> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).thread_name("edgepoint").enable_all().build();
    host("start the runtime", runtime)?.block_on(serve(loaded, sockets))
}

async fn serve(loaded: Loaded, sockets: Sockets) -> Result<(), Error> {
    let Loaded { config, policy, .. } = loaded;
    let metrics = telemetry::install().map_err(|error| Error::Metrics(error.to_string()))?;
    let mut terminate = host("wait for signals", signal(SignalKind::terminate()))?;
    let mut interrupt = host("wait for signals", signal(SignalKind::interrupt()))?;

    let state = config.directories.state.join(PROXY_STATE);
    let path = state.join(LEDGER);
    let opened = Ledger::open(&path).and_then(Ledger::start);
    let (meter, ledger) = opened.map_err(|source| Error::Ledger { path, source })?;

    let settings = manager::Config {
        agent: config.directories.run.join(AGENT_SOCKET),
        deployed: state.join("deployed.json"),
        restore_timeout: config.agent.restore_timeout,
        dump_timeout: config.agent.dump_timeout,
        sample_interval: config.meter.sample_interval,
    };
    let started = manager::start(settings, Arc::new(local::Client), meter.clone());
    let (manager, managing) = host("read which releases serve", started)?;

    let dispatcher = local::Config {
        policy: Arc::new(ArcSwap::from_pointee(policy)),
        manager: manager.clone(),
        meter: meter.clone(),
        max_connections: config.limits.connections,
    };
    let listeners = host("listen", local::serve(&dispatcher, sockets.http))?;

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let until_stopped = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.wait_for(|stop| *stop).await) }
    };
    let api = conduit::Api {
        manager: manager.clone(),
        meter: meter.clone(),
        tariff: config.tariff.clone(),
    };
    host("listen for commands", sockets.control.set_nonblocking(true))?;
    let control = tokio::net::UnixListener::from_std(sockets.control);
    let control = tokio::spawn(api.serve(host("listen for commands", control)?, until_stopped()));
    let scraped = match sockets.metrics {
        Some(socket) => {
            host("listen for scrapes", socket.set_nonblocking(true))?;
            let socket = tokio::net::TcpListener::from_std(socket);
            let socket = host("listen for scrapes", socket)?;
            let render = Arc::new(move || metrics.render());
            Some(tokio::spawn(conduit::server::serve_metrics(socket, render, until_stopped())))
        }
        None => None,
    };
    info!(http = ?config.listen.http, "edgepoint serves");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("ending: requests finish, then everything sleeps");
    let finish = tokio::task::spawn_blocking(move || listeners.stop(STOP_PATIENCE));
    let _ = finish.await;
    manager.shutdown().await;
    let _ = managing.await;
    let _ = stop.send(true);
    let _ = control.await;
    if let Some(scraped) = scraped {
        let _ = scraped.await;
    }
    if let Err(problem) = meter.shutdown().await {
        error!(error = %telemetry::chain(&problem), "the ledger did not end in order");
    }
    let _ = tokio::task::spawn_blocking(move || ledger.join()).await;
    info!("ended");
    Ok(())
}
