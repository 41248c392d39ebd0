//! Where Kubernetes distributions keep containerd's things. Sources: each one's documentation and node
//! images; all can be overruled by flags.

/// What a node's paths look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distribution {
    /// k3s, which brings its own containerd.
    K3s,
    /// RKE2, which brings its own containerd.
    Rke2,
    /// The snap of `MicroK8s`.
    MicroK8s,
    /// Talos Linux, where the file system is sealed and settings come by machine configuration.
    Talos,
    /// Amazon's node images.
    Eks,
    /// Google's node images.
    Gke,
    /// Azure's node images.
    Aks,
    /// Kubernetes in Docker.
    Kind,
    /// containerd where its package puts it: kubeadm, and whatever looks like that.
    Plain,
}

impl Distribution {
    /// All, the most telling first.
    pub const ALL: [Self; 9] = [
        Self::Rke2,
        Self::K3s,
        Self::MicroK8s,
        Self::Talos,
        Self::Eks,
        Self::Gke,
        Self::Aks,
        Self::Kind,
        Self::Plain,
    ];

    /// What the node is, by what is there.
    #[must_use]
    pub fn detect(exists: impl Fn(&str) -> bool) -> Self {
        Self::ALL.into_iter().find(|one| one.marks().iter().any(|path| exists(path))).unwrap_or(Self::Plain)
    }

    /// Paths that only such a node has.
    const fn marks(self) -> &'static [&'static str] {
        match self {
            Self::K3s => &["/var/lib/rancher/k3s/agent/etc/containerd"],
            Self::Rke2 => &["/var/lib/rancher/rke2/agent/etc/containerd"],
            Self::MicroK8s => &["/var/snap/microk8s/current/args"],
            Self::Talos => &["/etc/cri/containerd.toml", "/etc/cri/conf.d"],
            Self::Eks => &["/etc/eks"],
            Self::Gke => &["/home/kubernetes/kube-env"],
            Self::Aks => &["/opt/azure/containers"],
            Self::Kind => &["/kind/version"],
            Self::Plain => &[],
        }
    }

    /// containerd's socket.
    #[must_use]
    pub const fn socket(self) -> &'static str {
        match self {
            Self::K3s | Self::Rke2 => "/run/k3s/containerd/containerd.sock",
            Self::MicroK8s => "/var/snap/microk8s/common/run/containerd.sock",
            Self::Talos | Self::Eks | Self::Gke | Self::Aks | Self::Kind | Self::Plain => {
                "/run/containerd/containerd.sock"
            }
        }
    }

    /// Where containerd's configuration file may be, the likeliest first.
    #[must_use]
    pub const fn config_files(self) -> &'static [&'static str] {
        match self {
            Self::K3s => &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
            Self::Rke2 => &["/var/lib/rancher/rke2/agent/etc/containerd/config.toml"],
            Self::MicroK8s => &["/var/snap/microk8s/current/args/containerd.toml"],
            // The first only imports the second, which a pod can see without the first.
            Self::Talos => &["/etc/cri/containerd.toml", "/etc/cri/conf.d/cri.toml"],
            Self::Eks | Self::Gke | Self::Aks | Self::Kind | Self::Plain => &["/etc/containerd/config.toml"],
        }
    }

    /// Where registries are configured.
    #[must_use]
    pub const fn registry_config_path(self) -> &'static str {
        match self {
            Self::K3s => "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
            Self::Rke2 => "/var/lib/rancher/rke2/agent/etc/containerd/certs.d",
            Self::MicroK8s => "/var/snap/microk8s/current/args/certs.d",
            Self::Talos => "/etc/cri/conf.d/hosts",
            Self::Gke => "/etc/containerd/hosts.d",
            Self::Eks | Self::Aks | Self::Kind | Self::Plain => "/etc/containerd/certs.d",
        }
    }

    /// containerd's content store.
    #[must_use]
    pub const fn content_path(self) -> &'static str {
        match self {
            Self::K3s => "/var/lib/rancher/k3s/agent/containerd/io.containerd.content.v1.content",
            Self::Rke2 => "/var/lib/rancher/rke2/agent/containerd/io.containerd.content.v1.content",
            Self::MicroK8s => "/var/snap/microk8s/common/var/lib/containerd/io.containerd.content.v1.content",
            Self::Talos | Self::Eks | Self::Gke | Self::Aks | Self::Kind | Self::Plain => {
                "/var/lib/containerd/io.containerd.content.v1.content"
            }
        }
    }

    /// Where an operator changes containerd's settings so that they last.
    #[must_use]
    pub(super) const fn settings_place(self) -> &'static str {
        match self {
            Self::K3s => {
                "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl (config.toml.tmpl before containerd 2.0)"
            }
            Self::Rke2 => {
                "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.tmpl (config.toml.tmpl before containerd 2.0)"
            }
            Self::MicroK8s => "/var/snap/microk8s/current/args/containerd-template.toml",
            Self::Talos => "machine.files of the machine configuration, as /etc/cri/conf.d/20-spegel.part",
            Self::Eks => "spec.containerd.config of the node's NodeConfig",
            Self::Gke => "containerd's configuration of the node pool",
            Self::Kind => "containerdConfigPatches of kind's configuration",
            Self::Aks => "/etc/containerd/config.toml",
            // In a pod several look like this that write that file themselves.
            Self::Plain => {
                "/etc/containerd/config.toml, or where your distribution has that file written from"
            }
        }
    }

    /// What makes changed settings count.
    #[must_use]
    pub(super) const fn restart(self) -> &'static str {
        match self {
            Self::K3s => "restart k3s (k3s-agent on agents)",
            Self::Rke2 => "restart rke2-server or rke2-agent",
            Self::MicroK8s => "run `microk8s stop` and `microk8s start`",
            Self::Talos => "reboot the node",
            Self::Eks | Self::Gke => "replace the node",
            Self::Kind => "create the cluster anew",
            Self::Aks | Self::Plain => "restart containerd",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_told_by_their_paths() {
        for one in Distribution::ALL {
            assert_eq!(Distribution::detect(|path| one.marks().contains(&path)), one);
            assert!(one.socket().starts_with('/') && one.content_path().ends_with(".content"), "{one:?}");
        }
    }

    /// The table under "Where things are" names paths as the distributions' documentation does.
    #[test]
    fn paths_are_those_of_the_documentation() {
        const DOCS: &str = include_str!("../../../docs/troubleshooting.md");
        const DIRECTORY: &str = "io.containerd.content.v1.content";
        let table =
            DOCS.split("## Where things are").nth(1).expect("the documentation says where things are");
        let rows: Vec<[&str; 5]> = table
            .lines()
            .filter(|line| line.starts_with("| "))
            .filter_map(|line| {
                line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().try_into().ok()
            })
            .collect();
        assert_eq!(rows.len(), 7, "a head and six rows");
        let [_, first, rest @ ..] = rows.as_slice() else { panic!("no rows") };
        let mut above = *first;
        let mut told = 0;
        for row in std::iter::once(first).chain(rest) {
            let full: [&str; 5] = std::array::from_fn(|column| match row[column] {
                "the same" => first[column],
                "as k3s" => above[column],
                own => own,
            });
            above = full;
            let [names, socket, config, hosts, store] = full.map(|cell| cell.trim_matches('`'));
            let beside = config.rsplit_once('/').map(|(dir, _)| format!("{dir}/certs.d"));
            let hosts =
                if hosts == "certs.d` beside it" { beside.expect("a path") } else { hosts.to_owned() };
            for name in names.split(", ") {
                let one = named(name);
                assert_eq!(one.socket(), socket, "{name}");
                assert_eq!(one.config_files()[0], config, "{name}");
                assert_eq!(one.registry_config_path(), hosts, "{name}");
                assert_eq!(one.content_path(), format!("{store}/{DIRECTORY}"), "{name}");
                told += 1;
            }
        }
        assert_eq!(told, Distribution::ALL.len(), "each is in the table");
    }

    fn named(name: &str) -> Distribution {
        if name == "kubeadm" {
            return Distribution::Plain;
        }
        let found = Distribution::ALL.into_iter().find(|one| format!("{one:?}").eq_ignore_ascii_case(name));
        found.unwrap_or_else(|| panic!("what is {name}?"))
    }

    /// A pod sees the directory around the registry configuration, and no more.
    #[test]
    fn distributions_with_paths_of_their_own_are_told_from_inside_a_pod() {
        for one in [Distribution::K3s, Distribution::Rke2, Distribution::MicroK8s, Distribution::Talos] {
            let around = one.registry_config_path().rsplit_once('/').expect("it is absolute").0;
            assert_eq!(Distribution::detect(|path| around == path), one);
            assert!(one.config_files().iter().any(|file| file.starts_with(around)), "{one:?}");
        }
    }
}
