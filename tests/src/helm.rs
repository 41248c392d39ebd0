//! The chart, rendered by helm as `helm install` would, without a cluster.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Map, Value};

use crate::parts::helm;
use crate::process::run;

/// What to render. Start from [`Chart::default`] and change what the test is about.
#[derive(Clone, Debug)]
pub struct Chart {
    pub release: String,
    pub namespace: String,
    /// Version of the cluster.
    pub kubernetes: String,
    /// Kinds the cluster has besides its own, as `GROUP/VERSION`.
    pub apis: Vec<String>,
    /// What a values file says.
    pub values: Value,
}

impl Default for Chart {
    /// Release `spegel` in namespace `spegel`, on the oldest Kubernetes that has everything the chart can use.
    fn default() -> Self {
        Self {
            release: "spegel".to_owned(),
            namespace: "spegel".to_owned(),
            kubernetes: "1.35.0".to_owned(),
            apis: Vec::new(),
            values: Value::Object(Map::new()),
        }
    }
}

impl Chart {
    /// The default release with these values.
    #[must_use]
    pub fn with(values: Value) -> Self {
        Self { values, ..Self::default() }
    }

    /// Renders all objects, hooks as well.
    ///
    /// # Errors
    /// With what helm said, such as which value is wrong.
    pub fn render(&self) -> Result<Vec<Value>, String> {
        let mut command = Command::new(helm());
        command.args(["template", &self.release, "--namespace", &self.namespace]).arg(chart_dir());
        for api in &self.apis {
            command.args(["--api-versions", api]);
        }
        parse(&self.run(command)?)
    }

    /// `helm lint --strict`.
    ///
    /// # Errors
    /// With what helm said.
    pub fn lint(&self) -> Result<(), String> {
        let mut command = Command::new(helm());
        command.args(["lint", "--strict"]).arg(chart_dir());
        self.run(command).map(drop)
    }

    fn run(&self, mut command: Command) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().expect("the temporary directory is writable");
        // JSON is YAML.
        fs::write(file.path(), self.values.to_string()).expect("the file is ours");
        command.args(["--kube-version", &self.kubernetes, "--values"]).arg(file.path());
        run(command)
    }
}

/// Where the chart is.
#[must_use]
pub fn chart_dir() -> PathBuf {
    deploy_dir().join("charts/spegel")
}

/// Where what operators use is.
#[must_use]
pub fn deploy_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"))
}

/// The documents of a YAML stream. A key that is there twice is an error, which Kubernetes would not see.
///
/// # Errors
/// With the place that is no YAML.
pub fn parse(stream: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(stream).map_err(|error| error.to_string())?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}
