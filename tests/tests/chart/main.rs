//! The chart renders what Kubernetes takes, whatever its values: every object is decoded into its type with no field left
//! over, and what it refers to is there. Each value has its effect, and the plain manifest is what the chart renders.

mod manifest;
mod monitoring;
mod objects;
mod operators;
mod strict;
mod values;

use serde_json::{Value, json};
use spegel_tests::Chart;

use objects::Objects;

/// Values that change which objects there are and what they are made of, each with a name for a failure's message.
fn matrix() -> Vec<(&'static str, Chart)> {
    let other_names = Chart {
        release: "images".to_owned(),
        namespace: "kube-system".to_owned(),
        ..Chart::with(json!({"commonLabels": {"team": "nodes"}}))
    };
    let with_autoscaler = Chart {
        apis: vec!["autoscaling.k8s.io/v1".to_owned()],
        ..Chart::with(json!({"verticalPodAutoscaler": {
            "enabled": true, "recommenders": [{"name": "own"}], "controlledResources": ["memory"],
            "maxAllowed": {"memory": "256Mi"}, "minAllowed": {"memory": "64Mi"},
        }}))
    };
    let mut matrix = vec![
        ("no values", Chart::default()),
        ("another release, namespace and labels", other_names),
        ("an autoscaler", with_autoscaler),
        ("nothing optional", Chart::with(nothing_optional())),
        ("everything optional", Chart::with(everything_optional())),
        ("what v0.7 of the Go chart has by default", Chart::with(go_v0_7())),
        ("the values of v0.7 alone (helm upgrade --reuse-values)", Chart::with(go_v0_7_alone())),
        ("privileged", Chart::with(json!({"securityContext": {"privileged": true}}))),
    ];
    for kubernetes in ["1.26.0", "1.33.4", "1.34.1-gke.100", "1.37.0"] {
        matrix.push((kubernetes, Chart { kubernetes: kubernetes.to_owned(), ..Chart::default() }));
    }
    matrix
}

fn nothing_optional() -> Value {
    json!({
        "podSecurityContext": null, "securityContext": null, "resources": null, "nodeSelector": null, "tolerations": [],
        "priorityClassName": "", "spegel": {"containerdMirrorAdd": false, "persistence": {"enabled": false}},
    })
}

fn everything_optional() -> Value {
    json!({
        "global": {"any": "thing"}, "enabled": true,
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccount": {"annotations": {"a": "b"}},
        "daemonsetAnnotations": {"a": "b"}, "podAnnotations": {"a": "b"}, "commonLabels": {"a": "b"},
        "service": {
            "registry": {"nodeIp": "fd00::1", "hostPort": 30021, "internalTrafficLocal": true, "annotations": {"a": "b"}},
            "metrics": {"annotations": {"a": "b"}}, "bootstrap": {"annotations": {"a": "b"}},
            "cleanup": {"annotations": {"a": "b"}},
        },
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "mirror", "operator": "Exists"}]},
        ]}}},
        "serviceMonitor": {
            "enabled": true, "labels": {"a": "b"},
            "relabelings": [{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}],
            "metricRelabelings": [{"action": "drop", "regex": "x", "sourceLabels": ["__name__"]}],
        },
        "prometheusRule": {"enabled": true, "labels": {"a": "b"}},
        "grafanaDashboard": {"enabled": true, "labels": {"a": "b"}, "annotations": {"a": "b"}},
        "networkPolicy": {"enabled": true},
        "basicAuthSecretName": "mirror-password", "clusterSecret": {"name": "mirrors-only"},
        "debugWebToken": {"name": "for-people"},
        "spegel": {
            "mirroredRegistries": ["https://docker.io", "*"], "additionalMirrorTargets": ["http://cache.example:5000"],
            "registryFilters": ["^docker\\.io/(private|\"odd\")/", ":latest$"], "prependExisting": true,
        },
        "livenessProbe": {"enabled": true},
        "extraVolumes": [{"name": "extra", "emptyDir": {}}],
        "extraInitContainers": [
            {"name": "before", "image": "busybox", "volumeMounts": [{"name": "extra", "mountPath": "/extra"}]},
        ],
    })
}

/// The values whose defaults are others here, or that the Go chart has dropped since.
fn go_v0_7() -> Value {
    json!({
        "image": {"repository": "ghcr.io/spegel-org/spegel", "tag": "v0.7.4"},
        "podSecurityContext": {},
        "securityContext": {"readOnlyRootFilesystem": true},
        "service": {"registry": {
            "nodePort": 30021, "hostPort": 30020, "topologyAwareHintsEnabled": true,
            "usePreferSameNodeTrafficDistribution": false,
        }},
        "updateStrategy": {},
    })
}

/// The same without what has been added since.
fn go_v0_7_alone() -> Value {
    let mut values = go_v0_7();
    for added in [
        "networkPolicy",
        "prometheusRule",
        "clusterSecret",
        "debugWebToken",
        "extraVolumes",
        "extraInitContainers",
    ] {
        values[added] = Value::Null;
    }
    values["service"]["registry"]["internalTrafficLocal"] = Value::Null;
    values["spegel"] = json!({"persistence": null});
    values
}

#[test]
fn every_object_is_one_that_kubernetes_takes() {
    for (name, chart) in matrix() {
        let objects = Objects::render(&chart);
        let problems = strict::problems(&objects);
        assert!(problems.is_empty(), "with {name}:\n{}", problems.join("\n"));
    }
}

/// The check needs containerd's configuration, which lies around its registry configuration, and not all of `/etc`.
#[test]
fn pod_sees_no_more_of_the_node_than_containerds_configuration() {
    for (path, mounted) in [
        ("/etc/containerd/certs.d", "/etc/containerd"),
        ("/etc/containerd/certs.d/", "/etc/containerd"),
        ("/var/lib/rancher/k3s/agent/etc/containerd/certs.d", "/var/lib/rancher/k3s/agent/etc/containerd"),
        ("/etc/certs.d", "/etc/certs.d"),
        ("/certs.d", "/certs.d"),
    ] {
        let objects =
            Objects::render(&Chart::with(json!({"spegel": {"containerdRegistryConfigPath": path}})));
        assert_eq!(objects.volume("node-config")["hostPath"]["path"], mounted, "{path}");
        assert_eq!(
            objects.mount("registry", "node-config")["mountPath"],
            format!("/node{mounted}"),
            "{path}"
        );
    }
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    for (name, chart) in matrix() {
        chart.lint().unwrap_or_else(|error| panic!("with {name}: {error}"));
    }
}

#[test]
fn chart_has_the_version_of_the_program() {
    let about =
        std::fs::read_to_string(spegel_tests::chart_dir().join("Chart.yaml")).expect("the chart is there");
    for key in ["version", "appVersion"] {
        let line = format!("{key}: {}", env!("CARGO_PKG_VERSION"));
        assert!(about.lines().any(|there| there == line), "Chart.yaml lacks {line:?}");
    }
}

/// The command line as it is read, each flag a field.
const COMMAND_LINE: &str = include_str!("../../../bin/src/cli.rs");

#[test]
fn arguments_and_variables_are_those_of_the_program() {
    let mut tried = 0;
    for (name, chart) in matrix() {
        for container in Objects::render(&chart).own_containers() {
            let own = container["name"].as_str().expect("a name");
            let mut arguments = objects::list(&container["args"]).filter_map(Value::as_str);
            let command = arguments.next().expect("a command").replace('-', "");
            let known = COMMAND_LINE.to_lowercase().contains(&format!("\n    {command}("));
            assert!(known, "with {name}: {own} runs {command}, which the program does not know");
            for argument in arguments {
                let flag = argument.split('=').next().expect("the first part");
                let field = flag.trim_start_matches("--").replace('-', "_");
                let known = COMMAND_LINE.contains(&format!("pub(crate) {field}: "));
                assert!(known, "with {name}: the program has no flag {flag}, which {own} is given");
                tried += 1;
            }
        }
    }
    assert!(tried > 50, "only {tried} arguments were looked at");
    assert!(COMMAND_LINE.contains("env = \"ZONE\""), "the chart tells the zone by this variable");
}

#[test]
fn what_v0_7_rendered_is_rendered_again() {
    let objects = Objects::render(&Chart::with(go_v0_7()));
    let registry = objects.container("registry");
    assert_eq!(registry["image"], "localhost/spegel:0.1.0", "the Go implementation's image is not run");
    assert_eq!(registry["ports"][0]["hostPort"], 30020);
    let service = objects.get("Service", "spegel-registry");
    assert_eq!(service["spec"]["ports"][0]["nodePort"], 30021);
    assert_eq!(service["metadata"]["annotations"]["service.kubernetes.io/topology-mode"], "auto");
    let targets = objects.flag("configuration", "--mirror-targets");
    assert_eq!(targets, ["http://$(NODE_IP):30020", "http://$(NODE_IP):30021"]);
}

/// `helm upgrade` patches what runs, and tells ports of one container apart by their number alone. Where the older
/// chart has TCP and UDP of one number and this one only TCP, the patch says "remove this number", and both are gone.
#[test]
fn an_upgrade_from_the_go_chart_changes_no_port() {
    let objects = Objects::render(&Chart::default());
    let ports: Vec<(&str, u64, &str)> = objects::list(&objects.container("registry")["ports"])
        .map(|port| {
            let text = |field: &str| port[field].as_str().expect("a text");
            (text("name"), port["containerPort"].as_u64().expect("a number"), text("protocol"))
        })
        .collect();
    let of_the_go_chart = [
        ("registry", 5000, "TCP"),
        ("router-tcp", 5001, "TCP"),
        ("router-quic", 5001, "UDP"),
        ("metrics", 9090, "TCP"),
    ];
    assert_eq!(ports, of_the_go_chart);
}

/// Kubernetes refuses to change a DaemonSet's selector: with another, `helm upgrade` would fail, from the Go chart as
/// well.
#[test]
fn selector_is_the_one_of_the_go_chart_whatever_the_values() {
    let renamed = json!({"nameOverride": "mirror", "commonLabels": {"team": "nodes"}});
    let renamed = Chart { release: "images".to_owned(), ..Chart::with(renamed) };
    let charts = [
        (Chart::default(), "spegel", "spegel", "spegel"),
        (Chart::with(everything_optional()), "spegel", "spegel", "spegel"),
        (renamed, "images-mirror", "mirror", "images"),
    ];
    for (chart, object, name, instance) in charts {
        let objects = Objects::render(&chart);
        assert_eq!(
            objects.get("DaemonSet", object)["spec"]["selector"],
            json!({"matchLabels": {
                "app.kubernetes.io/component": "spegel",
                "app.kubernetes.io/name": name,
                "app.kubernetes.io/instance": instance,
            }}),
            "{object}"
        );
    }
}

#[test]
fn older_clusters_are_not_asked_for_what_they_refuse() {
    let distribution = |kubernetes: &str| {
        let objects = Objects::render(&Chart { kubernetes: kubernetes.to_owned(), ..Chart::default() });
        objects.get("Service", "spegel-registry")["spec"]["trafficDistribution"].clone()
    };
    assert_eq!(distribution("1.33.9"), Value::Null);
    assert_eq!(distribution("1.34.0"), "PreferSameNode");
}

#[test]
fn a_port_that_is_node_port_and_host_port_is_node_port() {
    let both = json!({"service": {"registry": {"hostPort": 30020, "nodePort": 30020}}});
    let objects = Objects::render(&Chart::with(both));
    assert_eq!(objects.flag("configuration", "--mirror-targets"), ["http://$(NODE_IP):30020"]);
    assert_eq!(objects.container("registry")["ports"][0]["hostPort"], Value::Null);
}

#[test]
fn containers_have_no_more_rights_than_they_need() {
    let objects = Objects::render(&Chart::default());
    let pods = objects.pods();
    assert_eq!(pods.len(), 3, "the mirror, what cleans up, and what waits for that");
    for (name, pod) in pods {
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["hostNetwork"], Value::Null, "{name}");
        for container in objects::containers(pod) {
            let rights = &container["securityContext"];
            let what = format!("{name}: {}", container["name"]);
            assert_eq!(rights["capabilities"], json!({"drop": ["ALL"]}), "{what}");
            assert_eq!(rights["allowPrivilegeEscalation"], false, "{what}");
            assert_eq!(rights["readOnlyRootFilesystem"], true, "{what}");
        }
    }
    let account = objects.get("ServiceAccount", "spegel");
    assert_eq!(account["automountServiceAccountToken"], false);
    let writable: Vec<&str> = objects::mounts(objects.container("registry"))
        .filter(|mount| mount["readOnly"] != true)
        .map(|mount| mount["mountPath"].as_str().expect("a path"))
        .collect();
    assert_eq!(writable, ["/var/lib/spegel"], "the mirror writes its identity and nothing else");
}

#[test]
fn restarted_containerd_is_found_again() {
    let objects = Objects::render(&Chart::default());
    let volume = objects.volume("containerd-sock");
    // A mounted socket stays the one that the ended containerd listened at.
    assert_eq!(volume["hostPath"], json!({"path": "/run/containerd", "type": "Directory"}));
}

/// CoreDNS keeps an answer for 30 seconds as kubeadm sets it up, so one look does not show all pods.
#[test]
fn an_uninstall_waits_for_longer_than_dns_hides_a_pod() {
    let objects = Objects::render(&Chart::default());
    let rounds: Vec<u64> = objects
        .flag("cleanup-wait", "--threshold")
        .iter()
        .map(|rounds| rounds.parse().expect("a number"))
        .collect();
    let [rounds] = rounds[..] else { panic!("one --threshold is expected: {rounds:?}") };
    assert_eq!(objects.flag("cleanup-wait", "--period"), Vec::<&str>::new(), "a round every two seconds");
    assert!((rounds - 1) * 2 > 30, "{rounds} rounds end before DNS shows others");
}

#[test]
fn an_update_never_takes_all_mirrors_down() {
    let objects = Objects::render(&Chart::default());
    let spec = &objects.get("DaemonSet", "spegel")["spec"];
    assert_eq!(
        spec["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}})
    );
    assert!(
        spec["minReadySeconds"].as_u64() >= Some(5),
        "the next one waits until this one has said what it has"
    );
    let grace = spec["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().expect("a number");
    assert!(grace > 5 + 1 + 25 + 2, "a delay, goodbyes, transfers and their ends come before; {grace}");
}

#[test]
fn a_typo_is_an_error_that_names_it() {
    let typos = [
        (json!({"spegell": {}}), "spegell"),
        (json!({"spegel": {"mirroredRegistry": []}}), "mirroredRegistry"),
        (json!({"service": {"registry": {"nodeport": 1}}}), "nodeport"),
        (json!({"securityContext": {"capabilites": {}}}), "capabilites"),
        (json!({"tolerations": [{"kee": "a"}]}), "kee"),
        (json!({"clusterSecret": {"secretName": "a"}}), "secretName"),
        (json!({"clusterSecret": {"key": "a/b"}}), "key"),
        (json!({"debugWebToken": {"token": "a"}}), "token"),
        (json!({"spegel": {"logLevel": "LOUD"}}), "logLevel"),
        (json!({"spegel": {"mirroredRegistries": ["docker.io"]}}), "mirroredRegistries"),
        (json!({"spegel": {"additionalMirrorTargets": ["http://a/path"]}}), "additionalMirrorTargets"),
        (json!({"spegel": {"mirrorResolveTimeout": "soon"}}), "mirrorResolveTimeout"),
        (json!({"spegel": {"containerdSock": "containerd.sock"}}), "containerdSock"),
        (json!({"spegel": {"containerdContentPath": ""}}), "containerdContentPath"),
        (json!({"spegel": {"resolveTags": "no"}}), "resolveTags"),
        (json!({"service": {"registry": {"nodePort": 70000}}}), "nodePort"),
        (json!({"grafanaDashboard": {"mode": "sidecar"}}), "mode"),
        (json!({"grafanaDashboard": {"enabled": true, "mode": "GrafanaOperator"}}), "matchLabels"),
    ];
    for (values, named) in typos {
        match Chart::with(values.clone()).render() {
            Ok(_) => panic!("{values} is taken"),
            Err(error) => assert!(error.contains(named), "{values}: {named} is not named: {error}"),
        }
    }
}
