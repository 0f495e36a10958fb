//! The file: who may write to it, its schema, and the one way that records get into it.
//!
//! The lock is a file beside the ledger, not the ledger itself: closing any descriptor of a
//! database would release the locks that SQLite holds on it. Request rows have numbers given
//! before the first attempt to commit, so that a commit that failed after it had reached the disk
//! does not double them when it is tried again. Each opening for writing has a number of its own,
//! part of the key of a window: a writer replaces its own rows, never those of one before it, whose
//! part of a window it does not know; sums add them up. The number comes from the file and not from
//! a clock, which may go back; the lock sees to it that no two have the same.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};

use super::Error;
use crate::{
    meter::usage::{RequestRecord, WindowRecord},
    telemetry,
};

/// The first SQLite without the WAL-reset bug.
const MIN_ENGINE: i32 = 3_051_003;
/// `EPLG`: marks the file as a ledger.
const APPLICATION_ID: i64 = 0x4550_4c47;
/// The newest schema that this program knows.
pub(super) const SCHEMA: i64 = 2;
/// Files up to this size are checked whole when they are opened for writing (well under a second).
const CHECK_WHOLE_UP_TO: u64 = 256 << 20;
/// How long one attempt waits for a lock of another process, a backup say; the writer tries again.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);

/// Requests, since version 1. Instance ids are their 64 bits, none if no instance took the request;
/// wake is the word of `WakeKind`.
const CREATE_REQUESTS: &str = "
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
";

/// Windows, version 2: by writer.
const CREATE_WINDOWS: &str = "
CREATE TABLE windows (
    writer              INTEGER NOT NULL,
    instance            INTEGER NOT NULL,
    window_start_s      INTEGER NOT NULL,
    provider            TEXT NOT NULL,
    app                 TEXT NOT NULL,
    cpu_micros          INTEGER NOT NULL,
    memory_byte_seconds INTEGER NOT NULL,
    image_byte_seconds  INTEGER NOT NULL,
    wakes               INTEGER NOT NULL,
    PRIMARY KEY (writer, instance, window_start_s)
) STRICT, WITHOUT ROWID;
CREATE INDEX windows_by_time ON windows (window_start_s);
CREATE INDEX windows_by_app ON windows (app, window_start_s);
";

/// What version 1 had is writer 0's. An index goes with its table.
const FROM_1_BEGIN: &str = "
DROP INDEX windows_by_time;
DROP INDEX windows_by_app;
ALTER TABLE windows RENAME TO windows_1;
";
const FROM_1_END: &str = "
INSERT INTO windows SELECT 0, instance, window_start_s, provider, app, cpu_micros,
    memory_byte_seconds, image_byte_seconds, wakes FROM windows_1;
DROP TABLE windows_1;
";

const INSERT_REQUEST: &str = "
INSERT INTO requests (seq, time_ms, provider, app, instance, route, status, bytes_in, bytes_out,
    duration_micros, wait_micros, wake)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
ON CONFLICT (seq) DO NOTHING";

const UPSERT_WINDOW: &str = "
INSERT INTO windows (writer, instance, window_start_s, provider, app, cpu_micros,
    memory_byte_seconds, image_byte_seconds, wakes)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
ON CONFLICT (writer, instance, window_start_s) DO UPDATE SET
    provider = excluded.provider, app = excluded.app, cpu_micros = excluded.cpu_micros,
    memory_byte_seconds = excluded.memory_byte_seconds,
    image_byte_seconds = excluded.image_byte_seconds, wakes = excluded.wakes";

/// The ledger, open for writing.
#[derive(Debug)]
pub(super) struct Store {
    // Before the lock, so that it is closed first.
    pub(super) connection: Connection,
    next_seq: i64,
    /// The number of this opening.
    writer: i64,
    _lock: File,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        if rusqlite::version_number() < MIN_ENGINE {
            return Err(Error::CheckEngine { found: rusqlite::version() });
        }
        let lock = lock(path)?;
        create_private(path)?;
        let failed = |source| opening(path, source);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        // First look, then touch: a file that is not ours stays as it is.
        let found = check_schema(&connection, path, true)?;
        let mode: String = connection
            .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
            .map_err(failed)?;
        if mode != "wal" {
            return Err(Error::SetLog { path: path.into(), mode });
        }
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", false).map_err(failed)?;
        match found {
            None => create_schema(&mut connection).map_err(failed)?,
            Some(schema) => {
                check_integrity(&connection, path)?;
                if schema < SCHEMA {
                    migrate(&mut connection).map_err(failed)?;
                }
            }
        }
        // Both are the first of a key, so neither reads more than one row.
        let next = |sql| -> rusqlite::Result<i64> {
            let last: Option<i64> = connection.query_row(sql, [], |row| row.get(0))?;
            Ok(last.unwrap_or(0).saturating_add(1))
        };
        let next_seq = next("SELECT max(seq) FROM requests").map_err(failed)?;
        let writer = next("SELECT max(writer) FROM windows").map_err(failed)?;
        Ok(Self { connection, next_seq, writer, _lock: lock })
    }

    /// The number of the next request row.
    pub(super) fn next_seq(&mut self) -> i64 {
        let seq = self.next_seq;
        self.next_seq = seq.saturating_add(1);
        seq
    }

    /// Writes all of these in one transaction, synced when this returns, or none of them.
    pub(super) fn commit(
        &mut self,
        requests: &[(i64, RequestRecord)],
        windows: &[WindowRecord],
    ) -> rusqlite::Result<()> {
        let mut saturated = 0;
        let mut fit = |number: u64| {
            i64::try_from(number).unwrap_or_else(|_| {
                saturated += 1;
                i64::MAX
            })
        };
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !requests.is_empty() {
            let mut insert = transaction.prepare(INSERT_REQUEST)?;
            for (seq, record) in requests {
                insert.execute(params![
                    seq,
                    fit(record.time_ms),
                    record.provider.as_str(),
                    record.app.as_str(),
                    record.instance.map(|instance| instance.number().cast_signed()),
                    &*record.route,
                    record.status,
                    fit(record.bytes_in),
                    fit(record.bytes_out),
                    fit(record.duration_micros),
                    fit(record.wait_micros),
                    record.wake.as_str(),
                ])?;
            }
        }
        if !windows.is_empty() {
            let mut upsert = transaction.prepare(UPSERT_WINDOW)?;
            for record in windows {
                upsert.execute(params![
                    self.writer,
                    record.instance.number().cast_signed(),
                    fit(record.window),
                    record.provider.as_str(),
                    record.app.as_str(),
                    fit(record.cpu_micros),
                    fit(record.memory_byte_seconds),
                    fit(record.image_byte_seconds),
                    fit(record.wakes),
                ])?;
            }
        }
        transaction.commit()?;
        if saturated > 0 {
            telemetry::saturated(saturated);
        }
        Ok(())
    }
}

/// Takes the ledger for this process, until the file that is returned is closed.
fn lock(path: &Path) -> Result<File, Error> {
    let mut name = OsString::from(path);
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let failed = |source| Error::Lock { path: lock_path.clone(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::LockHeld { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Makes an empty file that only its owner can read; SQLite gives its log the same mode.
fn create_private(path: &Path) -> Result<(), Error> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::Create { path: path.into(), source }),
    }
}

/// The schema of the file, which must be one that we know; none if it is empty and may become a
/// ledger. What sums read is the same in every schema.
pub(super) fn check_schema(
    connection: &Connection,
    path: &Path,
    may_be_new: bool,
) -> Result<Option<i64>, Error> {
    let number = |sql| connection.query_row::<i64, _, _>(sql, [], |row| row.get(0));
    let failed = |source| opening(path, source);
    let application = number("PRAGMA application_id").map_err(failed)?;
    let found = number("PRAGMA user_version").map_err(failed)?;
    let tables = number("SELECT count(*) FROM sqlite_schema").map_err(failed)?;
    if may_be_new && (application, found, tables) == (0, 0, 0) {
        return Ok(None);
    }
    if application != APPLICATION_ID {
        return Err(Error::Recognize { path: path.into(), source: None });
    }
    // No schema 0 was ever written; one in the file is a damaged header.
    if found < 1 {
        let detail = format!("its schema is {found}");
        return Err(Error::CheckIntegrity { path: path.into(), detail });
    }
    if found > SCHEMA {
        return Err(Error::CheckSchema { path: path.into(), found, known: SCHEMA });
    }
    Ok(Some(found))
}

fn create_schema(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(CREATE_REQUESTS)?;
    transaction.execute_batch(CREATE_WINDOWS)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()
}

/// Brings version 1 up to date, all of it or nothing; every row is kept.
fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in [FROM_1_BEGIN, CREATE_WINDOWS, FROM_1_END] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()
}

/// Reads the whole file, if it is not too large, and refuses a damaged one.
fn check_integrity(connection: &Connection, path: &Path) -> Result<(), Error> {
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if size > CHECK_WHOLE_UP_TO {
        return Ok(());
    }
    let detail: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|source| opening(path, source))?;
    if detail == "ok" {
        return Ok(());
    }
    Err(Error::CheckIntegrity { path: path.into(), detail })
}

/// The named error for what SQLite said while the file was opened.
pub(super) fn opening(path: &Path, source: rusqlite::Error) -> Error {
    let path = path.into();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Error::Recognize { path, source: Some(source) },
        Some(ErrorCode::DatabaseCorrupt) => {
            Error::CheckIntegrity { path, detail: source.to_string() }
        }
        _ => Error::Open { path, source },
    }
}
