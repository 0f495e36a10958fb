//! `edgepoint logs`: the ends of what an app's newest instances wrote.
//!
//! The text is the app's. On a terminal, what could steer the terminal is replaced.

use std::io::{self, IsTerminal};

use super::{Context, Wrong};
use crate::{
    manager::LogPart,
    model::{AppName, Bytes},
};

/// The most that the control API gives of one stream.
const MAX_BYTES: u64 = 1 << 20;

/// Show the last part of an app's standard output and error, by instance.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  edgepoint logs shop
  edgepoint logs shop --bytes 100KiB")]
pub struct Arguments {
    /// The app
    #[arg(value_name = "APP")]
    app: AppName,
    /// How much of each stream at most, as a number or a size such as 100KiB (1MiB at most)
    #[arg(long, value_name = "N", default_value = "16KiB")]
    bytes: String,
}

/// Runs the command.
pub async fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let bytes = size(&arguments.bytes)?;
    let parts = context.client()?.logs(&arguments.app, bytes).await?;
    let terminal = io::stdout().is_terminal();
    context.show(&parts, |parts| text(parts, terminal))
}

fn size(text: &str) -> Result<u64, Wrong> {
    let bytes = text.parse::<u64>().or_else(|_| text.parse::<Bytes>().map(|bytes| bytes.0));
    match bytes {
        Ok(bytes) if bytes <= MAX_BYTES => Ok(bytes),
        Ok(_) => Err(Wrong(format!("--bytes {text}: at most {}", Bytes(MAX_BYTES)))),
        Err(error) => Err(Wrong(format!("--bytes {text}: {error}"))),
    }
}

/// Sections, one per stream; empty streams are left out.
fn text(parts: &[LogPart], terminal: bool) -> String {
    let mut all = String::new();
    for part in parts.iter().filter(|part| !part.text.is_empty()) {
        if !all.is_empty() {
            all.push('\n');
        }
        all.push_str(&format!("== {} ==\n", part.name));
        let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
        if terminal {
            all.push_str(&part.text.replace(steers, "\u{fffd}"));
        } else {
            all.push_str(&part.text);
        }
        if !part.text.ends_with('\n') {
            all.push('\n');
        }
    }
    if all.is_empty() { "nothing was written\n".into() } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_sections_and_cannot_steer_a_terminal() {
        let part = |name: &str, text: &str| LogPart { name: name.into(), text: text.into() };
        let parts = [part("1.stdout", "a\u{1b}[2J"), part("1.stderr", ""), part("2.stdout", "b\n")];
        let plain = "== 1.stdout ==\na\u{1b}[2J\n\n== 2.stdout ==\nb\n";
        assert_eq!(text(&parts, false), plain);
        assert_eq!(text(&parts, true), plain.replace('\u{1b}', "\u{fffd}"));
        assert_eq!(text(&[], true), "nothing was written\n");
    }

    #[test]
    fn a_size_is_a_number_or_has_a_unit() {
        assert_eq!(size("100").unwrap(), 100);
        assert_eq!(size("16KiB").unwrap(), 16 << 10);
        for bad in ["", "x", "2MiB", "10KB"] {
            assert!(size(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
