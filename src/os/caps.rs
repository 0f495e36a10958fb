//! Capabilities and user ids: giving everything up for good, or becoming another user with some
//! capabilities kept over `exec` (ambient).
//!
//! The calls act on the calling thread; use them in a process that has one.

use std::io;

use nix::{
    libc,
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

const LAST_CAP: u32 = 63;

/// What CRIU needs to look into and hold a tree of another user. What the host does not grant
/// (here: CAP_SYS_RESOURCE on some machines) is left out.
const CRIU: [u32; 16] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    2,  // DAC_READ_SEARCH
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP
    12, // NET_ADMIN
    18, // SYS_CHROOT
    19, // SYS_PTRACE
    21, // SYS_ADMIN
    24, // SYS_RESOURCE
    37, // AUDIT_READ
    40, // CHECKPOINT_RESTORE
];

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

fn get() -> io::Result<[Data; 2]> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 reads and writes exactly one header and two data structs, which live here.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(data) }
}

fn set(data: [Data; 2]) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: as above; the kernel only reads the data.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn prctl(option: i32, a: u64, b: u64) -> io::Result<()> {
    // SAFETY: the options used here take integers only.
    let result = unsafe { libc::prctl(option, a, b, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The permitted set of the calling thread, bit by capability number.
pub fn permitted() -> io::Result<u64> {
    let [low, high] = get()?;
    Ok(u64::from(low.permitted) | u64::from(high.permitted) << 32)
}

/// Becomes `uid` and `gid` with no group, no capability and no way to any: the bounding set is
/// emptied and `no_new_privs` set.
pub fn become_nobody(uid: u32, gid: u32) -> io::Result<()> {
    for cap in 0..=LAST_CAP {
        // EINVAL: the kernel knows fewer capabilities.
        match prctl(libc::PR_CAPBSET_DROP, cap.into(), 0) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
            _ => {}
        }
    }
    switch(uid, gid)?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

/// Becomes `uid` and `gid` and keeps what CRIU needs over the next `exec`.
pub fn become_criu_user(uid: u32, gid: u32) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    switch(uid, gid)?;
    let available = permitted()?;
    let wanted: u64 = CRIU.iter().map(|cap| 1u64 << cap).sum::<u64>() & available;
    let half = |shift: u32| {
        let bits = (wanted >> shift) as u32;
        Data { effective: bits, permitted: bits, inheritable: bits }
    };
    set([half(0), half(32)])?;
    for cap in CRIU {
        if wanted & (1 << cap) != 0 {
            let raise = u64::try_from(libc::PR_CAP_AMBIENT_RAISE).unwrap_or(2);
            prctl(libc::PR_CAP_AMBIENT, raise, cap.into())?;
        }
    }
    Ok(())
}

fn switch(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}
