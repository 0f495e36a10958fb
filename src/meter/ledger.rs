//! The ledger: every record of usage, in one SQLite file, written by one thread.
//!
//! [`Ledger::open`] takes the file for itself, [`Ledger::start`] gives it to its writer, a
//! [`Handle`] sends records there, a [`Reader`] sums them up (also while the writer works, and from
//! another process). Records wait in a bounded queue and are committed in groups; they are durable
//! once a [`Handle::flush`] that was sent after them has returned. A record that cannot be taken is
//! counted and reported, never dropped silently. This folder is the only home of SQLite.

mod query;
mod store;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

pub use self::query::Reader;
use self::{store::Store, writer::Writer};
use super::usage::{Query, RequestRecord, UsageRow, WindowRecord};
use crate::telemetry;

/// How long a flush may take: longer than the longest pause between two attempts to commit.
const FLUSH_DEADLINE: Duration = Duration::from_secs(30);
/// How long a query may take; a longer one holds back the checkpoint of the log.
const QUERY_DEADLINE: Duration = Duration::from_secs(30);
/// Queries at the same time.
const MAX_QUERIES: usize = 2;

/// What the ledger could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The SQLite that is linked can corrupt a log that is reset (fixed in 3.51.3).
    #[error("SQLite {found} is linked, but the ledger needs 3.51.3 or newer")]
    CheckEngine {
        /// The version that is linked.
        found: &'static str,
    },
    /// The file that guards the ledger could not be made or locked.
    #[error("cannot lock the ledger with {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another edgepoint has the ledger open for writing.
    #[error("the ledger {path} is open in another edgepoint")]
    LockHeld {
        /// The ledger.
        path: PathBuf,
    },
    /// The ledger could not be created.
    #[error("cannot create the ledger {path}")]
    Create {
        /// The ledger.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// SQLite could not open or prepare the file.
    #[error("cannot open the ledger {path}")]
    Open {
        /// The ledger.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The file system cannot hold a write-ahead log (some network file systems).
    #[error("the ledger {path} cannot use a write-ahead log, only {mode}: is it on a local disk?")]
    SetLog {
        /// The ledger.
        path: PathBuf,
        /// The journal mode that SQLite offers.
        mode: String,
    },
    /// The file is no SQLite file, or the file of another program.
    #[error("{path} is not a ledger")]
    Recognize {
        /// The file.
        path: PathBuf,
        /// Why, if SQLite said so.
        #[source]
        source: Option<rusqlite::Error>,
    },
    /// The file is damaged.
    #[error("the ledger {path} is damaged ({detail}): move it away and keep it for repair")]
    CheckIntegrity {
        /// The ledger.
        path: PathBuf,
        /// What SQLite found first.
        detail: String,
    },
    /// A newer edgepoint wrote the file.
    #[error("the ledger {path} has schema {found}, but this edgepoint knows only up to {known}")]
    CheckSchema {
        /// The ledger.
        path: PathBuf,
        /// The schema of the file.
        found: i64,
        /// The newest schema known here.
        known: i64,
    },
    /// The writer's thread could not be started.
    #[error("cannot start the writer of the ledger")]
    StartWriter(#[source] io::Error),
    /// The queue was full for the whole deadline; the records are lost and counted.
    #[error("the queue of the ledger is full: {lost} records are lost")]
    Enqueue {
        /// How many.
        lost: u64,
    },
    /// The writer has ended; the records are lost and counted.
    #[error("the ledger is closed: {lost} records are lost")]
    EnqueueClosed {
        /// How many.
        lost: u64,
    },
    /// The writer stopped while it could not commit.
    #[error("the ledger could not be written until it was stopped: {lost} records are lost")]
    Commit {
        /// How many.
        lost: u64,
        /// Why the last attempt failed.
        #[source]
        source: rusqlite::Error,
    },
    /// What was sent before a flush is not known to be durable.
    #[error("the ledger did not confirm that it wrote everything")]
    Flush,
    /// The writer did not end in time.
    #[error("the writer of the ledger did not stop in time")]
    StopWriter,
    /// Usage could not be read.
    #[error("cannot read usage from the ledger")]
    Query(#[source] rusqlite::Error),
    /// The query took too long, or the process ended under it.
    #[error("the query of usage did not finish: ask for less time or one app")]
    QueryDeadline,
    /// The query has too many rows.
    #[error("the query of usage has more than {limit} rows: ask for less time or one app")]
    QueryRows {
        /// The limit.
        limit: usize,
    },
    /// A row holds a name that is none.
    #[error("the ledger holds a row with the name {name:?}")]
    ReadRow {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: crate::model::InvalidName,
    },
}

/// The numbers that the tests make smaller.
#[derive(Debug, Clone, Copy)]
struct Settings {
    /// Records that wait: a second of a busy edgepoint, some 2 MiB.
    queue: usize,
    /// How long a record waits for a place in a full queue.
    enqueue_deadline: Duration,
    /// Records in one commit.
    batch: usize,
    /// How long the first record of a commit waits for more.
    linger: Duration,
    /// The pause after the first failed commit; it doubles up to `max_pause`.
    first_pause: Duration,
    max_pause: Duration,
    /// How long a writer that is told to stop goes on trying.
    give_up: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue: 8_192,
            enqueue_deadline: Duration::from_secs(1),
            batch: 512,
            linger: Duration::from_millis(10),
            first_pause: Duration::from_millis(50),
            max_pause: Duration::from_secs(5),
            give_up: Duration::from_secs(5),
        }
    }
}

/// What a handle sends to the writer.
#[derive(Debug)]
enum Message {
    Request(RequestRecord),
    Window(WindowRecord),
    Flush(oneshot::Sender<()>),
}

/// The kinds of records, as a label of metrics.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Request,
    Window,
}

/// How many records were lost since the start; shared by handles and writer.
#[derive(Debug, Default)]
struct Losses(AtomicU64);

impl Losses {
    fn add(&self, kind: Kind, count: u64) {
        if count > 0 {
            self.0.fetch_add(count, Ordering::Relaxed);
            telemetry::records_lost(kind.label(), count);
        }
    }
}

impl Kind {
    const fn label(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Window => "window",
        }
    }
}

/// An open ledger that this process alone may write to.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    store: Store,
    settings: Settings,
}

impl Ledger {
    /// Opens the ledger for writing, and makes it if there is none. Refuses a file that another
    /// edgepoint writes to, that is no ledger, that is damaged, or that a newer edgepoint made.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_path_buf();
        Ok(Self { store: Store::open(&path)?, path, settings: Settings::default() })
    }

    /// Opens a ledger for reading; it need not be closed by who writes to it.
    pub fn read_only(path: impl AsRef<Path>) -> Result<Reader, Error> {
        Reader::open(path.as_ref())
    }

    /// Starts the writer. It ends by [`Handle::shutdown`] or when the last handle is dropped, and
    /// writes what was sent before; the thread then returns whether that succeeded.
    pub fn start(self) -> Result<(Handle, JoinHandle<Result<(), Error>>), Error> {
        let (outbox, inbox) = mpsc::channel(self.settings.queue);
        let (stop, stopped) = watch::channel(false);
        let losses = Arc::new(Losses::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(Error::StartWriter)?;
        let writer = Writer::new(self.store, self.settings, inbox, stopped, Arc::clone(&losses));
        let thread = thread::Builder::new()
            .name("ledger".into())
            .spawn(move || runtime.block_on(writer.run()))
            .map_err(Error::StartWriter)?;
        let shared = Shared {
            outbox,
            stop,
            losses,
            settings: self.settings,
            path: self.path,
            queries: Arc::new(Semaphore::new(MAX_QUERIES)),
        };
        Ok((Handle(Arc::new(shared)), thread))
    }
}

/// The way to a running ledger. Its methods need a Tokio runtime with time.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    outbox: mpsc::Sender<Message>,
    stop: watch::Sender<bool>,
    losses: Arc<Losses>,
    settings: Settings,
    path: PathBuf,
    queries: Arc<Semaphore>,
}

/// Counts as lost what was not taken, also when the future that waits is dropped.
struct Untaken<'a> {
    losses: &'a Losses,
    kind: Kind,
    count: u64,
}

impl Drop for Untaken<'_> {
    fn drop(&mut self) {
        self.losses.add(self.kind, self.count);
    }
}

impl Handle {
    /// Takes the record of a request. Waits while the queue is full, at most one second; a record
    /// that finds no place by then is lost, counted and reported. Taken is not yet durable.
    pub async fn request(&self, record: RequestRecord) -> Result<(), Error> {
        self.send_all(Kind::Request, [Message::Request(record)].into_iter()).await
    }

    /// Takes records of windows, each in place of an earlier one with the same key. On an error
    /// the last ones were not taken; all of them may be sent again.
    pub async fn windows(&self, records: Vec<WindowRecord>) -> Result<(), Error> {
        self.send_all(Kind::Window, records.into_iter().map(Message::Window)).await
    }

    async fn send_all(
        &self,
        kind: Kind,
        messages: impl ExactSizeIterator<Item = Message>,
    ) -> Result<(), Error> {
        let shared = &*self.0;
        let mut untaken =
            Untaken { losses: &shared.losses, kind, count: messages.len().try_into().unwrap_or(0) };
        let sent = timeout(shared.settings.enqueue_deadline, async {
            for message in messages {
                if shared.outbox.send(message).await.is_err() {
                    return false;
                }
                untaken.count -= 1;
            }
            true
        })
        .await;
        let lost = untaken.count;
        match sent {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::EnqueueClosed { lost }),
            Err(_) => Err(Error::Enqueue { lost }),
        }
    }

    /// Returns when all that was sent through this handle before is committed and synced.
    pub async fn flush(&self) -> Result<(), Error> {
        let (done, committed) = oneshot::channel();
        let flushed = timeout(FLUSH_DEADLINE, async {
            self.0.outbox.send(Message::Flush(done)).await.is_ok() && committed.await.is_ok()
        });
        if flushed.await.unwrap_or(false) { Ok(()) } else { Err(Error::Flush) }
    }

    /// Sums up usage, as far as it is committed, on a connection of its own.
    pub async fn usage(&self, query: Query) -> Result<Vec<UsageRow>, Error> {
        query::usage_with_deadline(
            self.0.path.clone(),
            query,
            Arc::clone(&self.0.queries),
            QUERY_DEADLINE,
        )
        .await
    }

    /// How many records were lost since the start.
    pub fn lost(&self) -> u64 {
        self.0.losses.0.load(Ordering::Relaxed)
    }

    /// Ends the writer for all handles, after it wrote what was sent before. A ledger that cannot
    /// be written then is given up after some seconds; the thread's result says what was lost.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.0.stop.send_replace(true);
        let longest = self.0.settings.give_up.saturating_mul(2) + Duration::from_secs(1);
        timeout(longest, self.0.stop.closed()).await.map_err(|_| Error::StopWriter)
    }
}

#[cfg(test)]
mod tests;
