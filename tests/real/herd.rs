//! Many requests for one sleeping app.

use crate::harness::{Connection, Edgepoint, record, scale};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_to_a_parked_app_make_one_restore() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let rounds = scale(1, 5);
    let mut waits = Vec::new();
    for round in 1..=rounds {
        let address = edgepoint.http.clone();
        // Connected first, so that all requests come in the same moment.
        let mut connections = Vec::new();
        for _ in 0..1000 {
            connections.push(Connection::open(&address).await.unwrap());
        }
        let began = std::time::Instant::now();
        let tasks: Vec<_> = connections
            .into_iter()
            .map(|mut connection| {
                tokio::spawn(async move {
                    let answer = connection.get("counter.localhost", "/").await.unwrap();
                    (answer.status, answer.json()["count"].as_u64(), began.elapsed())
                })
            })
            .collect();
        let mut counts = Vec::new();
        for task in tasks {
            let (status, count, wait) = task.await.unwrap();
            assert_eq!(status, 200);
            counts.push(count.unwrap());
            waits.push(wait.as_secs_f64() * 1000.0);
        }
        counts.sort_unstable();
        let first = (round as u64 - 1) * 1000 + 1;
        assert!(counts.iter().copied().eq(first..first + 1000), "each was counted once");
        let status = edgepoint.status("counter").await;
        assert_eq!(status.wakes, round as u64, "exactly one restore");
        edgepoint.cli(&["sleep", "counter"]);
    }
    waits.sort_by(f64::total_cmp);
    record(
        "herd",
        &serde_json::json!({
            "requests": waits.len(), "restores": rounds, "errors": 0,
            "first_ms": waits[0], "median_ms": waits[waits.len() / 2], "last_ms": waits[waits.len() - 1],
        }),
    );
    edgepoint.stop();
}
