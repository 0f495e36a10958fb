//! The ledger on real files: what is durable, what is refused, what happens when it cannot write.

use tempfile::TempDir;

use super::*;
use crate::{
    meter::usage::WakeKind,
    model::{AppName, InstanceId, ProviderName},
};

mod usage;
mod writers;

fn request(app: &str, time_ms: u64) -> RequestRecord {
    RequestRecord {
        time_ms,
        provider: ProviderName::new("acme").unwrap(),
        app: AppName::new(app).unwrap(),
        instance: Some(InstanceId::new(u64::MAX)),
        route: "default".into(),
        status: 200,
        bytes_in: 10,
        bytes_out: 100,
        duration_micros: 1_000,
        wait_micros: 1,
        wake: WakeKind::None,
    }
}

fn window(instance: u64, window: u64, cpu_micros: u64) -> WindowRecord {
    WindowRecord {
        window,
        provider: ProviderName::new("acme").unwrap(),
        app: AppName::new("shop").unwrap(),
        instance: InstanceId::new(instance),
        cpu_micros,
        memory_byte_seconds: 2,
        image_byte_seconds: 3,
        wakes: 1,
    }
}

/// A directory and the path of a ledger in it.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    (dir, path)
}

/// A writer with small numbers, so that its limits are met within a test.
fn start_small(path: &Path) -> (Handle, JoinHandle<Result<(), Error>>) {
    let mut ledger = Ledger::open(path).unwrap();
    ledger.settings = Settings {
        queue: 4,
        enqueue_deadline: Duration::from_millis(50),
        batch: 2,
        first_pause: Duration::from_millis(1),
        max_pause: Duration::from_millis(20),
        give_up: Duration::from_millis(50),
        ..ledger.settings
    };
    ledger.start().unwrap()
}

/// Holds the lock of SQLite, as a backup by hand would, until it is dropped.
fn block(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

fn total(path: &Path) -> UsageRow {
    let mut rows = Ledger::read_only(path).unwrap().usage(&Query::default()).unwrap();
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

#[tokio::test]
async fn what_was_flushed_is_there_after_a_kill() {
    let (dir, path) = place();
    let (handle, _thread) = Ledger::open(&path).unwrap().start().unwrap();
    for n in 0..1_000 {
        handle.request(request("shop", n)).await.unwrap();
    }
    handle.windows(vec![window(1, 60, 7), window(2, 60, 8)]).await.unwrap();
    handle.flush().await.unwrap();
    let row = total(&path);
    assert_eq!((row.requests, row.bytes_out, row.cpu_micros, row.wakes), (1_000, 100_000, 15, 2));

    // What a killed process leaves behind: the file and its log, and nobody closed them.
    let left = dir.path().join("left.sqlite");
    std::fs::copy(&path, &left).unwrap();
    std::fs::copy(dir.path().join("ledger.sqlite-wal"), dir.path().join("left.sqlite-wal"))
        .unwrap();
    assert_eq!(Ledger::open(&left).unwrap().store.next_seq(), 1_001);
    assert_eq!(total(&left), row);
}

#[tokio::test]
async fn a_window_that_is_sent_again_replaces_the_first() {
    let (_dir, path) = place();
    let (handle, _thread) = Ledger::open(&path).unwrap().start().unwrap();
    for cpu_micros in [5, 9, 9] {
        handle.windows(vec![window(1, 60, cpu_micros)]).await.unwrap();
        handle.flush().await.unwrap();
    }
    handle.windows(vec![window(1, 120, 1), window(1, 120, 2)]).await.unwrap();
    handle.flush().await.unwrap();
    let row = total(&path);
    assert_eq!((row.cpu_micros, row.wakes), (11, 2));
}

#[tokio::test]
async fn a_second_writer_is_refused_until_the_first_has_ended() {
    let (_dir, path) = place();
    let (handle, thread) = Ledger::open(&path).unwrap().start().unwrap();
    let error = Ledger::open(&path).unwrap_err();
    assert!(matches!(error, Error::LockHeld { .. }), "{error}");
    handle.request(request("shop", 1)).await.unwrap();
    handle.shutdown().await.unwrap();
    assert!(Ledger::open(&path).is_ok());
    thread.join().unwrap().unwrap();
    assert_eq!(total(&path).requests, 1);
}

#[tokio::test]
async fn a_writer_ends_with_its_last_handle() {
    let (_dir, path) = place();
    let (handle, thread) = Ledger::open(&path).unwrap().start().unwrap();
    handle.clone().request(request("shop", 1)).await.unwrap();
    drop(handle);
    thread.join().unwrap().unwrap();
    assert_eq!(total(&path).requests, 1);
}

#[tokio::test]
async fn numbers_of_rows_go_on_after_a_restart() {
    let (_dir, path) = place();
    for expected in [1, 2, 3] {
        let (handle, thread) = Ledger::open(&path).unwrap().start().unwrap();
        handle.request(request("shop", 1)).await.unwrap();
        handle.shutdown().await.unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(total(&path).requests, expected);
    }
}

#[tokio::test]
async fn a_full_queue_waits_and_then_loses_with_an_error_and_a_count() {
    let (_dir, path) = place();
    let (handle, _thread) = start_small(&path);
    let blocked = block(&path);
    let mut taken = 0;
    let error = loop {
        match handle.request(request("shop", 1)).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Enqueue { lost: 1 }), "{error}");
    let error = handle.windows(vec![window(1, 0, 1), window(2, 0, 1)]).await.unwrap_err();
    assert!(matches!(error, Error::Enqueue { lost: 2 }), "{error}");
    assert_eq!(handle.lost(), 3);
    // One batch is with the writer, one queue is waiting.
    assert!((4..=6).contains(&taken), "{taken}");

    drop(blocked);
    handle.flush().await.unwrap();
    assert_eq!(total(&path).requests, taken);
    assert_eq!(handle.lost(), 3);
}

#[tokio::test]
async fn a_record_whose_future_is_dropped_while_it_waits_is_counted_as_lost() {
    let (_dir, path) = place();
    let (handle, _thread) = start_small(&path);
    let _blocked = block(&path);
    while handle.request(request("shop", 1)).await.is_ok() {}
    assert_eq!(handle.lost(), 1);
    let waiting = handle.request(request("shop", 1));
    assert!(timeout(Duration::from_millis(1), waiting).await.is_err());
    assert_eq!(handle.lost(), 2);
}

#[tokio::test]
async fn a_commit_that_failed_is_tried_again_and_doubles_nothing() {
    let (_dir, path) = place();
    let (handle, thread) = start_small(&path);
    handle.request(request("shop", 1)).await.unwrap();
    handle.flush().await.unwrap();
    let blocked = block(&path);
    for _ in 0..3 {
        handle.request(request("shop", 2)).await.unwrap();
    }
    let flush = handle.flush();
    tokio::pin!(flush);
    assert!(timeout(Duration::from_millis(400), &mut flush).await.is_err());
    drop(blocked);
    flush.await.unwrap();
    assert_eq!(total(&path).requests, 4);
    handle.shutdown().await.unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn rows_that_reached_the_disk_in_a_failed_commit_are_not_written_twice() {
    let (_dir, path) = place();
    let mut store = Ledger::open(&path).unwrap().store;
    let batch = [(store.next_seq(), request("shop", 1)), (store.next_seq(), request("shop", 2))];
    store.commit(&batch, &[window(1, 0, 5)]).unwrap();
    store.commit(&batch, &[window(1, 0, 5)]).unwrap();
    let row = total(&path);
    assert_eq!((row.requests, row.cpu_micros), (2, 5));
}

#[tokio::test]
async fn a_writer_on_a_full_disk_gives_up_only_when_it_is_stopped() {
    let (_dir, path) = place();
    let mut ledger = Ledger::open(&path).unwrap();
    ledger.settings.give_up = Duration::from_millis(50);
    // SQLite then answers as it does on a full disk.
    ledger.store.connection.pragma_update(None, "max_page_count", 10).unwrap();
    let (handle, thread) = ledger.start().unwrap();
    let mut large = request("shop", 1);
    large.route = "r".repeat(100_000).into();
    for _ in 0..3 {
        handle.request(large.clone()).await.unwrap();
    }
    handle.windows(vec![window(1, 0, 1)]).await.unwrap();
    handle.shutdown().await.unwrap();
    let error = thread.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::Commit { lost: 4, .. }), "{error}");
    assert_eq!(handle.lost(), 4);
    let error = handle.request(request("shop", 1)).await.unwrap_err();
    assert!(matches!(error, Error::EnqueueClosed { lost: 1 }), "{error}");
    assert!(matches!(handle.flush().await, Err(Error::Flush)));
    assert_eq!(handle.lost(), 5);
}

#[test]
fn a_newer_schema_is_refused() {
    let (_dir, path) = place();
    drop(Ledger::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", store::SCHEMA + 1).unwrap();
    drop(connection);
    for error in [
        Ledger::open(&path).map(drop).unwrap_err(),
        Ledger::read_only(&path).map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, Error::CheckSchema { found: 3, known: 2, .. }), "{error}");
    }
}

#[test]
fn a_file_of_another_kind_is_refused_and_left_as_it_is() {
    let (dir, path) = place();
    let text = dir.path().join("text");
    std::fs::write(&text, "not a database, but long enough to be read as one\n".repeat(100))
        .unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(other);
    for path in [text, path] {
        let before = std::fs::read(&path).unwrap();
        let error = Ledger::open(&path).unwrap_err();
        assert!(matches!(error, Error::Recognize { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}

#[tokio::test]
async fn a_damaged_ledger_is_refused() {
    let (_dir, path) = place();
    let (handle, thread) = Ledger::open(&path).unwrap().start().unwrap();
    for n in 0..500 {
        handle.request(request("shop", n)).await.unwrap();
    }
    handle.shutdown().await.unwrap();
    thread.join().unwrap().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4_096..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let error = Ledger::open(&path).unwrap_err();
    assert!(matches!(error, Error::CheckIntegrity { .. }), "{error}");
}

#[test]
fn a_ledger_is_durable_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, path) = place();
    let ledger = Ledger::open(&path).unwrap();
    let pragma = |name| -> String {
        let value = ledger
            .store
            .connection
            .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
        format!("{:?}", value.unwrap())
    };
    assert_eq!(pragma("journal_mode"), r#"Text("wal")"#);
    assert_eq!(pragma("synchronous"), "Integer(2)");
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
}

#[test]
fn a_reader_makes_no_ledger() {
    let (_dir, path) = place();
    assert!(matches!(Ledger::read_only(&path), Err(Error::Open { .. })));
    assert!(!path.exists());
}
