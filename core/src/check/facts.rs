//! What was seen of a node. Gathered without judgement; paths are those of the node, not of the container
//! that the check may run in.

use std::collections::BTreeMap;

use super::Distribution;

/// Something that can or cannot be seen from where the check runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known<T> {
    /// It was seen.
    Seen(T),
    /// It was not, and why; a sentence without its full stop.
    Hidden(String),
}

impl<T> Known<T> {
    /// What was seen, if it was.
    pub const fn seen(&self) -> Option<&T> {
        match self {
            Self::Seen(seen) => Some(seen),
            Self::Hidden(_) => None,
        }
    }
}

/// Everything that was seen.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What kind of node it looks like.
    pub distribution: Distribution,
    /// containerd.
    pub containerd: ContainerdFacts,
    /// The content store.
    pub content: ContentStore,
    /// Directory that `hosts.toml` files are written to.
    pub registry_config_path: String,
    /// What lies there, by name of the registry; nothing where there is no such directory.
    pub hosts: Known<BTreeMap<String, HostsDir>>,
    /// Directories that ought to hold a `hosts.toml` of ours; hidden where nobody said what is mirrored.
    pub mirrored: Known<Vec<String>>,
    /// The variables of containerd's environment that name proxies.
    pub proxies: Known<BTreeMap<String, String>>,
    /// Where containerd is told to find the mirror, and what answers there.
    pub targets: Vec<TargetProbe>,
    /// Other nodes, and who of them answers.
    pub peers: Known<Vec<PeerProbe>>,
}

/// What containerd says of itself.
#[derive(Clone, Debug)]
pub struct ContainerdFacts {
    /// Its socket.
    pub socket: String,
    /// Its version, or why it did not answer.
    pub version: Result<String, String>,
    /// How it is configured.
    pub settings: Known<Settings>,
    /// Where it says its content is.
    pub content_root: Option<String>,
}

/// Where settings were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsSource {
    /// containerd said so itself: this is what it runs with.
    Running,
    /// This file, and what it imports: what it runs with if it was restarted since.
    File(String),
}

/// The settings of containerd that matter to a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where they were read.
    pub source: SettingsSource,
    /// `config_path` of the registry section; empty if not set.
    pub config_path: String,
    /// `discard_unpacked_layers`
    pub discard_unpacked_layers: bool,
    /// Whether images are pulled without the transfer service, which takes `config_path` for one directory.
    pub local_image_pull: bool,
    /// Registries for which the obsolete `registry.mirrors` names mirrors.
    pub mirrors: Vec<String>,
    /// Whether there are settings that this version of containerd ignores, under the name that the plugin
    /// had before 2.0.
    pub ignored_sections: bool,
}

/// The content store as this process sees it.
#[derive(Clone, Debug)]
pub struct ContentStore {
    /// Where it is said to be.
    pub path: String,
    /// What is there.
    pub dir: StoreDir,
    /// Of some content that containerd has: how much was looked for, and how much of it is there.
    pub sample: Option<(usize, usize)>,
}

/// A directory that ought to be a content store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreDir {
    /// It is one, perhaps without content.
    Store,
    /// There is no such directory.
    Missing,
    /// It is a directory, but not laid out like one.
    NotAStore,
    /// It cannot be read, and why.
    Unreadable(String),
}

/// A directory in containerd's registry configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostsDir {
    /// Its `hosts.toml` was written by Spegel; these are the mirror's own addresses in it, in order.
    Ours(Vec<String>),
    /// Somebody else's `hosts.toml`; these are its hosts, in order.
    Foreign(Vec<String>),
    /// No `hosts.toml` in it.
    Empty,
    /// It cannot be read or makes no sense, and why.
    Unreadable(String),
}

/// An address that containerd is told to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetProbe {
    /// `http://HOST:PORT`
    pub url: String,
    /// Who answers.
    pub answer: TargetAnswer,
}

/// Who answers at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetAnswer {
    /// Spegel.
    Spegel,
    /// Something else, and what it did.
    Other(String),
    /// Nobody, and why.
    Nobody(String),
}

/// Another node, and whether it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerProbe {
    /// Its peer ID.
    pub peer: String,
    /// Its router, or why it does not answer.
    pub router: Result<(), String>,
    /// Its registry, or why it does not answer.
    pub registry: Result<(), String>,
    /// How far its clock is ahead of this node's, in seconds, where it told the time.
    pub clock_ahead_seconds: Option<i64>,
    /// Where its router is.
    pub router_addr: String,
    /// Where its registry is.
    pub registry_addr: String,
}
