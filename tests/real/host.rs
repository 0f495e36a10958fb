//! The edgepoint and its host: others beside it, what it finds at its start, tenants that strain it.

use std::{fs, os::fd::AsRawFd, process::Command, time::Duration};

use crate::harness::{Edgepoint, wait_for};

/// Runs a second `edgepoint run` with a changed configuration to its end; what it said.
fn second(edgepoint: &Edgepoint, name: &str, replace: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut text = fs::read_to_string(edgepoint.directory.join("edgepoint.toml")).unwrap();
    for (from, to) in replace {
        assert!(text.contains(from), "{from:?} is not in the configuration");
        text = text.replacen(from, to, 1);
    }
    let path = edgepoint.directory.join(format!("{name}.toml"));
    fs::write(&path, text).unwrap();
    let network =
        format!("--net=/proc/{}/fd/{}", std::process::id(), edgepoint.http.network.as_raw_fd());
    let program = env!("CARGO_BIN_EXE_edgepoint");
    // Bounded: one that stays up is what this test must notice.
    let mut command = Command::new("timeout");
    command.args(["60", "nsenter", &network, program, "run", "--config"]).arg(path);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn another_edgepoint_with_the_same_directories_or_addresses_is_refused() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    edgepoint.get("counter", "/").await;
    for (name, replace, word) in [
        ("both", vec![], "runs already in"),
        ("run", vec![("state = \"state\"", "state = \"state2\"")], "runs already in"),
        ("state", vec![("run = \"run\"", "run = \"run2\"")], "runs already in"),
        (
            "address",
            vec![("state = \"state\"", "state = \"state3\""), ("run = \"run\"", "run = \"run3\"")],
            "listen on 127.0.0.1:8080",
        ),
    ] {
        let (code, said) = second(&edgepoint, name, &replace);
        assert!(code == Some(1) && said.contains(word), "{name}: {code:?} {said}");
    }
    assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(2));
    edgepoint.stop();
}

#[tokio::test]
async fn what_cannot_start_gives_up_and_destroys_nothing() {
    let mut edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    edgepoint.get("counter", "/").await;
    edgepoint.halt();
    let (code, said) = second(&edgepoint, "criu", &[("criu = \"", "criu = \"/nowhere")]);
    assert!(code == Some(1) && said.contains("the agent ended"), "{code:?} {said}");
    let deployed = edgepoint.directory.join("state/proxy/deployed.json");
    let whole = fs::read(&deployed).unwrap();
    fs::write(&deployed, &whole[..whole.len() / 2]).unwrap();
    let (code, said) = second(&edgepoint, "damaged", &[]);
    assert!(code == Some(1) && said.contains("deployed.json is damaged"), "{code:?} {said}");
    fs::write(&deployed, whole).unwrap();
    edgepoint.resume().await;
    let answer = edgepoint.get("counter", "/").await;
    assert_eq!(
        (answer.json()["count"].as_u64(), answer.header("x-edgepoint-state")),
        (Some(2), None)
    );
    edgepoint.stop();
}

#[tokio::test]
async fn the_supervisors_death_parks_what_runs_and_the_next_start_finds_it() {
    let mut edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    edgepoint.get("counter", "/").await;
    // At once, while the old proxy and agent are still at work.
    edgepoint.lose_supervisor().await;
    let answer = edgepoint.get("counter", "/").await;
    assert_eq!(
        (answer.json()["count"].as_u64(), answer.header("x-edgepoint-state")),
        (Some(2), None)
    );
    edgepoint.stop();
}

#[tokio::test]
async fn a_tenant_with_deep_directories_harms_nobody() {
    let edgepoint = Edgepoint::start(&["deep", "counter"]).await;
    let dig = "if __name__ == \"__main__\":\n    os.chdir(\"/tmp\")\n    for _ in range(20000):\n        \
               os.mkdir(\"d\")\n        os.chdir(\"d\")\n    os.chdir(\"/\")\n";
    edgepoint.deploy_with(
        "counter",
        "deep",
        &[("state = \"keep\"", "state = \"discard\"")],
        |code| code.replacen("if __name__ == \"__main__\":\n", dig, 1),
    );
    edgepoint.deploy("counter", "counter", &[]);
    let agent = edgepoint.part("edgepoint-agent");
    assert_eq!(edgepoint.get("deep", "/").await.status, 200);
    edgepoint.cli(&["sleep", "deep"]);
    for n in 1..=3 {
        assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(n));
        edgepoint.cli(&["sleep", "counter"]);
    }
    edgepoint.cli(&["remove", "deep"]);
    assert_eq!(edgepoint.part("edgepoint-agent"), agent, "the same agent");
    let layers = edgepoint.directory.join("state/agent/layers");
    wait_for("its files to be removed", Duration::from_secs(60), || async {
        // The counter's own layer and its golden one stay.
        (fs::read_dir(&layers).unwrap().count() <= 2).then_some(())
    })
    .await;
    edgepoint.stop();
}

#[tokio::test]
async fn an_app_that_writes_to_dev_stdout_is_parked_and_woken() {
    let edgepoint = Edgepoint::start(&["writer"]).await;
    let open = "if __name__ == \"__main__\":\n    log = open(\"/dev/stdout\", \"a\")\n    \
                print(\"by name\", file=log, flush=True)\n";
    edgepoint.deploy_with("counter", "writer", &[], |code| {
        code.replacen("if __name__ == \"__main__\":\n", open, 1)
    });
    for n in 1..=3 {
        let answer = edgepoint.get("writer", "/").await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.json()["count"].as_u64(), Some(n), "{text}");
        edgepoint.cli(&["sleep", "writer"]);
    }
    assert!(edgepoint.cli(&["logs", "writer"]).to_string().contains("by name"));
    edgepoint.stop();
}

#[tokio::test]
async fn the_agent_ends_with_its_supervisor() {
    let mut edgepoint = Edgepoint::start(&["counter"]).await;
    let agent = edgepoint.part("edgepoint-agent");
    // One that has ended and that nobody has reaped has no command line.
    let line = format!("/proc/{agent}/cmdline");
    let alive = || fs::read(&line).is_ok_and(|line| !line.is_empty());
    assert!(alive());
    edgepoint.lose_supervisor().await;
    assert!(!alive(), "two agents on one state");
    edgepoint.stop();
}
