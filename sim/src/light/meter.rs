//! Counts what a large run costs each node, instead of writing down what happens.

use std::time::Duration;

use super::Index;

/// What a node has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Control messages: questions and answers.
    pub messages: u64,
    /// Bytes of these.
    pub bytes: u64,
}

impl Traffic {
    /// What was sent since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self { messages: self.messages - earlier.messages, bytes: self.bytes - earlier.bytes }
    }
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Measured {
    /// For each of the moments asked for, what each node had sent by then.
    pub samples: Vec<Vec<Traffic>>,
    /// When every running node came to see all others, each time.
    pub whole_at: Vec<Duration>,
    /// Bodies that came from peers.
    pub from_peers: u64,
    /// For each node that runs at the end, bytes of memory that its core had.
    pub core_bytes: Vec<usize>,
}

/// Counts during one run.
#[derive(Debug)]
pub(super) struct Meter {
    pub(super) traffic: Vec<Traffic>,
    pub(super) measured: Measured,
    /// Whom each node takes for a member, a bit for each.
    sees: Vec<Vec<u64>>,
    running: Vec<bool>,
    /// How many of them run.
    count: usize,
    /// Pairs of running nodes of which the one sees the other.
    pairs: usize,
    is_whole: bool,
}

impl Meter {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            traffic: vec![Traffic::default(); nodes],
            measured: Measured::default(),
            sees: vec![vec![0; nodes.div_ceil(64)]; nodes],
            running: vec![false; nodes],
            count: 0,
            pairs: 0,
            is_whole: false,
        }
    }

    pub(super) fn sent(&mut self, node: Index, bytes: usize) {
        self.traffic[node].messages += 1;
        self.traffic[node].bytes += bytes as u64;
    }

    pub(super) fn sample(&mut self) {
        self.measured.samples.push(self.traffic.clone());
    }

    pub(super) fn started(&mut self, now: Duration, node: Index) {
        self.running[node] = true;
        self.count += 1;
        self.pairs += (0..self.running.len()).filter(|other| self.is_pair(*other, node)).count();
        self.note(now);
    }

    pub(super) fn ended(&mut self, now: Duration, node: Index) {
        let nodes = 0..self.running.len();
        self.pairs -= nodes.clone().filter(|other| self.is_pair(*other, node)).count();
        self.pairs -= nodes.filter(|other| self.is_pair(node, *other)).count();
        self.running[node] = false;
        self.count -= 1;
        self.sees[node].fill(0);
        self.note(now);
    }

    /// One takes the other for a member, or no longer does.
    pub(super) fn saw(&mut self, now: Duration, one: Index, other: Index, is_member: bool) {
        let before = self.is_pair(one, other);
        let (word, bit) = (&mut self.sees[one][other / 64], 1 << (other % 64));
        *word = if is_member { *word | bit } else { *word & !bit };
        match (before, self.is_pair(one, other)) {
            (false, true) => self.pairs += 1,
            (true, false) => self.pairs -= 1,
            (false, false) | (true, true) => return,
        }
        self.note(now);
    }

    fn is_pair(&self, one: Index, other: Index) -> bool {
        let sees = self.sees[one][other / 64] >> (other % 64) & 1 == 1;
        sees && one != other && self.running[one] && self.running[other]
    }

    fn note(&mut self, now: Duration) {
        let is_whole = self.count > 1 && self.pairs == self.count * (self.count - 1);
        if is_whole && !self.is_whole {
            self.measured.whole_at.push(now);
        }
        self.is_whole = is_whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_is_whole_when_all_that_run_see_each_other() {
        let at = Duration::from_secs;
        let mut meter = Meter::new(3);
        (0..2).for_each(|node| meter.started(at(0), node));
        meter.saw(at(1), 0, 1, true);
        meter.saw(at(2), 1, 0, true);
        meter.saw(at(3), 1, 2, true);
        meter.started(at(4), 2);
        meter.saw(at(5), 0, 2, true);
        meter.saw(at(6), 2, 0, true);
        meter.saw(at(7), 2, 1, true);
        meter.saw(at(8), 2, 1, false);
        meter.ended(at(9), 2);
        assert_eq!(meter.measured.whole_at, [at(2), at(7), at(9)]);
    }
}
