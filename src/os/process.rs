//! Starting and watching processes: descriptors handed to a child at fixed numbers, pidfds, the
//! start time that tells a process from a later one with the same id.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    os::unix::process::CommandExt,
    process::{Child, Command},
};

use nix::{
    libc,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        signal::SigSet,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid},
};

/// The number under which a child finds the first of the descriptors given to it.
pub const FIRST_FD: RawFd = 3;

/// Spawns `command` with `fds` at 3, 4, 5, … and every other descriptor closed by close-on-exec. No
/// signal is blocked in the child, whatever is in the caller (the standard library hands the
/// caller's mask on).
pub fn spawn_with_fds(command: &mut Command, fds: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let sources: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut parked: Vec<RawFd> = vec![-1; sources.len()];
    // SAFETY: the closure runs between fork and exec; it calls only fcntl, dup2 and sigprocmask,
    // which are async-signal-safe, and touches no memory but its own, allocated before the fork.
    unsafe {
        command.pre_exec(move || {
            SigSet::empty().thread_set_mask()?;
            // First out of the way of all targets, then to the targets: no source is overwritten.
            for (slot, source) in parked.iter_mut().zip(&sources) {
                *slot = libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, 200);
                if *slot < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            for (target, source) in (FIRST_FD..).zip(&parked) {
                if libc::dup2(*source, target) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Takes over a descriptor that the parent placed by [`spawn_with_fds`] and makes it close-on-exec.
/// Fails if there is none; call it once per number, at the start of a program.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on any number is harmless; it only sets a flag where the number is open.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open (checked above) and was placed for this program alone; the caller
    // takes each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Clears close-on-exec, so that the next `exec` of this process hands the descriptor on.
pub fn keep_over_exec(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: sets a flag of a descriptor that is borrowed and therefore open.
    let result = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETFD, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range with CLOEXEC only sets flags; numbers without a descriptor are skipped.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts `source` at `target` (0, 1 or 2), open over exec.
pub fn place(source: impl AsFd, target: RawFd) -> io::Result<()> {
    // SAFETY: dup2 onto a standard stream number, which no OwnedFd in this program owns.
    let result = unsafe { libc::dup2(source.as_fd().as_raw_fd(), target) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Forks a process that has only one thread. `Ok(None)` in the child, its id in the parent.
pub fn fork_single_threaded() -> io::Result<Option<i32>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other("fork with more than one thread"));
    }
    // SAFETY: this process has one thread (checked above), so the child finds every lock free and
    // may run any code.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child.as_raw())),
        ForkResult::Child => Ok(None),
    }
}

/// A descriptor that stands for one process and never for a later one with the same id.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us (pidfds are close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to exactly that process; a process that has ended is no error.
pub fn signal(pidfd: impl AsFd, signal: nix::sys::signal::Signal) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the siginfo pointer may be null; the descriptor is borrowed and open.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, null, 0) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) };
    }
    Ok(())
}

/// Waits until the process has ended, or `timeout_ms` passed; says whether it ended.
pub fn wait_for_end(pidfd: impl AsFd, timeout_ms: u16) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, timeout_ms)? > 0)
}

/// Reaps `pid` if it is a child of ours that has ended. Returns its exit code, or 128 + signal.
pub fn reap(pid: i32) -> Option<i32> {
    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Some(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
        _ => None,
    }
}

/// Orphans among our descendants become our children from here on.
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Raises the soft limit of open files to the hard one; children inherit it.
pub fn raise_open_files() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// This process gets SIGTERM when its parent dies.
pub fn end_with_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?)
}

/// When a process began, in clock ticks since boot (field 22 of `/proc/PID/stat`).
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; fields are counted from its end.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable process state"))
}

/// Tells which of many processes ended. Descriptors may be added while another thread waits.
#[derive(Debug)]
pub struct Watch {
    epoll: Epoll,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Reports `key` once, when the process behind `pidfd` ends. Closing the pidfd ends the watch.
    pub fn add(&self, pidfd: impl AsFd, key: u64) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        Ok(self.epoll.add(pidfd.as_fd(), EpollEvent::new(flags, key))?)
    }

    /// Waits for the next process to end.
    pub fn next(&self) -> io::Result<Option<u64>> {
        let mut events = [EpollEvent::empty(); 1];
        match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(None),
            Ok(_) => Ok(events.first().map(EpollEvent::data)),
            Err(error) => Err(error.into()),
        }
    }
}
