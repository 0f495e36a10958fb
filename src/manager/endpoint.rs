//! How to reach an instance: sockets that the agent made inside its network namespace.
//!
//! A socket pins its namespace. Before an instance is parked, all of them are closed here: those
//! not used yet, and those that lie connected in somebody's pool.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream},
    sync::Notify,
};

use crate::os::seqpacket;

/// Below this many sockets another batch is asked for.
const LOW: usize = 32;
/// How long a request waits for a socket when there is none.
const SOCKET_PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection to an instance on the same host may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// The way to one instance.
#[derive(Debug, Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    sockets: Mutex<Sockets>,
    /// Somebody waits for sockets, or they run low.
    low: Arc<Notify>,
    /// New sockets have come, or it was closed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Sockets {
    fresh: Vec<OwnedFd>,
    connected: HashSet<RawFd>,
    closed: bool,
}

impl Endpoint {
    /// The way to `port` with a first batch of sockets. `low` is notified when more are needed.
    pub fn new(port: u16, fresh: Vec<OwnedFd>, low: Arc<Notify>) -> Self {
        let sockets = Mutex::new(Sockets { fresh, ..Sockets::default() });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { shared: Arc::new(Shared { address, sockets, low, changed: Notify::new() }) }
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.shared.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it listens, inside its namespace.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Whether another batch of sockets is wanted.
    pub fn wants_sockets(&self) -> bool {
        let sockets = self.sockets();
        !sockets.closed && sockets.fresh.len() < LOW
    }

    /// Takes another batch.
    pub fn supply(&self, mut batch: Vec<OwnedFd>) {
        let mut sockets = self.sockets();
        if !sockets.closed {
            sockets.fresh.append(&mut batch);
        }
        drop(sockets);
        self.shared.changed.notify_waiters();
    }

    /// Connects. The connection counts as open until its [`Registration`] is dropped.
    pub async fn connect(&self) -> io::Result<(TcpStream, Registration)> {
        let socket = match tokio::time::timeout(SOCKET_PATIENCE, self.socket()).await {
            Ok(socket) => socket?,
            Err(_) => return Err(io::Error::other("no socket to the instance in time")),
        };
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let connecting = socket.connect(self.shared.address);
        let stream = tokio::time::timeout(CONNECT_PATIENCE, connecting)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let fd = stream.as_raw_fd();
        let mut sockets = self.sockets();
        if sockets.closed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        sockets.connected.insert(fd);
        drop(sockets);
        Ok((stream, Registration { endpoint: self.clone(), fd }))
    }

    async fn socket(&self) -> io::Result<OwnedFd> {
        loop {
            let changed = self.shared.changed.notified();
            {
                let mut sockets = self.sockets();
                if sockets.closed {
                    return Err(io::ErrorKind::NotConnected.into());
                }
                let socket = sockets.fresh.pop();
                if sockets.fresh.len() < LOW {
                    self.shared.low.notify_one();
                }
                if let Some(socket) = socket {
                    return Ok(socket);
                }
            }
            changed.await;
        }
    }

    /// Closes every socket. Connections that lie in a pool are shut down, and whoever holds them
    /// sees their end.
    pub fn close(&self) {
        let mut sockets = self.sockets();
        sockets.closed = true;
        sockets.fresh.clear();
        for fd in &sockets.connected {
            // Registered descriptors are open: `Registration` is dropped before its stream is.
            seqpacket::shut_down(*fd);
        }
        drop(sockets);
        self.shared.changed.notify_waiters();
    }

    /// Allows sockets again (a park was called off).
    pub fn reopen(&self) {
        self.sockets().closed = false;
        self.shared.low.notify_one();
    }

    /// Connections that are open.
    pub fn connected(&self) -> usize {
        self.sockets().connected.len()
    }
}

/// Keeps a connection in the books. Drop it before the connection itself is closed, so that its
/// number cannot belong to another file by then.
#[derive(Debug)]
pub struct Registration {
    endpoint: Endpoint,
    fd: RawFd,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.endpoint.sockets().connected.remove(&self.fd);
    }
}
