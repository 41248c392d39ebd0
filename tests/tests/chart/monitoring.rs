//! Alerts and dashboard ask for metrics that the program has.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use spegel_tests::{Chart, chart_dir, deploy_dir, promtool};

use crate::objects::{Objects, list};
use crate::operators::{Custom, PrometheusRule};
use crate::strict;

/// A page of metrics as the program writes it, kept by a test of its own.
const PAGE: &str = include_str!(
    "../../../io/src/metrics/snapshots/spegel_io__metrics__tests__page_of_a_node_after_some_life_is_this.snap"
);

/// Prefixes of the program's metrics; others are Kubernetes'.
const OWN: [&str; 3] = ["spegel_", "http_", "process_"];

/// Names of samples on the page.
fn samples() -> BTreeSet<&'static str> {
    let page = PAGE.lines().skip_while(|line| !line.starts_with("# HELP"));
    let samples = page.filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.split(['{', ' ']).next()).collect()
}

/// Names of our metrics in an expression: what looks like one and is no label.
fn names(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| OWN.iter().any(|prefix| word.starts_with(prefix))).collect()
}

/// The dashboard's expressions, and those of its variables.
fn dashboard(dashboard: &Value) -> Vec<&str> {
    let panels = list(&dashboard["panels"]).flat_map(|panel| list(&panel["targets"]));
    let queries = list(&dashboard["templating"]["list"]).map(|variable| &variable["query"]);
    panels.map(|target| &target["expr"]).chain(queries).filter_map(Value::as_str).collect()
}

fn assert_known<'a>(expressions: impl IntoIterator<Item = &'a str>) {
    let samples = samples();
    let mut asked = 0;
    for expression in expressions {
        for name in names(expression) {
            asked += 1;
            assert!(samples.contains(name), "{name} is no metric of ours: {expression}");
        }
    }
    assert!(asked > 0, "no metric is asked for");
}

fn alerts(chart: &Chart) -> PrometheusRule {
    let objects = Objects::render(chart);
    let rule: Custom<PrometheusRule> =
        strict::decode(objects.get("PrometheusRule", "images-spegel")).expect("a PrometheusRule");
    rule.spec
}

#[test]
fn alerts_ask_for_metrics_that_exist_and_say_what_to_do() {
    let chart =
        Chart { release: "images".to_owned(), ..Chart::with(json!({"prometheusRule": {"enabled": true}})) };
    let rules: Vec<_> = alerts(&chart).groups.into_iter().flat_map(|group| group.rules).collect();
    assert!(rules.len() >= 5, "{} alerts", rules.len());
    assert_known(rules.iter().map(|rule| rule.expr.as_str()).filter(|expr| !expr.starts_with("kube_")));
    for rule in &rules {
        assert!(rule.alert.starts_with("Spegel"), "{}", rule.alert);
        assert!(rule.labels.contains_key("severity"), "{}", rule.alert);
        for annotation in ["summary", "description"] {
            assert!(rule.annotations.contains_key(annotation), "{} has no {annotation}", rule.alert);
        }
    }
    let ready = rules.iter().find(|rule| rule.alert == "SpegelNotReady").expect("it is there");
    assert!(ready.expr.contains(r#"daemonset="images-spegel""#), "it is about this release: {}", ready.expr);
}

#[test]
fn prometheus_takes_the_alerts_and_they_fire_when_they_should() {
    for (command, file) in [("check", "charts/spegel/monitoring/alerts.yaml"), ("test", "alerts-test.yaml")] {
        let mut promtool = Command::new(promtool());
        let output = promtool.args([command, "rules"]).arg(deploy_dir().join(file)).output();
        let output = output.expect("promtool starts");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn dashboard_asks_for_metrics_that_exist() {
    let text =
        fs::read_to_string(chart_dir().join("monitoring/dashboard.json")).expect("the dashboard is there");
    let board: Value = serde_json::from_str(&text).expect("the dashboard is JSON");
    assert_eq!(board["uid"], "1iY4QMJVk-psee", "links to the Go implementation's dashboard lead to this one");
    let expressions = dashboard(&board);
    assert!(expressions.len() > 15, "{} expressions", expressions.len());
    assert_known(expressions);

    let objects = Objects::render(&Chart::with(json!({"grafanaDashboard": {"enabled": true}})));
    let shipped =
        objects.get("ConfigMap", "spegel-dashboard")["data"]["spegel.json"].as_str().expect("a file");
    assert_eq!(serde_json::from_str::<Value>(shipped).expect("it is JSON"), board, "it is shipped as it is");
}

#[test]
fn a_metric_that_is_not_there_is_noticed() {
    assert_eq!(names("sum(rate(spegel_gone_total{reason=\"x\"}[5m]))"), ["spegel_gone_total"]);
    assert!(!samples().contains("spegel_gone_total"));
    assert!(samples().contains("http_request_duration_seconds_bucket"), "{:?}", samples());
}
