//! Several instances of one golden appshot.

use std::collections::HashSet;

use crate::harness::{Edgepoint, record};

#[tokio::test]
async fn five_instances_of_one_appshot_live_at_once_and_diverge() {
    let edgepoint = Edgepoint::start(&["many"]).await;
    let many = [
        ("state = \"keep\"", "state = \"discard\""),
        ("hard = 64", "hard = 1\n[scale]\nmax = 5"),
        ("internal_port = 8080", "internal_port = 8080\nclonable = true"),
    ];
    edgepoint.deploy("counter", "many", &many);
    let woken = edgepoint.cli(&["wake", "many", "--count", "5"]);
    assert_eq!(woken["running"].as_u64(), Some(5), "{woken}");
    let status = edgepoint.status("many").await;
    assert_eq!(status.instances.len(), 5);
    let metric = "edgepoint_manager_wakes_total{app=\"many\",how=\"restore\"}";
    assert_eq!(edgepoint.metric(metric).await, 5.0, "all from the golden appshot");
    // One slot each, five slow requests at once: each instance gets one.
    let slow = || edgepoint.get("many", "/slow?ms=400");
    let answers = tokio::join!(slow(), slow(), slow(), slow(), slow());
    for answer in [answers.0, answers.1, answers.2, answers.3, answers.4] {
        assert_eq!(answer.status, 200);
    }
    // Then each counts for itself, in memory and on disk.
    let mut generations = HashSet::new();
    let mut total = 0;
    for _ in 0..20 {
        let hit = || async {
            let mut connection = edgepoint.connect().await;
            let slow = connection.get("many.localhost", "/?ms=20").await.unwrap().json();
            (slow["generation"].as_u64().unwrap(), slow["count"].as_u64(), slow["disk"].as_u64())
        };
        let five = tokio::join!(hit(), hit(), hit(), hit(), hit());
        for (generation, count, disk) in [five.0, five.1, five.2, five.3, five.4] {
            assert_eq!(count, disk, "memory and files of an instance agree");
            generations.insert(generation);
            total += 1;
        }
    }
    assert_eq!(total, 100);
    assert_eq!(generations.len(), 5, "one slot each: all five are used: {generations:?}");
    record(
        "clones",
        &serde_json::json!({"instances": 5, "millis": woken["millis"], "seen": generations.len()}),
    );
    edgepoint.stop();
}

#[tokio::test]
async fn a_second_instance_without_clonable_is_a_cold_start() {
    let edgepoint = Edgepoint::start(&["two"]).await;
    let two =
        [("state = \"keep\"", "state = \"discard\""), ("hard = 64", "hard = 64\n[scale]\nmax = 2")];
    edgepoint.deploy("counter", "two", &two);
    edgepoint.cli(&["wake", "two", "--count", "2"]);
    let wakes = |how| format!("edgepoint_manager_wakes_total{{app=\"two\",how=\"{how}\"}}");
    assert_eq!(edgepoint.metric(&wakes("restore")).await, 1.0);
    assert_eq!(edgepoint.metric(&wakes("cold")).await, 1.0);
    edgepoint.stop();
}
