//! containerd's configuration file for each generation.

use std::path::{Path, PathBuf};

use crate::parts::Generation;

/// Where one containerd keeps its things, all under the node's directory.
#[derive(Debug)]
pub(crate) struct Paths {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) hosts: PathBuf,
}

impl Paths {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            root: dir.join("root"),
            state: dir.join("state"),
            socket: dir.join("c.sock"),
            config: dir.join("containerd.toml"),
            hosts: dir.join("certs.d"),
        }
    }

    pub(crate) fn content(&self) -> PathBuf {
        self.root.join("io.containerd.content.v1.content")
    }
}

/// Plugins that write outside the node's directory, need a device, or only cost start time.
const DISABLED: [&str; 10] = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.differ.v1.erofs",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
];

pub(crate) fn config(generation: Generation, paths: &Paths) -> String {
    let (version, plugins) = match generation {
        Generation::V1_6 | Generation::V1_7 => (2, CRI_V2),
        Generation::V2_1 => (3, CRI_V3),
    };
    format!(
        "version = {version}\nroot = '{root}'\nstate = '{state}'\ndisabled_plugins = {DISABLED:?}\n\
         [grpc]\naddress = '{socket}'\n{plugins}",
        root = paths.root.display(),
        state = paths.state.display(),
        socket = paths.socket.display(),
        plugins = plugins.replace("HOSTS", &paths.hosts.display().to_string()),
    )
}

const CRI_V2: &str = r#"
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.grpc.v1.cri".containerd]
discard_unpacked_layers = false
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = 'HOSTS'
"#;

/// The images plugin downloads with the transfer service from here on; NRI would listen on one socket for
/// the whole machine.
const CRI_V3: &str = r"
[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.cri.v1.images']
discard_unpacked_layers = false
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = 'HOSTS'
";
