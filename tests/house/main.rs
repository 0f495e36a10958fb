//! The architecture test: the walls of the house (`src/docs/architecture.md`), read from the source.
//!
//! Each wall is a function from text to findings, so that `can_fail.rs` can show that it falls when it
//! should; the tests here run them over the repository. Relies on the standard library alone. A
//! finding says file, line and what to do. If a wall is wrong, change its table here and the
//! architecture page in the same commit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, missing_docs)]

mod can_fail;
mod scan;
mod walls;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use walls::File;

fn root() -> PathBuf {
    let given = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    given.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}

/// All text files below `directory`, as paths from the root; `is_skipped` prunes.
fn files(directory: &Path, is_skipped: &dyn Fn(&str) -> bool, found: &mut Vec<File>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if is_skipped(&name) {
            continue;
        }
        if kind.is_dir() {
            files(&path, is_skipped, found);
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(&path)
        {
            found.push(File { path: name, text });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
}

fn rust_files(directories: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    for directory in directories {
        files(&root().join(directory), &|_| false, &mut found);
    }
    found.retain(|file| file.path.ends_with(".rs"));
    assert!(!found.is_empty(), "no Rust file below {}: is it the repository?", root().display());
    found
}

#[track_caller]
fn hold(findings: Vec<String>) {
    assert!(findings.is_empty(), "{} found\n  {}\n", findings.len(), findings.join("\n  "));
}

/// Runs a wall over every file of `src`, without the code of its tests.
#[track_caller]
fn hold_in_src(wall: impl Fn(&walls::Source) -> Vec<String>) {
    let sources = walls::sources(&rust_files(&["src"]));
    hold(sources.iter().flat_map(wall).collect());
}

#[test]
fn arrows_point_down_only() {
    let names = top_level_modules();
    hold_in_src(|source| walls::arrows(source, &names));
}

fn top_level_modules() -> BTreeSet<String> {
    rust_files(&["src"]).iter().filter_map(|file| file.module().first().cloned()).collect()
}

#[test]
fn pure_files_do_no_io_and_read_no_clock() {
    hold_in_src(walls::purity);
}

#[test]
fn each_large_dependency_has_one_door() {
    hold_in_src(walls::doors);
}

#[test]
fn unsafe_is_only_in_os() {
    hold(rust_files(&["src"]).iter().flat_map(walls::unsafe_code).collect());
}

#[test]
fn every_rust_file_says_what_it_is() {
    hold(rust_files(&["src", "tests", "benches"]).iter().flat_map(walls::header).collect());
}

#[test]
fn no_file_holds_two_ideas() {
    hold(rust_files(&["src", "tests", "benches"]).iter().flat_map(walls::length).collect());
}

#[test]
fn the_top_level_is_tidy() {
    let entries = fs::read_dir(root()).expect("the repository is readable").flatten();
    let names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    hold(walls::top_level(&names));
}

#[test]
fn no_text_names_a_registry_or_a_path_of_one_machine() {
    // What git ignores is not ours: build results, keys.
    let is_skipped = |path: &str| {
        path == "target"
            || path == ".git"
            || (path.starts_with("certs/") && path != "certs/README.md")
    };
    let mut found = Vec::new();
    files(&root(), &is_skipped, &mut found);
    assert!(found.len() > 5, "hardly any file below {}", root().display());
    hold(found.iter().flat_map(walls::foreign_names).collect());
}
