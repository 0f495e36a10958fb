//! The restore agent's program: reads its settings from standard input and serves; started as
//! `edgepoint-agent stage` it is the small step between the agent and a new process.
//!
//! The supervisor (`edgepoint run`) starts it; nobody calls it by hand.

use std::sync::Arc;

use anyhow::Context;
use edgepoint::{
    agent::{probe, server, stage},
    os::process,
};
use nix::sys::signal::{SigSet, Signal};

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("stage") {
        return stage::main();
    }
    if std::env::args().nth(1).as_deref() == Some("probe") {
        return probe::main();
    }
    let config: server::Config =
        serde_json::from_reader(std::io::stdin()).context("settings come on standard input")?;
    process::become_subreaper()?;
    // Blocked in every thread, waited for in this one.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let init = std::env::current_exe()?.with_file_name("edgepoint-init");
    let open = server::Agent::open(config, &init);
    let agent = Arc::new(open.context("the agent cannot start")?);
    let serving = agent.clone();
    std::thread::spawn(move || {
        if let Err(error) = serving.run() {
            eprintln!("edgepoint-agent: {error}");
            std::process::exit(1);
        }
    });
    signals.wait()?;
    agent.close();
    Ok(())
}
