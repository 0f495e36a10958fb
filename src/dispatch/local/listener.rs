//! Accepting: one runtime and one listening socket (SO_REUSEPORT) per core and address, no work
//! stealing. Each accepted connection goes to pingora's HTTP/1.1 server.
//!
//! The listening sockets come from outside (the supervisor binds them), so that this process needs
//! no rights and its restart refuses no connection.

use std::{
    io,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use pingora_core::{
    apps::HttpServerApp,
    protocols::{GetSocketDigest, SocketDigest, l4::stream::Stream as L4Stream},
    server::configuration::ServerConf,
};
use pingora_proxy::HttpProxy;
use tokio::sync::watch;
use tracing::{error, warn};

use super::{connection, proxy::Proxy};
use crate::{manager, meter, policy::Policy};

/// After an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Idle connections to instances kept per core.
const POOL: usize = 1024;

/// What the dispatcher works with.
pub struct Config {
    /// Routes.
    pub policy: Arc<arc_swap::ArcSwap<Policy>>,
    /// Instances.
    pub manager: manager::Handle,
    /// Where usage goes.
    pub meter: meter::Handle,
    /// The most client connections at a time; more wait to be accepted.
    pub max_connections: u32,
}

/// Running listeners.
pub struct Listeners {
    threads: Vec<JoinHandle<()>>,
    shutdown: watch::Sender<bool>,
}

/// Serves on `sockets`, each on a thread and runtime of its own.
pub fn serve(config: &Config, sockets: Vec<TcpListener>) -> io::Result<Listeners> {
    let (shutdown, watch) = watch::channel(false);
    let open = Arc::new(AtomicU32::new(0));
    let mut threads = Vec::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        socket.set_nonblocking(true)?;
        let proxy = Proxy {
            policy: config.policy.clone(),
            manager: config.manager.clone(),
            meter: config.meter.clone(),
        };
        let (watch, open, max) = (watch.clone(), open.clone(), config.max_connections);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let name = format!("dispatch-{index}");
        threads.push(thread::Builder::new().name(name).spawn(move || {
            runtime.block_on(accept(socket, proxy, watch, &open, max));
        })?);
    }
    Ok(Listeners { threads, shutdown })
}

impl Listeners {
    /// Accepts no more; connections end after the request that they serve. Returns when all have,
    /// or when `patience` is at its end.
    pub fn stop(self, patience: Duration) {
        let _ = self.shutdown.send(true);
        let deadline = crate::clock::now() + patience;
        for thread in self.threads {
            while !thread.is_finished() && crate::clock::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Counts a connection as long as it lives.
struct Open(Arc<AtomicU32>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn accept(
    socket: TcpListener,
    proxy: Proxy,
    mut shutdown: watch::Receiver<bool>,
    open: &Arc<AtomicU32>,
    max: u32,
) {
    let listener = match tokio::net::TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "cannot listen"),
    };
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: POOL, ..Default::default() };
    let mut app = HttpProxy::new(proxy, Arc::new(conf));
    app.handle_init_modules();
    let app = Arc::new(app);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            // Nothing new once we are to stop.
            biased;
            _ = shutdown.changed() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept(), if open.load(Ordering::Relaxed) < max => accepted,
            () = tokio::time::sleep(ACCEPT_PAUSE), if open.load(Ordering::Relaxed) >= max => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                open.fetch_add(1, Ordering::Relaxed);
                let counted = Open(open.clone());
                if let Err(error) = stream.set_nodelay(true) {
                    warn!(%error, "a connection is gone already");
                    continue;
                }
                let mut stream = L4Stream::from(stream);
                let digest = SocketDigest::from_raw_fd(std::os::fd::AsRawFd::as_raw_fd(&stream));
                let _ = digest.peer_addr.set(Some(peer.into()));
                stream.set_socket_digest(digest);
                let (app, shutdown) = (app.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection::serve(&app, Box::new(stream), &shutdown).await;
                    drop(counted);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    app.http_cleanup().await;
    while connections.join_next().await.is_some() {}
}
