//! The walls themselves: tables, and one pure function for each that turns a file into findings.

use std::collections::BTreeSet;

use crate::scan::{self, Named, Token};

/// Who may name whom by `crate::X`, outside of tests; naming oneself is always allowed. The longest
/// name that fits counts. `*` is everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("docs", &[]),
    ("supervisor", &["model", "clock", "os", "agent", "config", "conduit", "edgepoint"]),
    ("clock", &[]),
    ("report", &[]),
    ("os", &["model"]),
    ("telemetry", &["model"]),
    ("appshot", &["model", "os"]),
    ("policy", &["model", "report", "config::reader"]),
    ("config", &["model", "report", "policy", "clock"]),
    ("config::reader", &["model", "report"]),
    // The privileged process sees nothing of the proxy; its client runs in the manager's process.
    ("agent", &["model", "appshot", "os", "clock", "telemetry"]),
    ("agent::client", &["model", "appshot", "os", "clock", "telemetry", "report"]),
    ("meter", &["model", "clock", "telemetry"]),
    ("manager", &["model", "agent", "appshot", "meter", "clock", "telemetry", "os"]),
    (
        "deploy",
        &[
            "model",
            "report",
            "config",
            "policy",
            "manager",
            "appshot",
            "meter",
            "clock",
            "telemetry",
        ],
    ),
    ("dispatch", &["model", "manager", "meter", "policy", "config", "clock", "telemetry", "os"]),
    (
        "conduit",
        &[
            "model",
            "clock",
            "report",
            "os",
            "telemetry",
            "appshot",
            "policy",
            "config",
            "agent",
            "meter",
            "manager",
            "deploy",
        ],
    ),
    ("edgepoint", &["*"]),
    ("cli", &["*"]),
];

/// What the small privileged programs of `src/bin` may name of the library.
const OF_BINARIES: &[&str] = &["model", "appshot", "os", "agent", "clock", "telemetry"];

/// Files that are pure: time and events come in as arguments.
const PURE: &[&str] = &[
    "src/policy",
    "src/manager/instance",
    "src/manager/waiting_room",
    "src/manager/core",
    "src/manager/placement",
    "src/manager/eviction",
    "src/manager/capacity",
    "src/meter/charge",
    "src/meter/budget",
    "src/dispatch/global/rank",
    "src/deploy/release",
];

/// What a pure file may not name. `std::net` is separate: addresses are values, sockets are not.
const IMPURE: &[&[&str]] = &[
    &["std", "fs"],
    &["std", "env"],
    &["std", "process"],
    &["std", "thread"],
    &["tokio"],
    &["rand"],
    &["fastrand"],
    &["getrandom"],
];
const ADDRESSES: &[&str] = &[
    "IpAddr",
    "Ipv4Addr",
    "Ipv6Addr",
    "SocketAddr",
    "SocketAddrV4",
    "SocketAddrV6",
    "AddrParseError",
];

/// One door per large dependency: where the crate may be named. `pingora` stands for all its crates.
const DOORS: &[(&str, &[&str])] = &[
    ("pingora", &["src/dispatch/local"]),
    ("rusqlite", &["src/meter/ledger"]),
    ("nix", &["src/os", "src/agent", "src/bin", "src/supervisor"]),
    ("prost", &["src/agent/criu"]),
    ("axum", &["src/conduit"]),
    ("hyper", &["src/conduit"]),
    ("hyper_util", &["src/conduit"]),
];

const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "policies",
    "certs",
    "tests",
    "benches",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "Makefile",
    ".ci",
    "edgepoint.toml",
    "rustfmt.toml",
    "clippy.toml",
    "deny.toml",
    ".gitignore",
    ".git",
    "target",
];

const MOST_LINES: usize = 500;

/// Written in two halves, so that this file does not name them.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("deb.debian", ".org"),
    concat!("snapshot.debian", ".org"),
    concat!("index.crates", ".io"),
    concat!("static.crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.pythonhosted", ".org"),
    concat!("registry.npmjs", ".org"),
];
const FOREIGN_ROOT: &str = concat!("/wo", "rk");

/// A text file, its path from the root of the repository.
#[derive(Debug, Clone)]
pub struct File {
    pub path: String,
    pub text: String,
}

impl File {
    /// `src/policy/route.rs` is `["policy", "route"]`; lib.rs, main.rs and bin/ are the crate's root.
    pub fn module(&self) -> Vec<String> {
        let path = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let path = path.strip_suffix(".rs").unwrap_or(path);
        if matches!(path, "lib" | "main") || path.starts_with("bin/") {
            return Vec::new();
        }
        path.strip_suffix("/mod").unwrap_or(path).split('/').map(str::to_owned).collect()
    }
}

/// A file of `src`, read, without its tests.
#[derive(Debug)]
pub struct Source {
    pub file: File,
    tokens: Vec<Token>,
    paths: Vec<Named>,
}

/// Reads all files, and leaves out those that another one declares as `#[cfg(test)] mod x;`.
pub fn sources(files: &[File]) -> Vec<Source> {
    let mut tests = BTreeSet::new();
    let mut sources = Vec::new();
    for file in files {
        let module = file.module();
        let (tokens, test_files) = scan::without_tests(&scan::tokens(&file.text));
        tests.extend(test_files.into_iter().map(|name| [module.as_slice(), &[name]].concat()));
        let paths = scan::paths(&tokens, &module);
        sources.push(Source { file: file.clone(), tokens, paths });
    }
    sources.retain(|source| {
        let module = source.file.module();
        !(1..=module.len()).any(|length| tests.contains(&module[..length]))
    });
    sources
}

/// Whether `path` is the file or directory `place` (`src/meter/ledger` is `ledger.rs` and `ledger/…`).
fn is_at(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

fn finding(file: &File, line: usize, what: &str) -> String {
    format!("{}:{line}: {what}", file.path)
}

/// (a) Arrows point down only. `modules` are the names of the top-level modules.
pub fn arrows(source: &Source, modules: &BTreeSet<String>) -> Vec<String> {
    let (file, module) = (&source.file, source.file.module());
    let is_binary = file.path.starts_with("src/bin/");
    let full = module.join("::");
    let (from, allowed) = match module.first() {
        None if is_binary => ("a binary", OF_BINARIES),
        None => return Vec::new(), // lib.rs and main.rs
        Some(top) => {
            let fits = |name: &str| {
                full.strip_prefix(name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            };
            let entry =
                ARROWS.iter().filter(|(name, _)| fits(name)).max_by_key(|(name, _)| name.len());
            match entry {
                Some((name, allowed)) => (*name, *allowed),
                None => {
                    let what = format!(
                        "the module {top} has no walls: give it a line in ARROWS of tests/house/walls.rs \
                         and in the architecture page"
                    );
                    return vec![finding(file, 1, &what)];
                }
            }
        }
    };
    let mut findings = Vec::new();
    for Named { path, line } in &source.paths {
        let root = if is_binary { "edgepoint" } else { "crate" };
        let [first, to, rest @ ..] = path.as_slice() else {
            continue;
        };
        if first != root {
            continue;
        }
        if to == "*" {
            let what = "`*` of the crate's root hides which module is meant: name the module";
            findings.push(finding(file, *line, what));
        }
        let is_own = module.first() == Some(to);
        let with_child = rest.first().map(|child| format!("{to}::{child}"));
        let is_allowed = allowed
            .iter()
            .any(|name| *name == "*" || name == to || Some(*name) == with_child.as_deref());
        if modules.contains(to) && !is_own && !is_allowed {
            let list = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
            let what = format!(
                "{from} names {}, and may name only {list}: pass a value in, ask by an effect, or move \
                 the shared noun to model",
                path.join("::")
            );
            findings.push(finding(file, *line, &what));
        }
    }
    findings
}

/// (b) Pure files do no I/O, are not async, read no clock and draw no random numbers.
pub fn purity(source: &Source) -> Vec<String> {
    let file = &source.file;
    if !PURE.iter().any(|place| is_at(&file.path, place)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut find = |line: usize, what: &str| {
        let what = format!("{what} in a pure file: take it as an argument, or return an effect");
        findings.push(finding(file, line, &what));
    };
    for (index, token) in source.tokens.iter().enumerate() {
        let follows_dot = index > 0 && source.tokens[index - 1].text == ".";
        match token.text.as_str() {
            "async" | "await" => find(token.line, &format!("`{}`", token.text)),
            "elapsed" if follows_dot => find(token.line, "`.elapsed` reads the clock"),
            _ => {}
        }
    }
    for Named { path, line } in &source.paths {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        let is_socket = matches!(words[..], ["std", "net"])
            || matches!(words[..], ["std", "net", name, ..] if !ADDRESSES.contains(&name));
        let is_clock = words.windows(2).any(|two| matches!(two, ["SystemTime" | "Instant", "now"]));
        if is_socket || is_clock || IMPURE.iter().any(|impure| words.starts_with(impure)) {
            find(*line, &format!("`{}`", path.join("::")));
        }
    }
    findings
}

/// (c) `unsafe` only in `src/os`; tests are no exception.
pub fn unsafe_code(file: &File) -> Vec<String> {
    if is_at(&file.path, "src/os") {
        return Vec::new();
    }
    let tokens = scan::tokens(&file.text);
    let found = tokens.iter().filter(|token| token.text == "unsafe");
    let what = "`unsafe` outside of src/os: write a safe face for it there";
    found.map(|token| finding(file, token.line, what)).collect()
}

/// (d) One door per large dependency.
pub fn doors(source: &Source) -> Vec<String> {
    let file = &source.file;
    let mut findings = Vec::new();
    for Named { path, line } in &source.paths {
        let Some(root) = path.first() else { continue };
        for (name, places) in DOORS {
            let is_it = root == name || (*name == "pingora" && root.starts_with("pingora_"));
            if is_it && !places.iter().any(|place| is_at(&file.path, place)) {
                let what = format!(
                    "`{}`: only {} may name {name}: offer what you need there, in our own types",
                    path.join("::"),
                    places.join(", ")
                );
                findings.push(finding(file, *line, &what));
            }
        }
    }
    findings
}

/// (e) Every Rust file opens with what it is.
pub fn header(file: &File) -> Vec<String> {
    let what = "must begin with `//!`: what it is, what it relies on, what it does not do";
    if file.text.starts_with("//!") { Vec::new() } else { vec![finding(file, 1, what)] }
}

/// (f) A long file usually holds two ideas.
pub fn length(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    if lines <= MOST_LINES {
        return Vec::new();
    }
    let what =
        format!("{lines} lines, and {MOST_LINES} is the most: find its two ideas and part them");
    vec![finding(file, MOST_LINES + 1, &what)]
}

/// (g) Only what is meant to be there lies at the top.
pub fn top_level(names: &[String]) -> Vec<String> {
    let unknown = names.iter().filter(|name| !TOP_LEVEL.contains(&name.as_str()));
    unknown
        .map(|name| {
            format!("{name}:1: is no part of the repository's top level: move it below src, tests or .ci")
        })
        .collect()
}

/// (h) No package registry by its host, no path of one machine.
pub fn foreign_names(file: &File) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for host in REGISTRY_HOSTS.iter().filter(|host| line.contains(**host)) {
            let what =
                format!("names the package registry {host}: take it from the tool's own settings");
            findings.push(finding(file, index + 1, &what));
        }
        if has_foreign_path(line) {
            let what = format!("names a path below {FOREIGN_ROOT}, which only one machine has");
            findings.push(finding(file, index + 1, &what));
        }
    }
    findings
}

fn has_foreign_path(line: &str) -> bool {
    line.match_indices(FOREIGN_ROOT).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + FOREIGN_ROOT.len()..].chars().next();
        let begins =
            before.is_none_or(|c| c == '/' || !(c.is_alphanumeric() || "_.-)}]>*".contains(c)));
        let ends = after.is_none_or(|c| !(c.is_alphanumeric() || "_-.".contains(c)));
        begins && ends
    })
}
