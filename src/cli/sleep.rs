//! `edgepoint sleep`: parks or ends an app's instances now instead of after their idle time.

use super::{Context, units::millis};
use crate::model::AppName;

/// Park an app now; one that does not keep its state ends
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Requests that are open, WebSockets too, have 5 s to end. If one does not, \
the app runs on and\nthe answer is E0012.\n\nExample:
  edgepoint sleep shop"
)]
pub struct Arguments {
    /// The app
    #[arg(value_name = "APP")]
    app: AppName,
}

/// Runs the command.
pub async fn run(context: &Context, Arguments { app }: &Arguments) -> anyhow::Result<()> {
    let slept = context.client()?.sleep(app).await?;
    context.show(&slept, |slept| match (slept.parked, slept.stopped) {
        (0, 0) => format!("{app}: nothing was running\n"),
        (parked, stopped) => {
            format!("{app}: {parked} parked, {stopped} ended, after {}\n", millis(slept.millis))
        }
    })
}
