//! Gathers what [`spegel_core::check`] judges: asks containerd, reads its configuration, knocks at the
//! mirror and at other nodes. Looks and never changes anything. Used by `spegel check`, and by the running
//! registry, which has its findings in the metrics, in the log when they change, and at
//! `/debug/web/check`.

mod config_file;
mod probes;
mod process;
mod running;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use spegel_core::{
    Member,
    check::{
        ContainerdFacts, ContentStore, Distribution, Facts, HostsDir, Known, PROBE_TIMEOUT, Settings,
        SettingsSource, StoreDir, VERSION_SPLIT_CRI, major_minor,
    },
    oci::Digest,
};

pub use self::{
    process::running_registry,
    running::{Checks, Told, router},
};
use crate::{
    containerd::{ContainerdSettings, Survey, listener_pid, survey},
    content::ContentPathError,
    hosts_toml::{self, HostsTomlError},
};

/// Longest list of peers taken from a running registry: some 300 bytes each. Shorter and a large cluster
/// cannot be checked; longer and whoever has its port can fill this process's memory.
const TOLD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What to check.
#[derive(Clone, Debug)]
pub struct CheckSettings {
    /// Where containerd is.
    pub containerd: ContainerdSettings,
    /// Directory that `hosts.toml` files are written to, on the node.
    pub registry_config_path: PathBuf,
    /// Registries that are mirrored, as given to `spegel configuration`; none where nobody said.
    pub mirrored_registries: Option<Vec<String>>,
    /// Where the node's files are seen: `/` on the node itself.
    pub node_root: PathBuf,
}

/// Where a path of the node is seen.
fn node_path(node_root: &Path, path: &Path) -> PathBuf {
    node_root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What kind of node this looks like.
#[must_use]
pub fn distribution(node_root: &Path) -> Distribution {
    Distribution::detect(|path| node_path(node_root, Path::new(path)).exists())
}

/// Names of the directories that ought to hold a `hosts.toml`.
///
/// # Errors
///
/// If one of the registries is none.
pub fn mirrored(registries: &[String]) -> Result<Vec<String>, HostsTomlError> {
    hosts_toml::directories(registries)
}

/// The other nodes that a running registry knows, and has told at the address of its metrics.
pub async fn peers_of_registry(metrics: SocketAddr) -> Known<Vec<Member>> {
    match probes::get(metrics, running::PATH, TOLD_BYTES_MAX, PROBE_TIMEOUT).await {
        Ok(body) => match serde_json::from_slice::<Told>(&body) {
            Ok(told) => Known::Seen(told.members()),
            Err(error) => Known::Hidden(format!("{metrics} tells nothing of other nodes: {error}")),
        },
        Err(cause) => Known::Hidden(format!("no registry tells them ({cause})")),
    }
}

/// Looks at everything once. Takes some multiples of [`PROBE_TIMEOUT`] where nobody answers.
pub async fn gather(settings: &CheckSettings, peers: Known<Vec<Member>>) -> Facts {
    let (survey, pid) = tokio::join!(
        survey(&settings.containerd, PROBE_TIMEOUT),
        // A socket takes a connection at once or not at all.
        listener_pid(&settings.containerd),
    );
    let from_disk = {
        let settings = settings.clone();
        tokio::task::spawn_blocking(move || read(&settings, survey, pid)).await
    };
    let mut facts = from_disk.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let urls = targets(&facts);
    let peers = async {
        match peers {
            Known::Seen(members) => Known::Seen(probes::peers(members, PROBE_TIMEOUT).await),
            Known::Hidden(cause) => Known::Hidden(cause),
        }
    };
    (facts.targets, facts.peers) = tokio::join!(probes::targets(urls, PROBE_TIMEOUT), peers);
    facts
}

/// What is read from disk, beside what containerd said; blocks.
fn read(settings: &CheckSettings, survey: Survey, pid: Option<i32>) -> Facts {
    let distribution = distribution(&settings.node_root);
    let hidden_process = || match &survey.version {
        Ok(_) => "containerd's process is not in this container's process namespace".to_owned(),
        Err(_) => "containerd does not answer".to_owned(),
    };
    let mirrored = match &settings.mirrored_registries {
        Some(registries) => {
            mirrored(registries).map_or_else(|error| Known::Hidden(error.to_string()), Known::Seen)
        }
        None => Known::Hidden("nobody said what is mirrored".to_owned()),
    };
    Facts {
        distribution,
        content: content(settings, survey.sample.as_deref()),
        registry_config_path: settings.registry_config_path.display().to_string(),
        hosts: hosts(settings, pid.is_some()),
        mirrored,
        proxies: pid.map_or_else(|| Known::Hidden(hidden_process()), process::proxies),
        containerd: ContainerdFacts {
            socket: settings.containerd.socket.display().to_string(),
            settings: containerd_settings(settings, &survey, distribution, pid),
            version: survey.version,
            content_root: survey.content_root,
        },
        targets: Vec::new(),
        peers: Known::Hidden(String::new()),
    }
}

/// From containerd itself where it tells (before 2.0), else from its configuration file.
fn containerd_settings(
    settings: &CheckSettings,
    survey: &Survey,
    distribution: Distribution,
    pid: Option<i32>,
) -> Known<Settings> {
    if let Some(told) = survey.cri.as_ref().ok().and_then(told_settings) {
        return Known::Seen(told);
    }
    let version = survey.version.as_ref().ok().and_then(|version| major_minor(version));
    let before_split = version.is_some_and(|version| version < VERSION_SPLIT_CRI);
    let there = |file: &&str| node_path(&settings.node_root, Path::new(file)).exists();
    let named = pid.and_then(process::config_file);
    let file = match &named {
        Some(file) => Some(file.as_str()),
        None => distribution.config_files().iter().copied().find(there),
    };
    match file {
        Some(file) => match config_file::read(&settings.node_root, file, before_split) {
            Ok(settings) => Known::Seen(settings),
            Err(cause) => Known::Hidden(cause),
        },
        None => Known::Hidden(format!(
            "{} is not there, and from 2.0 on containerd does not tell it itself",
            distribution.config_files().join(" or "),
        )),
    }
}

/// What the CRI plugin says of itself; nothing where that leaves out registries, as from 2.0 on.
fn told_settings(config: &serde_json::Value) -> Option<Settings> {
    let registry = config.get("registry")?;
    let mirrors = registry.get("mirrors").and_then(serde_json::Value::as_object);
    let path = registry.get("configPath").and_then(serde_json::Value::as_str);
    let discard = config.pointer("/containerd/discardUnpackedLayers").and_then(serde_json::Value::as_bool);
    Some(Settings {
        source: SettingsSource::Running,
        config_path: path.unwrap_or_default().to_owned(),
        discard_unpacked_layers: discard.unwrap_or(false),
        local_image_pull: true,
        mirrors: mirrors.map(|mirrors| mirrors.keys().cloned().collect()).unwrap_or_default(),
        ignored_sections: false,
    })
}

fn content(settings: &CheckSettings, sample: Option<&[Digest]>) -> ContentStore {
    let path = &settings.containerd.content_path;
    let dir = match settings.containerd.check_content_path() {
        Ok(()) => StoreDir::Store,
        Err(ContentPathError::NotAContentStore { .. }) => StoreDir::NotAStore,
        Err(ContentPathError::Unreadable { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
            StoreDir::Missing
        }
        Err(ContentPathError::Unreadable { cause, .. }) => StoreDir::Unreadable(cause.to_string()),
    };
    let blob = |digest: &Digest| path.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
    let sample = sample.map(|digests| {
        let present = digests.iter().filter(|digest| blob(digest).is_file()).count();
        (digests.len(), present)
    });
    ContentStore { path: path.display().to_string(), dir, sample }
}

fn hosts(settings: &CheckSettings, on_the_node: bool) -> Known<BTreeMap<String, HostsDir>> {
    let path = &settings.registry_config_path;
    let root = node_path(&settings.node_root, path);
    // In a container, nothing there means that nothing is mounted; the node itself has the directory above.
    let mounted = on_the_node || root.exists() || root.parent().is_some_and(Path::exists);
    if !mounted {
        return Known::Hidden("it is not mounted".to_owned());
    }
    match hosts_toml::survey(&root) {
        Ok(hosts) => Known::Seen(hosts),
        Err(error) => Known::Hidden(error.to_string()),
    }
}

/// Where `hosts.toml` says the mirror is.
fn targets(facts: &Facts) -> Vec<String> {
    let mut urls: Vec<String> = Vec::new();
    for dir in facts.hosts.seen().into_iter().flat_map(BTreeMap::values) {
        if let HostsDir::Ours(hosts) = dir {
            for host in hosts {
                if !urls.contains(host) {
                    urls.push(host.clone());
                }
            }
        }
    }
    urls
}
