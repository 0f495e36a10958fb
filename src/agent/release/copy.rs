//! Copies the directory of a deployment into a release and takes its digest.
//!
//! The directory is somebody else's, may change while it is read, and is read as root. So no path
//! leads through it: each entry is opened in the descriptor of its directory, never through a link,
//! and is what its own descriptor says it is. Whatever is renamed meanwhile, the copy never holds
//! what lies outside. The target is ours.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt, chown, fchown, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{Mode, SFlag, fstatat},
};
use sha2::{Digest, Sha256};

/// Bounds of one release, so that a wrong directory (a home, a disk) is refused early.
const MAX_FILES: usize = 100_000;
const MAX_BYTES: u64 = 4 << 30;
/// Each level holds a descriptor.
const MAX_DEPTH: usize = 64;

/// A copy under way.
pub struct Copy {
    uid: u32,
    files: usize,
    bytes: u64,
    hash: Sha256,
}

/// One entry of a directory that is copied.
struct Entry<'a> {
    /// The directory that it is in.
    parent: &'a File,
    name: &'a OsStr,
    /// Its path inside the whole directory, for errors.
    inside: &'a Path,
    target: &'a Path,
}

impl Copy {
    /// The copy will belong to user `uid`; its digest goes on from `hash`.
    pub fn new(uid: u32, hash: Sha256) -> Self {
        Self { uid, files: 0, bytes: 0, hash }
    }

    /// Copies all of `source` into `target`, an empty directory, and returns the digest. Errors
    /// name what they are about by its path inside `source`.
    pub fn run(mut self, source: &File, target: &Path) -> io::Result<Sha256> {
        self.directory(source, Path::new(""), target, 0)?;
        Ok(self.hash)
    }

    fn directory(
        &mut self,
        source: &File,
        inside: &Path,
        target: &Path,
        depth: usize,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            let text = format!("{} lies more than {MAX_DEPTH} directories deep", inside.display());
            return Err(io::Error::other(text));
        }
        about(inside, chown(target, Some(self.uid), Some(self.uid)))?;
        for name in self.names(source, inside)? {
            let (inside, target) = (inside.join(&name), target.join(&name));
            let entry = Entry { parent: source, name: &name, inside: &inside, target: &target };
            self.entry(&entry, depth)?;
        }
        Ok(())
    }

    /// What is in a directory, in the order of the digest.
    fn names(&mut self, directory: &File, inside: &Path) -> io::Result<Vec<OsString>> {
        // The kernel's name for what the descriptor is, wherever that lies by now.
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let mut names = Vec::new();
        for entry in about(inside, fs::read_dir(path))? {
            names.push(about(inside, entry)?.file_name());
            self.files += 1;
            if self.files > MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} files")));
            }
        }
        names.sort();
        Ok(names)
    }

    fn entry(&mut self, entry: &Entry<'_>, depth: usize) -> io::Result<()> {
        let Entry { parent, name, inside, target } = *entry;
        // Devices and pipes are not even opened.
        let seen = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(io::Error::from);
        let mode = about(inside, seen)?.st_mode;
        match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
            SFlag::S_IFLNK => {
                let link = about(inside, readlinkat(parent, name).map_err(io::Error::from))?;
                self.begin(name, mode);
                self.hash.update(link.as_encoded_bytes());
                about(inside, symlink(link, target))?;
                about(inside, lchown(target, Some(self.uid), Some(self.uid)))
            }
            SFlag::S_IFDIR => {
                let source = about(inside, open(parent, name, OFlag::O_DIRECTORY))?;
                let mode = about(inside, source.metadata())?.mode();
                self.begin(name, mode);
                about(inside, fs::create_dir(target))?;
                self.directory(&source, inside, target, depth + 1)?;
                // The end of a directory, so that `a/` and `b` beside it differ from `a/b`.
                self.hash.update([b'/', 0]);
                about(inside, fs::set_permissions(target, rights(mode)))
            }
            SFlag::S_IFREG => {
                let source = about(inside, open(parent, name, OFlag::empty()))?;
                let meta = about(inside, source.metadata())?;
                if !meta.is_file() {
                    return Err(no_kind(inside));
                }
                self.begin(name, meta.mode());
                self.hash.update(meta.len().to_le_bytes());
                about(inside, self.content(source, target, meta.mode()))
            }
            _ => Err(no_kind(inside)),
        }
    }

    /// What the digest has of every entry.
    fn begin(&mut self, name: &OsStr, mode: u32) {
        self.hash.update(name.as_encoded_bytes());
        self.hash.update([0]);
        self.hash.update(mode.to_le_bytes());
    }

    fn content(&mut self, mut from: File, target: &Path, mode: u32) -> io::Result<()> {
        let mut to = OpenOptions::new().write(true).create_new(true).open(target)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = from.read(&mut buffer)?;
            let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else {
                break;
            };
            self.bytes += part.len() as u64;
            if self.bytes > MAX_BYTES {
                let text = format!("with it there are more than {MAX_BYTES} bytes");
                return Err(io::Error::other(text));
            }
            self.hash.update(part);
            to.write_all(part)?;
        }
        to.set_permissions(rights(mode))?;
        fchown(to, Some(self.uid), Some(self.uid))
    }
}

fn open(parent: &File, name: &OsStr, kind: OFlag) -> io::Result<File> {
    // Should a pipe have taken the place of a file meanwhile: not waiting for its other end.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    Ok(openat(parent, name, flags | kind, Mode::empty())?.into())
}

/// No set-uid bits: the tree is mounted without them anyway.
fn rights(mode: u32) -> fs::Permissions {
    fs::Permissions::from_mode(mode & 0o777)
}

fn no_kind(inside: &Path) -> io::Error {
    io::Error::other(format!("{} is no file, directory or link", inside.display()))
}

fn about<T>(inside: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| {
        let name = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
        io::Error::new(error.kind(), format!("cannot copy {}: {error}", name.display()))
    })
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::ffi::OsStrExt,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    fn copy(source: &Path, target: &Path) -> io::Result<String> {
        let uid = nix::unistd::geteuid().as_raw();
        let _ = fs::remove_dir_all(target);
        fs::create_dir(target).unwrap();
        let digest = Copy::new(uid, Sha256::new()).run(&File::open(source)?, target)?.finalize();
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The digest by its definition.
    fn digest(bytes: &[&[u8]]) -> String {
        let digest = Sha256::digest(bytes.concat());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn files_directories_and_links_are_copied_and_digested_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (directory.path().join("s"), directory.path().join("t"));
        fs::create_dir_all(source.join("b/empty")).unwrap();
        for (path, content, mode) in [("c", "see", 0o4755), ("a", "", 0o600), ("b/f", "x", 0o644)] {
            fs::write(source.join(path), content).unwrap();
            fs::set_permissions(source.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("../elsewhere", source.join("b/l")).unwrap();
        let odd = OsStr::from_bytes(b"\xff\n");
        fs::write(source.join(odd), "odd").unwrap();
        fs::set_permissions(source.join(odd), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(source.join("b"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::set_permissions(source.join("b/empty"), fs::Permissions::from_mode(0o700)).unwrap();
        let mode = |mode: u32| mode.to_le_bytes();
        let length = |length: u64| length.to_le_bytes();
        let expected: [&[u8]; 22] = [
            b"a\0",
            &mode(0o100_600),
            &length(0),
            b"b\0",
            &mode(0o40_750),
            b"empty\0",
            &mode(0o40_700),
            b"/\0",
            b"f\0",
            &mode(0o100_644),
            &length(1),
            b"x",
            b"l\0",
            &mode(0o120_777),
            b"../elsewhere",
            b"/\0",
            b"c\0",
            &[mode(0o104_755).as_slice(), &length(3)].concat(),
            b"see\xff\n\0",
            &mode(0o100_640),
            &length(3),
            b"odd",
        ];
        assert_eq!(copy(&source, &target).unwrap(), digest(&expected));
        assert_eq!(fs::read(target.join("c")).unwrap(), b"see");
        let rights = |path: &str| fs::metadata(target.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((rights("c"), rights("a"), rights("b")), (0o755, 0o600, 0o750));
        assert_eq!(fs::read_link(target.join("b/l")).unwrap(), Path::new("../elsewhere"));
        assert_eq!(fs::read(target.join(odd)).unwrap(), b"odd");
        assert_eq!(copy(&source, &target).unwrap(), digest(&expected), "the same again");
    }

    #[test]
    fn what_is_no_file_and_what_is_too_deep_is_refused_by_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (directory.path().join("s"), directory.path().join("t"));
        fs::create_dir_all(source.join("d/e")).unwrap();
        nix::unistd::mkfifo(&source.join("d/e/ff"), Mode::S_IRUSR).unwrap();
        let error = copy(&source, &target).unwrap_err().to_string();
        assert_eq!(error, "d/e/ff is no file, directory or link");
        fs::remove_file(source.join("d/e/ff")).unwrap();
        let deep: PathBuf = std::iter::repeat_n("x", MAX_DEPTH).collect();
        fs::create_dir_all(source.join(&deep)).unwrap();
        copy(&source, &target).unwrap();
        fs::create_dir_all(source.join(&deep).join("y")).unwrap();
        let error = copy(&source, &target).unwrap_err().to_string();
        assert!(error.ends_with("x/y lies more than 64 directories deep"), "{error}");
    }

    #[test]
    fn whatever_is_put_in_its_place_nothing_of_outside_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for place in ["s/d", "s/held", "outside"] {
            fs::create_dir_all(at(place)).unwrap();
        }
        fs::write(at("outside/secret"), "secret").unwrap();
        fs::write(at("s/d/secret"), "public").unwrap();
        fs::write(at("s/file"), "public").unwrap();
        symlink(at("outside"), at("s/link")).unwrap();
        symlink(at("outside/secret"), at("s/file.link")).unwrap();
        let stop = AtomicBool::new(false);
        let exchange = |a: PathBuf, b: PathBuf| {
            use nix::fcntl::{RenameFlags, renameat2};
            let here = nix::fcntl::AT_FDCWD;
            renameat2(here, &a, here, &b, RenameFlags::RENAME_EXCHANGE).unwrap();
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    exchange(at("s/d"), at("s/link"));
                    exchange(at("s/file"), at("s/file.link"));
                }
            });
            let mut outcomes = [0, 0];
            for _ in 0..300 {
                outcomes[usize::from(copy(&at("s"), &at("t")).is_err())] += 1;
                let mut open = vec![at("t")];
                while let Some(path) = open.pop() {
                    for entry in fs::read_dir(path).unwrap().flatten() {
                        let kind = entry.file_type().unwrap();
                        if kind.is_dir() {
                            open.push(entry.path());
                        } else if kind.is_file() {
                            assert_ne!(fs::read(entry.path()).unwrap(), b"secret");
                        }
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert!(outcomes[0] > 0, "{outcomes:?}");
        });
    }
}
