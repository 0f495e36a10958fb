//! Sleeping and waking as users see it.

use bytes::Bytes;

use crate::harness::Edgepoint;

#[tokio::test]
async fn a_request_wakes_a_parked_app_and_finds_its_state() {
    let edgepoint = Edgepoint::start(&["counter", "node", "chain"]).await;
    for app in ["counter", "node", "chain"] {
        let deployed = edgepoint.deploy(app, app, &[]);
        assert!(deployed["golden"]["bytes"].as_u64().unwrap() > 100_000, "{deployed}");
        let status = edgepoint.status(app).await;
        assert_eq!(status.state.as_str(), "parked", "idle from the deployment on");
        for n in 1..=3 {
            let answer = edgepoint.get(app, "/").await;
            assert_eq!((answer.status, answer.json()["count"].as_u64()), (200, Some(n)));
        }
        edgepoint.cli(&["sleep", app]);
        let status = edgepoint.status(app).await;
        assert_eq!(status.state.as_str(), "parked");
        assert!(status.instances.is_empty());
        let answer = edgepoint.get(app, "/").await;
        // node discards its state: the next instance begins from the golden appshot.
        let expected = if app == "node" { 1 } else { 4 };
        assert_eq!(answer.json()["count"].as_u64(), Some(expected), "{app}");
        assert_eq!(answer.header("x-edgepoint-state"), None);
    }
    let answer = edgepoint.get("counter", "/").await.json();
    assert_eq!(answer["disk"], answer["count"]);
    // golden 1, first wake 2, second wake 3
    assert_eq!(answer["generation"].as_u64(), Some(3), "{answer}");
    assert_eq!(answer["restored"].as_u64(), Some(2), "the hook was called: {answer}");

    let usage = edgepoint.cli(&["usage", "--app", "counter"]);
    assert_eq!(usage[0]["requests"].as_u64(), Some(5), "{usage}");
    assert_eq!(usage[0]["wakes"].as_u64(), Some(2), "{usage}");
    let bill = edgepoint.cli(&["bill"]);
    assert!(bill["lines"].as_array().unwrap().len() >= 3, "{bill}");
    let logs = edgepoint.cli(&["logs", "counter"]);
    assert!(logs.to_string().contains("listen") || !logs.as_array().unwrap().is_empty());
    edgepoint.stop();
}

#[tokio::test]
async fn nothing_that_policy_answers_wakes_an_app() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    assert_eq!(edgepoint.get("fixed", "/").await.body, "fixed");
    let moved = edgepoint.get("moved", "/a?b=c").await;
    assert_eq!(moved.header("location"), Some("https://example.com/a?b=c"));
    assert_eq!(edgepoint.get("nobody", "/").await.header("x-edgepoint-error"), Some("E0001"));
    assert_eq!(edgepoint.get("counter", "/../etc").await.status, 400);
    // On one connection, with a body that nobody reads: the next request is still its own.
    let mut connection = edgepoint.connect().await;
    for _ in 0..3 {
        let body = Bytes::from(vec![b'G'; 20_000]);
        let answer = connection.send("POST", "moved.localhost", "/x", body).await;
        let Ok(answer) = answer else { break };
        assert_eq!(answer.status, 308);
    }
    let status = edgepoint.status("counter").await;
    assert_eq!((status.state.as_str(), status.wakes), ("parked", 0));
    edgepoint.stop();
}

#[tokio::test]
async fn a_body_that_arrives_during_a_wake_is_not_lost() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let body = Bytes::from((0..3_000_000u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    let mut connection = edgepoint.connect().await;
    let answer = connection.send("POST", "counter.localhost", "/echo", body.clone()).await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "{} bytes came back", answer.body.len());
    assert_eq!(edgepoint.status("counter").await.wakes, 1);
    edgepoint.stop();
}

#[tokio::test]
async fn past_the_bound_or_the_deadline_a_request_is_told_when_to_come_back() {
    let edgepoint = Edgepoint::start(&["small", "hasty"]).await;
    edgepoint.deploy("counter", "small", &[("hard = 64", "hard = 1\n[wake]\nmax_pending = 1")]);
    edgepoint.deploy("counter", "hasty", &[("hard = 64", "hard = 1\n[wake]\ntimeout = \"200ms\"")]);

    let first = edgepoint.get("small", "/slow?ms=1500");
    let second = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        edgepoint.get("small", "/").await
    };
    let third = async {
        tokio::time::sleep(std::time::Duration::from_millis(900)).await;
        edgepoint.get("small", "/").await
    };
    let (first, second, third) = tokio::join!(first, second, third);
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!((third.status, third.header("x-edgepoint-error")), (503, Some("E0003")));
    assert_eq!(third.header("retry-after"), Some("1"));

    let first = edgepoint.get("hasty", "/slow?ms=2000");
    let second = async {
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        edgepoint.get("hasty", "/").await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.status, 200);
    assert_eq!((second.status, second.header("x-edgepoint-error")), (503, Some("E0004")));
    let usage = edgepoint.cli(&["usage", "--app", "hasty"]);
    assert_eq!(usage[0]["refused"].as_u64(), Some(1), "it is on the record: {usage}");
    assert_eq!(usage[0]["requests"].as_u64(), Some(1), "and not billed: {usage}");
    edgepoint.stop();
}

#[tokio::test]
async fn an_idle_app_is_parked_by_itself_and_a_busy_one_is_not() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[("park_after = \"30s\"", "park_after = \"300ms\"")]);
    // A request that takes longer than the idle time holds the instance.
    let answer = edgepoint.get("counter", "/slow?ms=1500").await;
    assert_eq!(answer.status, 200);
    assert_eq!(edgepoint.status("counter").await.wakes, 1);
    crate::harness::wait_for("the park", std::time::Duration::from_secs(10), || async {
        (edgepoint.status("counter").await.state.as_str() == "parked").then_some(())
    })
    .await;
    assert_eq!(edgepoint.get("counter", "/").await.json()["restored"].as_u64(), Some(2));
    edgepoint.stop();
}

#[tokio::test]
async fn a_second_deployment_replaces_without_a_failed_request() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let address = edgepoint.http.clone();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut load = Vec::new();
    for _ in 0..4 {
        let (stopped, address) = (stopped.clone(), address.clone());
        load.push(tokio::spawn(async move {
            let mut connection = crate::harness::Connection::open(&address).await.unwrap();
            let (mut count, mut who) = (0, Vec::new());
            while !*stopped.borrow() {
                let answer = connection.get("counter.localhost", "/who").await.unwrap();
                assert_eq!(answer.status, 200);
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                if who.last() != Some(&text) {
                    who.push(text);
                }
                count += 1;
            }
            (count, who)
        }));
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    edgepoint.deploy("counter", "counter", &[("WHO = \"counter\"", "WHO = \"second\"")]);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    stop.send(true).unwrap();
    for task in load {
        let (count, who) = task.await.unwrap();
        assert!(count > 50, "only {count} requests");
        assert_eq!(who.len(), 2, "{who:?}");
        assert!(who[1].contains("second"), "{who:?}");
    }
    edgepoint.stop();
}

#[tokio::test]
async fn what_an_instance_uses_and_waits_for_is_sampled() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[("cpu = 1", "cpu = 0.2")]);
    // Four times what it may use: it stands still for most of this.
    let spin = || edgepoint.get("counter", "/spin?ms=200");
    let (one, two) = tokio::join!(spin(), spin());
    assert_eq!((one.status, two.status), (200, 200));
    let patience = std::time::Duration::from_secs(10);
    let instance = crate::harness::wait_for("a sample", patience, || async {
        edgepoint.status("counter").await.instances.into_iter().find(|i| i.cpu_micros > 350_000)
    })
    .await;
    assert!(instance.memory.0 > 1 << 20, "{instance:?}");
    let kept = std::path::Path::new("/sys/fs/cgroup/unified/cpu.pressure").exists()
        || std::path::Path::new("/sys/fs/cgroup/cpu.pressure").exists();
    let waited = instance.pressure.cpu_micros;
    assert!(waited > 100_000 || !kept, "{instance:?}");
    edgepoint.stop();
}
