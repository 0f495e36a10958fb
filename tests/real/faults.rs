//! What happens when something dies or is damaged.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{Edgepoint, wait_for};

fn parked_image(edgepoint: &Edgepoint) -> PathBuf {
    let appshots = edgepoint.directory.join("state/agent/appshots");
    let mut entries = fs::read_dir(appshots).unwrap().flatten().map(|entry| entry.path());
    entries.find(|path| path.to_string_lossy().contains("parked-")).expect("a parked appshot")
}

#[tokio::test]
async fn a_damaged_image_is_a_cold_start_that_says_so() {
    let edgepoint = Edgepoint::start(&["counter", "strict"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    for n in 1..=2 {
        assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(n));
    }
    edgepoint.cli(&["sleep", "counter"]);
    // A pages file cut short would make CRIU spin for ever: the manifest is looked at first.
    let pages = parked_image(&edgepoint).join("img/pages-1.img");
    let length = fs::metadata(&pages).unwrap().len();
    fs::File::options().write(true).open(&pages).unwrap().set_len(length / 2).unwrap();
    let answer = edgepoint.get("counter", "/").await;
    assert_eq!((answer.status, answer.json()["count"].as_u64()), (200, Some(1)));
    assert_eq!(answer.header("x-edgepoint-state"), Some("lost"));
    assert_eq!(edgepoint.get("counter", "/").await.header("x-edgepoint-state"), None);
    assert_eq!(edgepoint.metric("edgepoint_manager_state_lost_total").await, 1.0);

    let strict = [("state = \"keep\"", "state = \"keep\"\non_lost_state = \"error\"")];
    edgepoint.deploy("counter", "strict", &strict);
    edgepoint.get("strict", "/").await;
    edgepoint.cli(&["sleep", "counter"]);
    edgepoint.cli(&["remove", "counter"]);
    edgepoint.cli(&["sleep", "strict"]);
    fs::remove_file(parked_image(&edgepoint).join("img/core-1.img")).unwrap();
    let answer = edgepoint.get("strict", "/").await;
    assert_eq!((answer.status, answer.header("x-edgepoint-error")), (503, Some("E0006")));
    assert_eq!(edgepoint.status("strict").await.state.as_str(), "failed");
    // Deployed again it serves.
    edgepoint.deploy("counter", "strict", &strict);
    assert_eq!(edgepoint.get("strict", "/").await.json()["count"].as_u64(), Some(1));
    edgepoint.stop();
}

#[tokio::test]
async fn a_commit_that_fails_leaves_the_app_running() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(1));
    // No room for an image: a tiny file system over the place of appshots.
    let appshots = edgepoint.directory.join("state/agent/appshots");
    let tiny = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
    assert!(Command::new("mount").args(tiny).arg(&appshots).status().unwrap().success());
    let output = edgepoint.cli_output(&["sleep", "counter"]);
    assert!(Command::new("umount").arg(&appshots).status().unwrap().success());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("E0012"), "{output:?}");
    let answer = edgepoint.get("counter", "/").await.json();
    assert_eq!(answer["count"].as_u64(), Some(2), "the same process: {answer}");
    assert_eq!(answer["disk"].as_u64(), Some(2));
    edgepoint.cli(&["sleep", "counter"]);
    assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(3));
    edgepoint.stop();
}

#[tokio::test]
async fn the_agents_death_ends_no_instance() {
    let edgepoint = Edgepoint::start(&["counter", "chain"]).await;
    for app in ["counter", "chain"] {
        edgepoint.deploy(app, app, &[]);
        assert_eq!(edgepoint.get(app, "/").await.json()["count"].as_u64(), Some(1));
    }
    let agent = edgepoint.part("edgepoint-agent");
    kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
    for app in ["counter", "chain"] {
        assert_eq!(edgepoint.get(app, "/").await.json()["count"].as_u64(), Some(2));
    }
    // A new agent finds them and can park and wake them.
    wait_for("the new agent", Duration::from_secs(20), || async {
        edgepoint.cli_output(&["sleep", "counter"]).status.success().then_some(())
    })
    .await;
    assert_eq!(edgepoint.status("counter").await.state.as_str(), "parked");
    edgepoint.cli(&["sleep", "chain"]);
    for app in ["counter", "chain"] {
        assert_eq!(edgepoint.get(app, "/").await.json()["count"].as_u64(), Some(3));
    }
    edgepoint.stop();
}

#[tokio::test]
async fn a_new_proxy_goes_on_with_the_instances_of_the_old_one() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(1));
    let proxy = edgepoint.part("serve");
    kill(Pid::from_raw(proxy), Signal::SIGKILL).unwrap();
    // The listening sockets are the supervisor's: a request meanwhile waits.
    let answer = wait_for("the new proxy", Duration::from_secs(20), || async {
        let mut connection = crate::harness::Connection::open(&edgepoint.http).await.ok()?;
        connection.get("counter.localhost", "/").await.ok().filter(|answer| answer.status == 200)
    })
    .await;
    assert_eq!(answer.json()["count"].as_u64(), Some(2), "the same instance");
    edgepoint.stop();
}

#[tokio::test]
async fn a_stopped_edgepoint_goes_on_where_it_was() {
    let mut edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    for n in 1..=2 {
        assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(n));
    }
    edgepoint.restart().await;
    let status = edgepoint.status("counter").await;
    assert_eq!(status.state.as_str(), "parked");
    let answer = edgepoint.get("counter", "/").await.json();
    assert_eq!(answer["count"].as_u64(), Some(3));
    assert_eq!(answer["generation"].as_u64(), Some(3), "generations go on");
    let usage = edgepoint.cli(&["usage"]);
    assert_eq!(usage[0]["requests"].as_u64(), Some(3), "the ledger goes on: {usage}");
    edgepoint.stop();
}

#[tokio::test]
async fn when_everything_dies_what_was_parked_is_kept_and_what_ran_is_said_to_be_lost() {
    let apps = ["slept", "ran", "strict", "fresh"];
    let mut edgepoint = Edgepoint::start(&apps).await;
    for app in apps {
        let strict = [("state = \"keep\"", "state = \"keep\"\non_lost_state = \"error\"")];
        edgepoint.deploy("counter", app, if app == "strict" { &strict } else { &[] });
        if app != "fresh" {
            assert_eq!(edgepoint.get(app, "/").await.json()["count"].as_u64(), Some(1));
        }
    }
    edgepoint.cli(&["sleep", "slept"]);
    edgepoint.lose_power().await;
    let slept = edgepoint.get("slept", "/").await;
    assert_eq!(
        (slept.json()["count"].as_u64(), slept.header("x-edgepoint-state")),
        (Some(2), None)
    );
    let ran = edgepoint.get("ran", "/").await;
    assert_eq!(
        (ran.json()["count"].as_u64(), ran.header("x-edgepoint-state")),
        (Some(1), Some("lost"))
    );
    let strict = edgepoint.get("strict", "/").await;
    assert_eq!((strict.status, strict.header("x-edgepoint-error")), (503, Some("E0006")));
    let fresh = edgepoint.get("fresh", "/").await;
    assert_eq!(
        (fresh.json()["count"].as_u64(), fresh.header("x-edgepoint-state")),
        (Some(1), None)
    );
    assert_eq!(edgepoint.metric("edgepoint_manager_state_lost_total").await, 2.0);
    edgepoint.stop();
}

#[tokio::test]
async fn the_agents_death_in_the_middle_of_a_wake_loses_nothing() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let mut random = crate::harness::Random::seeded();
    for n in 1..=crate::harness::scale(4, 40) as u64 {
        let (host, agent) = ("counter.localhost", edgepoint.part("edgepoint-agent"));
        let mut connection = edgepoint.connect().await;
        let asked = tokio::spawn(async move { connection.get(host, "/").await.unwrap() });
        tokio::time::sleep(Duration::from_millis(random.below(40))).await;
        kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
        let answer = asked.await.unwrap();
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, 200, "{text}");
        assert_eq!(answer.json()["count"].as_u64(), Some(n), "{text}");
        assert_eq!(answer.json()["disk"].as_u64(), Some(n), "{text}");
        wait_for("it to sleep", Duration::from_secs(20), || async {
            edgepoint.cli_output(&["sleep", "counter"]).status.success().then_some(())
        })
        .await;
    }
    edgepoint.stop();
}

#[tokio::test]
async fn an_app_that_ends_by_itself_is_woken_again_and_its_loss_is_said() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    edgepoint.get("counter", "/").await;
    let pid = edgepoint.first_processes()[0];
    tokio::time::sleep(Duration::from_millis(1200)).await;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_for("its end", Duration::from_secs(5), || async {
        edgepoint.status("counter").await.instances.is_empty().then_some(())
    })
    .await;
    let answer = edgepoint.get("counter", "/").await;
    assert_eq!((answer.status, answer.json()["count"].as_u64()), (200, Some(1)));
    assert_eq!(answer.header("x-edgepoint-state"), Some("lost"));
    edgepoint.stop();
}

#[tokio::test]
async fn a_deployment_that_fails_says_why_and_the_old_release_serves_on() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let broken = edgepoint.directory.join("apps/counter");
    fs::write(broken.join("server.py"), "raise SystemExit('broken on purpose')\n").unwrap();
    let output = edgepoint.cli_output(&["deploy", broken.to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("E0011"), "{output:?}");
    assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(1));
    edgepoint.stop();
}
