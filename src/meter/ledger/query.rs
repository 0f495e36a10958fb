//! Sums of usage: a connection that only reads, and the statements that add up both tables.
//!
//! SQLite adds with 64 bits and fails on overflow, so each column is summed in two halves of 32
//! bits, which are put together with 128; that is right for up to 2^31 rows. Both tables are read
//! in one transaction, so that they are of the same instant.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, InterruptHandle, OpenFlags, Row, params_from_iter};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::{
    Error,
    store::{check_schema, opening},
};
use crate::{
    meter::usage::{Owner, Period, Query, UsageRow},
    model::{AppName, ProviderName},
    telemetry,
};

/// The most rows that one query returns: 1,000 apps for four days by the hour; about 20 MB.
const MAX_ROWS: usize = 100_000;
/// How long a reader waits for a lock; a writer in WAL mode never holds one against it for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A ledger that is open for reading only.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    pub(super) max_rows: usize,
}

/// One of the two tables.
struct Table {
    name: &'static str,
    time: &'static str,
    /// What one of its time units is in milliseconds.
    unit_ms: u64,
    /// What to add up; numbers of rows are sums as well.
    sums: &'static [&'static str],
    add: fn(&mut UsageRow, &[u64]),
}

/// A request that no instance took is counted as such and is in no other sum: it used nothing.
const REQUESTS: Table = Table {
    name: "requests",
    time: "time_ms",
    unit_ms: 1,
    sums: &[
        "(instance IS NOT NULL)",
        "(instance IS NULL)",
        "(instance IS NOT NULL AND status >= 500)",
        "iif(instance IS NULL, 0, bytes_in)",
        "iif(instance IS NULL, 0, bytes_out)",
        "iif(instance IS NULL, 0, duration_micros)",
        "iif(instance IS NULL, 0, wait_micros)",
    ],
    add: |row, sums| {
        if let &[requests, refused, errors, bytes_in, bytes_out, duration, wait] = sums {
            row.requests = requests;
            row.refused = refused;
            row.errors = errors;
            row.bytes_in = bytes_in;
            row.bytes_out = bytes_out;
            row.duration_micros_sum = duration;
            row.wait_micros_sum = wait;
        }
    },
};

const WINDOWS: Table = Table {
    name: "windows",
    time: "window_start_s",
    unit_ms: 1_000,
    sums: &["cpu_micros", "memory_byte_seconds", "image_byte_seconds", "wakes"],
    add: |row, sums| {
        if let &[cpu, memory, image, wakes] = sums {
            row.cpu_micros = cpu;
            row.memory_byte_seconds = memory;
            row.image_byte_seconds = image;
            row.wakes = wakes;
        }
    },
};

type Rows = BTreeMap<(Owner, Option<u64>), UsageRow>;

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| opening(path, source);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        check_schema(&connection, path, false)?;
        Ok(Self { connection, max_rows: MAX_ROWS })
    }

    /// Sums up usage, in the order of provider, app and period. An app that has only requests or
    /// only windows appears as well.
    pub fn usage(&self, query: &Query) -> Result<Vec<UsageRow>, Error> {
        let transaction = self.connection.unchecked_transaction().map_err(Error::Query)?;
        let mut rows = Rows::new();
        for table in [&REQUESTS, &WINDOWS] {
            self.add(table, query, &mut rows)?;
        }
        transaction.commit().map_err(Error::Query)?;
        Ok(rows.into_values().collect())
    }

    fn add(&self, table: &Table, query: &Query, rows: &mut Rows) -> Result<(), Error> {
        let (sql, params) = select(table, query);
        let mut statement = self.connection.prepare(&sql).map_err(Error::Query)?;
        let mut found = statement.query(params_from_iter(params)).map_err(Error::Query)?;
        while let Some(row) = found.next().map_err(Error::Query)? {
            let text = |index| row.get::<_, String>(index).map_err(Error::Query);
            let owner = Owner {
                provider: name(text(0)?, ProviderName::new)?,
                app: name(text(1)?, AppName::new)?,
            };
            let start: Option<i64> = row.get(2).map_err(Error::Query)?;
            let start_ms = start.map(|start| start.cast_unsigned().saturating_mul(table.unit_ms));
            let sums = sums(row, table.sums.len()).map_err(Error::Query)?;
            let full = rows.len() >= self.max_rows;
            let sum = match rows.entry((owner.clone(), start_ms)) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(_) if full => {
                    return Err(Error::QueryRows { limit: self.max_rows });
                }
                Entry::Vacant(entry) => entry.insert(UsageRow::zero(owner, start_ms)),
            };
            (table.add)(sum, &sums);
        }
        Ok(())
    }
}

/// The statement and its parameters. Conditions are written only where they are asked for, so that
/// SQLite can use its indexes.
fn select(table: &Table, query: &Query) -> (String, Vec<rusqlite::types::Value>) {
    let Table { name, time, unit_ms, sums, .. } = table;
    let period = match query.by.map(Period::seconds) {
        None => "NULL".into(),
        Some(seconds) => format!("{time} - {time} % {}", seconds * 1_000 / unit_ms),
    };
    let mut sql = format!("SELECT provider, app, {period}");
    for sum in *sums {
        sql.push_str(&format!(", sum({sum} >> 32), sum({sum} & 4294967295)"));
    }
    sql.push_str(&format!(" FROM {name} WHERE TRUE"));
    let mut params = Vec::new();
    // A start in units: the first one that is not before the millisecond.
    let moment = |ms: u64| i64::try_from(ms.div_ceil(*unit_ms)).unwrap_or(i64::MAX).into();
    let text = |name: &str| name.to_owned().into();
    for (condition, value) in [
        ("provider =".into(), query.provider.as_ref().map(|provider| text(provider.as_str()))),
        ("app =".into(), query.app.as_ref().map(|app| text(app.as_str()))),
        (format!("{time} >="), query.since_ms.map(moment)),
        (format!("{time} <"), query.until_ms.map(moment)),
    ] {
        if let Some(value) = value {
            params.push(value);
            sql.push_str(&format!(" AND {condition} ?{}", params.len()));
        }
    }
    sql.push_str(" GROUP BY 1, 2, 3");
    (sql, params)
}

/// Puts the halves together.
fn sums(row: &Row<'_>, count: usize) -> rusqlite::Result<Vec<u64>> {
    let half = |index| row.get::<_, i64>(index).map(|half| u128::from(half.cast_unsigned()));
    let mut sums = Vec::with_capacity(count);
    for index in 0..count {
        let sum = (half(3 + 2 * index)? << 32) + half(4 + 2 * index)?;
        sums.push(u64::try_from(sum).unwrap_or_else(|_| {
            telemetry::saturated(1);
            u64::MAX
        }));
    }
    Ok(sums)
}

fn name<T>(
    text: String,
    new: impl Fn(String) -> Result<T, crate::model::InvalidName>,
) -> Result<T, Error> {
    new(text.clone()).map_err(|source| Error::ReadRow { name: text, source })
}

/// Interrupts the statement that runs when it is dropped; one that has ended is not touched.
struct InterruptOnDrop(InterruptHandle);

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        self.0.interrupt();
    }
}

/// One query on a connection and a blocking thread of its own; interrupted at the deadline, or
/// when this future is dropped.
pub(super) async fn usage_with_deadline(
    path: PathBuf,
    query: Query,
    permits: Arc<Semaphore>,
    deadline: Duration,
) -> Result<Vec<UsageRow>, Error> {
    let work = async {
        let permit = permits.acquire_owned().await.map_err(|_| Error::QueryDeadline)?;
        let opened = spawn_blocking(move || Reader::open(&path)).await;
        let reader = opened.map_err(|_| Error::QueryDeadline)??;
        let _interrupt = InterruptOnDrop(reader.connection.get_interrupt_handle());
        let summed = spawn_blocking(move || {
            let _until_done = permit;
            reader.usage(&query)
        });
        summed.await.map_err(|_| Error::QueryDeadline)?
    };
    timeout(deadline, work).await.unwrap_or(Err(Error::QueryDeadline))
}
