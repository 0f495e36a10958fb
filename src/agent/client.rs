//! The other end of the agent's socket, for the proxy and the command line: ask, and hear of
//! instances that ended.
//!
//! Requests of many tasks share one connection. When it breaks, all of them fail with
//! [`Error::Lost`] and the event channel closes; whoever owns the client connects again.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot},
};

use super::protocol::{
    Answer, Failure, LiveInstance, MAX_MESSAGE, Reply, Request, StoredAppshot, StoredRelease,
    VERSION, Verb,
};
use crate::{
    model::{InstanceId, ResourceUse},
    os::seqpacket,
};

/// Events that may wait to be read; the reader waits when it is full.
const EVENTS: usize = 1024;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent cannot be reached.
    #[error("cannot reach the agent at {path}")]
    Connect {
        /// Its socket.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke; whether the request was carried out is unknown.
    #[error("the connection to the agent broke")]
    Lost,
    /// No answer in time. The connection is given up: what became of the request is seen after the
    /// next one is made.
    #[error("the agent did not answer within {} s", .0.as_secs())]
    Late(Duration),
    /// The agent says no.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// An answer that does not fit the question.
    #[error("the agent's answer does not fit the question")]
    Odd,
}

type Waiting = HashMap<u64, oneshot::Sender<Result<(Answer, Vec<OwnedFd>), Failure>>>;

/// An instance that ended by itself.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Which.
    pub instance: InstanceId,
    /// Its exit code, or 128 + signal, if known.
    pub code: Option<i32>,
    /// What it had used.
    pub usage: ResourceUse,
}

/// A connection to the agent.
#[derive(Debug, Clone)]
pub struct Client {
    line: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Option<Waiting>>,
    next: AtomicU64,
}

impl Client {
    /// Connects to the agent at `path` for a few requests.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        Self::open(path, false).await.map(|(client, _)| client)
    }

    /// Connects as the manager. Events come over the channel until the connection breaks.
    pub async fn manage(path: &Path) -> Result<(Self, mpsc::Receiver<Ended>), Error> {
        Self::open(path, true).await
    }

    async fn open(path: &Path, events: bool) -> Result<(Self, mpsc::Receiver<Ended>), Error> {
        let socket = seqpacket::connect_to(path)
            .and_then(seqpacket::register)
            .map_err(|source| Error::Connect { path: path.display().to_string(), source })?;
        let waiting = Mutex::new(Some(Waiting::new()));
        let line = Arc::new(Line { socket, waiting, next: AtomicU64::new(1) });
        let (sender, ended) = mpsc::channel(EVENTS);
        let reader = line.clone();
        tokio::spawn(async move {
            let _ = reader.read(&sender).await;
            // Senders are dropped: every waiting request learns that the line is dead.
            reader.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        });
        let client = Self { line };
        let hello = Verb::Hello { events };
        client.ask(hello, &[], Duration::from_secs(5)).await?;
        Ok((client, ended))
    }

    /// Asks and waits for the answer.
    pub async fn ask(
        &self,
        verb: Verb,
        fds: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<(Answer, Vec<OwnedFd>), Error> {
        let id = self.line.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.line.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.as_mut().ok_or(Error::Lost)?.insert(id, sender);
        }
        let talk = async {
            let request = Request { version: VERSION, id, verb };
            let text = serde_json::to_vec(&request).map_err(|_| Error::Odd)?;
            self.line.write(&text, fds).await.map_err(|_| Error::Lost)?;
            answer.await.map_err(|_| Error::Lost)?.map_err(Error::Refused)
        };
        let result = tokio::time::timeout(deadline, talk).await;
        if !matches!(result, Ok(Ok(_))) {
            let mut waiting = self.line.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.as_mut().map(|waiting| waiting.remove(&id));
        }
        result.unwrap_or_else(|_| {
            seqpacket::hang_up(&self.line.socket);
            Err(Error::Late(deadline))
        })
    }

    /// All releases.
    pub async fn releases(&self, deadline: Duration) -> Result<Vec<StoredRelease>, Error> {
        let next =
            |last: Option<&StoredRelease>| Verb::Releases { after: last.map(|l| l.id.clone()) };
        let page = |answer| match answer {
            Answer::Releases { page } => Some(page),
            _ => None,
        };
        self.pages(next, page, deadline).await
    }

    /// All living instances.
    pub async fn instances(&self, deadline: Duration) -> Result<Vec<LiveInstance>, Error> {
        let next = |last: Option<&LiveInstance>| Verb::Instances { after: last.map(|l| l.id) };
        let page = |answer| match answer {
            Answer::Instances { page } => Some(page),
            _ => None,
        };
        self.pages(next, page, deadline).await
    }

    /// All appshots.
    pub async fn appshots(&self, deadline: Duration) -> Result<Vec<StoredAppshot>, Error> {
        let next =
            |last: Option<&StoredAppshot>| Verb::Appshots { after: last.map(|l| l.id.clone()) };
        let page = |answer| match answer {
            Answer::Appshots { page } => Some(page),
            _ => None,
        };
        self.pages(next, page, deadline).await
    }

    /// What every living instance uses.
    pub async fn samples(
        &self,
        deadline: Duration,
    ) -> Result<Vec<(InstanceId, ResourceUse)>, Error> {
        let next =
            |last: Option<&(InstanceId, ResourceUse)>| Verb::Sample { after: last.map(|l| l.0) };
        let page = |answer| match answer {
            Answer::Samples { page } => Some(page),
            _ => None,
        };
        self.pages(next, page, deadline).await
    }

    /// Asks for page after page, each `next` to the last entry so far, until one is empty.
    async fn pages<T>(
        &self,
        next: impl Fn(Option<&T>) -> Verb,
        page: impl Fn(Answer) -> Option<Vec<T>>,
        deadline: Duration,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        loop {
            let answer = self.ask(next(all.last()), &[], deadline).await?.0;
            let entries = page(answer).ok_or(Error::Odd)?;
            if entries.is_empty() {
                return Ok(all);
            }
            all.extend(entries);
        }
    }
}

impl Line {
    async fn write(&self, text: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let send = |socket: &OwnedFd| seqpacket::send(socket.as_fd(), text, fds);
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    async fn read(&self, events: &mpsc::Sender<Ended>) -> io::Result<()> {
        loop {
            let receive = |socket: &OwnedFd| seqpacket::recv(socket.as_fd(), MAX_MESSAGE);
            let message = self.socket.async_io(Interest::READABLE, receive).await?;
            if message.bytes.is_empty() {
                return Ok(());
            }
            match serde_json::from_slice(&message.bytes)? {
                Reply::Done { id, result } => {
                    let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(sender) = waiting.as_mut().and_then(|waiting| waiting.remove(&id)) {
                        let _ = sender.send(result.map(|answer| (answer, message.fds)));
                    }
                }
                Reply::Ended { instance, code, usage } => {
                    // A client that does not listen has dropped its end.
                    let _ = events.send(Ended { instance, code, usage }).await;
                }
            }
        }
    }
}
