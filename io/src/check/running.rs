//! The check inside the running registry: again and again, beside its work.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use axum::{Json, Router, extract::State, routing};
use serde::{Deserialize, Serialize};
use spegel_core::{
    Member,
    check::{self, Check, Finding, Known, Level, Rota},
};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{CheckSettings, gather};
use crate::{metrics::Metrics, shell::Reports};

/// Where the running registry tells its findings and the nodes it knows.
pub(super) const PATH: &str = "/debug/web/check";

/// The findings of a running registry; clones share them.
#[derive(Clone, Debug)]
pub struct Checks {
    findings: watch::Receiver<Arc<[Finding]>>,
    reports: Reports,
}

impl Checks {
    /// Starts to check, until the core has ended. Nothing waits for it.
    #[must_use]
    pub fn spawn(settings: CheckSettings, reports: Reports, metrics: Metrics) -> Self {
        let (sender, findings) = watch::channel(Arc::default());
        tokio::spawn(run(settings, reports.clone(), metrics, sender));
        Self { findings, reports }
    }

    /// No check runs.
    #[cfg(test)]
    pub(crate) fn none(reports: Reports) -> Self {
        Self { findings: watch::channel(Arc::default()).1, reports }
    }

    /// What was found last; nothing before the first check.
    #[must_use]
    pub fn findings(&self) -> Arc<[Finding]> {
        self.findings.borrow().clone()
    }
}

async fn run(
    settings: CheckSettings,
    reports: Reports,
    metrics: Metrics,
    latest: watch::Sender<Arc<[Finding]>>,
) {
    let mut rota = Rota::default();
    let mut delay = check::FIRST_DELAY;
    loop {
        sleep(delay).await;
        let Some(report) = reports.report().await else { return };
        let asked = rota.next(&report.members);
        let facts = gather(&settings, Known::Seen(asked.clone())).await;
        let answers = facts.peers.seen().into_iter().flatten();
        let failed =
            answers.zip(&asked).filter(|(probe, _)| probe.router.is_err() || probe.registry.is_err());
        rota.answered(failed.map(|(_, member)| member.peer));
        let findings = check::findings(&facts);
        tell_changes(&latest.borrow(), &findings);
        metrics.checked(&findings);
        delay = check::interval_after(check::worst(&findings));
        latest.send_replace(findings.into());
    }
}

/// Logs what is wrong once, and once that it is so no more.
fn tell_changes(before: &[Finding], after: &[Finding]) {
    let (before, after) = (troubles(before), troubles(after));
    for (key, finding) in &after {
        if before.get(key).is_none_or(|known| known.level != finding.level) {
            let (check, subject) = (finding.check, finding.subject.as_deref());
            let advice = finding.advice.as_deref();
            warn!(%check, subject, advice, "{}", finding.summary);
        }
    }
    for (check, subject) in before.keys().filter(|key| !after.contains_key(*key)) {
        info!(%check, subject, "what was found by the check is no longer so");
    }
}

type Key<'a> = (Check, Option<&'a str>);

fn troubles(findings: &[Finding]) -> BTreeMap<Key<'_>, &Finding> {
    let wrong = findings.iter().filter(|finding| finding.level >= Level::Warning);
    wrong.map(|finding| ((finding.check, finding.subject.as_deref()), finding)).collect()
}

/// What [`router`] answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Told {
    /// The worst of the findings.
    #[serde(skip_deserializing)]
    worst: Option<Level>,
    #[serde(skip_deserializing)]
    findings: Vec<Finding>,
    peers: Vec<Peer>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Peer {
    peer: String,
    addresses: Vec<IpAddr>,
    router_port: u16,
    registry_port: u16,
}

impl Told {
    /// The peers, without those that make no sense.
    pub(super) fn members(self) -> Vec<Member> {
        let member = |peer: Peer| {
            Some(Member {
                peer: peer.peer.parse().ok()?,
                generation: 0,
                addrs: peer.addresses.into_iter().take(Member::ADDRS_MAX).collect(),
                router_port: peer.router_port,
                registry_port: peer.registry_port,
                zone: None,
            })
        };
        self.peers.into_iter().filter_map(member).collect()
    }
}

/// `GET /debug/web/check`: the findings as JSON, and the nodes that this one knows.
pub fn router(checks: Checks) -> Router {
    Router::new().route(PATH, routing::get(tell)).with_state(checks)
}

async fn tell(State(checks): State<Checks>) -> Json<Told> {
    let findings = checks.findings().to_vec();
    let members = checks.reports.report().await.map(|report| report.members).unwrap_or_default();
    let peer = |member: Member| Peer {
        peer: member.peer.to_string(),
        addresses: member.addrs.to_vec(),
        router_port: member.router_port,
        registry_port: member.registry_port,
    };
    let worst = (!findings.is_empty()).then(|| check::worst(&findings));
    Json(Told { worst, findings, peers: members.into_iter().map(peer).collect() })
}
