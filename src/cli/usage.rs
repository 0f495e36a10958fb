//! `edgepoint usage`: what apps used, from the running edgepoint or, where none runs, from the
//! ledger itself, which is opened for reading only.
//!
//! The options that choose what to sum up are here for `bill` as well.

use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;

use super::{
    Context, Wrong, context,
    table::{
        Align::{Left, Right},
        Table,
    },
    time,
    units::{cpu, gib_hours, mean},
};
use crate::{
    clock,
    conduit::client::Error,
    config::Config,
    meter::{Ledger, Owner, Period, Query, UsageRow},
    model::{AppName, Bytes, ProviderName},
};

/// Where the ledger is, below the state directory.
const LEDGER: &str = "proxy/ledger.db";

/// Show requests, traffic, CPU, memory and wakes of apps.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Requests that got no instance are counted as refused, and in nothing else; \
they cost nothing.\n\nExamples:
  edgepoint usage
  edgepoint usage --app shop --since 24h --by hour
  edgepoint usage --provider acme --since 2026-01-01 --until 2026-02-01 --by day"
)]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// One row per app and period (UTC) instead of one per app
    #[arg(long, value_name = "PERIOD")]
    by: Option<By>,
}

/// Which usage to sum up.
#[derive(Debug, clap::Args)]
pub struct Choice {
    /// Only this app
    #[arg(long, value_name = "APP")]
    app: Option<AppName>,
    /// Only apps of this provider
    #[arg(long, value_name = "PROVIDER")]
    provider: Option<ProviderName>,
    /// From this moment on: 24h (ago), 2026-01-31, 2026-01-31T08:00:00Z, or Unix milliseconds
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Until before this moment, in the same forms
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Hour,
    Day,
}

impl Choice {
    /// The query that asks for it.
    pub fn query(&self, by: Option<Period>) -> Result<Query, Wrong> {
        let now = clock::wall();
        let moment = |name: &str, text: &Option<String>| {
            let moment = text.as_ref().map(|text| time::parse(text, now)).transpose();
            moment.map_err(|error| Wrong(format!("--{name}: {error}")))
        };
        let since_ms = moment("since", &self.since)?;
        let until_ms = moment("until", &self.until)?;
        if let (Some(since), Some(until)) = (since_ms, until_ms)
            && since >= until
        {
            return Err(Wrong("--until must be later than --since".into()));
        }
        let (app, provider) = (self.app.clone(), self.provider.clone());
        Ok(Query { provider, app, since_ms, until_ms, by })
    }
}

/// Runs the command.
pub async fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let by = arguments.by.map(|by| match by {
        By::Hour => Period::Hour,
        By::Day => Period::Day,
    });
    let query = arguments.choice.query(by)?;
    let settings = context.settings()?;
    let rows = match context::client(&settings).usage(&query).await {
        Err(error) if is_absent(&error) => from_ledger(&settings, &query)?,
        other => other?,
    };
    context.show(&rows, |rows| text(rows, by.is_some()))
}

/// Whether no edgepoint runs here.
pub fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NotRunning { .. })
}

/// Reads usage without an edgepoint.
pub fn from_ledger(settings: &Config, query: &Query) -> anyhow::Result<Vec<UsageRow>> {
    let path = settings.directories.state.join(LEDGER);
    eprintln!("no edgepoint runs here; reading the ledger {}", path.display());
    read(&path, query)
}

fn read(path: &Path, query: &Query) -> anyhow::Result<Vec<UsageRow>> {
    let exists = path.try_exists();
    if !exists.with_context(|| format!("cannot look for the ledger {}", path.display()))? {
        anyhow::bail!("there is no ledger {} yet: nothing was ever used here", path.display());
    }
    Ok(Ledger::read_only(path)?.usage(query)?)
}

fn text(rows: &[UsageRow], by_period: bool) -> String {
    let Some(first) = rows.first() else {
        return "no usage\n".into();
    };
    let mut columns = vec![("provider", Left), ("app", Left)];
    if by_period {
        columns.insert(0, ("from (utc)", Left));
    }
    let numbers = [
        "requests",
        "errors",
        "refused",
        "in",
        "out",
        "wakes",
        "cpu",
        "memory GiB·h",
        "image GiB·h",
        "mean time",
        "mean wait",
    ];
    columns.extend(numbers.map(|name| (name, Right)));
    let mut table = Table::new(columns);
    let owner = Owner { provider: first.provider.clone(), app: first.app.clone() };
    let mut total = UsageRow::zero(owner, None);
    for row in rows {
        let mut names = vec![row.provider.to_string(), row.app.to_string()];
        if by_period {
            names.insert(0, row.period_start_ms.map(time::minute).unwrap_or_default());
        }
        table.row(names.into_iter().chain(cells(row)));
        add(&mut total, row);
    }
    if rows.len() > 1 {
        let mut names = vec!["total".to_owned()];
        names.resize(if by_period { 3 } else { 2 }, String::new());
        table.row(names.into_iter().chain(cells(&total)));
    }
    table.to_string()
}

fn cells(row: &UsageRow) -> [String; 11] {
    [
        row.requests.to_string(),
        row.errors.to_string(),
        row.refused.to_string(),
        Bytes(row.bytes_in).to_string(),
        Bytes(row.bytes_out).to_string(),
        row.wakes.to_string(),
        cpu(row.cpu_micros),
        gib_hours(row.memory_byte_seconds),
        gib_hours(row.image_byte_seconds),
        mean(row.duration_micros_sum, row.requests),
        mean(row.wait_micros_sum, row.requests),
    ]
}

/// Sums stay at the greatest value, as those of the ledger do.
fn add(total: &mut UsageRow, row: &UsageRow) {
    for (sum, value) in [
        (&mut total.requests, row.requests),
        (&mut total.errors, row.errors),
        (&mut total.refused, row.refused),
        (&mut total.bytes_in, row.bytes_in),
        (&mut total.bytes_out, row.bytes_out),
        (&mut total.wakes, row.wakes),
        (&mut total.cpu_micros, row.cpu_micros),
        (&mut total.memory_byte_seconds, row.memory_byte_seconds),
        (&mut total.image_byte_seconds, row.image_byte_seconds),
        (&mut total.duration_micros_sum, row.duration_micros_sum),
        (&mut total.wait_micros_sum, row.wait_micros_sum),
    ] {
        *sum = sum.saturating_add(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(app: &str, requests: u64) -> UsageRow {
        let owner =
            Owner { provider: ProviderName::new("acme").unwrap(), app: AppName::new(app).unwrap() };
        let micros = requests * 840;
        let start = Some(1_800_000_000_000);
        let zero = UsageRow::zero(owner, start);
        UsageRow { requests, refused: 1, duration_micros_sum: micros, ..zero }
    }

    #[test]
    fn rows_have_a_total_that_is_their_sum() {
        let printed = text(&[row("a", 2), row("b", 3)], false);
        let total = printed.lines().last().unwrap();
        assert!(
            total.starts_with("total ") && total.contains(" 5       0        2  0 B "),
            "{printed}"
        );
        assert!(!text(&[row("a", 2)], false).contains("total"));
        assert!(text(&[row("a", 2)], true).contains("2027-01-15 08:00  acme"));
        assert_eq!(text(&[], true), "no usage\n");
    }

    #[test]
    fn a_time_that_runs_backwards_is_refused() {
        let choice = |since: &str, until: &str| Choice {
            app: None,
            provider: None,
            since: Some(since.into()),
            until: Some(until.into()),
        };
        assert!(choice("2h", "1h").query(None).is_ok());
        assert!(choice("1h", "2h").query(None).is_err());
        assert!(choice("1h", "soon").query(None).unwrap_err().to_string().contains("--until"));
    }

    #[test]
    fn a_ledger_that_was_never_written_is_an_error_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let error = read(&directory.path().join(LEDGER), &Query::default()).unwrap_err();
        assert!(error.to_string().contains("nothing was ever used"), "{error}");
    }

    #[test]
    fn usage_is_read_without_an_edgepoint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        drop(Ledger::open(&path).unwrap());
        assert_eq!(read(&path, &Query::default()).unwrap(), vec![]);
    }
}
