//! Memory and files of an instance are of one instant, also after it was parked at random moments.

use std::time::Duration;

use crate::harness::{Connection, Edgepoint, Random, record, scale};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_and_files_never_differ_over_parks_at_random_moments() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let mut random = Random::seeded();
    let parks = scale(15, 100);
    let address = edgepoint.http.clone();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn(async move {
        let mut connection = Connection::open(&address).await.unwrap();
        let mut last = 0;
        while !*stopped.borrow() {
            let answer = connection.get("counter.localhost", "/").await.unwrap();
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert_eq!(answer.status, 200, "{text}");
            let (memory, disk) = (answer.json()["count"].clone(), answer.json()["disk"].clone());
            assert_eq!(memory, disk);
            let count = memory.as_u64().unwrap();
            assert_eq!(count, last + 1, "no step is lost or done twice");
            last = count;
        }
        last
    });
    for _ in 0..parks {
        tokio::time::sleep(Duration::from_micros(random.below(60_000))).await;
        edgepoint.client().sleep(&"counter".parse().unwrap()).await.unwrap();
        let check = edgepoint.get("counter", "/check").await;
        assert_eq!(check.status, 200, "{:?}", String::from_utf8_lossy(&check.body));
    }
    stop.send(true).unwrap();
    let steps = writer.await.unwrap();
    record("agree", &serde_json::json!({"parks": parks, "steps": steps, "differences": 0}));
    edgepoint.stop();
}
