//! Request to first byte of the sample apps, interleaved in one run:
//!
//! * (a) parked → restored by us, through the proxy
//! * (b) the `criu restore` command line with a warm kernel cache on an image of the same app, plus
//!   a first GET over a socket inside its namespace
//! * (c) cold start of the same command in the same kind of sandbox, until the first answer
//! * (d) running, through the proxy
//!
//! `--short` (or run by `make test`) makes few rounds; `EDGEPOINT_PROVE=DIR` keeps every sample.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, missing_docs)]

#[path = "../../tests/real/harness.rs"]
#[allow(dead_code)]
mod harness;
mod rival;

use std::time::Instant;

use harness::{Connection, Edgepoint};

const APPS: [&str; 3] = ["counter", "node", "chain"];

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let short = std::env::args().any(|argument| argument == "--short");
    let rounds = if short { 5 } else { 60 };
    let edgepoint = Edgepoint::start(&APPS).await;
    let mut rivals = Vec::new();
    for app in APPS {
        edgepoint.deploy(app, app, &[]);
        rivals.push(rival::Rival::new(&edgepoint, app));
    }
    let names = ["a restored", "b criu CLI", "c cold", "d running"];
    let mut samples = vec![vec![Vec::new(); names.len()]; APPS.len()];
    for round in 0..rounds {
        for (index, app) in APPS.into_iter().enumerate() {
            let host = format!("{app}.localhost");
            // (a): the client's connection is there already, as a browser's would be.
            edgepoint.client().sleep(&app.parse().unwrap()).await.unwrap();
            let mut connection = Connection::open(&edgepoint.http).await.unwrap();
            // The pool of sandboxes is refilled off the path.
            tokio::time::sleep(std::time::Duration::from_millis(60)).await;
            let began = Instant::now();
            let answer = connection.get(&host, "/").await.unwrap();
            assert_eq!(answer.status, 200);
            samples[index][0].push(began.elapsed().as_secs_f64() * 1e3);
            // (d)
            let began = Instant::now();
            assert_eq!(connection.get(&host, "/").await.unwrap().status, 200);
            samples[index][3].push(began.elapsed().as_secs_f64() * 1e3);
            // (b), (c): with our instance parked, so that nothing else runs.
            edgepoint.client().sleep(&app.parse().unwrap()).await.unwrap();
            samples[index][1].push(rivals[index].restore());
            samples[index][2].push(rivals[index].cold());
        }
        if !short {
            eprint!("\rround {}/{rounds}", round + 1);
        }
    }
    eprintln!();
    println!("{:<9}{:<12}{:>4}{:>11}{:>11}{:>11}", "app", "way", "n", "median", "p99", "min");
    let mut medians = Vec::new();
    for (app, ways) in APPS.iter().zip(&mut samples) {
        let mut row = Vec::new();
        for (name, values) in names.iter().zip(ways.iter_mut()) {
            values.sort_by(f64::total_cmp);
            let median = quantile(values, 0.5);
            row.push(median);
            let (p99, min) = (quantile(values, 0.99), values[0]);
            let n = values.len();
            println!("{app:<9}{name:<12}{n:>4}{median:>8.2} ms{p99:>8.2} ms{min:>8.2} ms");
        }
        println!("{app:<9}a/b {:.2}   a/c {:.2}", row[0] / row[1], row[0] / row[2]);
        medians.push(row);
    }
    harness::record(
        "wake",
        &serde_json::json!({"apps": APPS, "ways": names, "medians_ms": medians, "samples_ms": samples}),
    );
    drop(rivals);
    edgepoint.stop();
}
