//! Asks `spegel check` of a node what it finds.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::container::Container;
use crate::node::Node;
use crate::parts::spegel_binary;

/// What it said, twice: as JSON, and in lines.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Exit status.
    pub code: i32,
    pub json: Value,
    pub text: String,
}

impl Node {
    /// Runs `spegel check` on this node.
    ///
    /// # Panics
    /// If it cannot be started, or says something that is not JSON when asked for that.
    #[must_use]
    pub fn check(&self, args: &[&str]) -> Checked {
        Checked::by(|format| {
            let mut command = self.netns().command(spegel_binary());
            command.args(["check", format]).args(args);
            command
        })
    }

    /// Runs `spegel check` in a running container of the mirror, as `kubectl exec` would.
    ///
    /// # Panics
    /// As [`Self::check`].
    #[must_use]
    pub fn check_in_container(&self, container: &Container) -> Checked {
        Checked::by(|format| self.exec_in_container(container, &["/spegel", "check", format]))
    }
}

impl Checked {
    /// Runs the command that there is for either format.
    fn by(command: impl Fn(&str) -> Command) -> Self {
        let run = |format: &str| {
            let output = command(format).stdin(Stdio::null()).output().expect("the command can be started");
            let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.code(), said(&output.stdout), said(&output.stderr))
        };
        let (code, text, _) = run("--output=text");
        let (json_code, json, complaint) = run("--output=json");
        assert_eq!(code, json_code, "the exit status does not depend on the format: {text}");
        let json =
            serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error} in {json:?}: {complaint}"));
        Self { code: code.expect("it was not killed"), json, text }
    }

    /// The findings of one check.
    #[must_use]
    pub fn of(&self, name: &str) -> Vec<&Value> {
        let findings = self.json["findings"].as_array().expect("findings are a list").iter();
        findings.filter(|finding| finding["name"] == name).collect()
    }

    /// The worst level of one check.
    ///
    /// # Panics
    /// If nothing is said of it.
    #[must_use]
    pub fn level(&self, name: &str) -> &str {
        let order = ["ok", "unknown", "warning", "error"];
        let levels = self.of(name).into_iter().filter_map(|finding| finding["level"].as_str());
        let worst = levels.max_by_key(|level| order.iter().position(|one| one == level));
        worst.unwrap_or_else(|| panic!("nothing is said of {name}: {}", self.text))
    }

    /// Names of all checks that did not come out well, in order.
    #[must_use]
    pub fn not_well(&self) -> Vec<&str> {
        let findings = self.json["findings"].as_array().expect("findings are a list").iter();
        let mut names: Vec<&str> = findings
            .filter(|finding| finding["level"] != "ok")
            .filter_map(|finding| finding["name"].as_str())
            .collect();
        names.dedup();
        names
    }
}
