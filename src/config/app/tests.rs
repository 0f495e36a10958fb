//! What `app.toml` may say, and what is said about what it may not.

use super::*;

mod broken;

/// Every key, with a value that is not its default.
const FULL: &str = r#"
name = "shop"
provider = "acme"
internal_port = 3000
clonable = true

[[process]]
name = "web"
command = ["/bin/web", "an argument with blanks"]

[[process]]
name = "worker"
command = "/bin/worker --queue  mail"

[env]
LANG = "C.UTF-8"
_x1 = ""

[health]
path = "/ready?deep=1"
timeout = "250ms"
grace_period = "2m"

[limits]
memory = "64MiB"
cpu = 0.5
pids = 32

[scale]
min = 1
max = 3

[concurrency]
hard = 10

[wake]
timeout = "5s"
max_pending = 16

[sleep]
park_after = "1h"
state = "discard"

[snapshot]
warm_up = ["/", "/cart"]
after_restore = "/hooks/restored"
"#;

const LEAST: &str = "name = \"a\"\nprovider = \"p\"\ncommand = \"/bin/a\"\n";

fn read(text: &str) -> Result<App, Report> {
    let mut report = Report::new();
    let app = parse("app.toml", text, &mut report);
    assert_eq!(app.is_some(), report.is_empty(), "a value without a report, or neither:\n{report}");
    app.ok_or(report)
}

/// What is wrong with the least app and these lines after it (so the first is line 4).
fn check(lines: &str, expected: &[&str]) {
    check_all(&format!("{LEAST}{lines}"), expected);
}

fn check_all(text: &str, expected: &[&str]) {
    let found = match read(text) {
        Ok(_) => Vec::new(),
        Err(report) => report.located(),
    };
    let found: Vec<String> = found
        .iter()
        .map(|found| format!("{}:{} {}", found.line, found.column, found.message))
        .collect();
    assert_eq!(found, expected, "{text}");
}

#[test]
fn every_key_is_read() {
    let process = |name: &str, command: &[&str]| Process {
        name: name.into(),
        command: command.iter().map(ToString::to_string).collect(),
    };
    let expected = App {
        name: AppName::new("shop").unwrap(),
        provider: "acme".parse().unwrap(),
        processes: vec![
            process("web", &["/bin/web", "an argument with blanks"]),
            process("worker", &["/bin/worker", "--queue", "mail"]),
        ],
        env: BTreeMap::from([("LANG".into(), "C.UTF-8".into()), ("_x1".into(), "".into())]),
        internal_port: 3000,
        health: Health {
            path: Some("/ready?deep=1".into()),
            timeout: Duration::from_millis(250),
            grace_period: Duration::from_secs(120),
        },
        limits: Limits { memory: Bytes(64 << 20), cpu_millis: 500, pids: 32 },
        scale: Scale { min: 1, max: 3 },
        concurrency: Concurrency { hard: 10 },
        wake: Wake { timeout: Duration::from_secs(5), max_pending: 16 },
        sleep: Sleep {
            park_after: Some(Duration::from_secs(3600)),
            state: State::Discard,
            on_lost_state: OnLostState::Cold,
        },
        clonable: true,
        snapshot: Snapshot {
            warm_up: vec!["/".into(), "/cart".into()],
            after_restore: Some("/hooks/restored".into()),
        },
    };
    assert_eq!(read(FULL).unwrap(), expected);
}

#[test]
fn three_lines_are_an_app() {
    let app = read(LEAST).unwrap();
    assert_eq!(app.processes, [Process { name: "app".into(), command: vec!["/bin/a".into()] }]);
    assert_eq!((app.internal_port, app.clonable), (8080, false));
    assert_eq!(app.limits, Limits { memory: Bytes(512 << 20), cpu_millis: 1000, pids: 256 });
    assert_eq!((app.scale.min, app.scale.max, app.concurrency.hard), (0, 1, 100));
    assert_eq!((app.wake.timeout, app.wake.max_pending), (Duration::from_secs(30), 2048));
    assert_eq!(app.sleep.park_after, Some(Duration::from_secs(300)));
    assert_eq!((app.sleep.state, app.sleep.on_lost_state), (State::Keep, OnLostState::Cold));
    assert_eq!(app.health.grace_period, Duration::from_secs(30));
    assert_eq!(app.snapshot, Snapshot::default());
}

#[test]
fn what_is_allowed_together_is_allowed() {
    for lines in [
        "[sleep]\npark_after = \"never\"",
        "[sleep]\npark_after = \"never\"\n[scale]\nmin = 1",
        "[scale]\nmin = 1",
        "[scale]\nmin = 1\nmax = 2\n[sleep]\npark_after = \"1m\"\nstate = \"discard\"",
        "[sleep]\non_lost_state = \"error\"",
        "[limits]\ncpu = 0.01\nmemory = \"4MiB\"\npids = 2",
        "[limits]\ncpu = 1024",
        "[limits]\ncpu = 0x2",
        "internal_port = 65_535",
    ] {
        check(lines, &[]);
    }
    assert_eq!(read(&format!("{LEAST}limits.cpu = 2")).unwrap().limits.cpu_millis, 2_000);
    let never = format!("{LEAST}sleep.park_after = \"never\"");
    assert_eq!(read(&never).unwrap().sleep.park_after, None);
}

#[test]
fn syntax_errors_are_reported_beside_the_others_and_cause_no_more() {
    for (text, expected) in [
        // The value is missing, so is the command; the second is only said without the first.
        (
            "name = \nprovider = 1",
            vec!["1:8 the value is missing", "2:12 expected a string, found an integer"],
        ),
        (
            "name = shop\nprovider = \"Ä\"\n",
            vec![
                "1:8 a text must be quoted",
                "2:12 bad name \"Ä\": only a-z, 0-9 and '-' are allowed",
            ],
        ),
        (
            "name = \"a\nprovider = \"p\"\ncommand = \"c\"",
            vec!["1:10 invalid basic string, expected `\"`"],
        ),
        ("[limits\nmemory = \"1GiB\"", vec!["1:8 unclosed table, expected `]`"]),
        ("name = \"a\"\nname = \"b\"", vec!["2:1 duplicate key"]),
        ("ä = 1", vec!["1:1 invalid unquoted key, expected letters, numbers, `-`, `_`"]),
    ] {
        let found = read(text).unwrap_err().located();
        let found: Vec<String> = found
            .iter()
            .map(|found| format!("{}:{} {}", found.line, found.column, found.message))
            .collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn all_problems_are_printed_at_once_with_their_hints() {
    let text = "name = \"Shop\"\nprovider = \"acme\"\ncommand = \"run 'a b'\"\nclonable = yes\n\n\
                [limits]\n\tmemroy = \"64MiB\"\ncpu = true\n\n[scale]\nmax = 4\n\n[wakes]\n";
    assert_eq!(
        read(text).unwrap_err().to_string(),
        r#"app.toml:1:8: bad name "Shop": only a-z, 0-9 and '-' are allowed
    1 | name = "Shop"
      |        ^^^^^^
app.toml:3:11: '\'' means nothing here: no shell reads the command
    3 | command = "run 'a b'"
      |           ^^^^^^^^^^^
      = hint: write an array, ["/bin/server", "an argument"], or call a shell: ["sh", "-c", "..."]
app.toml:4:12: a text must be quoted
    4 | clonable = yes
      |            ^^^
      = hint: write "yes"
app.toml:7:2: unknown key "memroy"
    7 |     memroy = "64MiB"
      |     ^^^^^^
      = hint: did you mean "memory"?
app.toml:8:7: expected a number, found a boolean
    8 | cpu = true
      |       ^^^^
      = hint: a number of cores, such as 2 or 0.5
app.toml:11:7: kept state lives in one instance only, there cannot be more
   11 | max = 4
      |       ^
      = hint: write max = 1, or [sleep] state = "discard"
app.toml:13:2: unknown key "wakes"
   13 | [wakes]
      |  ^^^^^
      = hint: did you mean "wake"?
"#
    );
}

#[test]
fn an_unknown_key_like_no_other_is_answered_with_all_keys() {
    let report = read(&format!("{LEAST}[limits]\ndisk = \"1GiB\"")).unwrap_err();
    assert!(report.to_string().ends_with("= hint: known keys: memory, cpu, pids\n"), "{report}");
    let report = read(&format!("{LEAST}env.A = 1")).unwrap_err();
    assert!(report.to_string().ends_with("= hint: put it in quotes: \"1\"\n"), "{report}");
}

#[test]
fn no_part_of_a_file_and_no_noise_makes_it_panic() {
    for end in 0..FULL.len() {
        let _ = read(FULL.get(..end).unwrap()).map_err(|report| report.to_string());
        let _ = read(FULL.get(end..).unwrap()).map_err(|report| report.to_string());
    }
    // Each place of the file once with each of these in it.
    for noise in ["\0", "\"", "[", "{", "=", "ä", "\u{1b}", "\r", "'''", "9", "\n"] {
        for at in 0..FULL.len() {
            let (head, tail) = FULL.split_at(at);
            let _ = read(&format!("{head}{noise}{tail}")).map_err(|report| report.to_string());
        }
    }
    let flood = format!("x = [{}]", "1 ".repeat(100_000));
    assert!(read(&flood).unwrap_err().located().len() <= 100);
    for deep in ["[", "{a=", "a.", "[[", "'"] {
        let _ = read(&format!("x = {}", deep.repeat(10_000))).map_err(|report| report.to_string());
        let _ = read(&deep.repeat(10_000)).map_err(|report| report.to_string());
    }
}
