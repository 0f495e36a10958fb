//! One client connection: request after request, and how long a client may be silent.
//!
//! pingora bounds each single read; a head that comes one byte at a time it would take for ever. So
//! the loop over requests is ours, pingora's own for HTTP/1.1 with a look now and then whether the
//! same head is still awaited.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use pingora_core::{
    apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream},
    protocols::{Stream, http::ServerSession, l4::stream::Stream as L4Stream},
};
use pingora_proxy::{HttpProxy, Session};
use tokio::{sync::watch, time::sleep};

use super::proxy::Proxy;
use crate::os::net;

/// Between two requests and before the first, as nginx has it.
const IDLE_SECONDS: u64 = 75;
/// A head must be whole within two of these.
const HEAD_LOOK: Duration = Duration::from_secs(75);
/// Between two pieces of a request's body. Less than an app has for its answer, or the app would be
/// blamed for its client.
const BODY_SILENCE: Duration = Duration::from_secs(50);
/// For a client to take one write of an answer, a few hundred KiB at most: 3 KB/s will do.
const ANSWER_SILENCE: Duration = Duration::from_secs(120);
/// Between two looks whether a client that waits is still there.
const CLIENT_LOOK: Duration = Duration::from_millis(250);

/// Whose turn it is on a connection: even while a request's head is awaited, odd after it has come.
#[derive(Debug, Default, Clone)]
pub struct Turn(Arc<AtomicU32>);

impl Turn {
    /// A head has come, or its request is done.
    pub fn pass(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends when one head has been awaited for too long.
    async fn overdue(&self) {
        let mut last = None;
        loop {
            sleep(HEAD_LOOK).await;
            let turn = self.0.load(Ordering::Relaxed);
            if turn.is_multiple_of(2) && last == Some(turn) {
                return;
            }
            last = Some(turn);
        }
    }
}

/// Serves a connection until it ends.
pub async fn serve(app: &Arc<HttpProxy<Proxy>>, stream: Stream, shutdown: &watch::Receiver<bool>) {
    let turn = Turn::default();
    tokio::select! {
        // A request that goes on first; the other looks at a number every minute.
        biased;
        () = converse(app, stream, shutdown, &turn) => {}
        () = turn.overdue() => {}
    }
}

async fn converse(
    app: &Arc<HttpProxy<Proxy>>,
    stream: Stream,
    shutdown: &watch::Receiver<bool>,
    turn: &Turn,
) {
    let mut next = Some((stream, None::<HttpPersistentSettings>));
    while let Some((stream, settings)) = next {
        let mut session = ServerSession::new_http1(stream);
        match settings {
            Some(settings) => settings.apply_to_session(&mut session),
            None => session.set_keepalive(Some(IDLE_SECONDS)),
        }
        // Handed to `Proxy::on_connection_reuse` as soon as the head is read.
        session.set_connection_user_context(Some(Box::new(turn.clone())));
        let reused = app.process_new_http(session, shutdown).await;
        turn.pass();
        next = reused.map(ReusedHttpStream::consume);
    }
}

/// Sets what pingora leaves open for each request.
pub fn limit(session: &mut Session) {
    // None: the client or a shutdown wants the connection closed.
    if session.get_keepalive().is_some() {
        session.set_keepalive(Some(IDLE_SECONDS));
    }
    session.set_read_timeout(Some(BODY_SILENCE));
    session.set_write_timeout(Some(ANSWER_SILENCE));
    // Without this the next request on the wire would break off the one that is served.
    session.set_pipelining_enabled(true);
}

/// Ends when the client has closed the connection, for sending at least: pingora ends a request
/// that is served on the same sign, and TCP knows no better one. Reads nothing.
pub async fn gone(session: &Session) {
    while !is_gone(session) {
        sleep(CLIENT_LOOK).await;
    }
}

/// Whether the client has closed the connection.
pub fn is_gone(session: &Session) -> bool {
    let socket = session.stream().and_then(|stream| stream.as_ref().as_any().downcast_ref());
    socket.is_some_and(|socket: &L4Stream| net::is_closed_by_peer(socket))
}
