//! The manifest of an appshot: written last, read first. An image without one does not exist.

use serde::{Deserialize, Serialize};

use crate::model::{AppName, AppshotId, Bytes, InstanceId, ReleaseId};

/// Version of this format. Another one is refused, never guessed at.
pub const FORMAT: u32 = 1;

/// What an appshot is and where it may be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`]
    pub format: u32,
    /// Its own id, so that a directory moved under another name is noticed.
    pub id: AppshotId,
    /// Golden or parked.
    pub kind: Kind,
    /// The app.
    pub app: AppName,
    /// The release that ran.
    pub release: ReleaseId,
    /// The instance it was taken of.
    pub instance: InstanceId,
    /// That instance's generation.
    pub generation: u64,
    /// When it was committed, in milliseconds since 1970.
    pub created_ms: u64,
    /// The machine and tools it was taken with.
    pub host: Host,
    /// File layers over the release's root, top first.
    pub layers: Vec<String>,
    /// Bytes of those layers that belong to this appshot alone.
    pub layer_bytes: Bytes,
    /// Name under which CRIU knows the instance's standard output in this image.
    pub stdout_key: String,
    /// The same for standard error.
    pub stderr_key: String,
    /// Programs and libraries mapped by the processes, with their build-ids.
    pub executables: Vec<Executable>,
    /// Each file of the image.
    pub files: Vec<FileEntry>,
}

/// Which of the two kinds of appshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Taken once per release, ready but before the first request; restored any number of times.
    Golden,
    /// An instance's own state; restored once.
    Parked,
}

/// What an image depends on besides its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// CPU model and a digest of its feature flags.
    pub cpu: String,
    /// CRIU version.
    pub criu: String,
}

/// A program or library that was mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Executable {
    /// Its path inside the sandbox.
    pub path: String,
    /// Its build-id, where it has one.
    pub build_id: Option<String>,
}

/// One file of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name in the image's directory.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// Why an appshot may not be restored here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Written by another version of this program.
    #[error("its manifest has format {found}, this program reads {FORMAT}")]
    Format {
        /// What it says.
        found: u32,
    },
    /// Taken on another kernel, CPU or with another CRIU.
    #[error("it was taken with {what} {then}, this host has {now}")]
    Host {
        /// Which of them differs.
        what: &'static str,
        /// What it was taken with.
        then: String,
        /// What is here.
        now: String,
    },
}

impl Manifest {
    /// Whether it may be restored on `host`. The CPU must be the same: state of its registers has
    /// another form on another one. Another kernel or CRIU can refuse an image, which is safe. So a
    /// golden image, which is simply made again, must be of the same ones, and a parked one is
    /// tried: an update must not throw kept state away.
    pub fn fits(&self, host: &Host) -> Result<(), Mismatch> {
        if self.format != FORMAT {
            return Err(Mismatch::Format { found: self.format });
        }
        let is_golden = self.kind == Kind::Golden;
        let needs = [
            ("kernel", is_golden, &self.host.kernel, &host.kernel),
            ("CPU", true, &self.host.cpu, &host.cpu),
            ("CRIU", is_golden, &self.host.criu, &host.criu),
        ];
        for (what, is_needed, then, now) in needs {
            if is_needed && then != now {
                return Err(Mismatch::Host { what, then: then.clone(), now: now.clone() });
            }
        }
        Ok(())
    }

    /// What it costs to keep: image files and its own layer.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.files.iter().map(|file| file.size).sum::<u64>() + self.layer_bytes.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { kernel: "6.18".into(), cpu: "x".into(), criu: "4.2".into() }
    }

    #[test]
    fn another_cpu_refuses_every_image_and_another_kernel_or_criu_a_golden_one() {
        let golden = Manifest {
            format: FORMAT,
            id: AppshotId::new("golden-1").unwrap(),
            kind: Kind::Golden,
            app: AppName::new("a").unwrap(),
            release: ReleaseId::new("1").unwrap(),
            instance: InstanceId::new(1),
            generation: 1,
            created_ms: 0,
            host: host(),
            layers: vec![],
            layer_bytes: Bytes(5),
            stdout_key: String::new(),
            stderr_key: String::new(),
            executables: vec![],
            files: vec![FileEntry { name: "a".into(), size: 7, sha256: String::new() }],
        };
        let parked = Manifest { kind: Kind::Parked, ..golden.clone() };
        assert_eq!(golden.bytes(), Bytes(12));
        let kernel = Host { kernel: "6.19".into(), ..host() };
        let cpu = Host { cpu: "y".into(), ..host() };
        let criu = Host { criu: "4.3".into(), ..host() };
        let differs = |manifest: &Manifest, host: &Host| match manifest.fits(host) {
            Ok(()) => None,
            Err(Mismatch::Host { what, .. }) => Some(what),
            Err(error) => panic!("{error}"),
        };
        for (host, of_golden, of_parked) in [
            (host(), None, None),
            (kernel, Some("kernel"), None),
            (cpu, Some("CPU"), Some("CPU")),
            (criu, Some("CRIU"), None),
        ] {
            assert_eq!(differs(&golden, &host), of_golden);
            assert_eq!(differs(&parked, &host), of_parked);
        }
        for image in [golden, parked] {
            let newer = Manifest { format: FORMAT + 1, ..image };
            assert!(matches!(newer.fits(&host()), Err(Mismatch::Format { .. })));
        }
    }
}
