//! `edgepoint wake`: restores or starts instances of an app before anybody asks for it.

use super::{
    Context,
    units::{count, millis},
};
use crate::model::AppName;

/// Wake an app until that many instances run.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  edgepoint wake shop
  edgepoint wake shop --count 4")]
pub struct Arguments {
    /// The app
    #[arg(value_name = "APP")]
    app: AppName,
    /// How many instances shall run
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    count: u32,
}

/// Runs the command.
pub async fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let woken = context.client()?.wake(&arguments.app, arguments.count).await?;
    context.show(&woken, |woken| {
        let running = usize::try_from(woken.running).unwrap_or(usize::MAX);
        let (app, time) = (&arguments.app, millis(woken.millis));
        format!("{app}: {} running, after {time}\n", count(running, "instance"))
    })
}
