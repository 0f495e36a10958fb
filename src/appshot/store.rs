//! The directory of appshots: `ID/manifest.json` and `ID/img/*`.
//!
//! An image is written into `.tmp-ID`, made durable, described and then renamed: what has a name
//! is whole. Relies on one process writing (the agent); does not know what CRIU puts into files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Executable, FileEntry, Manifest, build_id};
use crate::{model::AppshotId, os::tree};

const MANIFEST: &str = "manifest.json";
const MANIFEST_MAX_BYTES: u64 = 4 << 20;

/// What went wrong with a stored appshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {act} {}", path.display())]
    File {
        /// What was attempted.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the image is not as the manifest says.
    #[error("file {name} of appshot {id} {problem}")]
    Damaged {
        /// The appshot.
        id: AppshotId,
        /// The file.
        name: String,
        /// In which way.
        problem: &'static str,
    },
    /// A directory with the manifest of another one.
    #[error("{} holds the appshot {id}", path.display())]
    Moved {
        /// Where it is.
        path: PathBuf,
        /// What its manifest says.
        id: AppshotId,
    },
    /// The manifest cannot be read as one.
    #[error("the manifest {} is unreadable", path.display())]
    Manifest {
        /// Where it is.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

trait Context<T> {
    fn at(self, act: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn at(self, act: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::File { act, path: path.into(), source })
    }
}

/// Appshots below one directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens or makes the directory and removes what an interrupted dump left.
    pub fn open(root: &Path) -> Result<Self, Error> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).at("make", root)?;
        for entry in fs::read_dir(root).at("list", root)? {
            let entry = entry.at("list", root)?;
            if entry.file_name().to_string_lossy().starts_with(".tmp-") {
                tree::remove(&entry.path()).at("remove", &entry.path())?;
            }
        }
        Ok(Self { root: root.into() })
    }

    /// All manifests; what is unreadable is returned beside them, not hidden.
    pub fn list(&self) -> Result<(Vec<Manifest>, Vec<Error>), Error> {
        let (mut found, mut broken) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.root).at("list", &self.root)? {
            let entry = entry.at("list", &self.root)?;
            match read_manifest(&entry.path().join(MANIFEST)) {
                Ok(manifest) if entry.file_name() != manifest.id.as_str() => {
                    broken.push(Error::Moved { path: entry.path(), id: manifest.id });
                }
                Ok(manifest) => found.push(manifest),
                Err(error) => broken.push(error),
            }
        }
        Ok((found, broken))
    }

    /// An empty directory for a new image that user `uid` may write.
    pub fn begin(&self, id: &AppshotId, uid: u32) -> Result<PathBuf, Error> {
        let directory = self.temporary(id);
        tree::remove(&directory).at("remove", &directory)?;
        let images = directory.join("img");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&images).at("make", &images)?;
        std::os::unix::fs::chown(&images, Some(uid), Some(uid)).at("give away", &images)?;
        Ok(images)
    }

    /// Makes a finished image durable and gives it its name. `describe` turns the list of files
    /// into the manifest. After an error nothing has the name.
    pub fn commit(
        &self,
        id: &AppshotId,
        describe: impl FnOnce(Vec<FileEntry>) -> Manifest,
    ) -> Result<Manifest, Error> {
        let directory = self.temporary(id);
        let images = directory.join("img");
        let mut files = Vec::new();
        for entry in fs::read_dir(&images).at("list", &images)? {
            let path = entry.at("list", &images)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".log") {
                fs::remove_file(&path).at("remove", &path)?;
                continue;
            }
            std::os::unix::fs::chown(&path, Some(0), Some(0)).at("take over", &path)?;
            let file = File::open(&path).at("open", &path)?;
            file.sync_all().at("sync", &path)?;
            let (size, sha256) = digest(file).at("read", &path)?;
            files.push(FileEntry { name, size, sha256 });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        std::os::unix::fs::chown(&images, Some(0), Some(0)).at("take over", &images)?;
        sync_directory(&images)?;
        let manifest = describe(files);
        let path = directory.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|source| Error::Manifest { path: path.clone(), source })?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .at("create", &path)?;
        file.write_all(&text).and_then(|()| file.sync_all()).at("write", &path)?;
        sync_directory(&directory)?;
        let home = self.root.join(id.as_str());
        tree::remove(&home).at("replace", &home)?;
        fs::rename(&directory, &home).at("name", &home)?;
        sync_directory(&self.root)?;
        Ok(manifest)
    }

    /// Throws an unfinished image away.
    pub fn abandon(&self, id: &AppshotId) {
        let _ = tree::remove(&self.temporary(id));
    }

    /// Removes an appshot; one that does not exist is no error.
    pub fn remove(&self, id: &AppshotId) -> Result<(), Error> {
        let home = self.root.join(id.as_str());
        tree::remove(&home).at("remove", &home)
    }

    /// The image's directory, after each of its files was seen to have its size: a pages file cut
    /// short makes CRIU spin for ever.
    pub fn images(&self, manifest: &Manifest) -> Result<File, Error> {
        let images = self.root.join(manifest.id.as_str()).join("img");
        for entry in &manifest.files {
            let size = fs::symlink_metadata(images.join(&entry.name)).map(|meta| meta.len());
            if size.ok() != Some(entry.size) {
                let problem = "is missing or has another size";
                return Err(damaged(manifest, entry, problem));
            }
        }
        File::open(&images).at("open", &images)
    }

    /// Compares each file with its digest.
    pub fn verify(&self, manifest: &Manifest) -> Result<(), Error> {
        let images = self.root.join(manifest.id.as_str()).join("img");
        for entry in &manifest.files {
            let path = images.join(&entry.name);
            let (_, sha256) = File::open(&path).and_then(digest).at("read", &path)?;
            if sha256 != entry.sha256 {
                return Err(damaged(manifest, entry, "has another digest"));
            }
        }
        Ok(())
    }

    fn temporary(&self, id: &AppshotId) -> PathBuf {
        self.root.join(format!(".tmp-{id}"))
    }
}

fn damaged(manifest: &Manifest, entry: &FileEntry, problem: &'static str) -> Error {
    Error::Damaged { id: manifest.id.clone(), name: entry.name.clone(), problem }
}

fn read_manifest(path: &Path) -> Result<Manifest, Error> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MANIFEST_MAX_BYTES).read_to_string(&mut text))
        .at("read", path)?;
    serde_json::from_str(&text).map_err(|source| Error::Manifest { path: path.into(), source })
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)
}

fn digest(mut file: File) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else {
            break;
        };
        hash.update(part);
        size += part.len() as u64;
    }
    Ok((size, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Makes every file and directory of a layer durable and counts their bytes. An app may stand still
/// meanwhile: no file is opened, and the disk is waited for once. A layer that is deeper than a path
/// can be is an error.
pub fn sync_layer(directory: &Path) -> io::Result<u64> {
    let told = |act: &'static str| {
        move |error: io::Error| {
            let text = format!("cannot {act} {}: {error}", directory.display());
            io::Error::new(error.kind(), text)
        }
    };
    let synced = File::open(directory).and_then(|directory| tree::sync_file_system(&directory));
    synced.map_err(told("sync the layer"))?;
    count_bytes(directory).map_err(told("measure the layer"))
}

fn count_bytes(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                bytes += entry.metadata()?.len();
            }
        }
    }
    Ok(bytes)
}

/// Describes the programs and libraries that a process has mapped.
pub fn executables(pid: i32) -> io::Result<Vec<Executable>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut found: Vec<Executable> = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else {
            continue;
        };
        let Some(path) = fields.nth(3).filter(|path| path.starts_with('/')) else {
            continue;
        };
        if !rights.contains('x') || found.iter().any(|other| other.path == path) {
            continue;
        }
        let file = File::open(format!("/proc/{pid}/map_files/{range}"));
        let build_id = file.ok().and_then(|mut file| build_id::read(&mut file));
        found.push(Executable { path: path.into(), build_id });
    }
    Ok(found)
}
