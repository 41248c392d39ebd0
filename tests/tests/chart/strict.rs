//! What Kubernetes would not take, or would take without a word and not do.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::objects::{Objects, containers, kind, list, mounts, name};
use crate::operators::{Custom, GrafanaDashboard, PrometheusRule, ServiceMonitor, VerticalPodAutoscaler};

/// Longest name of anything that is a DNS label, as those of Services are (RFC 1123).
const NAME_MAX: usize = 63;

/// One line for each thing that is wrong.
pub(crate) fn problems(objects: &Objects) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for object in &objects.0 {
        let what = format!("{} {}", kind(object), name(object));
        let mut found = fields(object).err().into_iter().collect::<Vec<_>>();
        found.extend(nulls(object, ""));
        found.extend(identity(object));
        found.extend(match kind(object) {
            "DaemonSet" => daemonset(object),
            "Pod" => pod(&object["spec"]),
            "Service" => service(object, objects),
            _ => Vec::new(),
        });
        if !seen.insert(what.clone()) {
            found.push("is there twice".to_owned());
        }
        problems.extend(found.into_iter().map(|problem| format!("{what}: {problem}")));
    }
    problems
}

/// Decodes the object into the type of its kind.
fn fields(object: &Value) -> Result<(), String> {
    let api = object["apiVersion"].as_str().unwrap_or_default();
    match (api, kind(object)) {
        ("apps/v1", "DaemonSet") => decode::<DaemonSet>(object).map(drop),
        ("v1", "ConfigMap") => decode::<ConfigMap>(object).map(drop),
        ("v1", "Namespace") => decode::<Namespace>(object).map(drop),
        ("v1", "Pod") => decode::<Pod>(object).map(drop),
        ("v1", "Service") => decode::<Service>(object).map(drop),
        ("v1", "ServiceAccount") => decode::<ServiceAccount>(object).map(drop),
        ("networking.k8s.io/v1", "NetworkPolicy") => decode::<NetworkPolicy>(object).map(drop),
        ("monitoring.coreos.com/v1", "ServiceMonitor") => decode::<Custom<ServiceMonitor>>(object).map(drop),
        ("monitoring.coreos.com/v1", "PrometheusRule") => decode::<Custom<PrometheusRule>>(object).map(drop),
        ("grafana.integreatly.org/v1beta1", "GrafanaDashboard") => {
            decode::<Custom<GrafanaDashboard>>(object).map(drop)
        }
        ("autoscaling.k8s.io/v1", "VerticalPodAutoscaler") => {
            decode::<Custom<VerticalPodAutoscaler>>(object).map(drop)
        }
        (api, kind) => Err(format!("no type is known for {api} {kind}")),
    }
}

/// Decodes, and names every field that the type does not have.
pub(crate) fn decode<T: DeserializeOwned>(object: &Value) -> Result<T, String> {
    let mut unknown = Vec::new();
    let decoded = serde_ignored::deserialize(object, |path| unknown.push(path.to_string()));
    let decoded = decoded.map_err(|error| error.to_string())?;
    if unknown.is_empty() { Ok(decoded) } else { Err(format!("unknown fields {unknown:?}")) }
}

/// Fields without a value, which are mistakes of a template.
fn nulls(value: &Value, path: &str) -> Vec<String> {
    match value {
        Value::Null => vec![format!("{path} has no value")],
        Value::Array(list) => {
            list.iter().enumerate().flat_map(|(n, value)| nulls(value, &format!("{path}[{n}]"))).collect()
        }
        Value::Object(map) => {
            map.iter().flat_map(|(key, value)| nulls(value, &format!("{path}.{key}"))).collect()
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

fn identity(object: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let own = name(object);
    if own.is_empty() || own.len() > NAME_MAX || !own.chars().all(good) {
        problems.push("its name is no DNS label".to_owned());
    }
    if kind(object) != "Namespace" && object["metadata"]["namespace"].as_str().unwrap_or_default().is_empty()
    {
        problems.push("has no namespace".to_owned());
    }
    problems
}

fn daemonset(object: &Value) -> Vec<String> {
    let template = &object["spec"]["template"];
    let mut problems = pod(&template["spec"]);
    if !selects(&object["spec"]["selector"]["matchLabels"], &template["metadata"]["labels"]) {
        problems.push("its selector does not match its own pods".to_owned());
    }
    problems
}

fn pod(spec: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let volumes: BTreeSet<&str> =
        list(&spec["volumes"]).filter_map(|volume| volume["name"].as_str()).collect();
    for container in containers(spec) {
        let own = container["name"].as_str().unwrap_or_default();
        let mut places = BTreeSet::new();
        for mount in mounts(container) {
            let (volume, place) = (mount["name"].as_str(), mount["mountPath"].as_str());
            if !volume.is_some_and(|volume| volumes.contains(volume)) {
                problems.push(format!("{own} mounts {volume:?}, which is not there"));
            }
            if !places.insert(place) {
                problems.push(format!("{own} mounts two volumes at {place:?}"));
            }
        }
        let ports: BTreeSet<&str> =
            list(&container["ports"]).filter_map(|port| port["name"].as_str()).collect();
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            if let Some(port) = container[probe]["httpGet"]["port"].as_str()
                && !ports.contains(port)
            {
                problems.push(format!("{own}'s {probe} asks port {port}, which is not there"));
            }
        }
        let rights = &container["securityContext"];
        if rights["privileged"] == true && rights["allowPrivilegeEscalation"] == false {
            problems
                .push(format!("{own} is privileged and may not gain privileges, which Kubernetes refuses"));
        }
    }
    problems
}

fn service(object: &Value, objects: &Objects) -> Vec<String> {
    let selector = &object["spec"]["selector"];
    let chosen = |other: &&Value| {
        kind(other) == "DaemonSet"
            && other["metadata"]["namespace"] == object["metadata"]["namespace"]
            && selects(selector, &other["spec"]["template"]["metadata"]["labels"])
    };
    let chosen: Vec<&Value> = objects.0.iter().filter(chosen).collect();
    let [daemonset] = chosen.as_slice() else {
        return vec![format!("selects pods of {} DaemonSets", chosen.len())];
    };
    let all = containers(&daemonset["spec"]["template"]["spec"]);
    let ports: BTreeMap<&str, &Value> = all
        .flat_map(|container| list(&container["ports"]))
        .filter_map(|port| Some((port["name"].as_str()?, &port["containerPort"])))
        .collect();
    let missing = |port: &Value| {
        let target = port["targetPort"].as_str().unwrap_or_default();
        // A headless Service leads to the pods themselves, so that its port must be theirs.
        match ports.get(target) {
            None => Some(format!("leads to port {target:?}, which no container has")),
            Some(real) if object["spec"]["clusterIP"] == "None" && **real != port["port"] => {
                Some(format!("says port {} for {real}", port["port"]))
            }
            Some(_) => None,
        }
    };
    list(&object["spec"]["ports"]).filter_map(missing).collect()
}

/// Whether all labels of the selector are among those; an empty selector selects nothing.
fn selects(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_is_found() {
        let objects = Objects(vec![
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "b"}, "speck": {}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "A_", "labels": null}}),
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d", "namespace": "b"}, "spec": {
                "selector": {"matchLabels": {"x": "y"}},
                "template": {"metadata": {"labels": {"x": "z"}}, "spec": {"containers": [{
                    "name": "c", "securityContext": {"privileged": true, "allowPrivilegeEscalation": false},
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/v"}],
                    "readinessProbe": {"httpGet": {"port": "p", "pathh": "/"}},
                }]}},
            }}),
        ]);
        let problems = problems(&objects).join("\n");
        for expected in [
            "speck",
            ".metadata.labels has no value",
            "no DNS label",
            "has no namespace",
            "0 DaemonSets",
            "pathh",
            "does not match its own pods",
            "mounts Some(\"v\")",
            "two volumes",
            "asks port p",
            "is privileged",
        ] {
            assert!(problems.contains(expected), "{expected} is not found among\n{problems}");
        }
    }
}
