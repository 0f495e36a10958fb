//! Sums: which rows they hold, where periods begin, and what does not overflow.

use super::*;
use crate::meter::usage::Period;

const HOUR_MS: u64 = 3_600_000;

/// A ledger with these records, closed.
fn written(path: &Path, requests: Vec<RequestRecord>, windows: &[WindowRecord]) {
    let mut store = Ledger::open(path).unwrap().store;
    let requests: Vec<_> = requests.into_iter().map(|r| (store.next_seq(), r)).collect();
    store.commit(&requests, windows).unwrap();
}

fn usage(path: &Path, query: &Query) -> Vec<UsageRow> {
    Ledger::read_only(path).unwrap().usage(query).unwrap()
}

/// (app, period, requests, CPU) of each row.
fn short(rows: &[UsageRow]) -> Vec<(&str, Option<u64>, u64, u64)> {
    rows.iter().map(|r| (r.app.as_str(), r.period_start_ms, r.requests, r.cpu_micros)).collect()
}

#[test]
fn usage_falls_into_the_hour_in_which_it_was() {
    let (_dir, path) = place();
    let times = [0, HOUR_MS - 1, HOUR_MS, 25 * HOUR_MS];
    written(
        &path,
        times.map(|time_ms| request("shop", time_ms)).into(),
        &[window(1, 3_540, 1), window(1, 3_600, 2), window(1, 7_200, 4)],
    );
    let by = |by| usage(&path, &Query { by: Some(by), ..Query::default() });
    assert_eq!(
        short(&by(Period::Hour)),
        [
            ("shop", Some(0), 2, 1),
            ("shop", Some(HOUR_MS), 1, 2),
            ("shop", Some(2 * HOUR_MS), 0, 4),
            ("shop", Some(25 * HOUR_MS), 1, 0),
        ]
    );
    assert_eq!(
        short(&by(Period::Day)),
        [("shop", Some(0), 3, 7), ("shop", Some(24 * HOUR_MS), 1, 0)]
    );
    let hour = |since_ms, until_ms| {
        usage(&path, &Query { since_ms: Some(since_ms), until_ms, ..Query::default() })
    };
    assert_eq!(short(&hour(HOUR_MS, Some(2 * HOUR_MS))), [("shop", None, 1, 2)]);
    assert_eq!(short(&hour(HOUR_MS - 1, Some(HOUR_MS))), [("shop", None, 1, 0)]);
    assert_eq!(short(&hour(1, None)), [("shop", None, 3, 7)]);
    assert_eq!(short(&hour(u64::MAX, None)), []);
}

#[test]
fn an_app_with_only_requests_or_only_windows_appears() {
    let (_dir, path) = place();
    written(&path, vec![request("blog", 1)], &[window(1, 0, 9)]);
    let all = usage(&path, &Query::default());
    assert_eq!(short(&all), [("blog", None, 1, 0), ("shop", None, 0, 9)]);
    let app = Some(AppName::new("blog").unwrap());
    assert_eq!(short(&usage(&path, &Query { app, ..Query::default() })), [("blog", None, 1, 0)]);
    let provider = Some(ProviderName::new("nobody").unwrap());
    assert_eq!(usage(&path, &Query { provider, ..Query::default() }), []);
}

#[test]
fn errors_are_the_answers_of_500_and_more() {
    let (_dir, path) = place();
    let statuses = [200, 404, 499, 500, 503];
    let requests = statuses.map(|status| RequestRecord { status, ..request("shop", 1) });
    written(&path, requests.into(), &[]);
    let row = total(&path);
    assert_eq!((row.requests, row.errors), (5, 2));
    assert_eq!((row.bytes_in, row.duration_micros_sum, row.wait_micros_sum), (50, 5_000, 5));
}

#[test]
fn a_request_that_got_no_instance_is_refused_and_nothing_else() {
    let (_dir, path) = place();
    let refused = || RequestRecord { instance: None, status: 503, ..request("shop", 1) };
    let none = RequestRecord { app: AppName::new("blog").unwrap(), ..refused() };
    written(&path, vec![request("shop", 1), refused(), refused(), none], &[]);
    let rows = usage(&path, &Query::default());
    let numbers = |row: &UsageRow| {
        let UsageRow { requests, refused, errors, bytes_in, bytes_out, .. } = *row;
        let (duration, wait) = (row.duration_micros_sum, row.wait_micros_sum);
        [requests, refused, errors, bytes_in, bytes_out, duration, wait]
    };
    assert_eq!(numbers(&rows[0]), [0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(numbers(&rows[1]), [1, 2, 0, 10, 100, 1_000, 1]);

    let tariff = crate::model::Tariff {
        requests_per_million_nano: 1_000_000_000,
        egress_per_gib_nano: 1 << 40,
        ..Default::default()
    };
    let bill = crate::meter::charge(&tariff, &rows);
    let amounts: Vec<u128> = bill.lines.iter().map(|line| line.amount_nano).collect();
    assert_eq!(amounts, [0, 0, 0, 0, 0, 0, 1_000, 0, 0, 0, 102_400, 0]);
}

#[test]
fn sums_beyond_64_bits_stay_at_the_greatest_value() {
    let (_dir, path) = place();
    let large = |instance, memory_byte_seconds| WindowRecord {
        memory_byte_seconds,
        ..window(instance, 0, u64::from(u32::MAX))
    };
    let greatest = i64::MAX.cast_unsigned();
    written(&path, vec![], &[large(1, greatest), large(2, greatest)]);
    let row = total(&path);
    assert_eq!(row.memory_byte_seconds, u64::MAX - 1);
    assert_eq!(row.cpu_micros, 2 * u64::from(u32::MAX));
    written(&path, vec![], &[large(3, u64::MAX)]);
    assert_eq!(total(&path).memory_byte_seconds, u64::MAX);
}

#[test]
fn a_query_with_too_many_rows_is_refused_by_name() {
    let (_dir, path) = place();
    written(&path, (0..4).map(|n| request("shop", n * HOUR_MS)).collect(), &[]);
    let mut reader = Ledger::read_only(&path).unwrap();
    reader.max_rows = 3;
    assert_eq!(reader.usage(&Query::default()).unwrap().len(), 1);
    let by_hour = Query { by: Some(Period::Hour), ..Query::default() };
    assert!(matches!(reader.usage(&by_hour), Err(Error::QueryRows { limit: 3 })));
}

#[tokio::test]
async fn usage_is_read_while_the_writer_works() {
    let (_dir, path) = place();
    let (handle, _thread) = Ledger::open(&path).unwrap().start().unwrap();
    handle.request(request("shop", 1)).await.unwrap();
    handle.flush().await.unwrap();
    let _blocked = block(&path);
    let rows = handle.usage(Query::default()).await.unwrap();
    assert_eq!(short(&rows), [("shop", None, 1, 0)]);
}

#[tokio::test]
async fn a_query_that_takes_too_long_is_interrupted() {
    let (_dir, path) = place();
    written(&path, (0..50_000).map(|n| request("shop", n)).collect(), &[]);
    let permits = Arc::new(Semaphore::new(1));
    let all = Query { by: Some(Period::Hour), ..Query::default() };
    let query = |deadline| {
        query::usage_with_deadline(path.clone(), all.clone(), Arc::clone(&permits), deadline)
    };
    let short = query(Duration::from_millis(2)).await;
    assert!(matches!(short, Err(Error::QueryDeadline)), "{short:?}");
    // Its place is free again, so the next query is answered.
    assert_eq!(query(QUERY_DEADLINE).await.unwrap().len(), 1);
}
