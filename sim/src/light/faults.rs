//! What goes wrong, and right again.

use std::time::Duration;

use spegel_core::Input;

use super::{Event, Fault, Index, Lossy, World, pull::BYTES_PER_SECOND};

impl World<'_> {
    /// Each pair of two groups, the smaller index first.
    fn pairs(&self, left: &[String], right: &[String]) -> Vec<(Index, Index)> {
        let right: Vec<_> = right.iter().map(|name| self.index_of(name)).collect();
        let pair = |left: Index| right.iter().map(move |right| (left.min(*right), left.max(*right)));
        left.iter().map(|name| self.index_of(name)).flat_map(pair).collect()
    }

    pub(super) fn commit_fault(&mut self, fault: &Fault) {
        self.trace.note(self.now, "", &format!("{fault:?}"));
        match fault {
            Fault::Crash { node } => self.end_process(self.index_of(node)),
            Fault::Stop { node } => {
                let node = self.index_of(node);
                self.machines[node].stopping = true;
                self.watch.disturbed(self.now);
                self.handle(node, Input::ShutdownRequested);
            }
            Fault::Start { node } => self.start(self.index_of(node)),
            Fault::Vanish { node } => {
                let node = self.index_of(node);
                self.machines[node].powered = false;
                self.lose_clients(node);
                self.end_process(node);
            }
            Fault::Freeze { node, pause } => self.freeze(self.index_of(node), *pause),
            Fault::Suspend { node, pause } => {
                let node = self.index_of(node);
                let machine = &mut self.machines[node];
                machine.asleep_until = self.now + *pause;
                machine.slept += *pause;
                self.freeze(node, *pause);
            }
            Fault::Upgrade { node } => {
                let node = self.index_of(node);
                self.machines[node].is_upgraded = true;
            }
            Fault::StepClock { node, ahead_seconds } => {
                let node = self.index_of(node);
                self.machines[node].ahead_seconds = *ahead_seconds;
            }
            Fault::Partition { left, right } => {
                self.watch.uneasy();
                for pair in self.pairs(left, right) {
                    *self.cuts.entry(pair).or_default() += 1;
                }
            }
            Fault::Reconnect { left, right } => {
                for pair in self.pairs(left, right) {
                    if let Some(partitions) = self.cuts.get_mut(&pair) {
                        *partitions = partitions.saturating_sub(1);
                    }
                }
                self.cuts.retain(|_, partitions| *partitions > 0);
                self.become_calm();
            }
            Fault::Repair => {
                self.cuts.clear();
                self.become_calm();
            }
            Fault::Lossy(lossy) => {
                self.lossy = *lossy;
                self.watch.uneasy();
                self.become_calm();
            }
            Fault::Corrupt { node } => {
                let node = self.index_of(node);
                self.machines[node].corrupt = true;
            }
            Fault::Truthful { node } => {
                let node = self.index_of(node);
                self.machines[node].corrupt = false;
            }
            Fault::Slow { node, bytes_per_second } => {
                let node = self.index_of(node);
                self.machines[node].bytes_per_second = *bytes_per_second;
            }
            Fault::FullSpeed { node } => {
                let node = self.index_of(node);
                self.machines[node].bytes_per_second = BYTES_PER_SECOND;
            }
            Fault::StopContainerd { node } => {
                let node = self.index_of(node);
                let news = self.machines[node].containerd.stop();
                self.tell(node, news);
            }
            Fault::StartContainerd { node } => {
                self.watch.containerd_started(self.now, node);
                self.machines[self.index_of(node)].containerd.start();
            }
            Fault::HangContainerd { node, pause } => {
                let node = self.index_of(node);
                let until = self.now + *pause;
                self.machines[node].containerd_hangs_until = until;
            }
            Fault::DeleteImage { node, image } => {
                let node = self.index_of(node);
                let news = self.machines[node].containerd.delete_image(image);
                self.watch.disturbed(self.now);
                self.tell(node, news);
            }
            Fault::Sideload { node, image } => {
                let node = self.index_of(node);
                let news = self.machines[node].containerd.sideload(self.plan.image_named(image));
                self.tell(node, news);
            }
            Fault::BypassMirror { node } => self.machines[self.index_of(node)].containerd.bypass_mirror(true),
            Fault::UseMirror { node } => self.machines[self.index_of(node)].containerd.bypass_mirror(false),
            Fault::CutUpstream => self.upstream.set_cut(true),
            Fault::RestoreUpstream => self.upstream.set_cut(false),
            Fault::ThrottleUpstream { requests_per_second } => self.upstream.throttle(*requests_per_second),
        }
    }

    fn become_calm(&mut self) {
        if self.cuts.is_empty() && self.lossy == Lossy::NONE {
            self.watch.calm(self.now);
        }
    }

    fn freeze(&mut self, node: Index, pause: Duration) {
        let until = self.now + pause;
        let machine = &mut self.machines[node];
        machine.frozen_until = machine.frozen_until.max(until);
        self.watch.frozen(&machine.name, self.now, until);
        // As in the shell, what has come in meanwhile is looked at before what is due.
        self.at(until + Duration::from_micros(1), Event::Thaw { node });
    }
}
