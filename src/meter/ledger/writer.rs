//! The writer: the one thread that commits.
//!
//! It takes what is there, up to a batch or until the first record waited long enough, and commits
//! it in one transaction. A commit that fails keeps its batch and is tried again after growing
//! pauses; meanwhile the queue fills up and its senders wait, then lose and count. Told to stop, it
//! takes no more, writes what is queued, and gives up only after a deadline. Its thread may block:
//! nothing else runs on it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use super::{Error, Kind, Losses, Message, Settings, store::Store};
use crate::{
    clock,
    meter::usage::{RequestRecord, WindowRecord},
    telemetry,
};

pub(super) struct Writer {
    store: Store,
    settings: Settings,
    inbox: mpsc::Receiver<Message>,
    stop: watch::Receiver<bool>,
    losses: Arc<Losses>,
    /// Whether the last attempt to commit failed: each change of this is logged once.
    failing: bool,
}

/// What goes into one transaction, and who waits for it.
#[derive(Default)]
struct Batch {
    requests: Vec<(i64, RequestRecord)>,
    windows: Vec<WindowRecord>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl Batch {
    fn len(&self) -> usize {
        self.requests.len() + self.windows.len()
    }
}

impl Writer {
    pub(super) fn new(
        store: Store,
        settings: Settings,
        inbox: mpsc::Receiver<Message>,
        stop: watch::Receiver<bool>,
        losses: Arc<Losses>,
    ) -> Self {
        Self { store, settings, inbox, stop, losses, failing: false }
    }

    pub(super) async fn run(mut self) -> Result<(), Error> {
        while let Some(first) = self.next().await {
            let batch = self.collect(first).await;
            self.settle(batch).await?;
        }
        Ok(())
    }

    /// The next message; none when the writer was told to stop and the queue is empty.
    async fn next(&mut self) -> Option<Message> {
        if !self.inbox.is_closed() {
            tokio::select! {
                // The order to stop first: a busy queue must not put it off.
                biased;
                () = stopped(&mut self.stop) => self.inbox.close(),
                message = self.inbox.recv() => return message,
            }
        }
        self.inbox.recv().await
    }

    async fn collect(&mut self, first: Message) -> Batch {
        let mut batch = Batch::default();
        add(&mut self.store, &mut batch, first);
        let full = self.settings.batch;
        // Whoever flushes waits for this commit: then it does not wait for more.
        let gather = async {
            while batch.len() < full && batch.flushes.is_empty() {
                match self.inbox.recv().await {
                    Some(message) => add(&mut self.store, &mut batch, message),
                    None => break,
                }
            }
        };
        // Nothing is lost when the time is up: `recv` may be dropped at any moment.
        _ = timeout(self.settings.linger, gather).await;
        batch
    }

    /// Commits the batch, however long that takes; gives up only when told to stop.
    async fn settle(&mut self, batch: Batch) -> Result<(), Error> {
        let mut pause = self.settings.first_pause;
        let mut left: Option<Duration> = None;
        loop {
            let Err(source) = self.commit(&batch) else {
                for flush in batch.flushes {
                    // Whoever does not wait any more does not need to know.
                    _ = flush.send(());
                }
                return Ok(());
            };
            if !self.failing {
                self.failing = true;
                tracing::error!(
                    error = %source,
                    records = batch.len(),
                    "ledger cannot commit; the batch is kept and tried again"
                );
            }
            match &mut left {
                Some(left) if left.is_zero() => return Err(self.give_up(batch, source)),
                Some(left) => {
                    let wait = pause.min(*left);
                    sleep(wait).await;
                    *left -= wait;
                }
                None => tokio::select! {
                    biased;
                    () = stopped(&mut self.stop) => {
                        self.inbox.close();
                        left = Some(self.settings.give_up);
                        pause = self.settings.first_pause;
                    }
                    () = sleep(pause) => {}
                },
            }
            pause = pause.saturating_mul(2).min(self.settings.max_pause);
        }
    }

    fn commit(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        if batch.len() == 0 {
            return Ok(());
        }
        let begun = clock::now();
        self.store.commit(&batch.requests, &batch.windows)?;
        telemetry::committed(begun.elapsed());
        for (kind, count) in
            [(Kind::Request, batch.requests.len()), (Kind::Window, batch.windows.len())]
        {
            telemetry::records(kind.label(), count as u64);
        }
        if self.failing {
            self.failing = false;
            tracing::info!("ledger commits again");
        }
        Ok(())
    }

    /// Counts this batch and all that is queued as lost.
    fn give_up(&mut self, batch: Batch, source: rusqlite::Error) -> Error {
        let mut requests = batch.requests.len() as u64;
        let mut windows = batch.windows.len() as u64;
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Request(_) => requests += 1,
                Message::Window(_) => windows += 1,
                Message::Flush(_) => {}
            }
        }
        self.losses.add(Kind::Request, requests);
        self.losses.add(Kind::Window, windows);
        let lost = requests + windows;
        tracing::error!(error = %source, lost, "ledger was stopped while it could not commit");
        Error::Commit { lost, source }
    }
}

fn add(store: &mut Store, batch: &mut Batch, message: Message) {
    match message {
        Message::Request(record) => batch.requests.push((store.next_seq(), record)),
        Message::Window(record) => batch.windows.push(record),
        Message::Flush(done) => batch.flushes.push(done),
    }
}

/// Resolves when the writer is told to stop, or when nobody is left who could.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    _ = stop.wait_for(|stop| *stop).await;
}
