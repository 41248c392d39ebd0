//! A real Prometheus scrapes a cluster in which pulls go well, badly and nowhere: every query of the dashboard then has
//! an answer that is a number. And the query that tells how far a rotation of the cluster secret has come tells it.
//! Who asks for a page of metrics gets it in a format that he reads.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use spegel_tests::{
    BodyEnd, Cluster, ClusterOptions, Generation, Image, ImageSpec, METRICS_PORT, Node, OTHER_SECRET,
    Process, Puller, SECRET, chart_dir, mib, prometheus, promtool, wait_for,
};

const PORT: u16 = 9099;
const PATIENCE: Duration = Duration::from_secs(20);
/// What Grafana puts in place of its variables: ranges of several scrapes, and everything there is.
const VARIABLES: [(&str, &str); 5] =
    [("$__rate_interval", "20s"), ("$__range", "1m"), ("$pod", ".*"), ("$registry", ".*"), ("$job", ".*")];
/// Slow enough that a transfer is still under way when its source ends.
const HOLDER_MBIT: u32 = 100;

/// Prometheus, and the node that it runs on.
struct Prometheus<'a> {
    node: &'a Node,
    _process: Process,
}

impl<'a> Prometheus<'a> {
    fn start(cluster: &Cluster, node: &'a Node) -> Self {
        let dir = cluster.dir().join("prometheus");
        fs::create_dir_all(&dir).expect("the cluster's directory is ours");
        let target = |node: &Node| json!({"targets": [SocketAddr::new(node.address(), METRICS_PORT)], "labels": {"pod": node.name}});
        let targets: Vec<Value> = cluster.nodes.iter().map(target).collect();
        let config = json!({
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "spegel", "static_configs": targets}],
        });
        // JSON is YAML.
        fs::write(dir.join("prometheus.yml"), config.to_string()).expect("the directory is ours");
        let mut command = node.netns().command(prometheus());
        command.arg(format!("--config.file={}", dir.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{PORT}"));
        let process = Process::spawn("prometheus", command, &dir.join("prometheus.log"));
        Self { node, _process: process }
    }

    /// The values of an expression by their labels.
    fn query(&self, expression: &str) -> Result<BTreeMap<String, f64>, String> {
        let path = format!("/api/v1/query?query={}", percent_encode(expression));
        let answer = self.node.connect(SocketAddr::new([127, 0, 0, 1].into(), PORT))?.get(&path, &[])?;
        let said: Value =
            serde_json::from_slice(&answer.body).map_err(|error| format!("{error}: {}", answer.text()))?;
        if said["status"] != "success" {
            return Err(format!("{expression}: {said}"));
        }
        let series = said["data"]["result"].as_array().ok_or("no vector")?;
        let value = |series: &Value| {
            let value = series["value"][1].as_str().and_then(|value| value.parse().ok());
            (series["metric"].to_string(), value.unwrap_or(f64::NAN))
        };
        Ok(series.iter().map(value).collect())
    }
}

fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Title and expression of every query, those of the variables as well.
fn queries() -> Vec<(String, String)> {
    let text =
        fs::read_to_string(chart_dir().join("monitoring/dashboard.json")).expect("the dashboard is there");
    let board: Value = serde_json::from_str(&text).expect("the dashboard is JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut queries = Vec::new();
    for panel in list(&board["panels"]) {
        for target in list(&panel["targets"]) {
            queries
                .push((panel["title"].to_string(), target["expr"].as_str().unwrap_or_default().to_owned()));
        }
    }
    for variable in list(&board["templating"]["list"]).iter().filter(|variable| variable["type"] == "query") {
        let query = variable["query"].as_str().unwrap_or_default();
        let arguments = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (metric, label) =
            arguments.and_then(|arguments| arguments.split_once(", ")).expect("values of a label");
        queries.push((
            format!("${}", variable["name"]),
            format!("group by ({label}) ({metric}{{{label}!=\"\"}})"),
        ));
    }
    queries
}

fn filled_in(expression: &str) -> String {
    VARIABLES.iter().fold(expression.to_owned(), |text, (variable, value)| text.replace(variable, value))
}

/// Requests that are answered, by this node and by others, and that nobody can answer.
fn ask_around(cluster: &Cluster, node: &Node, image: &Image) {
    cluster.expect("it is found", node.finds(&image.tag_path()));
    let nobody = cluster.expect("an answer", node.get("/v2/nobody/manifests/has-this?ns=registry.test", &[]));
    assert_eq!(nobody.status, 404);
}

/// A transfer whose only source goes away.
fn cut_short(cluster: &Cluster, holder: &Node, node: &Node, image: &Image) {
    holder.limit(Some(HOLDER_MBIT));
    let answer = thread::scope(|scope| {
        let asked = scope.spawn(|| node.get(&image.blob_path(&image.layers[0]), &[]));
        thread::sleep(Duration::from_secs(1));
        holder.kill_spegel();
        asked.join().expect("the thread ends")
    });
    assert_eq!(cluster.expect("the beginning of it", answer).end, BodyEnd::Short, "the body ends early");
}

#[test]
fn every_query_of_the_dashboard_has_an_answer() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(3, Generation::V2_1));
    let [holder, near, far] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let prometheus = Prometheus::start(&cluster, near);
    let image = cluster.held_image(&ImageSpec::new("board", "1", &[mib(1), 1000]).single(), &[near], far);
    let large = cluster.held_image(&ImageSpec::new("board", "large", &[mib(64)]).single(), &[holder], far);
    cluster.expect("pull", holder.pull(Puller::Cri, &image.by_tag()));

    let queries = queries();
    assert!(queries.len() > 15, "{} queries", queries.len());
    let done = AtomicBool::new(false);
    let answered = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                ask_around(&cluster, far, &image);
                thread::sleep(Duration::from_millis(100));
            }
        });
        cut_short(&cluster, holder, near, &large);
        let answered = queries.iter().map(|(title, expression)| {
            let look = || {
                let values = prometheus.query(&filled_in(expression))?;
                let numbers = !values.is_empty() && values.values().all(|value| value.is_finite());
                if numbers { Ok(values) } else { Err(format!("{expression}: {values:?}")) }
            };
            (title, wait_for("an answer", PATIENCE, look).map(|(values, _)| values))
        });
        let answered: Vec<_> = answered.collect();
        done.store(true, Ordering::Relaxed);
        answered
    });
    let silent: Vec<_> =
        answered.iter().filter_map(|(title, values)| Some((title, values.as_ref().err()?))).collect();
    for (title, values) in &answered {
        println!("{title}: {values:?}");
    }
    assert!(silent.is_empty(), "{silent:#?}\n{}", cluster.logs());
}

/// What `promtool check metrics` says of a page, which is nothing where all is well.
fn complaints(page: &[u8]) -> Result<(), String> {
    let mut command = Command::new(promtool());
    let command = command.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut promtool =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("promtool starts");
    promtool.stdin.take().expect("a pipe").write_all(page).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() && said.is_empty() {
        Ok(())
    } else {
        Err(format!("{}: {said}", output.status))
    }
}

#[test]
fn page_of_metrics_is_in_the_format_that_is_asked_for() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(2, Generation::V2_1));
    let [holder, node] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let image = cluster.held_image(&ImageSpec::new("page", "1", &[1000]).single(), &[holder], node);
    cluster.expect("pull", node.pull(Puller::Cri, &image.by_tag()));
    ask_around(&cluster, node, &image);
    let address = SocketAddr::new(node.address(), METRICS_PORT);
    let page = |headers: &[(&str, &str)]| {
        let answer = cluster.expect("connect", node.connect(address)).get("/metrics", headers);
        let answer = cluster.expect("GET", answer);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains("spegel_mirror_requests_total{"), "{}", answer.text());
        answer
    };

    let text = page(&[]);
    assert!(text.header("content-type").starts_with("text/plain; version=0.0.4"), "{:?}", text.headers);
    complaints(&text.body).unwrap_or_else(|said| panic!("{said}\n{}", text.text()));
    complaints(b"# TYPE a counter\na 1\n").expect_err("promtool notices what is wrong");

    let openmetrics = page(&[("Accept", "application/openmetrics-text")]);
    let kind = openmetrics.header("content-type");
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(openmetrics.text().ends_with("\n# EOF\n"), "{}", openmetrics.text());
}

#[test]
fn rotation_is_over_when_the_documented_query_counts_all_mirrors_for_one_secret() {
    let docs = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md"));
    let docs = docs.expect("the documentation is there");
    let query = docs.lines().find(|line| line.ends_with("(spegel_cluster_secrets)"));
    let query = query.expect("docs/operating.md tells a query").trim();

    let cluster = Cluster::new(ClusterOptions::new(2, Generation::V2_1));
    cluster.nodes.iter().for_each(|node| node.put_cluster_secret(&[SECRET, OTHER_SECRET]));
    cluster.start_spegel();
    let prometheus = Prometheus::start(&cluster, &cluster.nodes[0]);
    let says = |expected: &[f64]| {
        let look = || {
            let mut counts: Vec<f64> = prometheus.query(query)?.into_values().collect();
            counts.sort_by(f64::total_cmp);
            if counts == expected { Ok(()) } else { Err(format!("{query}: {counts:?}, not {expected:?}")) }
        };
        let waited = wait_for("the query", PATIENCE, look);
        println!("{expected:?} after {:?}", cluster.expect("an answer", waited).1);
    };
    says(&[2.0, 2.0]);
    cluster.nodes[1].put_cluster_secret(&[OTHER_SECRET]);
    // One in each place of the second mirror's file, the other gone from it.
    says(&[1.0, 1.0, 1.0]);
    cluster.nodes[0].put_cluster_secret(&[OTHER_SECRET]);
    says(&[2.0]);
}
