//! The restore agent's program: reads its settings from standard input and serves; started as
//! `edgepoint-agent stage` it is the small step between the agent and a new process.
//!
//! The supervisor (`edgepoint run`) starts it, and it ends with it; nobody calls it by hand. SIGTERM
//! asks it to end: it waits for the manager, which may still put apps to sleep; a second one ends it
//! at once.

use std::{os::unix::process::parent_id, sync::Arc, sync::mpsc, thread, time::Duration};

use anyhow::Context;
use edgepoint::{
    agent::{probe, server, stage},
    os::process,
};
use nix::sys::signal::{SigSet, Signal};

/// How long the manager may take to put everything to sleep.
const MANAGER_PATIENCE: Duration = Duration::from_secs(120);

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("stage") {
        return stage::main();
    }
    if std::env::args().nth(1).as_deref() == Some("probe") {
        return probe::main();
    }
    // An agent that nobody supervises would be in the way of the next one.
    let supervisor = parent_id();
    process::end_with_parent()?;
    anyhow::ensure!(parent_id() == supervisor, "what started this agent has ended already");
    let config: server::Config =
        serde_json::from_reader(std::io::stdin()).context("settings come on standard input")?;
    // Before signals are blocked: until it has the lock it has nothing to clear away.
    let lock = server::Lock::take(&config.state);
    let lock = lock.with_context(|| format!("cannot lock {}", config.state.display()))?;
    process::become_subreaper()?;
    // Blocked in every thread, waited for in this one.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let init = std::env::current_exe()?.with_file_name("edgepoint-init");
    let open = server::Agent::open(config, &init, lock);
    let agent = Arc::new(open.context("the agent cannot start")?);
    let serving = agent.clone();
    thread::spawn(move || {
        if let Err(error) = serving.run() {
            eprintln!("edgepoint-agent: {error}");
            std::process::exit(1);
        }
    });
    signals.wait()?;
    wait_for_managers(&agent, signals);
    agent.close();
    Ok(())
}

/// Until the last manager has gone, a second signal comes or patience is at its end.
fn wait_for_managers(agent: &Arc<server::Agent>, signals: SigSet) {
    let (gone, enough) = mpsc::channel();
    let (leaving, agent) = (gone.clone(), agent.clone());
    thread::spawn(move || {
        agent.see_managers_off();
        let _ = leaving.send(());
    });
    thread::spawn(move || {
        let _ = signals.wait();
        let _ = gone.send(());
    });
    let _ = enough.recv_timeout(MANAGER_PATIENCE);
}
