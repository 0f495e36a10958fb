//! Every metric, declared once, and the shape of log lines.
//!
//! Names are an interface: `edgepoint_<part>_<what>_<unit>[_total]`, base units, labels from
//! configuration or enums only, never from input.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::model::AppName;

const WAKES: &str = "edgepoint_manager_wakes_total";
const WAKE_SECONDS: &str = "edgepoint_manager_wake_seconds";
const WAKE_FAILURES: &str = "edgepoint_manager_wake_failures_total";
const PARK_FAILURES: &str = "edgepoint_manager_park_failures_total";
const STATE_LOST: &str = "edgepoint_manager_state_lost_total";
const CRASHES: &str = "edgepoint_manager_crashes_total";
const INSTANCES: &str = "edgepoint_manager_instances";
const RECORDS: &str = "edgepoint_meter_records_total";
const RECORDS_LOST: &str = "edgepoint_meter_records_lost_total";
const COMMIT_SECONDS: &str = "edgepoint_meter_commit_seconds";
const SATURATED: &str = "edgepoint_meter_saturated_total";
const REFUSALS: &str = "edgepoint_dispatch_refusals_total";
const REQUESTS: &str = "edgepoint_dispatch_requests_total";
const REQUEST_SECONDS: &str = "edgepoint_dispatch_request_seconds";
const WAIT_SECONDS: &str = "edgepoint_dispatch_wait_seconds";

const WAKE_BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Installs the recorder; the handle renders what `/metrics` answers.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &WAKE_BUCKETS)?
        .install_recorder()?;
    describe_counter!(WAKES, "Instances that became ready, by app and by how");
    describe_histogram!(WAKE_SECONDS, "Time from the decision to wake until requests are let in");
    describe_counter!(WAKE_FAILURES, "Starts and restores that failed");
    describe_counter!(PARK_FAILURES, "Appshots that could not be taken");
    describe_counter!(STATE_LOST, "Times that kept state was lost");
    describe_counter!(CRASHES, "Instances that ended by themselves");
    describe_gauge!(INSTANCES, "Instances by state; an app without one counts by how it sleeps");
    describe_counter!(RECORDS, "Records committed to the ledger, by kind");
    describe_counter!(RECORDS_LOST, "Records not taken or not written, by kind");
    describe_histogram!(COMMIT_SECONDS, "Time of a commit of the ledger, its fsync included");
    describe_counter!(SATURATED, "Numbers cut to the greatest that the ledger or a sum can hold");
    describe_counter!(REFUSALS, "Answers of our own with an error code, by code and who must act");
    describe_counter!(REQUESTS, "Requests by app and by class of status");
    describe_histogram!(REQUEST_SECONDS, "Time from a request's head to the end of its answer");
    describe_histogram!(WAIT_SECONDS, "Time that requests waited for an instance");
    Ok(handle)
}

/// An instance became ready.
pub fn woke(app: &AppName, restored: bool, took: Duration) {
    let how = if restored { "restore" } else { "cold" };
    counter!(WAKES, "app" => app.to_string(), "how" => how).increment(1);
    histogram!(WAKE_SECONDS, "app" => app.to_string(), "how" => how).record(took.as_secs_f64());
}

/// A start or restore failed.
pub fn wake_failed(app: &AppName) {
    counter!(WAKE_FAILURES, "app" => app.to_string()).increment(1);
}

/// An appshot could not be taken.
pub fn park_failed(app: &AppName) {
    counter!(PARK_FAILURES, "app" => app.to_string()).increment(1);
}

/// Kept state is lost.
pub fn state_lost(app: &AppName) {
    counter!(STATE_LOST, "app" => app.to_string()).increment(1);
}

/// An instance ended by itself.
pub fn crashed(app: &AppName) {
    counter!(CRASHES, "app" => app.to_string()).increment(1);
}

/// How many instances there are, by state.
pub fn instances(counts: impl Iterator<Item = (&'static str, u32)>) {
    for (state, count) in counts {
        gauge!(INSTANCES, "state" => state).set(count);
    }
}

/// A request was answered. `app` is empty for what policy answered.
pub fn request(app: &str, status: u16, took: Duration, waited: Option<Duration>) {
    let class = match status {
        // Nothing was answered: the client has gone.
        0 => "none",
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    counter!(REQUESTS, "app" => app.to_string(), "class" => class).increment(1);
    histogram!(REQUEST_SECONDS, "app" => app.to_string()).record(took.as_secs_f64());
    if let Some(waited) = waited {
        histogram!(WAIT_SECONDS, "app" => app.to_string()).record(waited.as_secs_f64());
    }
}

/// An error and all that is behind it, as `a: b: c`. A reason that its error already repeated is
/// left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        let words = reason.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = reason.source();
    }
    text
}

/// Records were committed to the ledger.
pub fn records(kind: &'static str, count: u64) {
    counter!(RECORDS, "kind" => kind).increment(count);
}

/// Records did not reach the ledger.
pub fn records_lost(kind: &'static str, count: u64) {
    counter!(RECORDS_LOST, "kind" => kind).increment(count);
}

/// The ledger committed.
pub fn committed(took: Duration) {
    histogram!(COMMIT_SECONDS).record(took.as_secs_f64());
}

/// Numbers were cut to what can be held.
pub fn saturated(count: u64) {
    counter!(SATURATED).increment(count);
}

/// A request was answered with an error of ours.
pub fn refused(code: &'static str, blame: &'static str) {
    counter!(REFUSALS, "code" => code, "blame" => blame).increment(1);
}

/// Whole milliseconds, as log fields carry them.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read: {0}")]
    struct Repeats(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("no ledger")]
    struct Silent(#[source] Repeats);

    #[test]
    fn a_reason_is_not_said_twice() {
        let error = Silent(Repeats(std::io::Error::other("disk is full")));
        assert_eq!(chain(&error), "no ledger: cannot read: disk is full");
    }
}
