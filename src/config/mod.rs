//! Text to checked values: `edgepoint.toml`, `app.toml`, and the policies that go with them.
//!
//! Loading is all or nothing: one error anywhere and there is no configuration, only a report of
//! every problem in every file. Only [`load`] and [`load_app`] touch the disk; the parsers are
//! pure. Nothing here decides when to reload or looks whether an app that a route names exists.

mod app;
mod edgepoint;
pub(crate) mod reader;
mod tariff;

use std::{fs, io, io::Read, path::Path};

pub use app::parse as parse_app;
pub use edgepoint::{Agent, Config, Directories, Limits, Listen, Meter, parse};

use crate::{
    model::App,
    policy::{self, Policy},
    report::{Problem, Report, Severity},
};

/// Longest file that is read: a hundred times what a large edgepoint needs, and little enough to
/// be parsed at once.
const MAX_FILE: u64 = 1 << 20;
/// Policy files at most, for the same reason.
const MAX_POLICIES: usize = 1_000;

/// A whole configuration, of one moment.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// `edgepoint.toml`.
    pub config: Config,
    /// All policy files, compiled.
    pub policy: Policy,
    /// What does not keep it from being used: warnings only.
    pub warnings: Report,
}

/// Reads `edgepoint.toml` and every policy that belongs to it.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    let mut report = Report::new();
    let hint = "name the file with --config, or write one that has [listen] http = \
                [\"127.0.0.1:8080\"]";
    let text = read_text(path, hint, &mut report);
    let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base = base.parent().unwrap_or(Path::new("/"));
    let name = path.display().to_string();
    let (policies, config) = match &text {
        Some(text) => edgepoint::parse_parts(&name, text, base, &mut report),
        None => (base.join(edgepoint::DEFAULT_POLICIES), None),
    };
    let sources = read_policies(&policies, text.is_some(), &mut report);
    let sources = sources.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let policy = policy::compile(sources, &mut report);
    let has_no_routes = |policy: &Policy| policy.routes().next().is_none();
    if !report.has_errors() && policy.as_ref().is_some_and(has_no_routes) {
        let file = report.add_file(policies.display().to_string(), "");
        let message = "no routes: every request is answered 404".to_owned();
        let hint = Some("write a file such as shop.toml with a [[route]] in it".to_owned());
        report.push(Problem { file, span: None, severity: Severity::Warning, message, hint });
    }
    match (config, policy) {
        (Some(config), Some(policy)) if !report.has_errors() => {
            Ok(Loaded { config, policy, warnings: report })
        }
        _ => Err(report),
    }
}

/// Reads `app.toml` of a directory.
pub fn load_app(dir: &Path) -> Result<App, Report> {
    let mut report = Report::new();
    let path = dir.join("app.toml");
    let hint = "an app is a directory with an app.toml and its root file system";
    let text = read_text(&path, hint, &mut report);
    text.and_then(|text| parse_app(&path.display().to_string(), &text, &mut report)).ok_or(report)
}

/// All `*.toml` of the directory, by name. One that cannot be read is reported and left out.
fn read_policies(dir: &Path, wanted: bool, report: &mut Report) -> Vec<(String, String)> {
    let listed = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
    let mut paths = match listed {
        Ok(paths) => paths,
        Err(error) => {
            if wanted {
                let hint = "make it, or say where it is: [directories] policies = \"...\"";
                let message = format!("cannot read the directory of policies: {error}");
                report.file_error(dir.display().to_string(), message, Some(hint.into()));
            }
            return Vec::new();
        }
    };
    // A leading dot is an editor's unfinished copy.
    let hidden = |path: &Path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
    };
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "toml") && !hidden(path));
    paths.sort();
    if paths.len() > MAX_POLICIES {
        let message = format!("more than {MAX_POLICIES} policy files");
        report.file_error(dir.display().to_string(), message, None);
        paths.truncate(MAX_POLICIES);
    }
    let read = |path: &std::path::PathBuf| {
        let text = read_text(path, "it was listed a moment ago", report)?;
        Some((path.display().to_string(), text))
    };
    paths.iter().filter_map(read).collect()
}

/// The text of a file, or a problem.
fn read_text(path: &Path, missing: &str, report: &mut Report) -> Option<String> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        let hint = (error.kind() == io::ErrorKind::NotFound).then(|| missing.to_owned());
        report.file_error(name, format!("cannot read the file: {error}"), hint);
        return None;
    }
    if bytes.len() as u64 > MAX_FILE {
        report.file_error(name, format!("the file is longer than {MAX_FILE} bytes"), None);
        return None;
    }
    String::from_utf8(bytes)
        .map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let file = report.add_file(name, String::from_utf8_lossy(error.as_bytes()));
            let message = "the file is not UTF-8 from here on".to_owned();
            report.push(Problem::error(file, Some(at..at + 1), message, None));
        })
        .ok()
}

#[cfg(test)]
mod tests;
