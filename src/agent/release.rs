//! Releases: what runs, copied once and never changed. `ID/release.json` and `ID/root/`, the
//! read-only tree under an instance's private layer; and the base tree that all releases share.
//!
//! The id is the digest of the app, the base and every file, so the same content deployed again is
//! the same release.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::copy::Copy;
use super::stage::INIT;
use crate::{
    appshot, clock,
    model::{App, AppName, ReleaseId},
    os::tree,
};

mod copy;

/// Written last and removed first: a release without it does not exist.
const DESCRIPTION: &str = "release.json";

/// One release.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Its id.
    pub id: ReleaseId,
    /// What it declares.
    pub app: App,
    /// User and group of its processes.
    pub uid: u32,
    /// Name of the base tree under it.
    pub base: String,
}

/// Releases below one directory.
#[derive(Debug)]
pub struct Releases {
    root: PathBuf,
    first_uid: u32,
    base: String,
    /// One registration at a time: uids are given once.
    turn: std::sync::Mutex<()>,
}

impl Releases {
    /// Opens or makes the directory; builds the base tree with the init program at `init`.
    pub fn open(root: &Path, init: &Path, first_uid: u32) -> io::Result<Self> {
        for part in ["bases", "releases"] {
            fs::create_dir_all(root.join(part))?;
        }
        let base = build_base(&root.join("bases"), init)?;
        Ok(Self { root: root.into(), first_uid, base, turn: std::sync::Mutex::new(()) })
    }

    /// All releases.
    pub fn list(&self) -> io::Result<Vec<Release>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("releases"))? {
            let directory = entry?.path();
            let text = fs::read_to_string(directory.join(DESCRIPTION));
            match text.and_then(|text| serde_json::from_str(&text).map_err(io::Error::other)) {
                Ok(release) => found.push(release),
                // Without its description it was never finished.
                Err(_) => tree::remove(&directory)?,
            }
        }
        Ok(found)
    }

    /// Makes a release of `app` with the files of `source`.
    pub fn register(&self, app: App, source: &File) -> io::Result<Release> {
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let uid = self.uid_of(&app.name)?;
        let temporary = self.root.join("releases").join(format!(".tmp-{}", app.name));
        tree::remove(&temporary)?;
        let made = self.make(app, uid, source, &temporary);
        // It has its name by now, or is of no use.
        let _ = tree::remove(&temporary);
        made
    }

    fn make(&self, app: App, uid: u32, source: &File, temporary: &Path) -> io::Result<Release> {
        let root = temporary.join("root");
        for part in ["app", "data", "etc"] {
            fs::create_dir_all(root.join(part))?;
        }
        let mut hash = Sha256::new();
        hash.update(serde_json::to_vec(&app)?);
        hash.update(&self.base);
        hash.update(uid.to_le_bytes());
        let hash = Copy::new(uid, hash).run(source, &root.join("app"))?;
        chown(root.join("data"), Some(uid), Some(uid))?;
        fs::set_permissions(root.join("data"), fs::Permissions::from_mode(0o700))?;
        let users =
            format!("root:x:0:0:root:/:/usr/sbin/nologin\napp:x:{uid}:{uid}::/app:/bin/sh\n");
        fs::write(root.join("etc/passwd"), users)?;
        fs::write(root.join("etc/group"), format!("root:x:0:\napp:x:{uid}:\n"))?;
        let digest: String =
            hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let id = ReleaseId::new(&digest).map_err(io::Error::other)?;
        let release = Release { id, app, uid, base: self.base.clone() };
        let directory = self.root.join("releases");
        let home = directory.join(release.id.as_str());
        let description = home.join(DESCRIPTION);
        if description.exists() {
            File::open(description)?.set_modified(UNIX_EPOCH + clock::wall())?;
            return Ok(release);
        }
        // What a removal that was interrupted has left.
        tree::remove(&home)?;
        appshot::sync_layer(&root)?;
        let mut file = File::create(temporary.join(DESCRIPTION))?;
        file.write_all(&serde_json::to_vec_pretty(&release)?)?;
        file.sync_all()?;
        fs::rename(temporary, &home)?;
        File::open(&directory)?.sync_all()?;
        Ok(release)
    }

    /// How long ago a release was registered.
    pub fn age(&self, id: &ReleaseId) -> Duration {
        let file = self.root.join("releases").join(id.as_str()).join(DESCRIPTION);
        let made = fs::metadata(file).and_then(|meta| meta.modified()).ok();
        let made = made.and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        clock::wall().saturating_sub(made.unwrap_or_default())
    }

    /// Removes a release's files.
    pub fn remove(&self, id: &ReleaseId) -> io::Result<()> {
        let home = self.root.join("releases").join(id.as_str());
        match fs::remove_file(home.join(DESCRIPTION)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        tree::remove(&home)
    }

    /// Its read-only layers, top first.
    pub fn layers(&self, release: &Release) -> Vec<PathBuf> {
        vec![
            self.root.join("releases").join(release.id.as_str()).join("root"),
            self.root.join("bases").join(&release.base),
        ]
    }

    /// The user of an app: given once, kept for good, never shared.
    fn uid_of(&self, app: &AppName) -> io::Result<u32> {
        let path = self.root.join("uids.json");
        let mut uids: BTreeMap<AppName, u32> = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        if let Some(uid) = uids.get(app) {
            return Ok(*uid);
        }
        let uid = uids.values().max().map_or(self.first_uid, |last| last + 1);
        uids.insert(app.clone(), uid);
        let temporary = self.root.join(".uids.json");
        fs::write(&temporary, serde_json::to_vec_pretty(&uids)?)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(temporary, path)?;
        Ok(uid)
    }
}

/// The tree under every release: mount points, devices, the few files of /etc that libraries read,
/// and the init. Named by the digest of what is in it, since images remember the init's build.
fn build_base(bases: &Path, init: &Path) -> io::Result<String> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    const LINKS: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
    const ETC: [&str; 3] = ["ld.so.cache", "localtime", "ssl/certs/ca-certificates.crt"];
    const LAYOUT: u8 = 2;
    const DEVICES: [(&str, u64, u64); 5] =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];
    let mut hash = Sha256::new();
    hash.update([LAYOUT]);
    let init = fs::read(init)?;
    hash.update(&init);
    let etc: Vec<_> = ETC
        .iter()
        .filter_map(|name| Some((*name, fs::read(Path::new("/etc").join(name)).ok()?)))
        .collect();
    etc.iter().for_each(|(_, content)| hash.update(content));
    let name: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let home = bases.join(&name);
    if home.exists() {
        return Ok(name);
    }
    let tree = bases.join(".tmp");
    let _ = fs::remove_dir_all(&tree);
    let directories = [
        "usr",
        "etc/ssl/certs",
        "proc",
        "dev/shm",
        "tmp",
        "var/tmp",
        "run/edgepoint",
        ".edgepoint",
    ];
    for directory in directories {
        fs::create_dir_all(tree.join(directory))?;
    }
    for open in ["tmp", "var/tmp", "dev/shm"] {
        fs::set_permissions(tree.join(open), fs::Permissions::from_mode(0o1777))?;
    }
    for link in LINKS {
        symlink(format!("usr/{link}"), tree.join(link))?;
    }
    symlink("/proc/self/fd", tree.join("dev/fd"))?;
    for (number, name) in ["stdin", "stdout", "stderr"].into_iter().enumerate() {
        symlink(format!("/proc/self/fd/{number}"), tree.join("dev").join(name))?;
    }
    for (device, major, minor) in DEVICES {
        let path = tree.join("dev").join(device);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    }
    for (file, content) in etc {
        fs::write(tree.join("etc").join(file), content)?;
    }
    copy_links(Path::new("/etc/alternatives"), &tree.join("etc/alternatives"))?;
    fs::write(tree.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    fs::write(tree.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
    let program = tree.join(INIT.trim_start_matches('/'));
    fs::write(&program, init)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    fs::rename(&tree, &home)?;
    Ok(name)
}

/// Copies the links of a directory; on Debian they choose among programs in /usr.
fn copy_links(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            symlink(fs::read_link(entry.path())?, to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
