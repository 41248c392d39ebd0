//! Each value, one by one, and what it must change.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use spegel_tests::{Chart, chart_dir, parse_yaml};

use crate::objects::{Objects, list};
use crate::strict;

/// A value other than the default, what else must be set for it to matter, and whether it is seen in what is rendered.
struct Case {
    path: &'static str,
    value: Value,
    given: Value,
    seen: fn(&Objects) -> bool,
}

fn case(path: &'static str, value: Value, seen: fn(&Objects) -> bool) -> Case {
    Case { path, value, given: json!({}), seen }
}

impl Case {
    fn given(self, given: Value) -> Self {
        Self { given, ..self }
    }
}

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Whether something holds of every container that runs our program, of which there are four.
fn everywhere(objects: &Objects, holds: impl Fn(&Value) -> bool) -> bool {
    let own = objects.own_containers();
    own.len() == 4 && own.into_iter().all(holds)
}

fn image_is(objects: &Objects, image: &str) -> bool {
    everywhere(objects, |container| container["image"] == image)
}

/// Whether something holds of all three pods.
fn all_pods(objects: &Objects, holds: impl Fn(&Value) -> bool) -> bool {
    let pods = objects.pods();
    pods.len() == 3 && pods.into_iter().all(|(_, pod)| holds(pod))
}

fn annotated(objects: &Objects, kind: &str, name: &str) -> bool {
    objects.get(kind, name)["metadata"]["annotations"]["a"] == "b"
}

fn labelled(objects: &Objects, kind: &str, name: &str) -> bool {
    objects.get(kind, name)["metadata"]["labels"]["a"] == "b"
}

fn service_port<'a>(objects: &'a Objects, name: &str) -> &'a Value {
    &objects.get("Service", name)["spec"]["ports"][0]
}

fn container_port(objects: &Objects, container: &str, name: &str, port: u16) -> bool {
    list(&objects.container(container)["ports"])
        .any(|there| there["name"] == name && there["containerPort"] == port)
}

fn endpoint(objects: &Objects) -> &Value {
    &objects.get("ServiceMonitor", "spegel")["spec"]["endpoints"][0]
}

fn autoscaled(objects: &Objects) -> &Value {
    &objects.get("VerticalPodAutoscaler", "spegel")["spec"]["resourcePolicy"]["containerPolicies"][0]
}

fn dashboard(objects: &Objects) -> &Value {
    &objects.get("GrafanaDashboard", "spegel-dashboard")["spec"]
}

fn one_flag(objects: &Objects, container: &str, flag: &str, value: &str) -> bool {
    objects.flag(container, flag) == [value]
}

fn daemonset(objects: &Objects) -> &Value {
    &objects.get("DaemonSet", "spegel")["spec"]
}

/// Names, labels and what the pods are made of.
fn general() -> Vec<Case> {
    vec![
        case("image.repository", json!("registry.example:5000/mirror"), |o| {
            image_is(o, &format!("registry.example:5000/mirror:{}", env!("CARGO_PKG_VERSION")))
        }),
        case("image.pullPolicy", json!("Always"), |o| everywhere(o, |c| c["imagePullPolicy"] == "Always")),
        case("image.tag", json!("v9"), |o| image_is(o, "localhost/spegel:v9")),
        case("image.digest", json!(DIGEST), |o| image_is(o, &format!("localhost/spegel@{DIGEST}"))),
        case("imagePullSecrets", json!([{"name": "pull"}]), |o| {
            all_pods(o, |pod| pod["imagePullSecrets"] == json!([{"name": "pull"}]))
        }),
        case("nameOverride", json!("mirror"), |o| {
            let made = o.get("DaemonSet", "spegel-mirror");
            made["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == "mirror"
        }),
        case("fullnameOverride", json!("mirror"), |o| {
            let names = ["mirror", "mirror-registry", "mirror-bootstrap", "mirror-cleanup"];
            names.iter().all(|name| o.find("Service", name).is_some())
                && one_flag(
                    o,
                    "registry",
                    "--dns-bootstrap-domain",
                    "mirror-bootstrap.spegel.svc.cluster.local.",
                )
        }),
        case("namespaceOverride", json!("elsewhere"), |o| {
            o.0.iter().all(|object| object["metadata"]["namespace"] == "elsewhere")
                && one_flag(
                    o,
                    "registry",
                    "--dns-bootstrap-domain",
                    "spegel-bootstrap.elsewhere.svc.cluster.local.",
                )
        }),
        case("serviceAccount.annotations", json!({"a": "b"}), |o| annotated(o, "ServiceAccount", "spegel")),
        case("serviceAccount.name", json!("own"), |o| {
            o.find("ServiceAccount", "own").is_some()
                && daemonset(o)["template"]["spec"]["serviceAccountName"] == "own"
        }),
        case("daemonsetAnnotations", json!({"a": "b"}), |o| annotated(o, "DaemonSet", "spegel")),
        case("podAnnotations", json!({"a": "b"}), |o| {
            daemonset(o)["template"]["metadata"]["annotations"]["a"] == "b"
        }),
        case("podSecurityContext", json!({"runAsGroup": 7}), |o| {
            all_pods(o, |pod| pod["securityContext"]["runAsGroup"] == 7)
        }),
        case("revisionHistoryLimit", json!(3), |o| daemonset(o)["revisionHistoryLimit"] == 3),
        case("securityContext", json!({"runAsUser": 0}), |o| {
            everywhere(o, |c| c["securityContext"]["runAsUser"] == 0)
        }),
        case("resources", json!({"limits": {"cpu": "2"}}), |o| {
            everywhere(o, |c| c["resources"]["limits"] == json!({"cpu": "2", "memory": "128Mi"}))
        }),
        case("nodeSelector", json!({"disk": "fast"}), |o| {
            all_pods(o, |pod| pod["nodeSelector"]["disk"] == "fast")
        }),
        case("updateStrategy", json!({"type": "OnDelete"}), |o| {
            daemonset(o)["updateStrategy"] == json!({"type": "OnDelete"})
        }),
        case("tolerations", json!([{"key": "own", "operator": "Exists"}]), |o| {
            all_pods(o, |pod| pod["tolerations"] == json!([{"key": "own", "operator": "Exists"}]))
        }),
        case("affinity", json!({"podAntiAffinity": {}}), |o| {
            all_pods(o, |pod| pod["affinity"] == json!({"podAntiAffinity": {}}))
        }),
        case("commonLabels", json!({"a": "b"}), |o| {
            o.0.iter().all(|object| object["metadata"]["labels"]["a"] == "b")
                && daemonset(o)["template"]["metadata"]["labels"]["a"] == "b"
                // A selector can't be changed afterwards.
                && daemonset(o)["selector"]["matchLabels"]["a"] == Value::Null
        }),
        case("clusterDomain", json!("example.internal"), |o| {
            one_flag(o, "registry", "--dns-bootstrap-domain", "spegel-bootstrap.spegel.svc.example.internal")
                && one_flag(
                    o,
                    "cleanup-wait",
                    "--probe-endpoint",
                    "spegel-cleanup.spegel.svc.example.internal:8080",
                )
        }),
        case("priorityClassName", json!("own"), |o| all_pods(o, |pod| pod["priorityClassName"] == "own")),
        case("basicAuthSecretName", json!("secret"), |o| {
            let mounted = |container| {
                let mount = o.mount(container, "basic-auth");
                mount["mountPath"] == "/etc/secrets/basic-auth" && mount["readOnly"] == true
            };
            o.volume("basic-auth")["secret"]["secretName"] == "secret"
                && mounted("registry")
                && mounted("configuration")
        }),
        case("clusterSecret.name", json!("mirrors-only"), |o| {
            let given = |container| {
                let mount = o.mount(container, "cluster-secret");
                mount["mountPath"] == "/etc/secrets/cluster"
                    && mount["readOnly"] == true
                    && mount["subPath"] == Value::Null
                    && one_flag(o, container, "--cluster-secret-file", "/etc/secrets/cluster/secret")
            };
            let secret = &o.volume("cluster-secret")["secret"];
            secret["secretName"] == "mirrors-only"
                && secret["items"] == json!([{"key": "secret", "path": "secret"}])
                && secret["defaultMode"] == 0o400
                && given("registry")
                && given("configuration")
        }),
        case("clusterSecret.key", json!("own"), |o| {
            o.volume("cluster-secret")["secret"]["items"] == json!([{"key": "own", "path": "secret"}])
        })
        .given(json!({"clusterSecret": {"name": "mirrors-only"}})),
        case("debugWebToken.name", json!("for-people"), |o| {
            let mount = o.mount("registry", "debug-web-token");
            let secret = &o.volume("debug-web-token")["secret"];
            mount["mountPath"] == "/etc/secrets/debug-web"
                && mount["readOnly"] == true
                && secret["secretName"] == "for-people"
                && secret["items"] == json!([{"key": "token", "path": "token"}])
                && secret["defaultMode"] == 0o400
                && one_flag(o, "registry", "--debug-web-token-file", "/etc/secrets/debug-web/token")
        }),
        case("debugWebToken.key", json!("own"), |o| {
            o.volume("debug-web-token")["secret"]["items"] == json!([{"key": "own", "path": "token"}])
        })
        .given(json!({"debugWebToken": {"name": "for-people"}})),
        case("networkPolicy.enabled", json!(true), |o| {
            let rules = &o.get("NetworkPolicy", "spegel")["spec"]["ingress"];
            let ports =
                |rule: usize| list(&rules[rule]["ports"]).map(|port| &port["port"]).collect::<Vec<_>>();
            ports(0) == [5001] && rules[0]["from"] != Value::Null && ports(1) == [5000, 9090]
        }),
        case("livenessProbe.enabled", json!(true), |o| {
            o.container("registry")["livenessProbe"]["httpGet"]["path"] == "/livez"
        }),
        case("extraVolumes", json!([{"name": "extra", "emptyDir": {}}]), |o| {
            o.volume("extra")["emptyDir"] == json!({})
        }),
        case("extraInitContainers", json!([{"name": "before", "image": "busybox"}]), |o| {
            let init = &daemonset(o)["template"]["spec"]["initContainers"];
            init[0]["name"] == "before" && init[1]["name"] == "configuration"
        }),
    ]
}

/// Ports and Services.
fn services() -> Vec<Case> {
    let host_port = || json!({"service": {"registry": {"hostPort": 30021}}});
    vec![
        case("service.registry.nodeIp", json!("10.0.0.7"), |o| {
            o.variable("configuration", "NODE_IP")["value"] == "10.0.0.7"
        }),
        case("service.registry.port", json!(5500), |o| {
            one_flag(o, "registry", "--registry-addr", ":5500")
                && container_port(o, "registry", "registry", 5500)
                && service_port(o, "spegel-registry")["port"] == 5500
        }),
        case("service.registry.nodePort", json!(31000), |o| {
            service_port(o, "spegel-registry")["nodePort"] == 31000
                && one_flag(o, "configuration", "--mirror-targets", "http://$(NODE_IP):31000")
        }),
        case("service.registry.hostPort", json!(30021), |o| {
            o.container("registry")["ports"][0]["hostPort"] == 30021
                && o.flag("configuration", "--mirror-targets")
                    == ["http://$(NODE_IP):30021", "http://$(NODE_IP):30020"]
        }),
        case("service.registry.internalTrafficLocal", json!(true), |o| {
            let spec = &o.get("Service", "spegel-registry")["spec"];
            spec["internalTrafficPolicy"] == "Local" && spec["trafficDistribution"] == Value::Null
        }),
        case("service.registry.usePreferSameNodeTrafficDistribution", json!(true), |o| {
            one_flag(o, "configuration", "--mirror-targets", "http://$(NODE_IP):30020")
                && o.get("Service", "spegel-registry")["spec"]["trafficDistribution"] == "PreferSameNode"
        })
        .given(host_port()),
        case("service.registry.topologyAwareHintsEnabled", json!(false), |o| {
            o.get("Service", "spegel-registry")["metadata"]["annotations"] == Value::Null
        })
        .given(host_port()),
        case("service.registry.annotations", json!({"a": "b"}), |o| {
            annotated(o, "Service", "spegel-registry")
        }),
        case("service.router.port", json!(5501), |o| {
            one_flag(o, "registry", "--router-addr", ":5501")
                && container_port(o, "registry", "router-tcp", 5501)
        }),
        case("service.metrics.port", json!(9191), |o| {
            one_flag(o, "registry", "--metrics-addr", ":9191")
                && container_port(o, "registry", "metrics", 9191)
                && service_port(o, "spegel")["port"] == 9191
        }),
        case("service.metrics.annotations", json!({"a": "b"}), |o| annotated(o, "Service", "spegel")),
        case("service.bootstrap.annotations", json!({"a": "b"}), |o| {
            annotated(o, "Service", "spegel-bootstrap")
        }),
        case("service.cleanup.port", json!(8181), |o| {
            one_flag(o, "cleanup", "--addr", ":8181")
                && container_port(o, "cleanup", "readiness", 8181)
                && service_port(o, "spegel-cleanup")["port"] == 8181
                && one_flag(
                    o,
                    "cleanup-wait",
                    "--probe-endpoint",
                    "spegel-cleanup.spegel.svc.cluster.local.:8181",
                )
        }),
        case("service.cleanup.annotations", json!({"a": "b"}), |o| annotated(o, "Service", "spegel-cleanup")),
    ]
}

/// What becomes arguments of the program.
fn program() -> Vec<Case> {
    vec![
        case("spegel.logLevel", json!("DEBUG"), |o| {
            ["configuration", "registry", "cleanup", "cleanup-wait"]
                .iter()
                .all(|container| one_flag(o, container, "--log-level", "DEBUG"))
        }),
        case("spegel.persistence.enabled", json!(false), |o| {
            one_flag(o, "registry", "--data-dir", "") && o.volume("data").is_null()
        }),
        case("spegel.persistence.path", json!("/data"), |o| {
            one_flag(o, "registry", "--data-dir", "/data")
                && o.mount("registry", "data")["mountPath"] == "/data"
        }),
        case("spegel.persistence.hostPath", json!("/srv/spegel"), |o| {
            o.volume("data")["hostPath"]["path"] == "/srv/spegel"
        }),
        case("spegel.mirroredRegistries", json!(["https://docker.io", "https://quay.io"]), |o| {
            ["configuration", "registry"].iter().all(|container| {
                o.flag(container, "--mirrored-registries") == ["https://docker.io", "https://quay.io"]
            })
        }),
        case("spegel.additionalMirrorTargets", json!(["http://cache.example:5000"]), |o| {
            o.flag("configuration", "--mirror-targets")
                == ["http://$(NODE_IP):30020", "http://cache.example:5000"]
        }),
        case("spegel.mirrorResolveRetries", json!(7), |o| {
            one_flag(o, "registry", "--mirror-resolve-retries", "7")
        }),
        case("spegel.mirrorResolveTimeout", json!("100ms"), |o| {
            one_flag(o, "registry", "--mirror-resolve-timeout", "100ms")
        }),
        case("spegel.containerdSock", json!("/run/k3s/containerd/containerd.sock"), |o| {
            one_flag(o, "registry", "--containerd-sock", "/run/k3s/containerd/containerd.sock")
                && o.mount("registry", "containerd-sock")["mountPath"] == "/run/k3s/containerd"
                && o.volume("containerd-sock")["hostPath"]["path"] == "/run/k3s/containerd"
        }),
        case("spegel.containerdNamespace", json!("other"), |o| {
            one_flag(o, "registry", "--containerd-namespace", "other")
        }),
        case("spegel.containerdRegistryConfigPath", json!("/etc/k3s/certs.d"), |o| {
            ["configuration", "cleanup"].iter().all(|container| {
                one_flag(o, container, "--containerd-registry-config-path", "/etc/k3s/certs.d")
                    && o.mount(container, "containerd-config")["mountPath"] == "/etc/k3s/certs.d"
            }) && o.volume("containerd-config")["hostPath"]["path"] == "/etc/k3s/certs.d"
                && one_flag(o, "registry", "--containerd-registry-config-path", "/etc/k3s/certs.d")
                && o.mount("registry", "node-config")["mountPath"] == "/node/etc/k3s"
                && o.mount("registry", "node-config")["readOnly"] == true
                && o.volume("node-config")["hostPath"]["path"] == "/etc/k3s"
        }),
        case("spegel.containerdContentPath", json!("/data/content"), |o| {
            one_flag(o, "registry", "--containerd-content-path", "/data/content")
                && o.mount("registry", "containerd-content")["mountPath"] == "/data/content"
                && o.mount("registry", "containerd-content")["readOnly"] == true
                && o.volume("containerd-content")["hostPath"]["path"] == "/data/content"
        }),
        case("spegel.containerdMirrorAdd", json!(false), |o| {
            o.container("configuration").is_null()
                && o.volume("containerd-config").is_null()
                && o.find("DaemonSet", "spegel-cleanup").is_none()
                && o.find("Pod", "spegel-cleanup-wait").is_none()
        }),
        case("spegel.resolveTags", json!(false), |o| one_flag(o, "configuration", "--resolve-tags", "false")),
        case("spegel.registryFilters", json!([":latest$", "^docker\\.io/"]), |o| {
            o.flag("registry", "--registry-filters") == [":latest$", "^docker\\.io/"]
        }),
        case("spegel.prependExisting", json!(true), |o| {
            one_flag(o, "configuration", "--prepend-existing", "true")
        }),
        case("spegel.debugWebEnabled", json!(false), |o| {
            one_flag(o, "registry", "--debug-web-enabled", "false")
        }),
        case("spegel.debugPprofEnabled", json!(true), |o| {
            list(&o.container("registry")["args"]).any(|argument| argument == "--debug-pprof-enabled")
        }),
    ]
}

/// What operators read.
fn operators() -> Vec<Case> {
    let monitor = || json!({"serviceMonitor": {"enabled": true}});
    let sidecar = || json!({"grafanaDashboard": {"enabled": true}});
    let operator = || {
        json!({"grafanaDashboard": {
            "enabled": true, "mode": "GrafanaOperator", "grafanaOperator": {"matchLabels": {"grafana": "main"}},
        }})
    };
    let autoscaler = || json!({"verticalPodAutoscaler": {"enabled": true}});
    vec![
        case("serviceMonitor.enabled", json!(true), |o| o.find("ServiceMonitor", "spegel").is_some()),
        case("serviceMonitor.interval", json!("15s"), |o| endpoint(o)["interval"] == "15s").given(monitor()),
        case("serviceMonitor.scrapeTimeout", json!("5s"), |o| endpoint(o)["scrapeTimeout"] == "5s")
            .given(monitor()),
        case("serviceMonitor.labels", json!({"a": "b"}), |o| labelled(o, "ServiceMonitor", "spegel"))
            .given(monitor()),
        case("serviceMonitor.relabelings", json!([{"action": "keep"}]), |o| {
            endpoint(o)["relabelings"] == json!([{"action": "keep"}])
        })
        .given(monitor()),
        case("serviceMonitor.metricRelabelings", json!([{"action": "drop"}]), |o| {
            endpoint(o)["metricRelabelings"] == json!([{"action": "drop"}])
        })
        .given(monitor()),
        case("prometheusRule.enabled", json!(true), |o| o.find("PrometheusRule", "spegel").is_some()),
        case("prometheusRule.labels", json!({"a": "b"}), |o| labelled(o, "PrometheusRule", "spegel"))
            .given(json!({"prometheusRule": {"enabled": true}})),
        case("grafanaDashboard.enabled", json!(true), |o| {
            o.get("ConfigMap", "spegel-dashboard")["data"]["spegel.json"].is_string()
        }),
        case("grafanaDashboard.mode", json!("GrafanaOperator"), |o| {
            o.find("ConfigMap", "spegel-dashboard").is_none() && dashboard(o)["json"].is_string()
        })
        .given(json!({"grafanaDashboard": {
            "enabled": true, "grafanaOperator": {"matchLabels": {"grafana": "main"}},
        }})),
        case("grafanaDashboard.labels", json!({"a": "b"}), |o| labelled(o, "ConfigMap", "spegel-dashboard"))
            .given(sidecar()),
        case("grafanaDashboard.annotations", json!({"a": "b"}), |o| {
            annotated(o, "ConfigMap", "spegel-dashboard")
        })
        .given(sidecar()),
        case("grafanaDashboard.grafanaOperator.allowCrossNamespaceImport", json!(false), |o| {
            dashboard(o)["allowCrossNamespaceImport"] == false
        })
        .given(operator()),
        case("grafanaDashboard.grafanaOperator.folder", json!("Images"), |o| {
            dashboard(o)["folder"] == "Images"
        })
        .given(operator()),
        case("grafanaDashboard.grafanaOperator.resyncPeriod", json!("1h"), |o| {
            dashboard(o)["resyncPeriod"] == "1h"
        })
        .given(operator()),
        case("grafanaDashboard.grafanaOperator.matchLabels", json!({"grafana": "second"}), |o| {
            dashboard(o)["instanceSelector"]["matchLabels"] == json!({"grafana": "second"})
        })
        .given(operator()),
        case("verticalPodAutoscaler.enabled", json!(true), |o| {
            autoscaled(o)["containerName"] == "registry"
                && o.get("VerticalPodAutoscaler", "spegel")["spec"]["targetRef"]["name"] == "spegel"
        }),
        case("verticalPodAutoscaler.recommenders", json!([{"name": "own"}]), |o| {
            o.get("VerticalPodAutoscaler", "spegel")["spec"]["recommenders"] == json!([{"name": "own"}])
        })
        .given(autoscaler()),
        case("verticalPodAutoscaler.controlledResources", json!(["memory"]), |o| {
            autoscaled(o)["controlledResources"] == json!(["memory"])
        })
        .given(autoscaler()),
        case("verticalPodAutoscaler.controlledValues", json!("RequestsOnly"), |o| {
            autoscaled(o)["controlledValues"] == "RequestsOnly"
        })
        .given(autoscaler()),
        case("verticalPodAutoscaler.maxAllowed", json!({"memory": "1Gi"}), |o| {
            autoscaled(o)["maxAllowed"] == json!({"memory": "1Gi"})
        })
        .given(autoscaler()),
        case("verticalPodAutoscaler.minAllowed", json!({"memory": "1Mi"}), |o| {
            autoscaled(o)["minAllowed"] == json!({"memory": "1Mi"})
        })
        .given(autoscaler()),
        case("verticalPodAutoscaler.updatePolicy.minReplicas", json!(1), |o| {
            o.get("VerticalPodAutoscaler", "spegel")["spec"]["updatePolicy"]["minReplicas"] == 1
        })
        .given(autoscaler()),
        case("verticalPodAutoscaler.updatePolicy.updateMode", json!("Off"), |o| {
            o.get("VerticalPodAutoscaler", "spegel")["spec"]["updatePolicy"]["updateMode"] == "Off"
        })
        .given(autoscaler()),
    ]
}

fn cases() -> Vec<Case> {
    [general(), services(), program(), operators()].into_iter().flatten().collect()
}

/// `given` with one more value.
fn with_value(given: &Value, path: &str, value: &Value) -> Value {
    let mut values = given.clone();
    let place = path.split('.').fold(&mut values, |place, key| {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        &mut place[key]
    });
    *place = value.clone();
    values
}

fn render(values: Value) -> Objects {
    let apis = vec!["autoscaling.k8s.io/v1".to_owned()];
    Objects::render(&Chart { apis, ..Chart::with(values) })
}

#[test]
fn every_value_has_its_effect() {
    // Many start from the same.
    let mut given: BTreeMap<String, Objects> = BTreeMap::new();
    for case in cases() {
        let before = given.entry(case.given.to_string()).or_insert_with(|| render(case.given.clone()));
        assert!(!(case.seen)(before), "{}: what it changes is so without it", case.path);
        let after = with_value(&case.given, case.path, &case.value);
        let objects = render(after.clone());
        assert!((case.seen)(&objects), "{}={} has not the effect it should have", case.path, case.value);
        let problems = strict::problems(&objects);
        assert!(problems.is_empty(), "{after}:\n{}", problems.join("\n"));
    }
}

/// Names of all values in the chart, down to those that tests give as a whole.
fn names(values: &Value, path: &str, whole: &BTreeSet<&str>) -> Vec<String> {
    match values.as_object() {
        Some(map) if !whole.contains(path) && !map.is_empty() => {
            let below = |(key, value): (&String, &Value)| {
                names(value, &format!("{path}{}{key}", if path.is_empty() { "" } else { "." }), whole)
            };
            map.iter().flat_map(below).collect()
        }
        Some(_) | None => vec![path.to_owned()],
    }
}

#[test]
fn every_value_is_tried() {
    let text = std::fs::read_to_string(chart_dir().join("values.yaml")).expect("the chart has values");
    let values = parse_yaml(&text).expect("values are YAML").remove(0);
    let cases = cases();
    let tried: BTreeSet<&str> = cases.iter().map(|case| case.path).collect();
    assert_eq!(tried.len(), cases.len(), "a value is tried twice");
    let there: BTreeSet<String> = names(&values, "", &tried).into_iter().collect();
    let there: BTreeSet<&str> = there.iter().map(String::as_str).collect();
    assert_eq!(there, tried, "values.yaml (left) and what is tried (right)");
}

/// Every value of the Go implementation's chart, v0.7 and later.
const GO_CHART: [&str; 81] = [
    "affinity",
    "basicAuthSecretName",
    "clusterDomain",
    "commonLabels",
    "daemonsetAnnotations",
    "extraInitContainers",
    "extraVolumes",
    "fullnameOverride",
    "grafanaDashboard.annotations",
    "grafanaDashboard.enabled",
    "grafanaDashboard.grafanaOperator.allowCrossNamespaceImport",
    "grafanaDashboard.grafanaOperator.folder",
    "grafanaDashboard.grafanaOperator.matchLabels",
    "grafanaDashboard.grafanaOperator.resyncPeriod",
    "grafanaDashboard.labels",
    "grafanaDashboard.mode",
    "image.digest",
    "image.pullPolicy",
    "image.repository",
    "image.tag",
    "imagePullSecrets",
    "livenessProbe.enabled",
    "nameOverride",
    "namespaceOverride",
    "networkPolicy.enabled",
    "nodeSelector",
    "podAnnotations",
    "podSecurityContext",
    "priorityClassName",
    "resources",
    "revisionHistoryLimit",
    "securityContext",
    "service.bootstrap.annotations",
    "service.cleanup.annotations",
    "service.cleanup.port",
    "service.metrics.annotations",
    "service.metrics.port",
    "service.registry.annotations",
    "service.registry.hostPort",
    "service.registry.internalTrafficLocal",
    "service.registry.nodeIp",
    "service.registry.nodePort",
    "service.registry.port",
    "service.registry.topologyAwareHintsEnabled",
    "service.registry.usePreferSameNodeTrafficDistribution",
    "service.router.port",
    "serviceAccount.annotations",
    "serviceAccount.name",
    "serviceMonitor.enabled",
    "serviceMonitor.interval",
    "serviceMonitor.labels",
    "serviceMonitor.metricRelabelings",
    "serviceMonitor.relabelings",
    "serviceMonitor.scrapeTimeout",
    "spegel.additionalMirrorTargets",
    "spegel.containerdContentPath",
    "spegel.containerdMirrorAdd",
    "spegel.containerdNamespace",
    "spegel.containerdRegistryConfigPath",
    "spegel.containerdSock",
    "spegel.debugWebEnabled",
    "spegel.logLevel",
    "spegel.mirrorResolveRetries",
    "spegel.mirrorResolveTimeout",
    "spegel.mirroredRegistries",
    "spegel.persistence.enabled",
    "spegel.persistence.hostPath",
    "spegel.persistence.path",
    "spegel.prependExisting",
    "spegel.registryFilters",
    "spegel.resolveTags",
    "tolerations",
    "updateStrategy",
    "verticalPodAutoscaler.controlledResources",
    "verticalPodAutoscaler.controlledValues",
    "verticalPodAutoscaler.enabled",
    "verticalPodAutoscaler.maxAllowed",
    "verticalPodAutoscaler.minAllowed",
    "verticalPodAutoscaler.recommenders",
    "verticalPodAutoscaler.updatePolicy.minReplicas",
    "verticalPodAutoscaler.updatePolicy.updateMode",
];

#[test]
fn values_of_the_go_chart_are_all_here() {
    let tried: BTreeSet<&str> = cases().iter().map(|case| case.path).collect();
    let missing: Vec<&str> = GO_CHART.into_iter().filter(|name| !tried.contains(name)).collect();
    assert_eq!(missing, Vec::<&str>::new());
}
