//! Whom to knock at next, where there are more peers than one check asks.

use std::collections::BTreeSet;

use super::PEERS_MAX;
use crate::{Member, PeerId};

/// Goes round all peers in turn. Those that did not answer are asked again each time, so that a finding
/// about them stays until it is mended; they take at most half of the places.
#[derive(Debug, Default)]
pub struct Rota {
    after: Option<PeerId>,
    failed: BTreeSet<PeerId>,
}

impl Rota {
    /// The next peers to ask: at most [`PEERS_MAX`] of `members`, which are in order of peer ID.
    pub fn next(&mut self, members: &[Member]) -> Vec<Member> {
        let again = members.iter().filter(|member| self.failed.contains(&member.peer));
        let mut chosen: Vec<Member> = again.take(PEERS_MAX / 2).cloned().collect();
        let taken: BTreeSet<PeerId> = chosen.iter().map(|member| member.peer).collect();
        let start = members.partition_point(|member| Some(member.peer) <= self.after);
        let (before, from) = members.split_at(start);
        for member in from.iter().chain(before).filter(|member| !taken.contains(&member.peer)) {
            if chosen.len() == PEERS_MAX {
                break;
            }
            self.after = Some(member.peer);
            chosen.push(member.clone());
        }
        chosen
    }

    /// Takes note of who of those asked did not answer.
    pub fn answered(&mut self, failed: impl IntoIterator<Item = PeerId>) {
        self.failed = failed.into_iter().take(PEERS_MAX).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u8) -> Vec<Member> {
        let member = |number| Member {
            peer: PeerId::from_public_key([number; 32]),
            generation: 0,
            addrs: std::sync::Arc::new([]),
            router_port: 5001,
            registry_port: 5000,
            zone: None,
        };
        (0..count).map(member).collect()
    }

    #[test]
    fn small_cluster_is_asked_as_a_whole() {
        let mut rota = Rota::default();
        for _ in 0..3 {
            let mut asked = rota.next(&members(5));
            asked.sort_by_key(|member| member.peer);
            assert_eq!(asked, members(5));
        }
        assert_eq!(rota.next(&[]), []);
    }

    #[test]
    fn large_cluster_is_gone_round() {
        let mut rota = Rota::default();
        let all = members(200);
        let asked: BTreeSet<PeerId> =
            (0..4).flat_map(|_| rota.next(&all)).map(|member| member.peer).collect();
        assert_eq!(asked.len(), 200);
        assert_eq!(rota.next(&all).len(), PEERS_MAX);
    }

    #[test]
    fn peers_that_did_not_answer_are_asked_again_and_leave_places_for_others() {
        let mut rota = Rota::default();
        let all = members(200);
        let first = rota.next(&all);
        rota.answered(first.iter().map(|member| member.peer));
        let second: BTreeSet<PeerId> = rota.next(&all).iter().map(|member| member.peer).collect();
        let again = first.iter().filter(|member| second.contains(&member.peer)).count();
        assert_eq!((again, second.len()), (PEERS_MAX / 2, PEERS_MAX));
    }
}
