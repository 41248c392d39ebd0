//! The manifests for those without helm are what the chart renders.

use std::fs;
use std::process::Command;

use spegel_tests::{deploy_dir, helm, parse_yaml};

use crate::objects::{Objects, kind};
use crate::strict;

/// The kinds of a manifest in order, once it is known to be as the chart renders it.
fn kinds(manifest: &str) -> Vec<String> {
    let output = Command::new(deploy_dir().join("render")).arg(manifest).env("HELM", helm()).output();
    let output = output.expect("deploy/render starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rendered = String::from_utf8(output.stdout).expect("manifests are text");
    let file = deploy_dir().join(format!("{manifest}.yaml"));
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(rendered == kept, "{} is not what the chart renders: run `make manifest`", file.display());

    let objects = Objects(parse_yaml(&kept).expect("it is YAML"));
    let problems = strict::problems(&objects);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    objects.0.iter().map(|object| kind(object).to_owned()).collect()
}

#[test]
fn manifest_of_the_mirror_is_what_the_chart_renders_without_what_undoes_it() {
    let expected = ["Namespace", "ServiceAccount", "Service", "Service", "Service", "DaemonSet"];
    assert_eq!(kinds("spegel"), expected);
}

#[test]
fn manifest_that_undoes_the_mirror_is_what_the_chart_renders() {
    assert_eq!(kinds("spegel-cleanup"), ["Service", "DaemonSet", "Pod"]);
}
