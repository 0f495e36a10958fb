//! Mounts that a sandbox is built from. Paths come from this program's own directories.

use std::{io, path::Path};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const NONE: Option<&str> = None;

/// Later changes below `path` stay in this mount namespace.
pub fn make_private(path: &str) -> io::Result<()> {
    Ok(mount(NONE, path, NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?)
}

/// Mounts an overlay at `target`: `lower` from top to bottom, writes go to `upper`.
pub fn overlay(target: &Path, lower: &[&Path], upper: &Path, work: &Path) -> io::Result<()> {
    let lower: Vec<String> = lower.iter().map(|path| escape(path)).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off",
        lower.join(":"),
        escape(upper),
        escape(work)
    );
    let flags = MsFlags::MS_NOSUID;
    Ok(mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))?)
}

/// Shows `source` at `target`, read-only, without set-uid programs and devices.
pub fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)?;
    let flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    Ok(mount(NONE, target, NONE, flags, NONE)?)
}

/// Shows `source` at `target`.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)?)
}

/// A proc of the calling process's pid namespace.
pub fn proc(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), target, Some("proc"), flags, NONE)?)
}

/// An empty file system in memory.
pub fn tmpfs(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("size=1m,mode=755"))?)
}

/// Makes `root` (a mount) the root of the calling process and lets go of the old one.
pub fn pivot(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    // The old root is stacked on the new one and unmounted from there; no directory is needed.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

/// Overlay options are split at `,` and `:`; both may be escaped.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}
