//! Parking and waking again and again under constant load: nothing fails, nothing is left.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::harness::{Connection, Edgepoint, Random, record, retransmits, scale};

/// What one edgepoint holds while it runs: must be the same before and after.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    agent_fds: usize,
    proxy_fds: usize,
    layers: usize,
    appshots: usize,
    sandboxes: usize,
    threads: usize,
}

fn held(edgepoint: &Edgepoint) -> Held {
    let count = |path: String| fs::read_dir(path).map(Iterator::count).unwrap_or(0);
    let state = edgepoint.directory.join("state/agent");
    let (agent, proxy) = (edgepoint.part("edgepoint-agent"), edgepoint.part("serve"));
    Held {
        agent_fds: count(format!("/proc/{agent}/fd")),
        proxy_fds: count(format!("/proc/{proxy}/fd")),
        layers: count(state.join("layers").display().to_string()),
        appshots: count(state.join("appshots").display().to_string()),
        sandboxes: count(state.join("sandboxes").display().to_string()),
        threads: count(format!("/proc/{proxy}/task")),
    }
}

/// Connections that had to be asked for again inside every living sandbox, by its first process.
fn retransmits_inside(edgepoint: &Edgepoint) -> u64 {
    let mut sum = 0;
    for pid in edgepoint.first_processes() {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/net/netstat")) else { continue };
        sum += retransmits(&text);
    }
    sum
}

/// What is changed in an app so that it keeps its state.
fn edits(app: &str) -> Vec<(&'static str, &'static str)> {
    match app {
        "node" => vec![("state = \"discard\"", "state = \"keep\""), ("max = 5", "max = 1")],
        _ => vec![],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_parks_under_load_fail_no_request_and_leave_nothing() {
    let apps = ["counter", "node", "chain"];
    let edgepoint = Edgepoint::start(&apps).await;
    for app in apps {
        // All of them are dumped, the node app too.
        edgepoint.deploy(app, app, &edits(app));
        // Once round, so that everything that is made once is there.
        assert_eq!(edgepoint.get(app, "/").await.status, 200);
        edgepoint.cli(&["sleep", app]);
    }
    let settled = || async {
        for app in apps {
            edgepoint.client().sleep(&app.parse().unwrap()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        held(&edgepoint)
    };
    let before = settled().await;
    let retransmitted = edgepoint.retransmits();

    let mut random = Random::seeded();
    let parks = scale(18, 100);
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = Vec::new();
    for app in apps {
        for _ in 0..2 {
            let (address, stop) = (edgepoint.http.clone(), stop.clone());
            load.push(tokio::spawn(async move {
                let mut connection = Connection::open(&address).await.unwrap();
                let mut waits = Vec::new();
                let host = format!("{app}.localhost");
                while !stop.load(Ordering::Relaxed) {
                    let began = std::time::Instant::now();
                    let answer = connection.get(&host, "/").await.unwrap();
                    let text = String::from_utf8_lossy(&answer.body).into_owned();
                    assert_eq!(answer.status, 200, "{app}: {text}");
                    waits.push(began.elapsed().as_micros() as u64);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                (app, waits)
            }));
        }
    }
    let mut inside = 0;
    for _ in 0..parks {
        tokio::time::sleep(Duration::from_millis(random.below(120))).await;
        let app = apps[random.below(3) as usize];
        inside += retransmits_inside(&edgepoint);
        edgepoint.client().sleep(&app.parse().unwrap()).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let mut by_app: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for task in load {
        let (app, waits) = task.await.unwrap();
        by_app.entry(app).or_default().extend(waits);
    }
    let requests: usize = by_app.values().map(Vec::len).sum();
    let retransmitted = edgepoint.retransmits() - retransmitted;
    let after = settled().await;
    let longest: BTreeMap<_, _> = by_app
        .iter()
        .map(|(app, waits)| (*app, *waits.iter().max().unwrap() as f64 / 1e3))
        .collect();
    record(
        "cycles",
        &serde_json::json!({
            "parks": parks, "requests": requests, "failed": 0, "longest_ms": longest,
            "retransmits_host": retransmitted, "retransmits_inside": inside,
        }),
    );
    assert_eq!((retransmitted, inside), (0, 0), "a connection was retransmitted");
    assert_eq!(after, before, "something was left");
    edgepoint.stop();
}
