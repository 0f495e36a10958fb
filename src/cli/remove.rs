//! `edgepoint remove`: the app, its instances and its appshots go; its usage stays in the ledger,
//! because it still has to be paid.

use super::Context;
use crate::model::AppName;

/// Remove an app: end its instances, forget its releases and appshots
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  edgepoint remove shop")]
pub struct Arguments {
    /// The app
    #[arg(value_name = "APP")]
    app: AppName,
}

/// Runs the command.
pub async fn run(context: &Context, Arguments { app }: &Arguments) -> anyhow::Result<()> {
    context.client()?.remove(app).await?;
    context.show(&serde_json::json!({ "app": app, "removed": true }), |_| {
        format!("{app} is removed; its usage stays in the ledger\n")
    })
}
