//! What every command shares: the global options, the configuration they lead to, the sockets that
//! the configuration names, and printing that survives a closed pipe.
//!
//! Commands that talk to an edgepoint read `edgepoint.toml` alone: a policy that is broken at the
//! moment must not keep anybody from looking at what runs.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    conduit::{self, Client},
    config::{self, Config},
    report::Report,
};

/// Where the configuration is looked for.
const HERE: &str = "edgepoint.toml";
const PLACES: [&str; 2] = [HERE, "/etc/edgepoint/edgepoint.toml"];

/// The global options.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Context {
    /// The configuration [default: ./edgepoint.toml, else /etc/edgepoint/edgepoint.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

impl Context {
    /// The configuration that was named, or the first that exists.
    pub fn found_config(&self) -> Option<PathBuf> {
        let found = || PLACES.iter().map(PathBuf::from).find(|path| path.is_file());
        self.config.clone().or_else(found)
    }

    /// The same; where there is none, the path at which one is missed.
    pub fn config_path(&self) -> PathBuf {
        self.found_config().unwrap_or_else(|| PathBuf::from(HERE))
    }

    /// `edgepoint.toml`, without the policies.
    pub fn settings(&self) -> Result<Config, Report> {
        read(&self.config_path())
    }

    /// The way to the edgepoint.
    pub fn client(&self) -> Result<Client, Report> {
        Ok(client(&self.settings()?))
    }

    /// Prints a value as JSON.
    pub fn print_json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        print(&format!("{}\n", serde_json::to_string_pretty(value)?))
    }

    /// Prints a value as JSON if that is wanted, else what `text` makes of it.
    pub fn show<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        if self.json { self.print_json(value) } else { print(&text(value)) }
    }
}

/// The way to the edgepoint of this configuration.
pub fn client(config: &Config) -> Client {
    Client::new(config.directories.run.join(conduit::SOCKET))
}

/// Reads one `edgepoint.toml`.
fn read(path: &Path) -> Result<Config, Report> {
    let mut report = Report::new();
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let mut report = Report::new();
        let hint = "name the file with --config, or change to its directory";
        let hint = (error.kind() == io::ErrorKind::NotFound).then(|| hint.to_owned());
        report.file_error(&name, format!("cannot read the file: {error}"), hint);
        report
    })?;
    let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base = base.parent().unwrap_or(Path::new("/"));
    match config::parse(&name, &text, base, &mut report) {
        Some(config) if !report.has_errors() => Ok(config),
        _ => Err(report),
    }
}

/// Prints to standard output. Whoever reads may stop reading: that is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_policy_does_not_hide_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("edgepoint.toml");
        let text = "[listen]\nhttp = [\"127.0.0.1:0\"]\n[directories]\nrun = \"here\"\n";
        std::fs::write(&file, text).unwrap();
        std::fs::create_dir(directory.path().join("policies")).unwrap();
        std::fs::write(directory.path().join("policies/a.toml"), "broken").unwrap();
        let context = Context { config: Some(file), json: false };
        assert_eq!(context.settings().unwrap().directories.run, directory.path().join("here"));
    }

    #[test]
    fn a_missing_configuration_is_reported_with_what_to_do() {
        let context = Context { config: Some("/nowhere/edgepoint.toml".into()), json: false };
        let text = context.settings().unwrap_err().to_string();
        assert!(text.contains("/nowhere/edgepoint.toml") && text.contains("--config"), "{text}");
    }
}
