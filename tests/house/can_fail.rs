//! Shows that each wall falls when it should, and stands when it should: small snippets, good and bad.

use crate::{
    scan,
    walls::{self, File, Source},
};

fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned() }
}

fn source(path: &str, text: &str) -> Source {
    walls::sources(&[file(path, text)]).remove(0)
}

/// The lines of the findings.
fn lines(findings: &[String]) -> Vec<usize> {
    let line = |finding: &String| finding.split(':').nth(1).and_then(|line| line.parse().ok());
    findings.iter().map(|finding| line(finding).expect("file:line: …")).collect()
}

#[track_caller]
fn check(findings: Vec<String>, expected: &[usize]) {
    assert_eq!(lines(&findings), expected, "{findings:#?}");
}

#[track_caller]
fn check_arrows(path: &str, text: &str, expected: &[usize]) {
    let modules =
        ["model", "policy", "config", "manager", "agent", "dispatch", "cli", "os", "clock"];
    let modules = modules.map(str::to_owned).into();
    check(walls::arrows(&source(path, text), &modules), expected);
}

#[test]
fn an_arrow_that_points_up_is_found() {
    check_arrows("src/model/app.rs", "use crate::policy::Policy;", &[1]);
    check_arrows(
        "src/policy/mod.rs",
        "use crate::{\n    model::App,\n    manager::Lease,\n};",
        &[3],
    );
    check_arrows("src/policy/mod.rs", "fn f() {\n    crate::dispatch::local::go();\n}", &[2]);
    check_arrows("src/policy/route.rs", "use super::super::dispatch::X;", &[1]);
    check_arrows("src/policy/route.rs", "use crate::*;", &[1]);
    check_arrows("src/agent/snapd.rs", "use crate::{os, config::Config};", &[1]);
    check_arrows("src/manager/mod.rs", "pub use crate::dispatch::local::Exchange;", &[1]);
    check_arrows("src/bin/edgepoint-agent.rs", "use edgepoint::{agent, dispatch};", &[1]);
}

#[test]
fn an_arrow_that_points_down_stands() {
    check_arrows("src/policy/mod.rs", "use crate::{config::reader::Reader, model, policy};", &[]);
    check_arrows("src/manager/mod.rs", "use crate::agent::client::Client;\nuse super::model;", &[]);
    check_arrows("src/policy/route.rs", "use super::Policy; use self::inner::X;", &[]);
    check_arrows("src/cli/run.rs", "use crate::dispatch::local;", &[]);
    check_arrows("src/bin/edgepoint-agent.rs", "fn main() { edgepoint::agent::main() }", &[]);
    check_arrows("src/main.rs", "fn main() { edgepoint::cli::main() }", &[]);
}

#[test]
fn only_the_named_child_of_a_module_is_allowed() {
    check_arrows("src/policy/mod.rs", "use crate::config::{reader, Config};", &[1]);
    check_arrows("src/config/reader.rs", "use crate::policy::Policy;", &[1]);
    check_arrows("src/config/app.rs", "use crate::policy::Policy;", &[]);
}

#[test]
fn a_module_without_walls_is_found() {
    check_arrows("src/helpers/mod.rs", "", &[1]);
}

#[test]
fn comments_literals_and_tests_are_not_read() {
    let text = r##"//! use crate::dispatch::X;
/* crate::dispatch::X /* nested */ crate::dispatch::X */
const A: &str = "crate::dispatch::X \" crate::dispatch::X";
const B: &str = r#"crate::dispatch::X " crate::dispatch::X"#;
const C: (char, char) = ('"', '\''); fn f<'a>(x: &'a str) -> &'a str { x }
#[cfg(test)]
use crate::{dispatch::X, cli::Y};
#[cfg(test)]
mod tests { use crate::dispatch::X; mod inner { use crate::cli; } }
#[test]
#[ignore = "slow"]
fn g() { crate::dispatch::x(); }
struct S {
    #[cfg(test)]
    field: crate::dispatch::X,
    other: u8,
}
use crate::dispatch::Seen;
"##;
    check_arrows("src/policy/mod.rs", text, &[18]);
    check_arrows("src/policy/mod.rs", "#![cfg(test)]\nuse crate::dispatch::X;", &[]);
    check_arrows("src/policy/mod.rs", "#[cfg(not(test))]\nuse crate::dispatch::X;", &[2]);
}

#[test]
fn a_test_module_in_its_own_file_is_not_read() {
    let sources = walls::sources(&[
        file("src/policy/mod.rs", "#[cfg(test)]\nmod tests;\nmod route;"),
        file("src/policy/route.rs", "use std::fs;"),
        file("src/policy/tests.rs", "use std::fs;"),
    ]);
    let names: Vec<&str> = sources.iter().map(|source| source.file.path.as_str()).collect();
    assert_eq!(names, ["src/policy/mod.rs", "src/policy/route.rs"]);
}

#[test]
fn impurity_is_found() {
    let check = |text, expected: &[usize]| {
        check(walls::purity(&source("src/policy/mod.rs", text)), expected);
    };
    check("async fn f() {}", &[1]);
    check("use std::{\n    collections::BTreeMap,\n    fs,\n};", &[3]);
    check("use std::net::{IpAddr, Ipv4Addr};", &[]);
    check("use std::net::{IpAddr, TcpStream};", &[1]);
    check("use tokio::sync::mpsc;", &[1]);
    check("use rand::Rng;\nfn operand() {}", &[1]);
    check("fn f() -> u64 { rand::random() }", &[1]);
    check("fn f() { let t = std::time::Instant::now(); }", &[1]);
    check("fn f() { let t = SystemTime::now(); }", &[1]);
    check("fn f(t: Instant) { t.elapsed(); }", &[1]);
    check("fn f(now: std::time::Instant) {}", &[]);
    check("#[cfg(test)]\nmod tests { use std::fs; }", &[]);
}

#[test]
fn only_pure_files_must_be_pure() {
    for (path, expected) in [
        ("src/manager/instance.rs", vec![1]),
        ("src/manager/instance/table.rs", vec![1]),
        ("src/manager/waiting_room.rs", vec![1]),
        ("src/meter/charge.rs", vec![1]),
        ("src/manager/instances_task.rs", vec![]),
        ("src/meter/ledger.rs", vec![]),
    ] {
        check(walls::purity(&source(path, "use tokio::fs;")), &expected);
    }
}

#[test]
fn unsafe_outside_of_os_is_found() {
    check(
        walls::unsafe_code(&file("src/agent/mod.rs", "//! unsafe\nfn f() { unsafe { g() } }")),
        &[2],
    );
    check(walls::unsafe_code(&file("src/agent/mod.rs", "#![forbid(unsafe_code)]")), &[]);
    check(walls::unsafe_code(&file("src/os/ns.rs", "unsafe fn f() {}")), &[]);
}

#[test]
fn a_second_door_is_found() {
    for (path, text, expected) in [
        ("src/manager/mod.rs", "use pingora_core::server::Server;", vec![1]),
        ("src/manager/mod.rs", "use pingora_core;", vec![1]),
        ("src/dispatch/local/exchange.rs", "use pingora_proxy::Session;", vec![]),
        ("src/dispatch/global/mod.rs", "type T = pingora_http::RequestHeader;", vec![1]),
        ("src/meter/ledger.rs", "use rusqlite::Connection;", vec![]),
        ("src/meter/usage.rs", "use rusqlite::Connection;", vec![1]),
        ("src/manager/mod.rs", "fn f() { nix::unistd::getpid(); }", vec![1]),
        ("src/agent/sandbox.rs", "use nix::{mount, sched};", vec![]),
        ("src/supervisor.rs", "use nix::unistd;", vec![]),
        ("src/agent/protocol.rs", "#[derive(prost::Message)]\nstruct A;", vec![1]),
        ("src/agent/criu.rs", "#[derive(prost::Message)]\nstruct A;", vec![]),
        (
            "src/dispatch/local/mod.rs",
            "use axum::Router;\nuse hyper_util::rt::TokioIo;",
            vec![1, 2],
        ),
        ("src/conduit/server.rs", "use axum::Router;\nuse hyper::Request;", vec![]),
        ("src/cli/run.rs", "#[cfg(test)]\nmod tests { use hyper::Request; }", vec![]),
    ] {
        check(walls::doors(&source(path, text)), &expected);
    }
}

#[test]
fn a_bare_file_and_a_long_file_are_found() {
    check(walls::header(&file("src/x.rs", "use std::fmt;\n//! late")), &[1]);
    check(walls::header(&file("src/x.rs", "//! What it is.")), &[]);
    check(walls::length(&file("src/x.rs", &"\n".repeat(501))), &[501]);
    check(walls::length(&file("src/x.rs", &"\n".repeat(500))), &[]);
}

#[test]
fn an_untidy_top_level_is_found() {
    let names = ["src", "Cargo.toml", "notes.txt"].map(str::to_owned);
    check(walls::top_level(&names), &[1]);
}

#[test]
fn foreign_names_are_found() {
    // In two halves each: this file is read by the same wall.
    for (text, expected) in [
        (concat!("mirror = http://deb.debian", ".org/debian"), vec![1]),
        (concat!("\nsee https://pypi", ".org/simple"), vec![2]),
        (concat!("see \"https://registry.npmjs", ".org/\""), vec![1]),
        (concat!("root = \"/wo", "rk/main\""), vec![1]),
        (concat!("cd /wo", "rk"), vec![1]),
        (concat!("file:///wo", "rk/main"), vec![1]),
        (concat!("GET /wo", "rkers, target/wo", "rk/x, $DIR}/wo", "rk/x"), vec![]),
        (concat!("source = \"registry+https://github.com/rust-lang/crates", ".io-index\""), vec![]),
    ] {
        check(walls::foreign_names(&file("a.txt", text)), &expected);
    }
}

#[test]
fn paths_are_multiplied_out() {
    let tokens = scan::tokens("use a::{b::{C, d as e}, self, f::*};\nlet x = g::h::<u8>(i::J);");
    let found = scan::paths(&tokens, &[]);
    let found: Vec<String> =
        found.iter().map(|named| format!("{} {}", named.path.join("::"), named.line)).collect();
    assert_eq!(found, ["a::b::C 1", "a::b::d 1", "a::self 1", "a::f::* 1", "g::h 2", "i::J 2"]);
}
