//! What a shell does with outputs: it answers for containerd, the network, and other registries.

use super::*;

impl World {
    pub(super) fn perform(&mut self, host: usize, output: Output) {
        let life = self.hosts[host].life;
        match output {
            Output::ConnectContainerd { .. } => {
                self.later(host, Event::Input(Input::ContainerdConnected { version: "2.1".to_owned() }));
            }
            Output::ProbeContainerd { .. } => self.later(host, Event::Input(Input::ContainerdProbed)),
            Output::WatchContent { .. } => self.later(host, Event::Input(Input::ContentWatched)),
            Output::List { .. } => {
                let contents = self.hosts[host].contents.iter().map(listed).collect();
                let images: Vec<ListedImage> = Vec::new();
                self.later(host, Event::Input(Input::Listed(Listing { images, contents })));
            }
            Output::Inspect { digest, .. } => {
                let content = self.hosts[host].contents.get_key_value(&digest).map(listed);
                let outcome = content.map_or(Inspection::Absent, Inspection::Present);
                self.later(host, Event::Input(Input::Inspected { digest, outcome }));
            }
            Output::ReadManifest { digest, .. } => {
                let outcome = ManifestRead::Absent;
                self.later(host, Event::Input(Input::ManifestRead { digest, outcome }));
            }
            Output::ServeContent { digest, size } => drop(self.hosts[host].serving.insert(digest, size)),
            Output::StopServingContent { digest } => drop(self.hosts[host].serving.remove(&digest)),
            Output::ServeTag { .. } | Output::StopServingTag { .. } | Output::Disconnect { .. } => {}
            Output::ResolveBootstrap { .. } => {
                let at = |host: &Host| BootstrapAddr { addr: addr(host.ip, 5001), peer: None };
                let addrs = self.hosts.iter().map(at).collect();
                self.later(host, Event::Input(Input::BootstrapResolved { addrs }));
            }
            Output::Dial { addr, timeout, .. } => {
                let to = self.host_at(&addr);
                let failed = Input::DialFailed { addr, cause: "unreachable".to_owned() };
                match to.map(|to| (to, self.path(host, to))) {
                    Some((to, Ok(()))) => {
                        self.later(host, Event::Input(Input::Dialed { addr, peer: peer(to) }))
                    }
                    Some((_, Err(false))) => self.at(self.now + timeout, host, Event::Input(failed)),
                    Some((_, Err(true))) | None => self.later(host, Event::Input(failed)),
                }
            }
            Output::Send { to, addrs, exchange, message, timeout } => {
                assert_ne!(to, peer(host), "sends to itself");
                assert!(self.hosts[host].sends.insert(exchange), "exchange used twice");
                self.at(self.now + timeout, host, Event::Reply { exchange, message: None });
                let to = addrs.iter().find_map(|addr| self.host_at(addr)).filter(|at| peer(*at) == to);
                match to.map(|to| (to, self.path(host, to))) {
                    Some((to, Ok(()))) => {
                        self.later(to, Event::Request { from: (host, life), exchange, message });
                    }
                    Some((_, Err(false))) => {}
                    Some((_, Err(true))) | None => self.later(host, Event::Reply { exchange, message: None }),
                }
            }
            Output::Reply { message, .. } => {
                let (to, exchange) = self.answering.take().expect("one reply to each message");
                if self.path(host, to.0).is_ok() {
                    self.later_in(to, Event::Reply { exchange, message: Some(message) });
                }
            }
            Output::Fetch { pull, attempt, peer: holder, addr, skip, .. } => {
                assert_ne!(holder, peer(host), "fetches from itself");
                let source = self.host_at(&addr);
                let it = self.hosts[host].pulls.get_mut(&pull).expect("known pull");
                assert!(it.end.is_none() && it.flowing.is_none() && skip == it.given, "{it:?}");
                let (digest, refused) = (it.digest, Err(FetchError::Connect));
                let life_of = |source: usize| self.hosts[source].life;
                let to = source.map_or((usize::MAX, 0), |source| (source, life_of(source)));
                let it = self.hosts[host].pulls.get_mut(&pull).expect("known pull");
                assert!(it.live.insert(attempt, to).is_none(), "attempt used twice");
                match source.map(|source| (source, self.path(host, source))) {
                    Some((source, Ok(()))) => {
                        self.later(source, Event::Get { from: (host, life), pull, attempt, digest, skip });
                    }
                    Some((_, Err(false))) => {}
                    Some((_, Err(true))) | None => {
                        self.later(host, Event::Answer { pull, attempt, outcome: refused });
                    }
                }
            }
            Output::CancelFetch { pull, attempt } => {
                let it = self.hosts[host].pulls.get_mut(&pull).expect("known pull");
                assert!(it.live.remove(&attempt).is_some(), "cancels what is over: {it:?}");
                it.flowing = it.flowing.filter(|flowing| *flowing != attempt);
            }
            Output::Forward { pull, attempt, .. } => {
                let it = self.hosts[host].pulls.get_mut(&pull).expect("known pull");
                assert!(it.end.is_none() && it.flowing.is_none(), "{it:?}");
                it.sources.push(it.live[&attempt].0);
                (it.begun, it.flowing) = (true, Some(attempt));
                it.waiting_since = self.now;
                self.at(self.now + TICK, host, Event::Tick { pull, attempt });
            }
            Output::Refuse { pull, reason, attempts } => {
                let begun = self.finish(host, pull, End::Refused(reason, attempts));
                assert!(!begun, "refused in mid-body");
            }
            Output::Truncate { pull, reason, .. } => {
                let begun = self.finish(host, pull, End::Truncated(reason));
                assert!(begun, "truncated before it began");
            }
            Output::SetReady { ready } => {
                assert_ne!(std::mem::replace(&mut self.hosts[host].is_ready, ready), ready);
            }
            Output::ShutdownComplete => self.hosts[host].left_at.push(self.now),
            Output::Notice(notice) => self.hosts[host].notices.push(notice),
            Output::TellHolders { .. } => self.hosts[host].told.push(output),
        }
    }

    /// Whether its body had begun.
    fn finish(&mut self, host: usize, pull: PullId, end: End) -> bool {
        let it = self.hosts[host].pulls.get_mut(&pull).expect("known pull");
        assert!(it.end.replace(end).is_none(), "two answers: {it:?}");
        assert!(end == End::Completed || it.live.is_empty(), "attempts left behind: {it:?}");
        it.begun
    }

    /// A registry answered, or could not be reached.
    pub(super) fn hear(
        &mut self,
        host: usize,
        pull: PullId,
        attempt: AttemptId,
        outcome: Result<u64, FetchError>,
    ) {
        let Some(it) = self.hosts[host].pulls.get_mut(&pull) else { return };
        if !it.live.contains_key(&attempt) {
            return;
        }
        let input = match outcome {
            Ok(rest) => {
                let body_bytes = if it.kind == PullKind::Head { 0 } else { rest };
                it.rest = body_bytes;
                Input::FetchAnswered { pull, attempt, body_bytes, backlog_bytes: None }
            }
            Err(cause) => {
                it.live.remove(&attempt);
                it.flowing = it.flowing.filter(|flowing| *flowing != attempt);
                Input::FetchFailed { pull, attempt, cause }
            }
        };
        self.input(host, input);
    }

    /// A report of a transfer is due.
    pub(super) fn tick(&mut self, host: usize, pull: PullId, attempt: AttemptId) {
        let Some(it) = self.hosts[host].pulls.get(&pull).filter(|it| it.flowing == Some(attempt)) else {
            return;
        };
        if it.end.is_some() {
            return;
        }
        let (source, life) = it.live[&attempt];
        let cut = self.cuts.contains(&(host.min(source), host.max(source)));
        let from = &self.hosts[source];
        let alive = from.node.is_some() && from.life == life;
        let unnoticed = cut || from.silent && from.life == life;
        if !(alive || unnoticed) {
            return self.hear(host, pull, attempt, Err(FetchError::Interrupted));
        }
        let flows = alive && !cut && from.thaws_at.is_none();
        let it = self.hosts[host].pulls.get_mut(&pull).expect("just seen");
        let bytes = if flows { it.rest.min(BYTES_PER_TICK) } else { 0 };
        it.rest -= bytes;
        it.given += bytes;
        if bytes > 0 {
            it.waiting_since = self.now;
        }
        if it.rest > 0 || !flows {
            self.at(self.now + TICK, host, Event::Tick { pull, attempt });
            let starved = if flows { Duration::ZERO } else { TICK };
            return self.input(host, Input::FetchProgressed { pull, attempt, bytes, starved });
        }
        let (digest, size, kind) = (it.digest, it.given, it.kind);
        self.finish(host, pull, End::Completed);
        self.input(host, Input::FetchCompleted { pull, attempt, bytes });
        if kind != PullKind::Head {
            self.commit(host, digest, size);
        }
    }
}
