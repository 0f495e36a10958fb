//! `edgepoint bill`: usage with its price, line by line, so that whoever adds it up gets the total.
//!
//! Where no edgepoint runs, the tariff is the one of `edgepoint.toml` and usage comes from the
//! ledger. A bill is not grouped by period: each line is rounded once.

use super::{
    Context, context,
    table::{
        Align::{Left, Right},
        Table,
    },
    units::quantity,
    usage::{self, Choice},
};
use crate::{
    conduit::Statement,
    meter::{self, format_money},
};

/// Show what apps cost, by the tariff of edgepoint.toml.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  edgepoint bill --since 2026-01-01 --until 2026-02-01
  edgepoint bill --provider acme --json")]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
}

/// Runs the command.
pub async fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let query = arguments.choice.query(None)?;
    let settings = context.settings()?;
    let statement = match context::client(&settings).bill(&query).await {
        Err(error) if usage::is_absent(&error) => {
            let rows = usage::from_ledger(&settings, &query)?;
            meter::charge(&settings.tariff, &rows).into()
        }
        other => other?,
    };
    context.show(&statement, text)
}

fn text(statement: &Statement) -> String {
    if statement.lines.is_empty() {
        return "no usage\n".into();
    }
    let money = |nano: u128| format_money(nano, &statement.currency);
    let mut table = Table::new([
        ("provider", Left),
        ("app", Left),
        ("item", Left),
        ("quantity", Right),
        ("price", Right),
        ("per", Left),
        ("amount", Right),
    ]);
    for line in &statement.lines {
        table.row([
            line.provider.to_string(),
            line.app.to_string(),
            line.item.to_string(),
            quantity(line.item, line.quantity),
            money(line.price_nano.into()),
            line.item.price_unit().to_owned(),
            money(line.amount_nano),
        ]);
    }
    let sum = |name: String, nano: u128| {
        let mut cells = vec![name];
        cells.resize(6, String::new());
        cells.push(money(nano));
        cells
    };
    for owed in &statement.providers {
        table.row(sum(format!("total of {}", owed.provider), owed.amount_nano));
    }
    if statement.providers.len() > 1 {
        table.row(sum("total".into(), statement.total_nano));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        meter::{Owner, UsageRow},
        model::{AppName, ProviderName, Tariff},
    };

    #[test]
    fn a_bill_shows_each_line_and_the_totals() {
        let owner = |provider: &str| Owner {
            provider: ProviderName::new(provider).unwrap(),
            app: AppName::new("shop").unwrap(),
        };
        let prices = Tariff { requests_per_million_nano: 200_000_000, ..Tariff::default() };
        let rows = ["acme", "beta"].map(|provider| UsageRow {
            requests: 3_000_000,
            bytes_out: 1536,
            ..UsageRow::zero(owner(provider), None)
        });
        let statement = meter::charge(&prices, &rows).into();
        let printed = text(&statement);
        assert!(printed.contains("3000000  0.20 EUR  1,000,000 requests  0.60 EUR"), "{printed}");
        assert!(printed.contains("egress"), "{printed}");
        assert!(printed.contains("1.5 KiB"), "{printed}");
        let ends = |start: &str, end: &str| {
            let line = printed.lines().find(|line| line.starts_with(start)).unwrap();
            assert!(line.ends_with(end), "{line}");
        };
        ends("total of acme", "0.60 EUR");
        ends("total  ", "1.20 EUR");
    }
}
