//! Containers on one node, with the rights, mounts and arguments that the chart gives them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::node::Node;
use crate::process::run;
use crate::wait::wait_for;

/// What containerd gives a container unless told otherwise (`defaultUnixCaps` in its `oci` package).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A container to run: [`Container::of_pod`], or an image with arguments.
#[derive(Clone, Debug)]
pub struct Container {
    pub name: String,
    pub image: String,
    /// The entry point and its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// As `ctr run --mount` takes them.
    pub mounts: Vec<String>,
    /// What it may keep of the usual capabilities, without `CAP_`.
    pub capabilities: Vec<String>,
}

impl Container {
    /// One of our image without mounts.
    #[must_use]
    pub fn new(name: &str, image: &str, args: &[&str]) -> Self {
        let args = std::iter::once("/spegel").chain(args.iter().copied()).map(str::to_owned).collect();
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            args,
            env: Vec::new(),
            mounts: Vec::new(),
            capabilities: Vec::new(),
        }
    }

    /// A container of a pod as the chart renders it, where `image` is run whatever the pod says. Variables that the
    /// kubelet would fill in are left out.
    ///
    /// # Panics
    /// If there is no such container, or one of its mounts is of no directory of the node.
    #[must_use]
    pub fn of_pod(pod: &Value, name: &str, image: &str) -> Self {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned).expect("the manifest has text there");
        let all = [list(&pod["initContainers"]), list(&pod["containers"])].concat();
        let container = all.iter().find(|container| container["name"] == name);
        let container = container.unwrap_or_else(|| panic!("the pod has no container {name}"));
        let env: Vec<(String, String)> = list(&container["env"])
            .iter()
            .filter(|variable| variable["value"].is_string())
            .map(|variable| (text(&variable["name"]), text(&variable["value"])))
            .collect();
        // What the kubelet does with $(NAME).
        let expand = |argument: String| {
            env.iter()
                .fold(argument, |argument, (name, value)| argument.replace(&format!("$({name})"), value))
        };
        let volumes = list(&pod["volumes"]);
        let mount = |mount: &Value| {
            let volume =
                volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("mounts have volumes");
            let access = if mount["readOnly"] == true { "ro" } else { "rw" };
            let (source, place) = (text(&volume["hostPath"]["path"]), text(&mount["mountPath"]));
            format!("type=bind,src={source},dst={place},options=rbind:{access}:rprivate")
        };
        let args = list(&container["args"]).into_iter().map(|argument| expand(text(&argument)));
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            args: std::iter::once("/spegel".to_owned()).chain(args).collect(),
            mounts: list(&container["volumeMounts"]).iter().map(mount).collect(),
            env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            capabilities: Vec::new(),
        }
    }
}

impl Node {
    /// Runs a container to its end, and gives what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn run_container(&self, container: &Container) -> Result<String, String> {
        let mut command = self.ctr();
        command.args(["run", "--rm"]);
        run(self.describe(command, container))
    }

    /// Starts a container that outlives the command that started it, and containerd.
    ///
    /// # Errors
    /// With what ctr said.
    pub fn start_container(&self, container: &Container) -> Result<(), String> {
        let mut command = self.ctr();
        command.args(["run", "--detach", "--log-uri"]);
        command.arg(format!("file://{}", self.container_log(container).display()));
        run(self.describe(command, container)).map(drop)
    }

    /// Ends a container as the kubelet does, and removes it.
    ///
    /// # Errors
    /// If it runs on, or exits with anything but 0.
    pub fn stop_container(&self, container: &Container, within: Duration) -> Result<(), String> {
        let id = self.container_id(container);
        let ctr = |args: &[&str]| {
            let mut command = self.ctr();
            command.args(args);
            run(command)
        };
        ctr(&["tasks", "kill", "--signal", "SIGTERM", &id])?;
        let stopped = || match ctr(&["tasks", "list"])?.lines().find(|line| line.starts_with(&id)) {
            Some(line) if line.ends_with("STOPPED") => Ok(()),
            other => Err(format!("{other:?}")),
        };
        wait_for("the container ends", within, stopped)?;
        // Fails with the status of the container.
        ctr(&["tasks", "delete", &id])?;
        ctr(&["containers", "delete", &id]).map(drop)
    }

    /// Another process in a running container, with the rights and mounts of the first.
    pub(crate) fn exec_in_container(&self, container: &Container, args: &[&str]) -> Command {
        let mut command = self.ctr();
        command.args(["tasks", "exec", "--exec-id", "another"]).arg(self.container_id(container)).args(args);
        command
    }

    /// Where a started container's output goes.
    #[must_use]
    pub fn container_log(&self, container: &Container) -> PathBuf {
        self.dir.join(format!("{}.log", container.name))
    }

    /// Containers of several nodes share the machine's runtime directory.
    fn container_id(&self, container: &Container) -> String {
        format!("{}-{}", self.netns().name(), container.name)
    }

    /// Root without any capability, without a way to get more, behind the default seccomp profile and on a file system
    /// that cannot be written to: what the chart asks for, which a test of the chart checks.
    fn describe(&self, mut command: Command, container: &Container) -> Command {
        command.args(["--net-host", "--read-only", "--seccomp"]);
        let kept = |capability: &&&str| container.capabilities.iter().any(|kept| kept == **capability);
        for capability in DEFAULT_CAPABILITIES.iter().filter(|capability| !kept(capability)) {
            command.arg(format!("--cap-drop=CAP_{capability}"));
        }
        for mount in &container.mounts {
            command.args(["--mount", mount]);
        }
        for variable in &container.env {
            command.args(["--env", variable]);
        }
        command.arg(&container.image).arg(self.container_id(container)).args(&container.args);
        command
    }
}
