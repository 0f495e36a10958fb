//! The first process of every sandbox: starts the app's processes, reaps what ends, passes SIGTERM
//! on. When one of the app's processes ends, the instance ends with its exit code.
//!
//! It is part of every appshot, so it stays small and holds no memory of note.
//! Arguments: for each process the number of its arguments, then these.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use edgepoint::os::process::spawn_with_fds;
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

const EVERY_PROCESS: Pid = Pid::from_raw(-1);

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(message) => {
            eprintln!("edgepoint: {message}");
            ExitCode::from(127)
        }
    }
}

fn run() -> Result<u8, String> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|error| format!("cannot block signals: {error}"))?;
    let main = start(std::env::args().skip(1))?;
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {}
            // As process 1, a signal to "every process" reaches all but ourselves.
            Ok(signal) => drop(kill(EVERY_PROCESS, signal)),
            Err(_) => continue,
        }
        while let Some((pid, code)) = reap() {
            if main.contains(&pid) {
                return Ok(code);
            }
        }
    }
}

/// Starts the processes in order and returns their ids.
fn start(mut arguments: impl Iterator<Item = String>) -> Result<Vec<Pid>, String> {
    let mut started = Vec::new();
    while let Some(count) = arguments.next() {
        let count: usize = count.parse().map_err(|_| "bad arguments".to_string())?;
        let command: Vec<String> = arguments.by_ref().take(count).collect();
        let (program, rest) = command.split_first().ok_or("an empty command")?;
        let mut command = Command::new(program);
        command.args(rest).process_group(0);
        let child = spawn_with_fds(&mut command, &[])
            .map_err(|error| format!("cannot run {program:?}: {error}"))?;
        started.push(Pid::from_raw(child.id().cast_signed()));
    }
    if started.is_empty() { Err("nothing to run".into()) } else { Ok(started) }
}

/// The next child that has ended, if any.
fn reap() -> Option<(Pid, u8)> {
    loop {
        return match waitpid(EVERY_PROCESS, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => Some((pid, u8::try_from(code).unwrap_or(1))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                Some((pid, u8::try_from(128 + signal as i32).unwrap_or(255)))
            }
            Err(Errno::EINTR) => continue,
            _ => None,
        };
    }
}
