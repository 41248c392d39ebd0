//! `make kubernetes`: what an operator does, on a real Kubernetes, by the commands of docs/operating.md.
//!
//! Each of them is looked for in that file before it is run, so that the file says what was tried. It tells what
//! happens as it happens, and removes everything at the end, on failure and on Ctrl-C.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it tells a story, on the real clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{
    Generation, HttpClient, ImageSpec, Kubernetes, Machine, clean_up, clean_up_on_signal, deploy_dir,
    image_archive, mib, wait_for,
};

/// Where containerd asks for its mirror.
const NODE_PORT: u16 = 30020;
/// Kubernetes 1.N knows that a node's own pod is to be preferred.
const PREFERS_SAME_NODE_FROM: u32 = 34;
/// Kubernetes 1.N copies the label from nodes to their pods.
const COPIES_ZONES_FROM: u32 = 35;
/// A pod of an image that is pulled runs within a second; the kubelet tries again after ten.
const POD_MAX: Duration = Duration::from_secs(60);
/// The kubelet hands a changed Secret to pods once a minute or so, and the mirror looks every five seconds.
const SECRET_MAX: Duration = Duration::from_secs(180);
/// Between two requests of a client.
const ASK_INTERVAL: Duration = Duration::from_millis(10);
/// A connection whose first packet is lost takes a second more, and such packets are: clients here use up ports.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What containerd before 2.1 would wait for.
const CONNECT_MAX: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let Some(version) = std::env::args().nth(1) else {
        eprintln!("which version of Kubernetes? See make kubernetes");
        return ExitCode::FAILURE;
    };
    clean_up_on_signal();
    let told = std::panic::catch_unwind(|| story(&version));
    clean_up();
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(_said) => ExitCode::FAILURE,
    }
}

fn story(version: &str) {
    let began = Instant::now();
    let operator =
        Operator::new(Kubernetes::start(version, &[Generation::V1_6, Generation::V1_7, Generation::V2_1]));
    println!("Kubernetes {version} with nodes of containerd 1.6, 1.7 and 2.1 runs.");
    install(&operator);
    share(&operator);
    update(&operator);
    secret(&operator);
    credentials(&operator);
    uninstall(&operator);
    uninstall_without_helm(&operator);
    println!("All went as documented, in {} s.", began.elapsed().as_secs());
}

/// Somebody with helm and kubectl, who goes by the documentation.
struct Operator {
    kubernetes: Kubernetes,
    documented: String,
}

impl Operator {
    fn new(kubernetes: Kubernetes) -> Self {
        let path = deploy_dir().join("../docs/operating.md");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { kubernetes, documented: squeezed(&text) }
    }

    /// Runs lines that are in the documentation, with the registry here in place of the one there.
    fn does(&self, lines: &str) -> String {
        let lines_squeezed = squeezed(lines);
        assert!(self.documented.contains(&lines_squeezed), "docs/operating.md does not say: {lines}");
        self.does_besides(&lines.replace("registry.example", "registry.test"))
    }

    /// Runs lines that are not.
    fn does_besides(&self, lines: &str) -> String {
        self.kubernetes.expect(lines, self.kubernetes.shell(lines))
    }

    fn waits_for_rollout(&self) {
        self.does("kubectl -n spegel rollout status daemonset/spegel");
    }

    /// The pod of the mirror on a node.
    fn mirror_on(&self, machine: &Machine) -> String {
        let field = format!("--field-selector=spec.nodeName={}", machine.name);
        let pods = self.kubernetes.get(&[
            "pods",
            "-n",
            "spegel",
            "-l",
            "app.kubernetes.io/component=spegel",
            &field,
        ]);
        let pods = self.kubernetes.expect("the mirror's pod", pods);
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let running = pods.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let name = running.and_then(|pod| pod["metadata"]["name"].as_str());
        name.unwrap_or_else(|| panic!("no mirror on {}", machine.name)).to_owned()
    }

    fn metrics_of(&self, machine: &Machine) -> Result<String, String> {
        let pod = self.mirror_on(machine);
        let page = format!("/api/v1/namespaces/spegel/pods/{pod}:9090/proxy/metrics");
        self.kubernetes.kubectl(&["get", "--raw", &page])
    }

    /// No mirror finds anything that keeps its node from mirroring.
    fn checks_all(&self) {
        for machine in &self.kubernetes.machines {
            let pod = self.mirror_on(machine);
            let found = self.kubernetes.kubectl(&["-n", "spegel", "exec", &pod, "--", "/spegel", "check"]);
            let found = self.kubernetes.expect("spegel check", found);
            assert!(!found.contains(['✘', '!']), "{}: {found}", machine.name);
        }
    }

    /// Runs a pod on each of these nodes with an image that it lacks, and waits until it runs.
    fn runs(&self, image: &str, machines: &[Machine]) {
        for machine in machines {
            let name = format!("{}-{}", image.replace([':', '/', '.'], "-"), machine.name);
            let pod = format!(
                r#"{{"spec": {{"nodeName": "{}", "automountServiceAccountToken": false}}}}"#,
                machine.name
            );
            let run = self.kubernetes.kubectl(&["run", &name, "--image", image, "--overrides", &pod]);
            self.kubernetes.expect("kubectl run", run);
            let look = || match self.kubernetes.get(&["pod", &name])?["status"]["phase"].as_str() {
                Some("Running") => Ok(()),
                phase => Err(format!("{phase:?}")),
            };
            let runs = wait_for(&format!("{name} runs"), POD_MAX, look);
            self.kubernetes.expect("a pod", runs);
        }
    }
}

/// Lines that go on, and spaces, do not matter.
fn squeezed(text: &str) -> String {
    text.replace("\\\n", " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn install(operator: &Operator) {
    let Operator { kubernetes, .. } = operator;
    kubernetes.publish(&image_archive(), "spegel", "0.1.0");
    for machine in &kubernetes.machines {
        // No registry of this test speaks TLS; the mirror keeps this as the operator's own, and gives it back.
        let own = "server = 'http://registry.test'\n[host.'http://registry.test']\ncapabilities = ['pull', 'resolve']\n";
        let dir = machine.registry_config_path().join("registry.test");
        fs::create_dir_all(&dir)
            .and_then(|()| fs::write(dir.join("hosts.toml"), own))
            .expect("the node is ours");
        let zone = format!("topology.kubernetes.io/zone={}", if machine.name == "n1" { "a" } else { "b" });
        kubernetes.expect("a zone", kubernetes.kubectl(&["label", "node", &machine.name, &zone]));
    }
    operator.does(
        "helm upgrade --install spegel deploy/charts/spegel --namespace spegel --create-namespace \
         --set image.repository=registry.example/spegel",
    );
    operator.does("kubectl label --overwrite namespace spegel pod-security.kubernetes.io/enforce=privileged");
    operator.waits_for_rollout();
    operator.does("kubectl -n spegel logs daemonset/spegel");
    operator.does("kubectl -n spegel exec daemonset/spegel -- /spegel check");
    operator.checks_all();
    println!("The chart is installed, and no mirror's check finds anything.");

    let nodes = operator.does("kubectl get nodes -L topology.kubernetes.io/zone");
    let pods = operator.does("kubectl -n spegel get pods -o wide -L topology.kubernetes.io/zone");
    let zones = |table: &str| {
        let mut zones: Vec<String> = table
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().last().map(str::to_owned))
            .collect();
        zones.sort();
        zones
    };
    if operator.kubernetes.minor_version() >= COPIES_ZONES_FROM {
        assert_eq!(zones(&pods), zones(&nodes), "pods have the zones of their nodes");
        println!("Pods have the zones of their nodes.");
    }
}

/// What one node has the others get from it: no registry has it.
fn share(operator: &Operator) {
    let Operator { kubernetes, .. } = operator;
    let [first, others @ ..] = kubernetes.machines.as_slice() else { panic!("there are nodes") };
    let app = kubernetes.image(&ImageSpec::new("app", "1", &[mib(20); 3]));
    kubernetes.expect("import", first.import(&app));
    operator.runs(&app.by_tag(), others);
    for machine in others {
        let page = kubernetes.expect("metrics", operator.metrics_of(machine));
        let hits = r#"spegel_mirror_requests_total{registry="registry.test",cache="hit"}"#;
        assert!(page.contains(hits), "{}: no hits in\n{page}", machine.name);
    }
    println!("Pods run with an image that only one node had and no registry has.");
}

fn update(operator: &Operator) {
    let Operator { kubernetes, .. } = operator;
    let [first, ..] = kubernetes.machines.as_slice() else { panic!("there are nodes") };
    // The next release, on one node.
    let names = ["registry.test/spegel:0.1.0", "registry.test/spegel:0.1.1"];
    kubernetes.expect("tag", first.run(&["ctr", "-n", "k8s.io", "images", "tag", names[0], names[1]]));
    let asked = asked_meanwhile(&kubernetes.machines, || {
        operator.does_besides(
            "helm upgrade spegel deploy/charts/spegel --namespace spegel --reset-then-reuse-values \
             --set image.tag=0.1.1",
        );
        operator.waits_for_rollout();
    });
    println!(
        "All mirrors were replaced, while each node asked its node port {} times: {asked}.",
        asked.count()
    );
    assert!(asked.failed.is_empty(), "containerd's pull would have failed, or gone to the registry");
    assert!(asked.longest <= ANSWER_MAX, "containerd would have waited for a pod that was gone");

    operator.does("helm upgrade spegel deploy/charts/spegel --namespace spegel --reset-then-reuse-values");
    operator.does_besides(
        "helm upgrade spegel deploy/charts/spegel --namespace spegel --reset-then-reuse-values --set image.tag=",
    );
    operator.waits_for_rollout();
    operator.does("helm history spegel --namespace spegel\nhelm rollback spegel --namespace spegel --wait");
    operator.does("kubectl -n spegel rollout undo daemonset/spegel");
    operator.waits_for_rollout();
    operator.does("kubectl -n spegel rollout restart daemonset/spegel");
    operator.waits_for_rollout();
    operator.checks_all();
    println!("And back, by helm and by kubectl, and restarted.");
}

fn secret(operator: &Operator) {
    let Operator { kubernetes, .. } = operator;
    operator.does(
        "kubectl -n spegel create secret generic spegel-cluster --from-literal=secret=\"$(openssl rand -hex 32)\"\n\
         helm upgrade spegel deploy/charts/spegel --namespace spegel --reset-then-reuse-values \
         --set clusterSecret.name=spegel-cluster",
    );
    operator.waits_for_rollout();
    operator.checks_all();
    println!("The mirrors have a secret, and go on.");

    let beginning = "old=$(kubectl -n spegel get secret spegel-cluster -o jsonpath='{.data.secret}' | base64 -d)\n\
         new=$(openssl rand -hex 32)\n\
         put() {\n\
         kubectl -n spegel create secret generic spegel-cluster --from-literal=secret=\"$1\" \
         --dry-run=client -o yaml | kubectl replace -f -\n\
         }\n";
    let one = all_hold(operator, 1, &BTreeSet::new());
    operator.does(&format!("{beginning}put \"$old\n$new\""));
    let both = all_hold(operator, 2, &one);
    // The shell that had the names is gone: what is there is read in their place.
    let held = "held=$(kubectl -n spegel get secret spegel-cluster -o jsonpath='{.data.secret}' | base64 -d)\n\
         first=$(sed -n 1p <<<\"$held\"); second=$(sed -n 2p <<<\"$held\")\n\
         put() { kubectl -n spegel create secret generic spegel-cluster --from-literal=secret=\"$1\" \
         --dry-run=client -o yaml | kubectl replace -f -; }\n";
    operator.does_besides(&format!("{held}put \"$second\n$first\""));
    all_hold(operator, 2, &both);
    operator
        .does("kubectl -n spegel rollout restart daemonset/spegel\nkubectl -n spegel rollout status daemonset/spegel");
    operator.does_besides(&format!("{held}put \"$first\""));
    all_hold(operator, 1, &one);
    operator.checks_all();
    let another = kubernetes.image(&ImageSpec::new("app", "2", &[mib(1)]));
    let [first, others @ ..] = kubernetes.machines.as_slice() else { panic!("there are nodes") };
    kubernetes.expect("import", first.import(&another));
    operator.runs(&another.by_tag(), others);
    println!("It was replaced by another.");
}

fn credentials(operator: &Operator) {
    operator.does(
        "kubectl -n spegel create secret generic spegel-debug --from-literal=token=\"$(openssl rand -hex 16)\"\n\
         helm upgrade spegel deploy/charts/spegel --namespace spegel --reset-then-reuse-values \
         --set debugWebToken.name=spegel-debug",
    );
    operator.does(
        "kubectl -n spegel create secret generic spegel-auth \
         --from-literal=username=mirror --from-literal=password=\"$(openssl rand -hex 32)\"\n\
         helm upgrade spegel deploy/charts/spegel --namespace spegel --reset-then-reuse-values \
         --set basicAuthSecretName=spegel-auth",
    );
    operator.waits_for_rollout();
    operator.checks_all();
    println!("Clients need a user name and password, and people a token.");
}

/// Waits until all mirrors hold the same secrets, so many, and not these in these places.
fn all_hold(operator: &Operator, count: usize, but_not: &BTreeSet<String>) -> BTreeSet<String> {
    let Operator { kubernetes, .. } = operator;
    let look = || {
        // kubectl costs more than what it looks at.
        thread::sleep(Duration::from_secs(1));
        let mut held: BTreeMap<String, usize> = BTreeMap::new();
        for machine in &kubernetes.machines {
            let page = operator.metrics_of(machine)?;
            let secrets = page.lines().filter(|line| line.starts_with("spegel_cluster_secrets{"));
            secrets.for_each(|secret| *held.entry(secret.to_owned()).or_default() += 1);
        }
        let everywhere = held.values().all(|mirrors| *mirrors == kubernetes.machines.len());
        let secrets: BTreeSet<String> = held.keys().cloned().collect();
        let as_wanted = everywhere && secrets.len() == count && secrets != *but_not;
        if as_wanted { Ok(secrets) } else { Err(format!("{held:?}")) }
    };
    let hold = wait_for("all mirrors hold the same secrets", SECRET_MAX, look);
    kubernetes.expect("the secrets", hold).0
}

fn uninstall(operator: &Operator) {
    operator.does("helm uninstall spegel --namespace spegel --timeout 10m");
    operator.expects_no_trace();
    println!("Uninstalled: containerd has its own configuration back on every node.");
}

fn uninstall_without_helm(operator: &Operator) {
    let is_older = operator.kubernetes.minor_version() < PREFERS_SAME_NODE_FROM;
    let manifest = |name: &str| {
        let text = fs::read_to_string(deploy_dir().join(name)).expect("the project has it");
        // Under this name each node has the image.
        let mut text = text.replace("localhost/spegel:0.1.0", "registry.test/spegel:0.1.0");
        if is_older {
            text = text
                .lines()
                .filter(|line| !line.contains("trafficDistribution:"))
                .fold(String::new(), |text, line| text + line + "\n");
        }
        let path = std::env::temp_dir().join(format!("spegel-{}-{name}", std::process::id()));
        fs::write(&path, text).expect("writable");
        Manifest(path)
    };
    let (mirror, cleanup) = (manifest("spegel.yaml"), manifest("spegel-cleanup.yaml"));
    operator.does_besides(&format!("kubectl apply -f {}", mirror.0.display()));
    operator.waits_for_rollout();
    operator.checks_all();
    operator.does("kubectl -n spegel delete daemonset/spegel");
    operator.does_besides(&format!("kubectl apply -f {}", cleanup.0.display()));
    operator.does("kubectl -n spegel rollout status daemonset/spegel-cleanup --timeout=10m");
    operator.does("kubectl delete --ignore-not-found -f deploy/spegel-cleanup.yaml -f deploy/spegel.yaml");
    operator.expects_no_trace();
    println!("Installed by the plain manifest, and uninstalled.");
}

impl Operator {
    fn expects_no_trace(&self) {
        for machine in &self.kubernetes.machines {
            let dir = machine.registry_config_path();
            let entries = fs::read_dir(&dir).expect("the node has it").flatten();
            let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
            assert_eq!(names, ["registry.test"], "{}: in {}", machine.name, dir.display());
        }
    }
}

/// A file that is removed.
struct Manifest(PathBuf);

impl Drop for Manifest {
    fn drop(&mut self) {
        let _gone = fs::remove_file(Path::new(&self.0));
    }
}

/// What came of many requests.
#[derive(Default)]
struct Asked {
    answered: u32,
    refused: u32,
    failed: BTreeMap<String, u32>,
    longest: Duration,
}

impl Asked {
    fn count(&self) -> u32 {
        self.answered + self.refused + self.failed.values().sum::<u32>()
    }

    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        other.failed.into_iter().for_each(|(error, count)| *self.failed.entry(error).or_default() += count);
        self.longest = self.longest.max(other.longest);
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { answered, refused, failed, longest } = self;
        write!(f, "{answered} were answered, {refused} refused at once, {failed:?} failed otherwise")?;
        write!(f, "; the longest took {:.1} s", longest.as_secs_f64())
    }
}

/// Has each node ask its node port all the time, until the work is done.
fn asked_meanwhile(machines: &[Machine], work: impl FnOnce()) -> Asked {
    let done = AtomicBool::new(false);
    let ask = |machine: &Machine| {
        let address = SocketAddr::new(machine.address, NODE_PORT);
        machine.netns().enter(|| ask_until(&done, address))
    };
    let ask = &ask;
    thread::scope(|scope| {
        let clients: Vec<_> = machines.iter().map(|machine| scope.spawn(move || ask(machine))).collect();
        let is_done = SetWhenDropped(&done);
        work();
        drop(is_done);
        let mut all = Asked::default();
        clients.into_iter().for_each(|client| all.add(client.join().expect("a client does not panic")));
        all
    })
}

/// A new connection each time, however long the one before takes.
fn ask_until(done: &AtomicBool, address: SocketAddr) -> Asked {
    let mut requests = Vec::new();
    while !done.load(Ordering::Relaxed) {
        requests.push(thread::spawn(move || {
            let began = Instant::now();
            let answer = HttpClient::connect(address, CONNECT_MAX)
                .and_then(|mut client| client.get("/v2/", &[("Connection", "close")]));
            (answer.map(drop), began.elapsed())
        }));
        thread::sleep(ASK_INTERVAL);
    }
    let mut asked = Asked::default();
    for request in requests {
        let (answer, took) = request.join().expect("a request does not panic");
        asked.longest = asked.longest.max(took);
        match answer {
            Ok(()) => asked.answered += 1,
            Err(error) if error.contains("refused") => asked.refused += 1,
            Err(error) => *asked.failed.entry(error).or_default() += 1,
        }
    }
    asked
}

/// So that clients end when the work panics, too.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
