//! A listener with bounds: so many connections at once, and none that is silent for long.
//!
//! It wraps a listener of UNIX or TCP connections for axum, which itself has no such bounds. A
//! connection over the bound waits in the kernel's queue until another one ends.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

use crate::clock;

/// A listener that holds at most so many connections.
pub(super) struct Bounded<L> {
    listener: L,
    places: Arc<Semaphore>,
    idle: Duration,
}

impl<L: Listener> Bounded<L> {
    /// At most `connections`, each ended when it is neither read nor written for `idle`.
    pub(super) fn new(listener: L, connections: usize, idle: Duration) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections)), idle }
    }
}

impl<L: Listener> Listener for Bounded<L>
where
    L::Io: Unpin,
{
    type Io = Held<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed; without a permit the connection would only lack its bound.
        let permit = Arc::clone(&self.places).acquire_owned().await.ok();
        let (io, address) = self.listener.accept().await;
        let silence = Box::pin(sleep(self.idle));
        (Held { io, silence, idle: self.idle, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that keeps its place until it is dropped.
pub(super) struct Held<T> {
    io: T,
    silence: Pin<Box<Sleep>>,
    idle: Duration,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<T> Held<T> {
    /// Begins the silence anew when something moved, or ends the connection when it was too long.
    fn watch<R>(
        &mut self,
        cx: &mut Context<'_>,
        moved: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if moved.is_ready() {
            self.silence.as_mut().reset(Instant::from_std(clock::now() + self.idle));
            return moved;
        }
        match self.silence.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Held<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.watch(cx, moved)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Held<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch(cx, moved)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        self.watch(cx, moved)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
