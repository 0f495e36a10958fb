//! The way of windows from their accumulator to the ledger, for an owner that must not wait.
//!
//! Records replace earlier ones of the same key, so their order matters: one task sends them, in the
//! order in which they were handed over. What does not fit into its queue stays in the accumulator
//! and goes with the next batch. [`Outbox::close`] waits until all that was handed over is with the
//! ledger, so that nothing is under way when the ledger is closed after it.

use std::time::Duration;

use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::{Handle, WindowRecord, Windows};
use crate::telemetry;

/// Batches that wait. One is sent in microseconds unless the ledger is behind.
const QUEUE: usize = 8;
/// How long a close may take: a full queue before a ledger that takes nothing, each batch of which
/// is lost after a second.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Takes records without waiting.
#[derive(Debug)]
pub struct Outbox {
    meter: Handle,
    /// None once it is closed.
    queue: Option<mpsc::Sender<Vec<WindowRecord>>>,
    sending: JoinHandle<()>,
}

impl Outbox {
    /// Starts the task that sends; needs a Tokio runtime.
    pub fn new(meter: Handle) -> Self {
        let (queue, mut batches) = mpsc::channel(QUEUE);
        let to = meter.clone();
        let sending = tokio::spawn(async move {
            while let Some(records) = batches.recv().await {
                send(&to, records).await;
            }
        });
        Self { meter, queue: Some(queue), sending }
    }

    /// Hands over what has changed since the last time, or leaves it where it is for now.
    pub fn send(&self, windows: &mut Windows, now_unix_micros: u64) {
        let Some(Ok(place)) = self.queue.as_ref().map(mpsc::Sender::try_reserve) else {
            return;
        };
        let records = windows.drain(now_unix_micros);
        if !records.is_empty() {
            place.send(records);
        }
    }

    /// Sends all that is left, after all that was handed over. To be called once, at the end.
    pub async fn close(&mut self, windows: &mut Windows, now_unix_micros: u64) {
        if self.queue.take().is_some() && timeout(CLOSE_DEADLINE, &mut self.sending).await.is_err()
        {
            tracing::error!("usage may be lost: the ledger does not take it");
        }
        let records = windows.drain(now_unix_micros);
        if !records.is_empty() {
            send(&self.meter, records).await;
        }
    }
}

async fn send(meter: &Handle, records: Vec<WindowRecord>) {
    if let Err(error) = meter.windows(records).await {
        tracing::error!(error = %telemetry::chain(&error), "usage is lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        meter::{Ledger, Owner, Query, Settings},
        model::{AppName, InstanceId, ProviderName},
    };

    const ID: InstanceId = InstanceId::new(7);

    fn owner() -> Owner {
        Owner { provider: ProviderName::new("acme").unwrap(), app: AppName::new("shop").unwrap() }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_handed_over_before_a_close_is_in_the_ledger_that_is_closed_after_it() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("ledger.db");
            let (handle, thread) = Ledger::open(&path).unwrap().start().unwrap();
            let mut windows = Windows::new(Settings::default());
            let mut outbox = Outbox::new(handle.clone());
            for _ in 0..100 {
                windows.woke(ID, &owner(), 0).unwrap();
                outbox.send(&mut windows, 0);
            }
            outbox.close(&mut windows, 0).await;
            handle.shutdown().await.unwrap();
            thread.join().unwrap().unwrap();
            assert_eq!(handle.lost(), 0);
            let rows = Ledger::read_only(&path).unwrap().usage(&Query::default()).unwrap();
            assert_eq!(rows[0].wakes, 100);
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_stays_in_the_windows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        let (handle, _thread) = Ledger::open(&path).unwrap().start().unwrap();
        let mut windows = Windows::new(Settings::default());
        let outbox = Outbox::new(handle);
        // Nothing is awaited, so the task that sends does not run meanwhile.
        for _ in 0..QUEUE {
            windows.woke(ID, &owner(), 0).unwrap();
            outbox.send(&mut windows, 0);
        }
        windows.woke(ID, &owner(), 0).unwrap();
        outbox.send(&mut windows, 0);
        let left = windows.drain(0);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].wakes, QUEUE as u64 + 1);
    }
}
