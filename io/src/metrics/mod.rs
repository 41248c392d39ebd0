//! What Prometheus reads: counts of requests, pulls and transfers, sizes of tables, and the
//! process itself. Names and labels are those of the Go implementation, so that dashboards
//! keep working. Decides nothing and is never read by anything that decides; written to by
//! the registry, the mirror and the shell.

mod format;
mod http;
mod process;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ::http::{HeaderMap, HeaderValue, header};
use axum::{Router, extract::State, response::IntoResponse, routing};
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use spegel_core::{
    ClusterSecrets, PeerId, RefuseReason,
    check::{self, Check, Finding},
};

use self::{format::Format, http::observe_debug};
use crate::{clock, shell::Reports};

/// Most registries told apart in labels; the rest share `other`. Fewer and a cluster with many
/// registries cannot tell them apart; without a bound anyone who can send a request could fill
/// the memory of this process and of Prometheus with names.
const REGISTRIES_MAX: usize = 64;

/// Buckets of durations in seconds: the defaults of Prometheus' Go client.
const DURATION_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Where bytes came from that a client was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This node's content store.
    Local,
    /// Another node.
    Peer,
}

impl Source {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Peer => "peer",
        }
    }
}

/// Numbers of things announced, by registry.
pub type Advertised = BTreeMap<String, u64>;

type Labels<const N: usize> = [(&'static str, String); N];

/// All metrics of the process; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

struct Families {
    registry: Registry,
    registry_names: Mutex<BTreeSet<String>>,
    mirror_requests: Family<Labels<2>, Counter>,
    mirror_last_success: Gauge<f64, AtomicU64>,
    resolve_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    advertised_tags: Family<Labels<1>, Gauge>,
    advertised_images: Family<Labels<1>, Gauge>,
    advertised_contents: Family<Labels<1>, Gauge>,
    http_duration: Family<Labels<3>, Histogram, fn() -> Histogram>,
    http_size: Family<Labels<3>, Histogram, fn() -> Histogram>,
    http_inflight: Family<Labels<1>, Gauge>,
    image_findings: Family<Labels<1>, Counter>,
    quarantined_images: Gauge,
    bytes: Family<Labels<1>, Counter>,
    refusals: Family<Labels<1>, Counter>,
    truncations: Family<Labels<1>, Counter>,
    bypassed_images: Counter,
    members: Gauge,
    shunned_peers: Family<Labels<1>, Counter>,
    strangers: Family<Labels<1>, Counter>,
    cluster_secrets: Family<Labels<2>, Gauge>,
    checks: Family<Labels<1>, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics without the process' own, which differ between any two runs.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Registry::default())
    }

    /// All metrics, for a real process.
    #[must_use]
    pub fn of_process() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        Self::with(registry)
    }

    fn with(registry: Registry) -> Self {
        let durations: fn() -> Histogram = || Histogram::new(DURATION_BUCKETS);
        let sizes: fn() -> Histogram = || Histogram::new(exponential_buckets(1024.0, 5.0, 10));
        let mut families = Families {
            registry,
            registry_names: Mutex::default(),
            mirror_requests: Family::default(),
            mirror_last_success: Gauge::default(),
            resolve_duration: Family::new_with_constructor(durations),
            advertised_tags: Family::default(),
            advertised_images: Family::default(),
            advertised_contents: Family::default(),
            http_duration: Family::new_with_constructor(durations),
            http_size: Family::new_with_constructor(sizes),
            http_inflight: Family::default(),
            image_findings: Family::default(),
            quarantined_images: Gauge::default(),
            bytes: Family::default(),
            refusals: Family::default(),
            truncations: Family::default(),
            bypassed_images: Counter::default(),
            members: Gauge::default(),
            shunned_peers: Family::default(),
            strangers: Family::default(),
            cluster_secrets: Family::default(),
            checks: Family::default(),
        };
        families.register();
        Self(Arc::new(families))
    }

    /// A pull was answered by another node, to its end.
    pub(crate) fn pull_hit(&self, registry: &str) {
        let labels = [("registry", self.registry_label(registry)), ("cache", "hit".into())];
        self.0.mirror_requests.get_or_create(&labels).inc();
        self.0.mirror_last_success.set(Duration::from_millis(clock::unix_ms()).as_secs_f64());
    }

    /// A pull was refused.
    pub(crate) fn pull_miss(&self, registry: &str, reason: RefuseReason) {
        let labels = [("registry", self.registry_label(registry)), ("cache", "miss".into())];
        self.0.mirror_requests.get_or_create(&labels).inc();
        self.0.refusals.get_or_create(&[("reason", reason.to_string())]).inc();
    }

    /// A pull was given up in mid-body.
    pub(crate) fn pull_truncated(&self, reason: RefuseReason) {
        self.0.truncations.get_or_create(&[("reason", reason.to_string())]).inc();
    }

    /// The first provider of a pull was found after `elapsed`.
    pub(crate) fn pull_resolved(&self, elapsed: Duration) {
        self.0.resolve_duration.get_or_create(&[("router", "libp2p".into())]).observe(elapsed.as_secs_f64());
    }

    /// Bytes were given to a client.
    pub(crate) fn bytes_served(&self, source: Source, bytes: u64) {
        self.0.bytes.get_or_create(&[("source", source.as_str().into())]).inc_by(bytes);
    }

    /// How many tags are announced.
    fn set_advertised_image_tags(&self, counts: &Advertised) {
        self.set_advertised(&self.0.advertised_tags, counts);
    }

    /// How many images are announced, by digest of their root.
    fn set_advertised_image_digests(&self, counts: &Advertised) {
        self.set_advertised(&self.0.advertised_images, counts);
    }

    /// How many manifests and blobs are announced.
    fn set_advertised_content_digests(&self, counts: &Advertised) {
        self.set_advertised(&self.0.advertised_contents, counts);
    }

    /// Something unusual was found in an image. `reason` is one of a few fixed words.
    fn image_found_unusual(&self, reason: &'static str) {
        self.0.image_findings.get_or_create(&[("reason", reason.into())]).inc();
    }

    /// How many images are quarantined.
    fn set_quarantined_images(&self, count: u64) {
        self.0.quarantined_images.set(gauge_value(count));
    }

    /// How many images came past the mirror since the start.
    fn set_bypassed_images(&self, count: u64) {
        self.0.bypassed_images.inner().store(count, Ordering::Relaxed);
    }

    /// How many members of the cluster are alive, this node among them.
    fn set_members(&self, count: u64) {
        self.0.members.set(gauge_value(count));
    }

    /// Another node is not asked for content for a while. `reason` is one of a few fixed words.
    fn peer_shunned(&self, reason: &'static str) {
        self.0.shunned_peers.get_or_create(&[("reason", reason.into())]).inc();
    }

    /// Somebody who does not show what is asked for was refused. `reason` is one of a few fixed
    /// words.
    pub(crate) fn stranger_refused(&self, reason: &'static str) {
        self.0.strangers.get_or_create(&[("reason", reason.into())]).inc();
    }

    /// The secrets of the cluster are these from here on.
    pub(crate) fn set_cluster_secrets(&self, secrets: &ClusterSecrets) {
        self.0.cluster_secrets.clear();
        for (place, fingerprint) in ["first", "second"].into_iter().zip(secrets.fingerprints()) {
            let labels = [("place", place.into()), ("fingerprint", fingerprint)];
            self.0.cluster_secrets.get_or_create(&labels).set(1);
        }
    }

    /// What the check came to.
    pub(crate) fn checked(&self, findings: &[Finding]) {
        for check in Check::ALL {
            let level = check::level_of(check, findings);
            self.0.checks.get_or_create(&[("name", check.as_str().into())]).set(level.value());
        }
    }

    /// Everything as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match text::encode(&mut text, &self.0.registry) {
            Ok(()) => text,
            Err(fmt::Error) => {
                tracing::warn!("metrics could not be written");
                String::new()
            }
        }
    }

    fn set_advertised(&self, family: &Family<Labels<1>, Gauge>, counts: &Advertised) {
        family.clear();
        for (registry, count) in counts {
            // Several names may share a label.
            family.get_or_create(&[("registry", self.registry_label(registry))]).inc_by(gauge_value(*count));
        }
    }

    fn registry_label(&self, registry: &str) -> String {
        let mut names = self.0.registry_names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(registry) {
            return registry.to_owned();
        }
        if names.len() >= REGISTRIES_MAX {
            return "other".to_owned();
        }
        names.insert(registry.to_owned());
        registry.to_owned()
    }
}

impl Families {
    /// Counters get `_total` appended by the encoder.
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "spegel_mirror_requests",
            "Pulls that were not served locally, by whether another node answered",
            self.mirror_requests.clone(),
        );
        registry.register(
            "spegel_mirror_last_success_timestamp_seconds",
            "When another node last answered a pull",
            self.mirror_last_success.clone(),
        );
        registry.register(
            "spegel_resolve_duration_seconds",
            "Time until the first provider of a pull was found",
            self.resolve_duration.clone(),
        );
        registry.register(
            "spegel_advertised_image_tags",
            "Image tags announced to the cluster",
            self.advertised_tags.clone(),
        );
        registry.register(
            "spegel_advertised_image_digests",
            "Images announced to the cluster",
            self.advertised_images.clone(),
        );
        registry.register(
            "spegel_advertised_content_digests",
            "Manifests and blobs announced to the cluster",
            self.advertised_contents.clone(),
        );
        registry.register(
            "http_request_duration_seconds",
            "Time until the end of the response body",
            self.http_duration.clone(),
        );
        registry.register("http_response_size_bytes", "Bytes of response bodies", self.http_size.clone());
        registry.register("http_requests_inflight", "Requests being answered", self.http_inflight.clone());
        registry.register(
            "spegel_image_findings",
            "Unusual things found in images of containerd",
            self.image_findings.clone(),
        );
        registry.register(
            "spegel_quarantined_images",
            "Images that are retried later because they could not be read",
            self.quarantined_images.clone(),
        );
        registry.register(
            "spegel_served_bytes",
            "Bytes of manifests and blobs given to clients, by where they came from",
            self.bytes.clone(),
        );
        registry.register(
            "spegel_pull_refusals",
            "Pulls sent on to the upstream registry",
            self.refusals.clone(),
        );
        registry.register("spegel_pull_truncations", "Pulls given up in mid-body", self.truncations.clone());
        registry.register(
            "spegel_mirror_bypassed_images",
            "Images that containerd pulled without asking this mirror",
            self.bypassed_images.clone(),
        );
        registry.register(
            "spegel_shunned_peers",
            "Times that another node was not asked for content any more for a while",
            self.shunned_peers.clone(),
        );
        registry.register(
            "spegel_strangers_refused",
            "Requests, answers and connections refused for lack of credentials or the cluster secret",
            self.strangers.clone(),
        );
        registry.register(
            "spegel_cluster_secrets",
            "1 for each cluster secret that this node accepts; the first is the one it uses",
            self.cluster_secrets.clone(),
        );
        registry.register("spegel_members", "Members of the cluster that are alive", self.members.clone());
        registry.register(
            "spegel_check",
            "What keeps this node from mirroring: 2 it does, 1 it costs something, 0 well, -1 cannot be seen",
            self.checks.clone(),
        );
    }
}

fn gauge_value(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What `--metrics-addr` serves: `/metrics`, who this node is where that is to be shown, and `others`.
pub fn router(metrics: Metrics, reports: Reports, shown: Option<PeerId>, others: Router) -> Router {
    let mut router = Router::new().route("/metrics", routing::get(encode));
    if let Some(peer) = shown {
        router = router.route("/debug/web/metadata", routing::get(move || metadata(peer)));
    }
    let observe = axum::middleware::from_fn_with_state(metrics.clone(), observe_debug);
    router.with_state((metrics, reports)).merge(others).layer(observe)
}

async fn encode(
    State((metrics, reports)): State<(Metrics, Reports)>,
    headers: HeaderMap,
) -> impl IntoResponse {
    // Without a report the gauges stay at what they were.
    if let Some(report) = reports.report().await {
        metrics.reported(&report);
    }
    let format = Format::accepted(&headers);
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()))],
        format.write(metrics.encode()),
    )
}

async fn metadata(peer: PeerId) -> impl IntoResponse {
    let kind = HeaderValue::from_static("application/json");
    let text = serde_json::json!({ "libp2p": { "id": peer.to_string() } }).to_string();
    ([(header::CONTENT_TYPE, kind)], text)
}

#[cfg(test)]
mod tests {
    use spegel_core::{Config, Filters, Node, Notice, RegistryCounts, oci::Digest};

    use super::*;

    /// Families are encoded in random order of their labels.
    fn sorted(text: &str) -> Vec<&str> {
        let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        lines.sort_unstable();
        lines
    }

    /// The page with each family's lines in order, and `_` for what differs between any two runs.
    fn stable(text: &str) -> String {
        let unstable = ["process_", "http_request_duration_seconds_", "spegel_mirror_last_success_"];
        let mut families: Vec<Vec<String>> = Vec::new();
        for line in text.lines() {
            if line.starts_with("# HELP") || line == "# EOF" {
                families.push(Vec::new());
            }
            let value = line.rsplit_once(' ').filter(|_| unstable.iter().any(|name| line.starts_with(name)));
            let line = value.map_or_else(|| line.to_owned(), |(name, _)| format!("{name} _"));
            families.last_mut().expect("help comes first").push(line);
        }
        for family in &mut families {
            // Buckets stay in the order of their bounds.
            let name = |line: &String| {
                let (before, after) = line.split_once("le=").unwrap_or((line, ""));
                (
                    !line.starts_with('#'),
                    before.to_owned(),
                    after.split_once(',').map(|(_, labels)| labels.to_owned()),
                )
            };
            family.sort_by_key(name);
        }
        families.concat().join("\n")
    }

    /// The page on which every metric is.
    fn page_of_a_node_after_some_life() -> String {
        let metrics = Metrics::of_process();
        metrics.pull_hit("docker.io");
        metrics.pull_miss("docker.io", RefuseReason::NobodyHasIt);
        metrics.pull_miss("r.test:5000", RefuseReason::LookupUnanswered);
        metrics.pull_resolved(Duration::from_millis(7));
        metrics.pull_truncated(RefuseReason::HoldersExhausted);
        metrics.bytes_served(Source::Peer, 5000);
        metrics.stranger_refused("unsigned");
        let secrets = ClusterSecrets::parse(b"0123456789abcdef0123456789abcdef").unwrap();
        metrics.set_cluster_secrets(&secrets);
        metrics.bytes_served(Source::Local, 70_000);
        let (peer, duration) = (PeerId::from_public_key([2; 32]), Duration::from_secs(1));
        metrics.noticed(&Notice::PeerShunned { peer, reason: "wrong_content", duration });
        metrics.noticed(&Notice::ImageUnusual {
            image: "docker.io/library/odd:1".to_owned(),
            digest: Digest::sha256_of(b"odd"),
            reason: "no_manifest",
            detail: String::new(),
        });
        metrics.http_request("/v2/*", &::http::Method::GET).finish(200, 5000);
        metrics.http_request("/v2/*", &::http::Method::PUT).finish(405, 100);
        let _running = metrics.http_request("/v2/*", &::http::Method::HEAD);
        let config = Config {
            peer: PeerId::from_public_key([1; 32]),
            started_at_unix_ms: 0,
            router_port: 5001,
            registry_port: 5000,
            zone: None,
            filters: Filters::default(),
            resolve_timeout: Duration::from_millis(20),
            resolve_retries: 3,
            shutdown_delay: Duration::ZERO,
        };
        let mut report = Node::new(clock::now(), config, 1).report(clock::now());
        let counts = RegistryCounts { tags: 2, images: 3, contents: 40 };
        report.inventory.registries.insert("docker.io".to_owned(), counts);
        report.inventory.registries.insert("r.test:5000".to_owned(), RegistryCounts { tags: 0, ..counts });
        report.members = vec![report.me.clone(); 2];
        report.bypassed_images = 4;
        metrics.reported(&report);
        metrics.checked(&[]);
        metrics.encode()
    }

    /// The names and labels of the Go implementation are among these.
    #[test]
    fn page_of_a_node_after_some_life_is_this() {
        insta::assert_snapshot!(stable(&page_of_a_node_after_some_life()));
    }

    /// Rows of `docs/metrics.md`: name, type, labels.
    fn documented() -> BTreeSet<[String; 3]> {
        let page = include_str!("../../../docs/metrics.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let row = |row: &str| {
            let mut columns = row.split(" | ").map(|column| column.trim().replace('`', ""));
            std::array::from_fn(|_| columns.next().unwrap_or_default())
        };
        // An empty column is between two bars with one space.
        rows.map(|line| row(&line.replace(" | | ", " |  | "))).collect()
    }

    #[test]
    fn every_metric_is_documented_and_nothing_else() {
        let page = page_of_a_node_after_some_life();
        let told = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let labels = |name: &str| {
            let sample = page
                .lines()
                .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', '_', ' '])));
            let inside = sample.and_then(|line| Some(line.split_once('{')?.1.split_once('}')?.0));
            let keys =
                inside.into_iter().flat_map(|text| text.split(',')).filter_map(|pair| pair.split_once('='));
            let keys: BTreeSet<&str> = keys.map(|(key, _)| key).filter(|key| *key != "le").collect();
            Vec::from_iter(keys).join(", ")
        };
        let exported: BTreeSet<[String; 3]> = told
            .map(|(name, kind)| {
                let suffix = if kind == "counter" { "_total" } else { "" };
                [format!("{name}{suffix}"), kind.to_owned(), labels(name)]
            })
            .collect();
        assert_eq!(documented(), exported, "docs/metrics.md on the left, /metrics on the right");
        // A family without samples is not on the page.
        let code = include_str!("mod.rs").split("#[cfg(test)]").next().expect("there is a first part");
        let own = exported.iter().filter(|[name, ..]| !name.starts_with("process_")).count();
        assert_eq!(own, code.matches("registry.register(").count(), "a metric is missing on the page");
    }

    #[tokio::test]
    async fn http_requests_are_observed_when_their_body_ends() {
        let metrics = Metrics::new();
        let request = metrics.http_request("/v2/*", &::http::Method::GET);
        assert!(metrics.encode().contains("http_requests_inflight{handler=\"/v2/*\"} 1\n"));
        request.finish(200, 5000);
        let text = metrics.encode();
        assert!(text.contains("http_requests_inflight{handler=\"/v2/*\"} 0\n"), "{text}");
        let labels = "handler=\"/v2/*\",method=\"GET\",code=\"200\"";
        assert!(text.contains(&format!("http_response_size_bytes_sum{{{labels}}} 5000.0\n")), "{text}");
        assert!(text.contains(&format!("http_request_duration_seconds_count{{{labels}}} 1\n")), "{text}");
    }

    #[test]
    fn registries_beyond_the_bound_share_a_label() {
        let metrics = Metrics::new();
        for number in 0..REGISTRIES_MAX + 2 {
            metrics.pull_miss(&format!("registry-{number}.test"), RefuseReason::NobodyHasIt);
        }
        metrics.pull_miss("registry-0.test", RefuseReason::NobodyHasIt);
        let text = metrics.encode();
        let of = |registry: &str| {
            let start = format!("spegel_mirror_requests_total{{registry=\"{registry}\"");
            let line = sorted(&text).into_iter().find(|line| line.starts_with(&start)).map(str::to_owned);
            line.and_then(|line| line.rsplit_once(' ').map(|(_, value)| value.to_owned()))
        };
        assert_eq!(of("registry-0.test").as_deref(), Some("2"));
        assert_eq!(of("other").as_deref(), Some("2"));
        assert_eq!(of(&format!("registry-{REGISTRIES_MAX}.test")), None);
    }

    #[test]
    fn advertised_counts_replace_the_former_ones() {
        let metrics = Metrics::new();
        metrics.set_advertised_image_tags(&Advertised::from([("a.test".into(), 2), ("b.test".into(), 1)]));
        metrics.set_advertised_image_tags(&Advertised::from([("a.test".into(), 1)]));
        let text = metrics.encode();
        assert!(text.contains("spegel_advertised_image_tags{registry=\"a.test\"} 1\n"), "{text}");
        assert!(!text.contains("b.test"), "{text}");
    }

    #[test]
    fn process_metrics_are_those_of_this_process() {
        let text = Metrics::of_process().encode();
        for name in [
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_open_fds ",
            "process_start_time_seconds ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} in {text}");
        }
    }
}
