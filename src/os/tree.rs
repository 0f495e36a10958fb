//! Trees of files that somebody else made: removed whole, however deep, and made durable.
//!
//! Such a tree can be deeper than any stack, path or table of descriptors. So nothing here goes down
//! into it: what lies deep is brought up. Relies on nobody else writing in the tree meanwhile.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Removes a file or a tree; one that does not exist is no error. Links are not followed. What can
/// be removed is, also after an error; the first one is returned.
pub fn remove(path: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| told("look at", path, &error))?,
    };
    let device = meta.dev();
    let mut removal = Removal { root: path, device, made: 0, cleared: 0, removed: 0, error: None };
    if !meta.is_dir() {
        removal.unlink(path);
        return removal.error.map_or(Ok(()), Err);
    }
    loop {
        let removed = removal.removed;
        removal.pass();
        let left = match fs::remove_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => error,
            _ => return Ok(()),
        };
        // Another pass finds what a first one could not list; one without any success is the last.
        if removal.removed == removed {
            return Err(removal.error.unwrap_or_else(|| told("remove", path, &left)));
        }
    }
}

/// Writes everything of the file system that holds `directory` to its disk: one wait, where a sync
/// per file is one for each.
pub fn sync_file_system(directory: &File) -> io::Result<()> {
    Ok(nix::unistd::syncfs(directory)?)
}

fn told(act: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {act} {}: {error}", path.display()))
}

/// A removal: directories of the root are emptied, by bringing their own up into the root.
struct Removal<'a> {
    root: &'a Path,
    /// The file system, which is never left.
    device: u64,
    /// Names made in the root so far: `.0`, `.1`, and so on.
    made: u64,
    /// How many of them were emptied.
    cleared: u64,
    /// Entries that are gone.
    removed: u64,
    /// The first failure.
    error: Option<io::Error>,
}

impl Removal<'_> {
    fn pass(&mut self) {
        self.each(self.root, Self::clear);
        // A listing need not show what was brought up while it was read.
        while self.cleared < self.made {
            let directory = self.name(self.cleared);
            self.cleared += 1;
            self.clear(&directory, true);
        }
    }

    fn name(&self, number: u64) -> PathBuf {
        self.root.join(format!(".{number}"))
    }

    /// Does `act` to each entry; the flag says whether it is a directory.
    fn each(&mut self, directory: &Path, act: fn(&mut Self, &Path, bool)) {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => return self.note("read", directory, &error),
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?.is_dir()))) {
                Ok((path, is_directory)) => act(self, &path, is_directory),
                Err(error) => self.note("read", directory, &error),
            }
        }
    }

    /// Removes an entry of the root.
    fn clear(&mut self, path: &Path, is_directory: bool) {
        if !is_directory {
            return self.unlink(path);
        }
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.dev() == self.device => self.each(path, Self::lift),
            Ok(_) => {
                let error =
                    io::Error::new(io::ErrorKind::ResourceBusy, "something is mounted there");
                return self.note("empty", path, &error);
            }
            Err(error) => return self.note("look at", path, &error),
        }
        match fs::remove_dir(path) {
            Ok(()) => self.removed += 1,
            Err(error) => self.note("remove", path, &error),
        }
    }

    /// Removes an entry of a directory of the root, or brings it up.
    fn lift(&mut self, path: &Path, is_directory: bool) {
        if !is_directory {
            return self.unlink(path);
        }
        if fs::remove_dir(path).is_ok() {
            self.removed += 1;
            return;
        }
        loop {
            let target = self.name(self.made);
            self.made += 1;
            match fs::rename(path, &target) {
                Ok(()) => return,
                // The name is taken; there are as many taken ones as the root has entries.
                Err(_) if fs::symlink_metadata(&target).is_ok() => {}
                Err(error) => return self.note("move", path, &error),
            }
        }
    }

    fn unlink(&mut self, path: &Path) {
        match fs::remove_file(path) {
            Ok(()) => self.removed += 1,
            Err(error) => self.note("remove", path, &error),
        }
    }

    fn note(&mut self, act: &str, path: &Path, error: &io::Error) {
        if error.kind() != io::ErrorKind::NotFound && self.error.is_none() {
            self.error = Some(told(act, path, error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        os::unix::{ffi::OsStrExt, fs::symlink},
    };

    use super::*;

    /// Makes `path/d/d/…`, `depth` directories with a file in the last, without a long path.
    fn deep(path: &Path, depth: usize) {
        let top = path.with_extension("top");
        fs::create_dir(path).unwrap();
        fs::write(path.join("file"), "x").unwrap();
        for _ in 1..depth {
            fs::create_dir(&top).unwrap();
            fs::rename(path, top.join("d")).unwrap();
            fs::rename(&top, path).unwrap();
        }
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        deep(&tree, 5_000);
        // Far too deep for a path.
        let inner = tree.join("d/".repeat(2_100));
        assert_eq!(fs::symlink_metadata(inner).unwrap_err().raw_os_error(), Some(36));
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn wide_and_branching_trees_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        for a in 0..20 {
            for b in 0..20 {
                let path = tree.join(format!("{a}/{b}/c/d"));
                fs::create_dir_all(&path).unwrap();
                fs::write(path.join("file"), "x").unwrap();
            }
            deep(&tree.join(format!("{a}/deep")), 30);
        }
        remove(&tree).unwrap();
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
    }

    #[test]
    fn what_links_point_to_stays() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        for place in ["link", "a/link", "a/b/link", "a/b/c/link"] {
            symlink(&outside, tree.join(place)).unwrap();
            symlink("nowhere", tree.join(place).with_extension("broken")).unwrap();
            symlink("..", tree.join(place).with_extension("up")).unwrap();
        }
        remove(&tree).unwrap();
        assert!(!tree.exists());
        // A link in place of the tree is removed itself.
        symlink(&outside, &tree).unwrap();
        remove(&tree).unwrap();
        assert!(fs::symlink_metadata(&tree).is_err());
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"x");
    }

    #[test]
    fn odd_names_and_taken_names_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        let long = [b'n'; 255];
        let names: [&[u8]; 7] = [b"\xff\xfe", b"a\nb", b" ", b"...", b"-rf", b"\\", &long];
        for outer in names {
            for inner in names {
                let path = tree.join(OsStr::from_bytes(outer)).join(OsStr::from_bytes(inner));
                fs::create_dir_all(path.join("x")).unwrap();
                fs::write(path.join("x").join(OsStr::from_bytes(outer)), "x").unwrap();
            }
        }
        // Names that the removal would give, as a file, as an empty and as a full directory.
        fs::write(tree.join(".0"), "x").unwrap();
        fs::create_dir(tree.join(".1")).unwrap();
        fs::create_dir_all(tree.join(".2/.3/.0")).unwrap();
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn a_file_is_removed_and_what_is_missing_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "x").unwrap();
        remove(&file).unwrap();
        assert!(!file.exists());
        remove(&file).unwrap();
        remove(&file.join("below")).unwrap();
    }

    #[test]
    fn what_cannot_be_removed_is_said_and_the_rest_goes() {
        // A directory that is in use as a mount: neither removed nor moved. Needs root.
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        for (stuck, act) in [("a/b/stuck", "cannot move "), ("stuck", "cannot empty ")] {
            let (stuck, gone) = (tree.join(stuck), tree.join("a/b/gone"));
            fs::create_dir_all(&stuck).unwrap();
            fs::create_dir_all(tree.join("a/b")).unwrap();
            deep(&gone, 100);
            crate::os::mount::tmpfs(&stuck).unwrap();
            fs::write(stuck.join("kept"), "x").unwrap();
            let result = remove(&tree);
            // What is around it may have been moved.
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
            let mut places = places.map(Path::new).filter(|place| place.starts_with(&tree));
            let place = places.next().unwrap();
            let kept = fs::read(place.join("kept"));
            nix::mount::umount(place).unwrap();
            assert_eq!(kept.unwrap(), b"x");
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(act), "{error}");
            assert!(!gone.exists());
            remove(&tree).unwrap();
            assert!(!tree.exists());
        }
    }
}
