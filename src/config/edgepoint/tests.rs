//! What `edgepoint.toml` may say, and what is said about what it may not.

use super::*;

const FULL: &str = r#"
[listen]
http = ["127.0.0.1:8080", "[::1]:8080"]
metrics = "127.0.0.1:9464"

[directories]
state = "state"
run = "/tmp/run"
policies = "../policies"

[agent]
criu = "/usr/local"
first_uid = 300_000
proxy_user = "edge"
restore_timeout = "3s"
dump_timeout = "1m"

[limits]
connections = 100
instances = 7

[meter]
sample_interval = "10s"

[tariff]
currency = "CHF"
requests_per_million = "0.20"
cpu_per_hour = "0.04"
memory_per_gib_hour = "0.005"
image_per_gib_hour = "0.0001"
egress_per_gib = "0.02"
wakes_per_thousand = "0.01"
"#;

const LEAST: &str = "listen.http = [\"127.0.0.1:8080\"]\n";

fn read(text: &str) -> Result<Config, Report> {
    let mut report = Report::new();
    let config = parse("edgepoint.toml", text, Path::new("/etc/edge"), &mut report);
    assert_eq!(config.is_some(), report.is_empty(), "{report}");
    config.ok_or(report)
}

fn check(text: &str, expected: &[&str]) {
    let found = read(text).map(|_| Vec::new()).unwrap_or_else(|report| report.located());
    let found: Vec<String> = found
        .iter()
        .map(|found| format!("{}:{} {}", found.line, found.column, found.message))
        .collect();
    assert_eq!(found, expected, "{text}");
}

#[test]
fn every_key_is_read() {
    let expected = Config {
        listen: Listen {
            http: vec!["127.0.0.1:8080".parse().unwrap(), "[::1]:8080".parse().unwrap()],
            metrics: Some("127.0.0.1:9464".parse().unwrap()),
        },
        directories: Directories {
            state: "/etc/edge/state".into(),
            run: "/tmp/run".into(),
            policies: "/etc/edge/../policies".into(),
        },
        agent: Agent {
            criu: "/usr/local".into(),
            first_uid: 300_000,
            proxy_user: Some("edge".into()),
            restore_timeout: Duration::from_secs(3),
            dump_timeout: Duration::from_secs(60),
        },
        limits: Limits { connections: 100, instances: 7 },
        meter: Meter { sample_interval: Duration::from_secs(10) },
        tariff: Tariff {
            currency: "CHF".into(),
            requests_per_million_nano: 200_000_000,
            cpu_per_hour_nano: 40_000_000,
            memory_per_gib_hour_nano: 5_000_000,
            image_per_gib_hour_nano: 100_000,
            egress_per_gib_nano: 20_000_000,
            wakes_per_thousand_nano: 10_000_000,
        },
    };
    assert_eq!(read(FULL).unwrap(), expected);
}

#[test]
fn one_line_is_an_edgepoint() {
    let config = read(LEAST).unwrap();
    assert_eq!(config.listen.metrics, None);
    assert_eq!(config.directories.state, Path::new("/var/lib/edgepoint"));
    assert_eq!(config.directories.run, Path::new("/run/edgepoint"));
    assert_eq!(config.directories.policies, Path::new("/etc/edge/policies"));
    assert_eq!(config.agent.criu, Path::new("/opt/edgepoint/criu"));
    assert_eq!((config.agent.first_uid, config.agent.proxy_user), (200_000, None));
    assert_eq!(config.agent.restore_timeout, Duration::from_secs(10));
    assert_eq!(config.agent.dump_timeout, Duration::from_secs(30));
    assert_eq!(config.limits, Limits { connections: 10_000, instances: 200 });
    assert_eq!(config.meter.sample_interval, Duration::from_secs(5));
    assert_eq!(config.tariff, Tariff::default());
    // Port 0 is a new port each time, not the same one twice.
    read("[listen]\nhttp = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\nmetrics = \"127.0.0.1:0\"").unwrap();
}

#[test]
fn a_broken_value_is_reported_where_it_stands() {
    let after = |line: &str| format!("{LEAST}{line}");
    for (text, expected) in [
        (String::new(), "1:1 missing key \"http\""),
        ("[listen]".into(), "1:1 missing key \"http\""),
        ("listen = 1".into(), "1:10 expected a table, found an integer"),
        ("[listen]\nhttp = []".into(), "2:8 no address to listen on"),
        (
            "[listen]\nhttp = \"127.0.0.1:80\"".into(),
            "2:8 expected an array of strings, found a string",
        ),
        ("[listen]\nhttp = [80]".into(), "2:9 expected a string, found an integer"),
        ("[listen]\nhttp = [\"localhost:80\"]".into(), "2:9 bad address \"localhost:80\""),
        ("[listen]\nhttp = [\":80\"]".into(), "2:9 bad address \":80\""),
        ("[listen]\nhttp = [\"1.2.3.4:99999\"]".into(), "2:9 bad address \"1.2.3.4:99999\""),
        (
            "[listen]\nhttp = [\"1.2.3.4:80\", \"1.2.3.4:80\"]".into(),
            "2:23 1.2.3.4:80 is listened on already",
        ),
        (
            after("listen.metrics = \"127.0.0.1:8080\""),
            "2:18 127.0.0.1:8080 is listened on already",
        ),
        (after("listen.metrics = true"), "2:18 expected a string, found a boolean"),
        (after("listen.https = []"), "2:8 unknown key \"https\""),
        (after("lisen = 1"), "2:1 unknown key \"lisen\""),
        (
            after("directories.state = \"/run/edge\""),
            "2:21 state must outlive a reboot, and /run does not",
        ),
        (
            after("directories.state = \"/var/lib/../run/edge\""),
            "2:21 state must outlive a reboot, and /run does not",
        ),
        (
            after("directories.state = \"../../run/./edge\""),
            "2:21 state must outlive a reboot, and /run does not",
        ),
        (
            after("[directories]\nstate = \"x\"\nrun = \"./x\""),
            "4:7 state and run must not be the same directory",
        ),
        (after("directories.run = \"\""), "2:19 the path is empty"),
        (after("directories.stat = \"x\""), "2:13 unknown key \"stat\""),
        (after("directories.policies = \"a\\u0000\""), "2:24 a NUL character is not allowed"),
        (after("agent.first_uid = 1000"), "2:19 1000 is not between 65537 and 4000000000"),
        (after("agent.proxy_user = \"\""), "2:20 the user has no name"),
        (after("agent.proxy_user = \"root\""), "2:20 the proxy must not run as root"),
        (after("agent.proxy_user = 65534"), "2:20 expected a string, found an integer"),
        (after("agent.restore_timeout = 10"), "2:25 expected a duration, found an integer"),
        (after("agent.dump_timeout = \"1ms\""), "2:22 1ms is not between 100ms and 1h"),
        (after("agent.uid = 1"), "2:7 unknown key \"uid\""),
        (after("limits.connections = 0"), "2:22 0 is not between 1 and 1000000"),
        (after("limits.instances = 1e3"), "2:20 expected an integer, found a float"),
        (after("limits.x = 1"), "2:8 unknown key \"x\""),
        (after("meter.sample_interval = \"100ms\""), "2:25 100ms is not between 1s and 15s"),
        (after("meter.x = 1"), "2:7 unknown key \"x\""),
        (after("tariff.currency = \"eur\""), "2:19 bad currency \"eur\""),
        (after("tariff.currency = \"EURO\""), "2:19 bad currency \"EURO\""),
        (after("tariff.cpu_per_hour = 0.04"), "2:23 expected a price, found a float"),
        (after("tariff.cpu_per_hour = 1"), "2:23 expected a price, found an integer"),
        (after("tariff.cpu_per_hour = []"), "2:23 expected a string, found an array"),
        (after("tariff.egress_per_gib = \"-1\""), "2:25 bad price \"-1\": a price is not negative"),
        (
            after("tariff.egress_per_gib = \"0.0000000001\""),
            "2:25 bad price \"0.0000000001\": at most 9 decimals are allowed",
        ),
        (after("tariff.cpu = \"1\""), "2:8 unknown key \"cpu\""),
    ] {
        check(&text, &[expected]);
    }
}

#[test]
fn a_price_without_quotes_is_answered_with_the_quotes() {
    let text = "[listen]\nhttp = [\"127.0.0.1:8080\"]\n\n[tariff]\nrequests_per_million = 0.20\n";
    assert_eq!(
        read(text).unwrap_err().to_string(),
        r#"edgepoint.toml:5:24: expected a price, found a float
    5 | requests_per_million = 0.20
      |                        ^^^^
      = hint: money is exact, put it in quotes: requests_per_million = "0.20"
"#
    );
}

#[test]
fn no_part_of_a_file_makes_it_panic() {
    for end in 0..FULL.len() {
        let _ = read(FULL.get(..end).unwrap()).map_err(|report| report.to_string());
        let _ = read(FULL.get(end..).unwrap()).map_err(|report| report.to_string());
    }
}
