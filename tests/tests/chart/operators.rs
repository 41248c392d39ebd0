//! The fields that the chart uses of kinds that operators bring along, as their reference documentation has them.
#![allow(dead_code, reason = "decoding them is the test")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

/// An object of some API group: its kind says which specification it has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Custom<Spec> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    pub(crate) spec: Spec,
}

/// `monitoring.coreos.com/v1`.
#[derive(Debug, Deserialize)]
pub(crate) struct ServiceMonitor {
    selector: LabelSelector,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    port: String,
    interval: String,
    scrape_timeout: String,
    relabelings: Option<Vec<Relabeling>>,
    metric_relabelings: Option<Vec<Relabeling>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Relabeling {
    source_labels: Option<Vec<String>>,
    separator: Option<String>,
    target_label: Option<String>,
    regex: Option<String>,
    modulus: Option<u64>,
    replacement: Option<String>,
    action: Option<String>,
}

/// `monitoring.coreos.com/v1`.
#[derive(Debug, Deserialize)]
pub(crate) struct PrometheusRule {
    pub(crate) groups: Vec<RuleGroup>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RuleGroup {
    name: String,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Rule {
    pub(crate) alert: String,
    pub(crate) expr: String,
    #[serde(rename = "for")]
    pub(crate) lasting: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// `grafana.integreatly.org/v1beta1`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GrafanaDashboard {
    allow_cross_namespace_import: bool,
    folder: Option<String>,
    resync_period: String,
    instance_selector: LabelSelector,
    json: String,
}

/// `autoscaling.k8s.io/v1`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VerticalPodAutoscaler {
    recommenders: Option<Vec<Recommender>>,
    target_ref: Target,
    resource_policy: ResourcePolicy,
    update_policy: Option<UpdatePolicy>,
}

#[derive(Debug, Deserialize)]
struct Recommender {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    api_version: String,
    kind: String,
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourcePolicy {
    container_policies: Vec<ContainerPolicy>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPolicy {
    container_name: String,
    controlled_resources: Option<Vec<String>>,
    controlled_values: Option<String>,
    max_allowed: Option<BTreeMap<String, Quantity>>,
    min_allowed: Option<BTreeMap<String, Quantity>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpdatePolicy {
    min_replicas: Option<u32>,
    update_mode: Option<String>,
}
