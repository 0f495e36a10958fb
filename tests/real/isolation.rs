//! Two providers' apps on the same port: nothing of one reaches the other, also while both are
//! parked and woken at random.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use crate::harness::{Connection, Edgepoint, Random, record, scale};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_connection_or_body_crosses_between_providers() {
    let edgepoint = Edgepoint::start(&["left", "right"]).await;
    edgepoint.deploy("counter", "left", &[("WHO = \"counter\"", "WHO = \"left-secret\"")]);
    let right = [("WHO = \"counter\"", "WHO = \"right-secret\""), ("\"acme\"", "\"globex\"")];
    edgepoint.deploy("counter", "right", &right);
    let mut random = Random::seeded();
    let total = scale(6_000, 100_000);
    let workers = 8;
    let (address, done) = (edgepoint.http.clone(), Arc::new(AtomicUsize::new(0)));
    let mut tasks = Vec::new();
    for worker in 0..workers {
        let mut random = Random(random.next());
        let (done, address) = (done.clone(), address.clone());
        tasks.push(tokio::spawn(async move {
            // Client connections are kept and used for both apps in turn.
            let mut connection = Connection::open(&address).await.unwrap();
            for n in 0..total / workers {
                let app = if random.below(2) == 0 { "left" } else { "right" };
                let host = format!("{app}.localhost");
                if random.below(4) == 0 {
                    let size = random.below(5_000);
                    let body =
                        Bytes::from(format!("{app}-{worker}-{n}-").repeat(size as usize / 20));
                    let answer =
                        connection.send("POST", &host, "/echo", body.clone()).await.unwrap();
                    assert_eq!(answer.status, 200);
                    assert_eq!(answer.body, body, "a body crossed");
                } else {
                    let answer = connection.get(&host, "/who").await.unwrap();
                    let text = String::from_utf8_lossy(&answer.body).into_owned();
                    assert_eq!(answer.status, 200, "{text}");
                    assert!(text.contains(&format!("{app}-secret")), "{app} got {text}");
                    assert!(text.contains(app), "host name: {text}");
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let ended = Arc::new(AtomicBool::new(false));
    let client = edgepoint.client();
    let sleeper = tokio::spawn({
        let ended = ended.clone();
        async move {
            let mut sleeps = 0;
            while !ended.load(Ordering::Relaxed) {
                let app = if random.below(2) == 0 { "left" } else { "right" };
                client.sleep(&app.parse().unwrap()).await.unwrap();
                sleeps += 1;
                tokio::time::sleep(Duration::from_millis(random.below(150))).await;
            }
            sleeps
        }
    });
    for task in tasks {
        task.await.unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    let sleeps = sleeper.await.unwrap();
    assert!(sleeps >= 5, "only {sleeps} parks");
    record(
        "isolation",
        &serde_json::json!({"requests": done.load(Ordering::Relaxed), "parks": sleeps, "crossed": 0}),
    );
    edgepoint.stop();
}
