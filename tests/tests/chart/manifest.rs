//! `deploy/spegel.yaml`, for those without helm, is what the chart renders.

use std::fs;
use std::process::Command;

use spegel_tests::{deploy_dir, helm, parse_yaml};

use crate::objects::{Objects, kind};
use crate::strict;

#[test]
fn plain_manifest_is_what_the_chart_renders() {
    let output =
        Command::new(deploy_dir().join("render")).env("HELM", helm()).output().expect("deploy/render starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rendered = String::from_utf8(output.stdout).expect("manifests are text");
    let kept = fs::read_to_string(deploy_dir().join("spegel.yaml")).unwrap_or_default();
    assert!(rendered == kept, "deploy/spegel.yaml is not what the chart renders: run `make manifest`");

    let objects = Objects(parse_yaml(&kept).expect("it is YAML"));
    let problems = strict::problems(&objects);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let kinds: Vec<&str> = objects.0.iter().map(kind).collect();
    // What cleans up is for helm, which runs it after an uninstall; applied, it would undo what the mirror does.
    assert_eq!(kinds, ["Namespace", "ServiceAccount", "Service", "Service", "Service", "DaemonSet"]);
}
