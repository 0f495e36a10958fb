//! `edgepoint.toml`: where this edgepoint listens, where it keeps things, what it may use and what
//! usage costs, to a checked [`Config`].
//!
//! It relies on [`super::reader`] for types, ranges and unknown keys; here are the defaults, each
//! with its reason, and what must not be said together. It reads no files and binds no sockets.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use crate::{model::Tariff, report::Report};

use super::{
    reader::{self, Table, Text},
    tariff,
};

/// Where Linux keeps what a service must still have after a reboot.
const DEFAULT_STATE: &str = "/var/lib/edgepoint";
/// Where Linux keeps sockets and other things of this boot.
const DEFAULT_RUN: &str = "/run/edgepoint";
/// Beside `edgepoint.toml`, so that both are one directory to copy.
pub(super) const DEFAULT_POLICIES: &str = "policies";
/// Where our own build of CRIU is installed: the one of the distribution is usually too old.
const DEFAULT_CRIU: &str = "/opt/edgepoint/criu";
/// Above the users of the system (65535) and the first block of subordinate ids (165535).
const DEFAULT_FIRST_UID: u32 = 200_000;
/// Above every user of the system (65535), the one below it being the proxy's, and low enough that
/// no instance's uid passes the last one.
const FIRST_UID: RangeInclusive<u32> = 65_537..=4_000_000_000;
/// A hundred times what a restore takes; a client waits meanwhile.
const DEFAULT_RESTORE_TIMEOUT: Duration = Duration::from_secs(10);
/// A GiB of memory written to a slow disk; nobody waits for it.
const DEFAULT_DUMP_TIMEOUT: Duration = Duration::from_secs(30);
/// No act of the agent is useful for longer; zero would never succeed.
const AGENT_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3_600);
/// Fits into a GiB of memory and below the usual limit of open files.
const DEFAULT_CONNECTIONS: u32 = 10_000;
/// What one machine can hold without a table of file descriptors per user.
const MAX_CONNECTIONS: u32 = 1_000_000;
/// A machine of 16 GiB with apps of 64 MiB.
const DEFAULT_INSTANCES: u32 = 200;
/// Each needs a network namespace and an address of its own.
const MAX_INSTANCES: u32 = 10_000;
/// Short enough that a crash loses little usage, long enough that the ledger is no load.
const DEFAULT_SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Below it the ledger writes all the time; above it a level between two samples is not believed.
const SAMPLE_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(15);

/// One edgepoint, as its operator declared it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where clients and the metrics scraper connect.
    pub listen: Listen,
    /// Where things are kept.
    pub directories: Directories,
    /// What the agent needs to know.
    pub agent: Agent,
    /// What the whole edgepoint may use.
    pub limits: Limits,
    /// How usage is recorded.
    pub meter: Meter,
    /// What usage costs.
    pub tariff: Tariff,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// HTTP/1.1, at least one.
    pub http: Vec<SocketAddr>,
    /// Prometheus metrics, if anywhere.
    pub metrics: Option<SocketAddr>,
}

/// `[directories]`; relative ones were made relative to the directory of `edgepoint.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// What outlives a reboot: releases, appshots, the ledger. Never below `/run`.
    pub state: PathBuf,
    /// What does not: sockets, namespaces, work directories.
    pub run: PathBuf,
    /// The policy files.
    pub policies: PathBuf,
}

/// `[agent]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The directory with CRIU's `lib/` and `sbin/`.
    pub criu: PathBuf,
    /// Apps run as this user id and those above it.
    pub first_uid: u32,
    /// The user that the proxy runs as; without one the id below `first_uid`, which nobody else has.
    pub proxy_user: Option<String>,
    /// Deadline of one restore.
    pub restore_timeout: Duration,
    /// Deadline of taking one appshot.
    pub dump_timeout: Duration,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at once.
    pub connections: u32,
    /// Instances in memory at once.
    pub instances: u32,
}

/// `[meter]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    /// How often instances are sampled and their usage is written to the ledger.
    pub sample_interval: Duration,
}

/// Reads `edgepoint.toml`; `file` is the name that problems are shown under, `base` the directory
/// that relative paths begin at.
pub fn parse(file: &str, text: &str, base: &Path, report: &mut Report) -> Option<Config> {
    parse_parts(file, text, base, report).1
}

/// The same, and the directory of policies even if something else is wrong, so that the problems
/// of those can be shown at once.
pub(super) fn parse_parts(
    file: &str,
    text: &str,
    base: &Path,
    report: &mut Report,
) -> (PathBuf, Option<Config>) {
    let mut policies = base.join(DEFAULT_POLICIES);
    let config = reader::read(file, text, report, |root| {
        let listen = listen(root);
        let directories = directories(root, base);
        policies.clone_from(&directories.policies);
        let agent = agent(root, base);
        let limits = limits(root);
        let meter = meter(root);
        let tariff = tariff::read(root);
        Some(Config { listen, directories, agent, limits, meter, tariff })
    });
    (policies, config)
}

fn listen(root: &mut Table<'_>) -> Listen {
    let mut table = root.table("listen");
    table.require("http", "[listen] http = [\"127.0.0.1:8080\"]");
    let array = table.value("http").and_then(|value| value.get_ref().as_array());
    if array.is_some_and(|array| array.is_empty()) {
        let span = table.span_of("http");
        table.error_hint(span, "no address to listen on", "http = [\"127.0.0.1:8080\"]");
    }
    let mut taken = BTreeSet::new();
    let mut http = Vec::new();
    for text in table.texts("http").unwrap_or_default() {
        http.extend(address(&table, text, &mut taken));
    }
    let metrics = table.text("metrics").and_then(|text| address(&table, text, &mut taken));
    table.finish();
    Listen { http, metrics }
}

/// An address that is not taken yet; port 0 is a new port each time.
fn address(
    table: &Table<'_>,
    Text { text, span }: Text<'_>,
    taken: &mut BTreeSet<SocketAddr>,
) -> Option<SocketAddr> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        let hint = "an IP address and a port, such as \"127.0.0.1:8080\", \"0.0.0.0:80\" or \
                    \"[::]:80\"";
        table.error_hint(Some(span), format!("bad address {text:?}"), hint);
        return None;
    };
    if address.port() != 0 && !taken.insert(address) {
        table.error(Some(span), format!("{address} is listened on already"));
    }
    Some(address)
}

fn directories(root: &mut Table<'_>, base: &Path) -> Directories {
    let mut table = root.table("directories");
    let state = path(&mut table, "state", DEFAULT_STATE, base);
    let run = path(&mut table, "run", DEFAULT_RUN, base);
    let policies = path(&mut table, "policies", DEFAULT_POLICIES, base);
    let plain = resolved(&state);
    if plain.starts_with("/run") || plain.starts_with("/var/run") {
        let message = "state must outlive a reboot, and /run does not";
        let hint = format!("such as {DEFAULT_STATE:?}, the default");
        table.error_hint(table.span_of("state"), message, hint);
    }
    if plain == resolved(&run) {
        let message = "state and run must not be the same directory";
        table.error_hint(table.span_of("run"), message, format!("such as {DEFAULT_RUN:?}"));
    }
    table.finish();
    Directories { state, run, policies }
}

fn path(table: &mut Table<'_>, key: &'static str, default: &str, base: &Path) -> PathBuf {
    let text = table.text(key);
    match text {
        Some(Text { text: "", span }) => {
            table.error(Some(span), "the path is empty");
            base.join(default)
        }
        Some(Text { text, .. }) => base.join(text),
        None => base.join(default),
    }
}

/// The path without `.` and `..`, as written: links are not followed.
fn resolved(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

fn agent(root: &mut Table<'_>, base: &Path) -> Agent {
    let mut table = root.table("agent");
    let criu = path(&mut table, "criu", DEFAULT_CRIU, base);
    let first_uid = table.integer("first_uid", FIRST_UID).unwrap_or(DEFAULT_FIRST_UID);
    let proxy_user = table.text("proxy_user").map(|user| {
        if user.text.trim().is_empty() {
            let hint = "such as \"edgepoint\"; without the key it has an id of its own";
            table.error_hint(Some(user.span), "the user has no name", hint);
        } else if user.text == "root" {
            let hint = "the proxy faces clients and needs no rights; leave the key out";
            table.error_hint(Some(user.span), "the proxy must not run as root", hint);
        }
        user.text.to_owned()
    });
    let restore = table.duration("restore_timeout", AGENT_TIMEOUT);
    let dump = table.duration("dump_timeout", AGENT_TIMEOUT);
    table.finish();
    Agent {
        criu,
        first_uid,
        proxy_user,
        restore_timeout: restore.unwrap_or(DEFAULT_RESTORE_TIMEOUT),
        dump_timeout: dump.unwrap_or(DEFAULT_DUMP_TIMEOUT),
    }
}

fn limits(root: &mut Table<'_>) -> Limits {
    let mut table = root.table("limits");
    let connections = table.integer("connections", 1..=MAX_CONNECTIONS);
    let instances = table.integer("instances", 1..=MAX_INSTANCES);
    table.finish();
    Limits {
        connections: connections.unwrap_or(DEFAULT_CONNECTIONS),
        instances: instances.unwrap_or(DEFAULT_INSTANCES),
    }
}

fn meter(root: &mut Table<'_>) -> Meter {
    let mut table = root.table("meter");
    let interval = table.duration("sample_interval", SAMPLE_INTERVAL);
    table.finish();
    Meter { sample_interval: interval.unwrap_or(DEFAULT_SAMPLE_INTERVAL) }
}

#[cfg(test)]
mod tests;
