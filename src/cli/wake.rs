//! `edgepoint wake`: restores or starts instances of an app before anybody asks for it.

use serde::Serialize;

use super::{
    Context,
    units::{count, millis},
};
use crate::{manager::Woken, model::AppName};

/// Wake an app until that many instances run.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "No more instances are made than `scale.max` of its app.toml allows. While the \
app is being put\nto sleep, a wake waits for that: open requests, WebSockets too, have 5 s to end; if \
one does\nnot, the app runs on, and the sleep is answered with E0012.\n\nExamples:
  edgepoint wake shop
  edgepoint wake shop --count 4"
)]
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
    let shown = Shown { woken, asked: arguments.count };
    context.show(&shown, |shown| text(&arguments.app, shown))
}

/// What came of it, and what was asked for: with less than that, `scale.max` is the reason.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    woken: Woken,
    asked: u32,
}

fn text(app: &AppName, Shown { woken, asked }: &Shown) -> String {
    let running = count(usize::try_from(woken.running).unwrap_or(usize::MAX), "instance");
    let limit = match woken.running < *asked {
        true => format!(" (scale.max allows {})", woken.running),
        false => String::new(),
    };
    format!("{app}: {running} running{limit}, after {}\n", millis(woken.millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_instances_than_asked_for_have_a_reason() {
        let app = AppName::new("shop").unwrap();
        let shown = |running, asked| Shown { woken: Woken { running, millis: 80 }, asked };
        assert_eq!(text(&app, &shown(2, 2)), "shop: 2 instances running, after 80 ms\n");
        let expected = "shop: 1 instance running (scale.max allows 1), after 80 ms\n";
        assert_eq!(text(&app, &shown(1, 5)), expected);
        let json = serde_json::to_value(shown(1, 5)).unwrap();
        assert_eq!(json, serde_json::json!({"running": 1, "millis": 80, "asked": 5}));
    }
}
