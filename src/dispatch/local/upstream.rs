//! Connections to instances.
//!
//! Every instance listens on 127.0.0.1 of a namespace of its own, so to pingora's pool they would
//! all be one peer: the pool's key carries the instance, which is one restore and never comes
//! again. Each connection stays in its endpoint's books until it closes, so that a park can end it.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use pingora_core::{
    Error, ErrorType, Result,
    connectors::l4::Connect,
    protocols::l4::{socket::SocketAddr, stream::Stream},
    upstreams::peer::{HttpPeer, Tracer, Tracing},
};

use crate::manager::{Endpoint, Registration, Running};

/// Idle connections are kept no longer than this; apps usually close them later.
const IDLE: std::time::Duration = std::time::Duration::from_secs(60);

/// The peer that stands for exactly this instance.
pub fn peer(instance: &Running) -> HttpPeer {
    let mut peer = HttpPeer::new(instance.endpoint.address(), false, String::new());
    peer.group_key = instance.id.number();
    peer.options.custom_l4 = Some(Arc::new(Connector(instance.endpoint.clone())));
    peer.options.idle_timeout = Some(IDLE);
    peer
}

/// Connects to an instance, for requests of our own.
pub async fn connect(endpoint: &Endpoint) -> std::io::Result<Stream> {
    let (stream, registration) = endpoint.connect().await?;
    let mut stream = Stream::from(stream);
    stream.tracer = Some(Tracer(Box::new(Books(Arc::new(Mutex::new(Some(registration)))))));
    Ok(stream)
}

#[derive(Debug)]
struct Connector(Endpoint);

#[async_trait]
impl Connect for Connector {
    async fn connect(&self, _: &SocketAddr) -> Result<Stream> {
        let failed = |error| Error::because(ErrorType::ConnectError, "to the instance", error);
        connect(&self.0).await.map_err(failed)
    }
}

/// Strikes a connection off the books when pingora drops it, right before it is closed.
#[derive(Debug, Clone)]
struct Books(Arc<Mutex<Option<Registration>>>);

impl Tracing for Books {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}
