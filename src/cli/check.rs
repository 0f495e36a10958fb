//! `edgepoint check`: is the configuration right, with its policies, and are these apps?
//!
//! It reads files and nothing else: no edgepoint need run, and none is changed.

use std::path::{Path, PathBuf};

use super::{Context, print, units::count};
use crate::{config, report::Report};

/// Check edgepoint.toml, its policies and apps, and print every problem
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  edgepoint check
  edgepoint check --config /etc/edgepoint/edgepoint.toml
  edgepoint check ./shop ./counter/app.toml")]
pub struct Arguments {
    /// Directories of apps (or their app.toml), and configurations to check instead of the default
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What was found.
#[derive(Default)]
struct Findings {
    reports: Vec<Report>,
    good: Vec<String>,
}

impl Findings {
    fn config(&mut self, path: &Path) {
        match config::load(path) {
            Ok(loaded) => {
                let listen = &loaded.config.listen;
                let listeners = listen.http.len() + usize::from(listen.metrics.is_some());
                self.good.push(count(loaded.policy.routes().count(), "route"));
                self.good.push(count(listeners, "listener"));
                self.reports.push(loaded.warnings);
            }
            Err(report) => self.reports.push(report),
        }
    }

    fn are_wrong(&self) -> bool {
        self.reports.iter().any(Report::has_errors)
    }

    /// Returns whether the app is right.
    fn app(&mut self, directory: &Path) -> bool {
        let loaded = config::load_app(directory);
        let right = loaded.is_ok();
        self.reports.extend(loaded.err());
        right
    }
}

/// Runs the command.
pub fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    show(context, &examine(context, arguments))
}

fn examine(context: &Context, arguments: &Arguments) -> Findings {
    let (mut configs, mut apps) = (Vec::new(), Vec::new());
    for file in &arguments.files {
        if file.is_dir() {
            apps.push(file.clone());
        } else if file.file_name().is_some_and(|name| name == "app.toml") {
            apps.push(directory_of(file));
        } else {
            configs.push(file.clone());
        }
    }
    if configs.is_empty() {
        // Who checks only apps need not have an edgepoint.
        match context.found_config() {
            None if !apps.is_empty() => {}
            found => configs.push(found.unwrap_or_else(|| context.config_path())),
        }
    }
    let mut findings = Findings::default();
    for path in &configs {
        findings.config(path);
    }
    if !apps.is_empty() {
        let right = apps.iter().filter(|app| findings.app(app)).count();
        findings.good.push(count(right, "app"));
    }
    findings
}

fn show(context: &Context, findings: &Findings) -> anyhow::Result<()> {
    let wrong = findings.are_wrong();
    if context.json {
        let located: Vec<_> = findings.reports.iter().flat_map(Report::located).collect();
        context.print_json(&located)?;
    } else {
        for report in &findings.reports {
            eprint!("{report}");
        }
        if !wrong {
            print(&format!("ok: {}\n", findings.good.join(", ")))?;
        }
    }
    if wrong { Err(super::Invalid.into()) } else { Ok(()) }
}

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was good, or that something was wrong.
    fn check(files: Vec<PathBuf>, config: Option<PathBuf>) -> Result<String, &'static str> {
        let findings = examine(&Context { config, json: false }, &Arguments { files });
        if findings.are_wrong() { Err("wrong") } else { Ok(findings.good.join(", ")) }
    }

    #[test]
    fn configuration_and_apps_are_checked_together() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        for directory in ["policies", "app", "bad"] {
            std::fs::create_dir(at(directory)).unwrap();
        }
        std::fs::write(at("edgepoint.toml"), "[listen]\nhttp = [\"127.0.0.1:0\"]\n").unwrap();
        let app = "name = \"shop\"\nprovider = \"acme\"\ncommand = [\"/app/shop\"]\n\
                   internal_port = 8080\n";
        std::fs::write(at("app/app.toml"), app).unwrap();
        std::fs::write(at("bad/app.toml"), "name = 7\n").unwrap();
        let config = Some(at("edgepoint.toml"));
        let with_app = Ok("0 routes, 1 listener, 1 app".to_owned());
        assert_eq!(check(vec![], config.clone()), Ok("0 routes, 1 listener".into()));
        assert_eq!(check(vec![at("app")], config.clone()), with_app);
        assert_eq!(check(vec![at("app/app.toml")], config.clone()), with_app);
        assert_eq!(check(vec![at("edgepoint.toml"), at("app")], None), with_app);
        assert_eq!(check(vec![at("app"), at("bad")], config), Err("wrong"));
        assert_eq!(check(vec![], Some(at("missing.toml"))), Err("wrong"));
    }

    #[test]
    fn an_app_toml_stands_for_its_directory() {
        assert_eq!(directory_of(Path::new("app.toml")), Path::new("."));
        assert_eq!(directory_of(Path::new("a/app.toml")), Path::new("a"));
    }
}
