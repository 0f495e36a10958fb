//! Several writers of one ledger, one after the other: what each has written stays, and adds up.

use super::*;
use crate::{
    meter::{Owner, Settings as Limits, Windows},
    model::{Bytes, ResourceUse},
};

const SECOND: u64 = 1_000_000;
/// The moment at which it all happens: within one window.
const NOW: u64 = 600 * SECOND;

fn owner() -> Owner {
    Owner { provider: ProviderName::new("acme").unwrap(), app: AppName::new("shop").unwrap() }
}

fn reading(cpu_micros: u64) -> ResourceUse {
    ResourceUse { cpu_micros, memory: Bytes(100), pids: 1, ..ResourceUse::default() }
}

/// What a manager does in ten seconds: an instance and an image, and a drain after each sample.
fn work(path: &Path, begin: u64, counters: [u64; 3], found: bool) {
    let (instance, image) = (InstanceId::new(7), InstanceId::new(8));
    let mut store = Ledger::open(path).unwrap().store;
    let mut windows = Windows::new(Limits::default());
    if !found {
        windows.woke(instance, &owner(), begin).unwrap();
    }
    for (step, cpu) in (0..).zip(counters) {
        let now = begin + step * 5 * SECOND;
        match found {
            true => windows.sample_found(instance, &owner(), now, &reading(cpu)).unwrap(),
            false => windows.sample(instance, &owner(), now, &reading(cpu)).unwrap(),
        }
        windows.image(image, &owner(), now, Bytes(10)).unwrap();
        store.commit(&[], &windows.drain(now)).unwrap();
    }
}

#[test]
fn a_restart_within_a_window_takes_nothing_back_and_counts_nothing_twice() {
    let (_dir, path) = place();
    work(&path, NOW, [1_000, 2_000, 3_000], false);
    let row = total(&path);
    assert_eq!((row.wakes, row.cpu_micros), (1, 3_000));
    assert_eq!((row.memory_byte_seconds, row.image_byte_seconds), (1_000, 100));
    // The instance has run on; the new manager finds it, after it used another 500.
    work(&path, NOW + 20 * SECOND, [3_500, 3_600, 3_700], true);
    let row = total(&path);
    assert_eq!((row.wakes, row.cpu_micros), (1, 3_200));
    assert_eq!((row.memory_byte_seconds, row.image_byte_seconds), (2_000, 200));
    // A third one at the same place of the clock, which went back.
    work(&path, NOW, [9_000, 9_000, 9_001], true);
    let row = total(&path);
    assert_eq!((row.wakes, row.cpu_micros), (1, 3_201));
    assert_eq!((row.memory_byte_seconds, row.image_byte_seconds), (3_000, 300));
}

#[test]
fn wakes_before_and_after_a_restart_are_a_sum() {
    let (_dir, path) = place();
    for expected in [1, 2, 3] {
        work(&path, NOW, [10, 20, 30], false);
        assert_eq!(total(&path).wakes, expected);
        assert_eq!(total(&path).cpu_micros, 30 * expected);
    }
}

#[test]
fn a_writer_that_wrote_nothing_leaves_no_trace() {
    let (_dir, path) = place();
    for _ in 0..3 {
        drop(Ledger::open(&path).unwrap());
    }
    let mut store = Ledger::open(&path).unwrap().store;
    store.commit(&[], &[window(1, 0, 5)]).unwrap();
    assert_eq!(total(&path).cpu_micros, 5);
}

/// As an edgepoint with schema 1 has left it.
const SCHEMA_1: &str = "
CREATE TABLE requests (
    seq             INTEGER PRIMARY KEY,
    time_ms         INTEGER NOT NULL,
    provider        TEXT NOT NULL,
    app             TEXT NOT NULL,
    instance        INTEGER,
    route           TEXT NOT NULL,
    status          INTEGER NOT NULL,
    bytes_in        INTEGER NOT NULL,
    bytes_out       INTEGER NOT NULL,
    duration_micros INTEGER NOT NULL,
    wait_micros     INTEGER NOT NULL,
    wake            TEXT NOT NULL
) STRICT;
CREATE INDEX requests_by_time ON requests (time_ms);
CREATE INDEX requests_by_app ON requests (app, time_ms);
CREATE TABLE windows (
    instance            INTEGER NOT NULL,
    window_start_s      INTEGER NOT NULL,
    provider            TEXT NOT NULL,
    app                 TEXT NOT NULL,
    cpu_micros          INTEGER NOT NULL,
    memory_byte_seconds INTEGER NOT NULL,
    image_byte_seconds  INTEGER NOT NULL,
    wakes               INTEGER NOT NULL,
    PRIMARY KEY (instance, window_start_s)
) STRICT, WITHOUT ROWID;
CREATE INDEX windows_by_time ON windows (window_start_s);
CREATE INDEX windows_by_app ON windows (app, window_start_s);
PRAGMA application_id = 0x45504c47;
PRAGMA user_version = 1;
INSERT INTO requests VALUES (1, 5, 'acme', 'shop', 7, 'r', 200, 10, 100, 1000, 1, 'none'),
    (2, 5, 'acme', 'shop', NULL, 'r', 503, 10, 100, 1000, 1, 'none');
INSERT INTO windows VALUES (1, 60, 'acme', 'shop', 5, 2, 3, 1), (2, 60, 'acme', 'shop', 6, 2, 3, 1);
";

#[test]
fn a_ledger_of_schema_1_is_read_as_it_is_and_brought_up_to_date_with_all_its_rows() {
    let (_dir, path) = place();
    rusqlite::Connection::open(&path).unwrap().execute_batch(SCHEMA_1).unwrap();
    let before = total(&path);
    assert_eq!((before.requests, before.refused, before.cpu_micros), (1, 1, 11));

    let mut store = Ledger::open(&path).unwrap().store;
    assert_eq!(total(&path), before);
    assert_eq!(store.next_seq(), 3);
    // The same instance and window: a sum, no longer a replacement.
    store.commit(&[], &[window(1, 60, 100)]).unwrap();
    assert_eq!((total(&path).cpu_micros, total(&path).wakes), (111, 3));
    drop(store);

    let connection = rusqlite::Connection::open(&path).unwrap();
    let number = |sql| connection.query_row::<i64, _, _>(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(number("PRAGMA user_version"), store::SCHEMA);
    let indexes = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'windows_by_%'";
    assert_eq!(number(indexes), 2);
    assert_eq!(number("SELECT count(*) FROM sqlite_schema WHERE name = 'windows_1'"), 0);
    drop(connection);
    assert_eq!(Ledger::open(&path).unwrap().store.next_seq(), 3);
}
