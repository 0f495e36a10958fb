//! `edgepoint status`: what every app is doing, as a table; or one app with its instances.

use super::{
    Context,
    table::{
        Align::{Left, Right},
        Table,
    },
    units::{NONE, cpu, millis, or_none, plain},
};
use crate::{
    conduit::client::Error,
    manager::{self, AppStatus, ImageStatus},
    model::{AppName, Bytes},
};

/// Show all apps, or one app with its instances.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "An app of which nothing runs is `parked` if an image of it can be restored: \
its own parked\nimage, or the golden one, with which an app that discards its state always begins. \
It is\n`cold` if there is none.\n\nExamples:
  edgepoint status
  edgepoint status shop
  edgepoint status --json | jq '.[] | select(.state == \"failed\")'"
)]
pub struct Arguments {
    /// Only this app, with its instances
    #[arg(value_name = "APP")]
    app: Option<AppName>,
}

/// Runs the command.
pub async fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let mut apps = context.client()?.status().await?;
    let Some(name) = &arguments.app else {
        return context.show(&apps, |apps| overview(apps));
    };
    apps.retain(|app| app.app == *name);
    match apps.first() {
        Some(app) => context.show(app, details),
        // As the edgepoint itself says it of an app that it does not know.
        None => Err(Error::Refused(manager::Error::UnknownApp(name.clone()).into()).into()),
    }
}

fn overview(apps: &[AppStatus]) -> String {
    if apps.is_empty() {
        return "no apps: deploy one with `edgepoint deploy DIR`\n".into();
    }
    let mut table = Table::new([
        ("app", Left),
        ("provider", Left),
        ("state", Left),
        ("instances", Right),
        ("in flight", Right),
        ("memory", Right),
        ("golden image", Right),
        ("parked image", Right),
        ("wakes", Right),
        ("cold start", Right),
        ("restore", Right),
    ]);
    for app in apps {
        let memory: u64 = app.instances.iter().map(|instance| instance.memory.0).sum();
        let in_flight: u32 = app.instances.iter().map(|instance| instance.in_flight).sum();
        table.row([
            app.app.to_string(),
            app.provider.to_string(),
            app.state.to_string(),
            app.instances.len().to_string(),
            in_flight.to_string(),
            if app.instances.is_empty() { NONE.into() } else { Bytes(memory).to_string() },
            image(app.golden.as_ref()),
            image(app.parked.as_ref()),
            app.wakes.to_string(),
            or_none(app.cold_start_ms, millis),
            or_none(app.restore_ms, millis),
        ]);
    }
    let mut text = table.to_string();
    for app in apps {
        if let Some(detail) = &app.detail {
            text.push_str(&format!("{}: {}\n", app.app, plain(detail)));
        }
    }
    text
}

fn details(app: &AppStatus) -> String {
    let state = match &app.detail {
        Some(detail) => format!("{} ({})", app.state, plain(detail)),
        None => app.state.to_string(),
    };
    let golden = match (&app.golden, &app.golden_error) {
        (None, Some(error)) => format!("none: {}", plain(error)),
        (golden, _) => named(golden.as_ref()),
    };
    let mut text = String::new();
    for (name, value) in [
        ("app", app.app.to_string()),
        ("provider", app.provider.to_string()),
        ("release", app.release.to_string()),
        ("state", state),
        ("generation", app.generation.to_string()),
        ("waiting", app.waiting.to_string()),
        ("wakes", app.wakes.to_string()),
        ("golden image", golden),
        ("parked image", named(app.parked.as_ref())),
        ("cold start", or_none(app.cold_start_ms, millis)),
        ("restore", or_none(app.restore_ms, millis)),
        ("park", or_none(app.park_ms, millis)),
    ] {
        text.push_str(&format!("{name:<14}{value}\n"));
    }
    if app.instances.is_empty() {
        return text;
    }
    let mut table = Table::new([
        ("instance", Left),
        ("release", Left),
        ("state", Left),
        ("generation", Right),
        ("in flight", Right),
        ("memory", Right),
        ("cpu", Right),
    ]);
    for instance in &app.instances {
        table.row([
            instance.id.to_string(),
            instance.release.to_string(),
            instance.state.to_string(),
            instance.generation.to_string(),
            instance.in_flight.to_string(),
            instance.memory.to_string(),
            cpu(instance.cpu_micros),
        ]);
    }
    format!("{text}\n{table}")
}

fn image(image: Option<&ImageStatus>) -> String {
    or_none(image, |image| image.bytes.to_string())
}

fn named(image: Option<&ImageStatus>) -> String {
    or_none(image, |image| format!("{} ({})", image.bytes, image.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> AppStatus {
        // By its JSON form, which is also what the API promises.
        serde_json::from_value(serde_json::json!({
            "app": "shop", "provider": "acme", "release": "3f", "state": "running",
            "detail": null, "golden": {"id": "golden-3f", "bytes": 10_066_330},
            "golden_error": null, "parked": null, "waiting": 0, "generation": 4, "wakes": 12,
            "cold_start_ms": 80, "restore_ms": null, "park_ms": 31,
            "instances": [{"id": "18f", "release": "3f", "state": "running", "generation": 4,
                "in_flight": 2, "memory": 12_582_912, "cpu_micros": 412_000,
                "pressure": {"cpu_micros": 9, "memory_micros": 0, "io_micros": 0}}],
        }))
        .unwrap()
    }

    #[test]
    fn an_app_is_one_line_of_the_overview() {
        let text = overview(&[app()]);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split("  ").map(str::trim).collect();
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let expected =
            ["shop", "acme", "running", "1", "2", "12 MiB", "9.6 MiB", "-", "12", "80 ms", "-"];
        assert_eq!(words, expected);
        assert!(overview(&[]).contains("edgepoint deploy"));
    }

    #[test]
    fn details_have_the_instances_and_the_reasons() {
        let mut app = app();
        let text = details(&app);
        assert!(text.contains("golden image  9.6 MiB (golden-3f)\n"), "{text}");
        assert!(text.lines().last().unwrap().ends_with("0.412 s"), "{text}");
        app.golden = None;
        app.golden_error = Some("an open\ndevice".into());
        app.detail = Some("will not start".into());
        let text = details(&app);
        assert!(text.contains("golden image  none: an open device\n"), "{text}");
        assert!(text.contains("running (will not start)"), "{text}");
    }
}
