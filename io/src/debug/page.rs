//! The page as HTML. Needs no JavaScript, and nothing from elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use spegel_core::{
    BreakerState, Member, PeerId, PeerReport, Report,
    check::{self, Finding, Level},
};

use super::{
    html::Html,
    pulls,
    tools::{self, Measurement, Search},
};
use crate::mirror::PullRecord;

/// Most rows of a table. Fewer and trouble in a large cluster is not all on the page; more and the page is
/// slow on a phone. What is unusual comes first.
const ROWS_MAX: usize = 250;

/// What the page shows.
pub(super) struct View<'a> {
    /// Nothing while the process ends.
    pub(super) report: Option<&'a Report>,
    pub(super) findings: &'a [Finding],
    pub(super) pulls: &'a [PullRecord],
    /// What was asked for with this page.
    pub(super) search: Option<&'a Search>,
    pub(super) measurement: Option<&'a Measurement>,
    pub(super) now: Instant,
    pub(super) now_unix_ms: u64,
}

/// The whole page.
pub(super) fn render(view: &View<'_>) -> String {
    let mut html = Html::default();
    html.raw(include_str!("head.html"));
    html.raw("<main>\n<div id=\"live\">\n");
    status(&mut html, view);
    if let Some(report) = view.report {
        node(&mut html, report);
    }
    findings(&mut html, view.findings);
    if let Some(report) = view.report {
        quarantine(&mut html, report, view.now);
        cluster(&mut html, report);
    }
    pulls::section(&mut html, view.pulls, view.now_unix_ms);
    html.raw("</div>\n");
    tools::search(&mut html, view.search, view.report);
    tools::measure(&mut html, view.measurement);
    html.raw("</main>\n</body>\n</html>\n");
    html.finish()
}

fn status(html: &mut Html, view: &View<'_>) {
    let (class, text) = match view.report {
        None => ("bad", "This node is ending."),
        Some(report) if !report.ready => ("bad", "This node is not ready: containerd has not been listed."),
        Some(report) if !report.inventory.is_connected => {
            ("warn", "This node serves what it knew when it lost containerd.")
        }
        Some(_) => match check::worst(view.findings) {
            Level::Error => ("bad", "This node is ready, but the check says that it does not mirror."),
            Level::Warning => ("warn", "This node is ready. The check has something to say."),
            Level::Ok | Level::Unknown => ("good", "This node is ready."),
        },
    };
    html.raw("<p class=\"status ").raw(class).raw("\">").raw(text).raw("</p>\n");
}

fn node(html: &mut Html, report: &Report) {
    let inventory = &report.inventory;
    let version = inventory.containerd_version.as_deref().unwrap_or("unknown");
    let addrs: Vec<String> = report.me.addrs.iter().map(ToString::to_string).collect();
    html.raw("<section aria-labelledby=\"node\">\n<h2 id=\"node\">This node</h2>\n<dl>\n");
    html.term("Peer", report.me.peer)
        .term("Addresses", or_none(&addrs.join(", ")))
        .term("Zone", report.me.zone.as_ref().map_or("none", |zone| zone.as_str()))
        .term("Ready", yes(report.ready))
        .term("containerd", containerd(version, inventory.is_connected))
        .term("Images", format!("{}; tags announced: {}", inventory.images, inventory.tags_served))
        .term(
            "Content",
            format!("{} blobs, {} of them shared", inventory.contents, inventory.contents_served),
        )
        .term("Unreadable content", inventory.contents_unreadable)
        .term("Images pulled past the mirror", report.bypassed_images)
        .term("Pulls under way", report.pulls)
        .term("Spegel", env!("CARGO_PKG_VERSION"))
        .raw("</dl>\n");
    let rows = inventory.registries.iter().map(|(registry, counts)| {
        [registry.clone(), counts.tags.to_string(), counts.images.to_string(), counts.contents.to_string()]
    });
    html.table(
        "What is announced, by registry",
        ["Registry", "Tags", "Images", "Manifests and blobs"],
        rows.take(ROWS_MAX),
        "Nothing is announced.",
    );
    html.raw("</section>\n");
}

fn containerd(version: &str, is_connected: bool) -> String {
    if is_connected { version.to_owned() } else { format!("{version}, out of reach") }
}

fn quarantine(html: &mut Html, report: &Report, now: Instant) {
    let quarantined = &report.inventory.quarantined;
    html.raw("<section aria-labelledby=\"quarantine\">\n<h2 id=\"quarantine\">Quarantine</h2>\n");
    let rows = quarantined.iter().take(ROWS_MAX).map(|image| {
        let retry = match image.retry_at {
            Some(at) => format!("in {}", duration(at.saturating_duration_since(now))),
            None => "when it changes".to_owned(),
        };
        [image.image.clone(), image.reason.replace('_', " "), retry]
    });
    html.table(
        "Images that cannot be read to their last layer; what is known of them is shared all the same",
        ["Image", "Why", "Read again"],
        rows,
        "No image is quarantined.",
    );
    and_more(html, quarantined.len());
    html.raw("</section>\n");
}

fn cluster(html: &mut Html, report: &Report) {
    html.raw("<section aria-labelledby=\"cluster\">\n<h2 id=\"cluster\">Cluster</h2>\n<p>");
    html.text(report.members.len() + 1).raw(" members are alive, this one among them.</p>\n");
    let peers: BTreeMap<PeerId, &PeerReport> = report.peers.iter().map(|peer| (peer.peer, peer)).collect();
    let mut members: Vec<&Member> = report.members.iter().collect();
    let is_usual = |member: &Member| {
        let closed = peers.get(&member.peer).is_none_or(|peer| peer.state == BreakerState::Closed);
        closed && !report.suspected.contains(&member.peer)
    };
    members.sort_by_key(|member| is_usual(member));
    let rows = members
        .iter()
        .take(ROWS_MAX)
        .map(|member| member_row(member, peers.get(&member.peer).copied(), &report.suspected));
    html.table(
        "Other members",
        ["Peer", "Addresses", "Zone", "State", "First byte", "Speed", "Breaker"],
        rows,
        "This node knows no other.",
    );
    and_more(html, members.len());
    html.raw("</section>\n");
}

fn member_row(member: &Member, known: Option<&PeerReport>, suspected: &BTreeSet<PeerId>) -> [String; 7] {
    let addrs: Vec<String> = member.addrs.iter().map(ToString::to_string).collect();
    let state = if suspected.contains(&member.peer) { "suspected" } else { "alive" };
    let breaker = known.map_or_else(
        || "closed".to_owned(),
        |known| match known.state {
            BreakerState::Closed if known.failures == 0 => "closed".to_owned(),
            BreakerState::Closed => format!("closed, {} failures", known.failures),
            BreakerState::Open { remaining } => format!("open for {}", duration(remaining)),
            BreakerState::HalfOpen => "half open".to_owned(),
        },
    );
    let measured = |text: Option<String>| text.unwrap_or_else(|| "not measured".to_owned());
    [
        member.peer.to_string(),
        or_none(&addrs.join(", ")).to_owned(),
        member.zone.as_ref().map_or("none", |zone| zone.as_str()).to_owned(),
        state.to_owned(),
        measured(known.and_then(|known| known.first_byte).map(duration)),
        measured(known.and_then(|known| known.throughput_bytes).map(|rate| format!("{}/s", bytes(rate)))),
        breaker,
    ]
}

fn findings(html: &mut Html, findings: &[Finding]) {
    html.raw("<section aria-labelledby=\"check\">\n<h2 id=\"check\">Check</h2>\n");
    if findings.is_empty() {
        html.raw("<p>This node has not been checked yet.</p>\n</section>\n");
        return;
    }
    // The worst first, but in the order of the check otherwise.
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    html.raw("<ul class=\"findings\">\n");
    for finding in sorted.iter().take(ROWS_MAX) {
        let (class, word) = match finding.level {
            Level::Ok => ("good", "well"),
            Level::Unknown => ("unknown", "cannot be seen"),
            Level::Warning => ("warn", "costs something"),
            Level::Error => ("bad", "keeps this node from mirroring"),
        };
        html.raw("<li class=\"").raw(class).raw("\"><span aria-hidden=\"true\">").text(finding.level.sign());
        html.raw("</span> <strong>").text(finding.check).raw("</strong> (").raw(word).raw("): ");
        html.text(&finding.summary);
        if let Some(advice) = &finding.advice {
            html.raw(" <em>").text(advice).raw("</em>");
        }
        html.raw("</li>\n");
    }
    html.raw("</ul>\n");
    and_more(html, sorted.len());
    html.raw("</section>\n");
}

fn and_more(html: &mut Html, rows: usize) {
    if rows > ROWS_MAX {
        html.raw("<p>And ").text(rows - ROWS_MAX).raw(" more.</p>\n");
    }
}

const fn yes(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

const fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// For people: two or three digits and a unit, which no line break parts.
pub(super) fn duration(duration: Duration) -> String {
    match duration.as_millis() {
        0 => format!("{}\u{a0}µs", duration.as_micros()),
        millis @ 1..1000 => format!("{millis}\u{a0}ms"),
        1000..60_000 => format!("{:.1}\u{a0}s", duration.as_secs_f64()),
        millis => format!("{}\u{a0}min", millis / 60_000),
    }
}

/// For people, as [`duration`].
pub(super) fn bytes(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*size);
            format!("{}.{}\u{a0}{unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes}\u{a0}B"),
    }
}

#[cfg(test)]
mod tests {
    use spegel_core::{Config, Filters, Node, QuarantinedImage, RegistryCounts, Zone, check::Check};

    use super::*;
    use crate::clock;

    fn report() -> Report {
        let config = Config {
            peer: PeerId::from_public_key([1; 32]),
            started_at_unix_ms: 0,
            router_port: 5001,
            registry_port: 5000,
            zone: Zone::new("a"),
            filters: Filters::default(),
            resolve_timeout: Duration::from_millis(20),
            resolve_retries: 3,
            shutdown_delay: Duration::ZERO,
        };
        Node::new(clock::now(), config, 1).report(clock::now())
    }

    fn page(report: Option<&Report>, findings: &[Finding]) -> String {
        let (pulls, search, measurement) = (&[][..], None, None);
        render(&View { report, findings, pulls, search, measurement, now: clock::now(), now_unix_ms: 0 })
    }

    fn finding(level: Level, summary: &str) -> Finding {
        Finding {
            check: Check::Proxy,
            level,
            subject: None,
            summary: summary.to_owned(),
            advice: Some(summary.to_owned()),
        }
    }

    #[test]
    fn names_from_elsewhere_are_text_wherever_they_stand() {
        const HOSTILE: &str = "\"><img src=x onerror=alert(1)>'&";
        let mut report = report();
        report.inventory.registries.insert(HOSTILE.to_owned(), RegistryCounts::default());
        report.inventory.containerd_version = Some(HOSTILE.to_owned());
        report.inventory.quarantined =
            vec![QuarantinedImage { image: HOSTILE.to_owned(), reason: "no_manifest", retry_at: None }];
        report.me.zone = Zone::new(HOSTILE);
        report.members = vec![report.me.clone()];
        let html = page(Some(&report), &[finding(Level::Error, HOSTILE)]);
        assert!(!html.contains("<img"), "{html}");
        let escaped = "&quot;&gt;&lt;img src=x onerror=alert(1)&gt;&#39;&amp;";
        assert_eq!(html.matches(escaped).count(), 7, "one of the places does not show it: {html}");
    }

    #[test]
    fn what_is_unusual_comes_before_the_bound_cuts_it_off() {
        let mut report = report();
        let member = |number: u8| Member { peer: PeerId::from_public_key([number; 32]), ..report.me.clone() };
        let (shunned, suspected) = (member(250), member(251));
        let crowd = (2..=249).chain([252, 253, 254, 255]).map(member);
        report.members = crowd.chain([shunned.clone(), suspected.clone()]).collect();
        report.peers.push(PeerReport {
            peer: shunned.peer,
            state: BreakerState::Open { remaining: Duration::from_secs(90) },
            failures: 5,
            in_flight: 0,
            first_byte: Some(Duration::from_millis(7)),
            throughput_bytes: Some(3 << 20),
        });
        report.suspected.insert(suspected.peer);
        let html = page(Some(&report), &[]);
        let html = html.replace('\u{a0}', " ");
        for part in [shunned.peer.to_string().as_str(), "open for 1 min", "7 ms", "3.0 MiB/s", ">suspected<"]
        {
            assert!(html.contains(part), "{part} is missing: {html}");
        }
        assert!(html.contains("<p>And 4 more.</p>"), "{html}");
        assert!(html.contains("<p>255 members are alive"), "{html}");
    }

    #[test]
    fn status_is_the_worst_that_is_known() {
        let mut report = report();
        let says = |report: Option<&Report>, level| {
            let html = page(report, &[finding(level, "x")]);
            let start = html.split_once("<p class=\"status ").unwrap().1;
            start.split_once('"').unwrap().0.to_owned()
        };
        assert_eq!(says(None, Level::Ok), "bad");
        assert_eq!(says(Some(&report), Level::Ok), "bad", "not ready");
        report.ready = true;
        assert_eq!(says(Some(&report), Level::Ok), "warn", "without containerd");
        report.inventory.is_connected = true;
        assert_eq!(says(Some(&report), Level::Unknown), "good");
        assert_eq!(says(Some(&report), Level::Warning), "warn");
        assert_eq!(says(Some(&report), Level::Error), "bad");
    }

    #[test]
    fn quantities_have_few_digits_and_a_unit() {
        let plain = |text: String| text.replace('\u{a0}', " ");
        let shown = [0, 1023, 1024, (3 << 20) - 1, 5 << 30].map(bytes).map(plain);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "2.9 MiB", "5.0 GiB"]);
        let shown = [0, 999, 1_000, 999_999, 1_500_000, 60_000_000]
            .map(Duration::from_micros)
            .map(duration)
            .map(plain);
        assert_eq!(shown, ["0 µs", "999 µs", "1 ms", "999 ms", "1.5 s", "1 min"]);
    }
}
