//! What is going to happen, and when: the queue of events, and of the moments at which nodes want
//! to be called.

use std::{cmp::Reverse, collections::BinaryHeap, net::SocketAddr, time::Duration};

use spegel_core::{AttemptId, ExchangeId, Input, Output, PeerId, PullId};

use super::Index;

/// Something that is going to happen.
#[derive(Debug)]
pub(super) enum Event {
    Start {
        node: Index,
    },
    Fault {
        index: usize,
    },
    Pull {
        index: usize,
    },
    Thaw {
        node: Index,
    },
    Report,
    Sample,
    /// To the process of that life; later ones never asked.
    Input {
        node: Index,
        life: u64,
        input: Input,
    },
    Containerd {
        node: Index,
        life: u64,
        order: Output,
    },
    Resolve {
        node: Index,
        life: u64,
    },
    Dial {
        node: Index,
        life: u64,
        addr: SocketAddr,
        expected: Option<PeerId>,
        target: Index,
    },
    Request {
        from: Index,
        life: u64,
        to: Index,
        exchange: ExchangeId,
        message: Vec<u8>,
    },
    Reply {
        from: Index,
        to: Index,
        life: u64,
        exchange: ExchangeId,
        message: Vec<u8>,
    },
    Ask {
        node: Index,
        life: u64,
        pull: PullId,
        attempt: AttemptId,
        holder: Index,
        skip: u64,
        check_bytes_max: u64,
    },
    Body {
        node: Index,
        life: u64,
        pull: PullId,
        attempt: AttemptId,
        interval: Duration,
    },
    /// A containerd goes on with its pull.
    Client {
        client: usize,
        turn: u64,
    },
    Upstream {
        client: usize,
        turn: u64,
    },
    ProcessEnd {
        node: Index,
        life: u64,
    },
}

impl Event {
    /// Whether it is for one process, which can handle it without regard to anything else.
    pub(super) const fn is_for_one(&self) -> bool {
        matches!(self, Self::Input { .. } | Self::Request { .. } | Self::Reply { .. })
    }
}

/// Events in order of time, those of one moment in the order in which they were planned.
///
/// The heap holds small entries of equal size; the events themselves stay where they are.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<(Duration, u64, u32)>>,
    planned: u64,
    slots: Vec<Option<Event>>,
    free: Vec<u32>,
}

impl Queue {
    pub(super) fn push(&mut self, at: Duration, event: Event) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("fewer events wait than memory holds")
        });
        self.slots[slot as usize] = Some(event);
        self.planned += 1;
        self.heap.push(Reverse((at, self.planned, slot)));
    }

    /// When the first happens.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// The first.
    pub(super) fn peek(&self) -> Option<&Event> {
        let Reverse((_, _, slot)) = self.heap.peek()?;
        self.slots[*slot as usize].as_ref()
    }

    /// As the how manieth the first was planned.
    pub(super) fn next_planned(&self) -> u64 {
        self.heap.peek().map_or(self.planned, |Reverse((_, planned, _))| *planned)
    }

    /// Takes the first if it happens at that moment.
    pub(super) fn pop_at(&mut self, at: Duration) -> Option<Event> {
        if self.next_at() == Some(at) { self.pop() } else { None }
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let Reverse((_, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        self.slots[slot as usize].take()
    }
}

/// When each node wants to be called, in order of time and node.
///
/// A node that changes its mind leaves its former wish in the heap; it is passed over when it
/// comes up.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    heap: BinaryHeap<Reverse<(Duration, Index)>>,
    wishes: Vec<Option<Duration>>,
}

impl Wakes {
    /// For so many nodes, none of which wants anything.
    pub(super) fn new(nodes: usize) -> Self {
        Self { heap: BinaryHeap::new(), wishes: vec![None; nodes] }
    }

    /// The node wants to be called then, or not at all.
    pub(super) fn wish(&mut self, node: Index, at: Option<Duration>) {
        if self.wishes[node] != at {
            self.wishes[node] = at;
            self.heap.extend(at.map(|at| Reverse((at, node))));
        }
    }

    /// When the first wants to be called.
    pub(super) fn next_at(&mut self) -> Option<Duration> {
        while let Some(Reverse((at, node))) = self.heap.peek() {
            if self.wishes[*node] == Some(*at) {
                return Some(*at);
            }
            self.heap.pop();
        }
        None
    }

    /// Who wants to be called first.
    pub(super) fn first(&mut self) -> Option<Index> {
        self.next_at()?;
        self.heap.peek().map(|Reverse((_, node))| *node)
    }

    /// Takes the wish of a node.
    pub(super) fn take(&mut self, node: Index) -> Option<Duration> {
        self.wishes[node].take()
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<Index> {
        let node = self.first()?;
        self.heap.pop();
        self.wishes[node] = None;
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn events_of_one_moment_keep_their_order() {
        let mut queue = Queue::default();
        for (at, node) in [(2, 0), (1, 1), (2, 2), (1, 3), (2, 4)] {
            queue.push(seconds(at), Event::Start { node });
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop())
            .map(|event| {
                let Event::Start { node } = event else { panic!("nobody planned {event:?}") };
                node
            })
            .collect();
        assert_eq!(order, [1, 3, 0, 2, 4]);
    }

    #[test]
    fn node_is_called_when_it_wished_last_and_once() {
        let mut wakes = Wakes::new(3);
        wakes.wish(0, Some(seconds(1)));
        wakes.wish(1, Some(seconds(2)));
        wakes.wish(2, Some(seconds(2)));
        wakes.wish(0, Some(seconds(3)));
        wakes.wish(0, Some(seconds(1)));
        wakes.wish(1, None);
        let order: Vec<_> = std::iter::from_fn(|| wakes.next_at().zip(wakes.pop())).collect();
        assert_eq!(order, [(seconds(1), 0), (seconds(2), 2)]);
    }
}
