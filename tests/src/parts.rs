//! Where the programs are.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A generation of containerd that Spegel promises to work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    V1_6,
    V1_7,
    V2_1,
}

impl Generation {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2_1];

    pub(crate) fn containerd(self) -> PathBuf {
        self.program("containerd")
    }

    pub(crate) fn ctr(self) -> PathBuf {
        self.program("ctr")
    }

    /// The program search path with this generation's programs first.
    pub(crate) fn path(self) -> OsString {
        let own = self.containerd().parent().map(Path::to_path_buf);
        let others = env::var_os("PATH").unwrap_or_default();
        let all = own.into_iter().chain(env::split_paths(&others));
        env::join_paths(all).expect("the directories were in such a list before")
    }

    fn program(self, name: &str) -> PathBuf {
        let fetched = |version: &str| parts_dir().join(format!("containerd-{version}/usr/bin")).join(name);
        let path = match self {
            // The machine's own, where that is of this generation.
            Self::V1_6 if fetched("1.6").exists() => fetched("1.6"),
            Self::V1_6 => PathBuf::from("/usr/bin").join(name),
            Self::V1_7 => fetched("1.7"),
            Self::V2_1 => fetched("2.1"),
        };
        assert!(path.exists(), "{} is missing: run .ci/install (as root) first", path.display());
        path
    }
}

/// A containerd that is older than all that are promised to work.
#[must_use]
pub fn outdated_containerd() -> PathBuf {
    let path = parts_dir().join("containerd-1.4/usr/bin/containerd");
    assert!(path.exists(), "{} is missing: run .ci/install (as root) first", path.display());
    path
}

/// The `spegel` binary under test: `SPEGEL_BIN`, or the release build.
#[must_use]
pub fn spegel_binary() -> PathBuf {
    let path = env::var_os("SPEGEL_BIN").map_or_else(|| target_dir().join("release/spegel"), PathBuf::from);
    assert!(
        path.exists(),
        "{} is missing: cargo build --release -p spegel, or set SPEGEL_BIN",
        path.display()
    );
    path
}

/// helm, which `.ci/install chart` builds.
#[must_use]
pub fn helm() -> PathBuf {
    part("helm")
}

/// What a Kubernetes of this version is made of, which `.ci/install kubernetes` builds.
pub(crate) fn kubernetes_dir(version: &str) -> PathBuf {
    let dir = parts_dir().join(format!("kubernetes-{version}"));
    assert!(
        dir.exists(),
        "{} is missing: run .ci/install kubernetes {version} (as root) first",
        dir.display()
    );
    dir
}

/// promtool, which checks what Prometheus reads.
#[must_use]
pub fn promtool() -> PathBuf {
    part("promtool")
}

/// Prometheus itself.
#[must_use]
pub fn prometheus() -> PathBuf {
    part("prometheus")
}

fn part(name: &str) -> PathBuf {
    let path = parts_dir().join(name);
    assert!(path.exists(), "{} is missing: run .ci/install chart (as root) first", path.display());
    path
}

/// The image under test, as `deploy/image` wrote it: `SPEGEL_IMAGE`, or what `make image` built.
#[must_use]
pub fn image_archive() -> PathBuf {
    let path =
        env::var_os("SPEGEL_IMAGE").map_or_else(|| target_dir().join("image/spegel.tar"), PathBuf::from);
    assert!(path.exists(), "{} is missing: make image, or set SPEGEL_IMAGE", path.display());
    path
}

fn parts_dir() -> PathBuf {
    env::var_os("SPEGEL_PARTS").map_or_else(|| target_dir().join("parts"), PathBuf::from)
}

/// Where cargo builds, for what a test leaves to be looked at.
#[must_use]
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from)
}
