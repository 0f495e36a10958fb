//! The lock on a state directory: two agents on one would take each other's instances apart.

use std::{
    fs::{self, File},
    io,
    path::Path,
    thread,
    time::Duration,
};

use crate::clock;

/// The locked file.
const NAME: &str = "lock";

/// How long an agent before this one may take to end, and between two looks at it.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// The right to work on a state directory, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the state directory, which is made if there is none. Waits for an agent that is ending:
    /// it outlives its supervisor for as long as apps are being put to sleep.
    pub fn take(state: &Path) -> io::Result<Self> {
        Self::within(state, PATIENCE)
    }

    fn within(state: &Path, patience: Duration) -> io::Result<Self> {
        fs::create_dir_all(state)?;
        let path = state.join(NAME);
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        let deadline = clock::now() + patience;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(fs::TryLockError::Error(error)) => return Err(error),
                Err(fs::TryLockError::WouldBlock) => {}
            }
            let path = path.display();
            if clock::now() >= deadline {
                let text =
                    format!("another agent still holds {path} after {} s", patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            if !std::mem::replace(&mut told, true) {
                eprintln!("edgepoint-agent: another agent holds {path}; waiting for it to end");
            }
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_holds_it_and_the_next_waits() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("agent");
        let first = Lock::take(&state).unwrap();
        let error = Lock::within(&state, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("agent/lock after 0 s"), "{error}");
        thread::scope(|scope| {
            let next = scope.spawn(|| Lock::take(&state));
            thread::sleep(2 * PAUSE);
            assert!(!next.is_finished());
            drop(first);
            next.join().unwrap().unwrap();
        });
    }
}
