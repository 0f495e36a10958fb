//! `app.toml`: what a provider says about an app, in the manner of fly.toml, to a checked [`App`].
//!
//! It relies on [`super::reader`] for types, ranges and unknown keys; here are the defaults, each
//! with its reason, and what must not be said together. It reads no files and does not look
//! whether the command exists: that is inside the app's root file system.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use crate::{
    model::{
        App, AppName, Bytes, Concurrency, Health, Limits, OnLostState, Process, Scale, Sleep,
        Snapshot, State, Wake,
    },
    report::Report,
};

use super::reader::{self, Table, Text};

/// The port that most platforms and frameworks agree on.
const DEFAULT_PORT: u16 = 8080;
/// Long enough for a busy app's answer to a trivial request, short enough to look again soon.
const DEFAULT_HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// A large JVM or Node app starts within it.
const DEFAULT_GRACE_PERIOD: Duration = Duration::from_secs(30);
/// Holds a small app of any common language; more must be asked for, because it is charged.
const DEFAULT_MEMORY: Bytes = Bytes(512 << 20);
/// Less than this no process with a libc starts in.
const MIN_MEMORY: Bytes = Bytes(4 << 20);
/// More than any machine that runs this.
const MAX_MEMORY: Bytes = Bytes(1 << 40);
/// One core: what a single-threaded app can use.
const DEFAULT_CPU_MILLIS: u32 = 1_000;
/// From a hundredth of a core, where the scheduler's periods end, to the largest machines.
const CPU_CORES: RangeInclusive<f64> = 0.01..=1024.0;
/// Room for the thread pools of common runtimes, and little for a fork bomb.
const DEFAULT_PIDS: u32 = 256;
/// An app and its init at least; the kernel's own default limit at most.
const PIDS: RangeInclusive<u32> = 2..=32_768;
/// An app that nobody asks for costs nothing.
const DEFAULT_SCALE_MIN: u32 = 0;
/// One, because kept state can live only once.
const DEFAULT_SCALE_MAX: u32 = 1;
/// More instances than one edgepoint can hold.
const MAX_SCALE: u32 = 1_000;
/// What an event loop or a usual thread pool serves at once.
const DEFAULT_CONCURRENCY: u32 = 100;
/// More open requests than one instance has file descriptors for.
const MAX_CONCURRENCY: u32 = 100_000;
/// As long as browsers' users wait at most; a restore takes a fraction of it.
const DEFAULT_WAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// A burst of visitors to one app; each holds a connection and a few KiB meanwhile.
const DEFAULT_MAX_PENDING: u32 = 2_048;
/// As many as connections that one edgepoint should hold for one app.
const MAX_PENDING: u32 = 100_000;
/// Longer than a person reads one page, so that a visit does not wake the app twice.
const DEFAULT_PARK_AFTER: Duration = Duration::from_secs(5 * 60);
/// Waiting longer than a year is `"never"`.
const MAX_PARK_AFTER: Duration = Duration::from_secs(365 * 24 * 3_600);
/// No wait of a client or a start is useful for longer; zero would never succeed.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3_600);
/// What people lose least by: the app goes on as if it had never slept.
const DEFAULT_STATE: State = State::Keep;
/// A site that answers, if forgetful, is better than one that is down; an event says so.
const DEFAULT_ON_LOST_STATE: OnLostState = OnLostState::Cold;
/// Two instances with the same random state, ids and connections surprise: ask for it.
const DEFAULT_CLONABLE: bool = false;
/// The process of an app that has only one.
const DEFAULT_PROCESS: &str = "app";
/// Processes started by us; an app with more has its own supervisor.
const MAX_PROCESSES: usize = 32;
/// Warm-up requests: each delays every release.
const MAX_WARM_UP: usize = 100;

/// Reads `app.toml`; `file` is the name that problems are shown under.
pub fn parse(file: &str, text: &str, report: &mut Report) -> Option<App> {
    reader::read(file, text, report, |root| {
        root.require("name", "name = \"shop\": a-z, 0-9 and '-', at most 40 of them");
        root.require("provider", "provider = \"acme\": who owns the app and pays for it");
        let name = root.name::<AppName>("name");
        let provider = root.name("provider");
        let processes = processes(root);
        let env = env(root);
        let internal_port = root.integer("internal_port", 1..=u16::MAX);
        let health = health(root);
        let limits = limits(root);
        let mut scale_table = root.table("scale");
        let scale = scale(&mut scale_table);
        let concurrency = concurrency(root);
        let wake = wake(root);
        let sleep = sleep(root, &scale, &scale_table);
        scale_table.finish();
        let clonable = root.boolean("clonable").unwrap_or(DEFAULT_CLONABLE);
        let snapshot = snapshot(root);
        Some(App {
            name: name?,
            provider: provider?,
            processes,
            env,
            internal_port: internal_port.unwrap_or(DEFAULT_PORT),
            health,
            limits,
            scale,
            concurrency,
            wake,
            sleep,
            clonable,
            snapshot,
        })
    })
}

fn processes(root: &mut Table<'_>) -> Vec<Process> {
    let both = root.has("command") && root.has("process");
    if both {
        let message = "command and [[process]] exclude each other";
        let hint = "move the command into a [[process]] of its own";
        root.error_hint(root.key_span("command"), message, hint);
    }
    if !root.has("process") {
        root.require("command", "command = [\"/bin/server\", \"--port\", \"8080\"]");
    }
    let single = command(root);
    let mut tables = root.tables("process");
    if let Some(table) = tables.get(MAX_PROCESSES) {
        let message = format!("more than {MAX_PROCESSES} processes");
        table.error_hint(table.span(), message, "start a supervisor that starts the rest");
        tables.truncate(MAX_PROCESSES);
    }
    let mut processes = Vec::new();
    let mut names = BTreeSet::new();
    for mut table in tables {
        table.require("name", "name = \"web\": it stands in logs and messages");
        table.require("command", "command = [\"/bin/server\", \"--port\", \"8080\"]");
        let name = table.name::<AppName>("name");
        if let Some(name) = &name
            && !names.insert(name.clone())
        {
            table.error(table.span_of("name"), format!("a second process named \"{name}\""));
        }
        if let (Some(name), Some(command)) = (name, command(&mut table)) {
            processes.push(Process { name: name.to_string(), command });
        }
        table.finish();
    }
    if !both && let Some(command) = single {
        processes.push(Process { name: DEFAULT_PROCESS.into(), command });
    }
    processes
}

/// An argument vector, or one text that is split on blanks and nothing else.
fn command(table: &mut Table<'_>) -> Option<Vec<String>> {
    let span = table.span_of("command");
    if let Some(array) = table.value("command")?.get_ref().as_array() {
        if array.is_empty() {
            table.error(span, "the command is empty");
        }
        let words = table.texts("command")?;
        if let Some(first) = words.first().filter(|first| first.text.is_empty()) {
            table.error(Some(first.span.clone()), "the program has no name");
        }
        return Some(words.into_iter().map(|word| word.text.to_owned()).collect());
    }
    let Text { text, span } = table.text("command")?;
    if let Some(special) = text.chars().find(|c| "'\"$|;&<>`\\".contains(*c)) {
        let message = format!("{special:?} means nothing here: no shell reads the command");
        let hint = "write an array, [\"/bin/server\", \"an argument\"], or call a shell: \
                    [\"sh\", \"-c\", \"...\"]";
        table.error_hint(Some(span), message, hint);
        return None;
    }
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        table.error(Some(span), "the command is empty");
    }
    Some(words)
}

fn env(root: &mut Table<'_>) -> BTreeMap<String, String> {
    let mut table = root.table("env");
    let mut env = BTreeMap::new();
    for (key, value) in table.pairs() {
        let begins = key.text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !begins || !key.text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let message = format!("bad name of a variable: {:?}", key.text);
            table.error_hint(Some(key.span), message, "use A-Z, a-z, 0-9 and '_', no digit first");
        } else if key.text == "PORT" {
            let hint = "say where the app listens with internal_port; PORT will be the same";
            table.error_hint(Some(key.span), "PORT is set by the edgepoint", hint);
        } else {
            env.insert(key.text.to_owned(), value.text.to_owned());
        }
    }
    table.finish();
    env
}

fn health(root: &mut Table<'_>) -> Health {
    let mut table = root.table("health");
    let path = request_path(&mut table, "path");
    let timeout = table.duration("timeout", TIMEOUT).unwrap_or(DEFAULT_HEALTH_TIMEOUT);
    let grace_period = table.duration("grace_period", TIMEOUT).unwrap_or(DEFAULT_GRACE_PERIOD);
    table.finish();
    Health { path, timeout, grace_period }
}

fn limits(root: &mut Table<'_>) -> Limits {
    let mut table = root.table("limits");
    let memory = table.bytes("memory", MIN_MEMORY..=MAX_MEMORY).unwrap_or(DEFAULT_MEMORY);
    let cpu_millis = cpu_millis(&mut table).unwrap_or(DEFAULT_CPU_MILLIS);
    let pids = table.integer("pids", PIDS).unwrap_or(DEFAULT_PIDS);
    table.finish();
    Limits { memory, cpu_millis, pids }
}

/// A number of cores, whole or not, in thousandths.
fn cpu_millis(table: &mut Table<'_>) -> Option<u32> {
    let value = table.value("cpu")?;
    let cores = match (value.get_ref().as_integer(), value.get_ref().as_float()) {
        (Some(integer), _) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map_or(f64::INFINITY, |cores| cores as f64),
        (_, Some(float)) => float.as_str().parse().unwrap_or(f64::NAN),
        _ => {
            let hint = "a number of cores, such as 2 or 0.5".to_owned();
            table.mismatch(value, "a number", Some(hint));
            return None;
        }
    };
    if !CPU_CORES.contains(&cores) {
        let (low, high) = (CPU_CORES.start(), CPU_CORES.end());
        table.error(Some(value.span()), format!("not between {low} and {high} cores"));
        return None;
    }
    Some((cores * 1_000.0).round() as u32)
}

fn scale(table: &mut Table<'_>) -> Scale {
    let min = table.integer("min", 0..=MAX_SCALE).unwrap_or(DEFAULT_SCALE_MIN);
    let max = table.integer("max", 1..=MAX_SCALE);
    if min > max.unwrap_or(DEFAULT_SCALE_MAX) && (max.is_some() || !table.has("max")) {
        let max = max.unwrap_or(DEFAULT_SCALE_MAX);
        let message = format!("min is {min}, more than max, which is {max}");
        table.error_hint(table.span_of("min"), message, format!("write max = {min} or more"));
    }
    Scale { min, max: max.unwrap_or(DEFAULT_SCALE_MAX) }
}

fn concurrency(root: &mut Table<'_>) -> Concurrency {
    let mut table = root.table("concurrency");
    let hard = table.integer("hard", 1..=MAX_CONCURRENCY).unwrap_or(DEFAULT_CONCURRENCY);
    table.finish();
    Concurrency { hard }
}

fn wake(root: &mut Table<'_>) -> Wake {
    let mut table = root.table("wake");
    let timeout = table.duration("timeout", TIMEOUT).unwrap_or(DEFAULT_WAKE_TIMEOUT);
    let max_pending = table.integer("max_pending", 1..=MAX_PENDING).unwrap_or(DEFAULT_MAX_PENDING);
    table.finish();
    Wake { timeout, max_pending }
}

fn sleep(root: &mut Table<'_>, scale: &Scale, scale_table: &Table<'_>) -> Sleep {
    let mut table = root.table("sleep");
    let never =
        table.value("park_after").is_some_and(|value| value.get_ref().as_str() == Some("never"));
    let given = if never {
        None
    } else {
        table.duration("park_after", Duration::from_millis(1)..=MAX_PARK_AFTER)
    };
    if given.is_some() && scale.min >= 1 && scale.min == scale.max {
        let message = format!("it can never park: scale.min keeps all {} running", scale.min);
        let hint = "lower scale.min, or leave park_after out";
        table.error_hint(table.span_of("park_after"), message, hint);
    }
    let states = [("keep", State::Keep), ("discard", State::Discard)];
    let state = table.choice("state", &states);
    let state_is_wrong = table.has("state") && state.is_none();
    let state = state.unwrap_or(DEFAULT_STATE);
    if state == State::Keep && scale.max > 1 && !state_is_wrong {
        let message = "kept state lives in one instance only, there cannot be more";
        let hint = "write max = 1, or [sleep] state = \"discard\"";
        scale_table.error_hint(scale_table.span_of("max"), message, hint);
    }
    let answers = [("cold", OnLostState::Cold), ("error", OnLostState::Error)];
    let on_lost_state = table.choice("on_lost_state", &answers);
    if on_lost_state.is_some() && state == State::Discard {
        let message = "state that is discarded cannot be lost";
        let hint = "leave on_lost_state out, or write state = \"keep\"";
        table.error_hint(table.span_of("on_lost_state"), message, hint);
    }
    table.finish();
    Sleep {
        park_after: if never { None } else { Some(given.unwrap_or(DEFAULT_PARK_AFTER)) },
        state,
        on_lost_state: on_lost_state.unwrap_or(DEFAULT_ON_LOST_STATE),
    }
}

fn snapshot(root: &mut Table<'_>) -> Snapshot {
    let mut table = root.table("snapshot");
    let mut warm_up = Vec::new();
    for text in table.texts("warm_up").unwrap_or_default() {
        if warm_up.len() == MAX_WARM_UP {
            table.error(Some(text.span), format!("more than {MAX_WARM_UP} warm-up requests"));
            break;
        }
        warm_up.extend(checked_path(&table, text));
    }
    let after_restore = request_path(&mut table, "after_restore");
    table.finish();
    Snapshot { warm_up, after_restore }
}

fn request_path(table: &mut Table<'_>, key: &'static str) -> Option<String> {
    let text = table.text(key)?;
    checked_path(table, text)
}

/// A path that can stand in a request line as it is.
fn checked_path(table: &Table<'_>, Text { text, span }: Text<'_>) -> Option<String> {
    if !text.starts_with('/') {
        let hint = format!("write {:?}", format!("/{text}"));
        table.error_hint(Some(span), format!("the path {text:?} does not begin with '/'"), hint);
        return None;
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic()) {
        let message = format!("the path must not hold {bad:?}");
        table.error_hint(Some(span), message, "percent-encode it, a blank as %20");
        return None;
    }
    Some(text.to_owned())
}

#[cfg(test)]
mod tests;
