//! One pull from its request to its last byte: carries out the core's orders and reports what
//! comes of them. See the parent module.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    task::Poll,
    time::Duration,
};

use http::Method;
use spegel_core::{AttemptId, FetchError, Input, Key, PeerId, PullId, RefuseReason};
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, Instant},
};
use tracing::debug;

use super::{
    Order, Outcome, Pulls,
    answer::{self, Answer, Promise},
    history::{PullEnd, PullHistory, PullRecord},
    relay::{News, Relay},
};
use crate::{
    clock,
    distribution::ContentRequest,
    metrics::Metrics,
    net::{Dialer, Stream},
    peer::{self, PeerBody, PeerRequest},
    trust::Trust,
};

/// Most attempts of one pull that are open at once. The core hedges with two or three; a bound
/// here keeps a mistake there from dialling the whole cluster.
const ATTEMPTS_MAX: usize = 16;

/// Shortest interval of progress reports: shorter ones would keep the core busy with nothing.
const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// A peer that has answered, waiting to be forwarded.
struct Answered<S: Stream> {
    answer: Answer,
    body: PeerBody<S>,
    /// Bytes that the client had when the core ordered the attempt.
    skip: u64,
}

type Asking<S> = Pin<Box<dyn Future<Output = Result<Box<Answered<S>>, FetchError>> + Send>>;

/// The attempt whose body goes to the client. Offsets count from the start of what the client
/// asked for.
struct Forwarding {
    attempt: AttemptId,
    /// Up to where the core has been told of.
    reported: u64,
    interval: Duration,
    report_at: Instant,
}

enum Step<S: Stream> {
    Ordered(Option<Order>),
    ClientGone,
    Told(News),
    Asked(AttemptId, Result<Box<Answered<S>>, FetchError>),
    ReportDue,
}

/// Whether the pull goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Over,
}

pub(super) struct Task<D: Dialer> {
    pull: PullId,
    request: ContentRequest,
    dialer: D,
    trust: Trust,
    metrics: Metrics,
    history: PullHistory,
    record: PullRecord,
    inputs: mpsc::Sender<Input>,
    orders: mpsc::Receiver<Order>,
    /// Where the head goes; `None` once it has.
    client: Option<oneshot::Sender<Outcome<D::Stream>>>,
    /// Where the body goes; `None` until the head has.
    relay: Option<Relay<D::Stream>>,
    promise: Option<Promise>,
    asking: BTreeMap<AttemptId, Asking<D::Stream>>,
    answered: BTreeMap<AttemptId, Box<Answered<D::Stream>>>,
    forwarding: Option<Forwarding>,
    requested_at: Instant,
    resolved: bool,
    /// Bytes given to the client, as far as the record has them.
    recorded: u64,
}

impl<D: Dialer> Task<D> {
    pub(super) fn new(
        pulls: &Pulls<D>,
        pull: PullId,
        request: ContentRequest,
        orders: mpsc::Receiver<Order>,
        client: oneshot::Sender<Outcome<D::Stream>>,
    ) -> Self {
        let record = PullRecord::begun(request.name(), request.kind(), clock::unix_ms());
        Self {
            pull,
            request,
            record,
            history: pulls.history.clone(),
            dialer: pulls.dialer.clone(),
            trust: pulls.trust.clone(),
            metrics: pulls.metrics.clone(),
            inputs: pulls.inputs.clone(),
            orders,
            client: Some(client),
            relay: None,
            promise: None,
            asking: BTreeMap::new(),
            answered: BTreeMap::new(),
            forwarding: None,
            requested_at: Instant::now(),
            resolved: false,
            recorded: 0,
        }
    }

    pub(super) async fn run(mut self) {
        let requested = self.requested();
        let mut state = self.report(requested).await;
        while state == State::Running {
            state = match self.step().await {
                Step::Ordered(Some(order)) => self.obey(order).await,
                Step::Ordered(None) | Step::ClientGone => {
                    self.report(Input::PullAbandoned { pull: self.pull }).await;
                    State::Over
                }
                Step::Asked(attempt, outcome) => self.note_answer(attempt, outcome).await,
                Step::Told(news) => self.note_news(news).await,
                Step::ReportDue => self.report_progress().await,
            };
        }
        // What the client got since the last report, if it has gone.
        let _told = self.take_report();
        self.record.took = self.requested_at.elapsed();
        self.history.add(self.record);
    }

    fn requested(&self) -> Input {
        Input::PullRequested {
            pull: self.pull,
            key: Key::of(&self.request.identifier()),
            digest: self.request.wanted.digest(),
            kind: self.request.kind(),
            whole: !self.request.head && self.request.range.is_none(),
        }
    }

    /// Waits for whatever happens first. Loses nothing of the rest.
    async fn step(&mut self) -> Step<D::Stream> {
        let report_at = self.forwarding.as_ref().map(|it| it.report_at);
        tokio::select! {
            biased;
            // First, because what the client has already been given cannot be ordered otherwise.
            news = next_news(self.relay.as_ref()) => Step::Told(news),
            order = self.orders.recv() => Step::Ordered(order),
            () = gone(self.client.as_mut()) => Step::ClientGone,
            (attempt, outcome) = first_answer(&mut self.asking) => Step::Asked(attempt, outcome),
            () = sleep_until(report_at) => Step::ReportDue,
        }
    }

    async fn obey(&mut self, order: Order) -> State {
        match order {
            Order::Fetch { attempt, peer, addr, skip, check_bytes_max } => {
                return self.fetch(attempt, peer, addr, skip, check_bytes_max).await;
            }
            Order::CancelFetch { attempt } => {
                self.asking.remove(&attempt);
                self.answered.remove(&attempt);
                if self.forwarding.as_ref().is_some_and(|it| it.attempt == attempt) {
                    // For the record: the core wants no more of it.
                    let _told = self.take_report();
                    self.forwarding = None;
                    self.relay.iter().for_each(Relay::stop);
                }
            }
            Order::Forward { attempt, report_interval } => {
                if let Some(answered) = self.answered.remove(&attempt) {
                    return self.forward(attempt, answered, report_interval).await;
                }
            }
            Order::Refuse { reason, attempts } => {
                self.end_early(reason, attempts);
                return State::Over;
            }
            Order::Truncate { reason, left } => {
                if let Some((from, why)) = left {
                    self.record.left(from, why);
                }
                self.end_early(reason, 0);
                return State::Over;
            }
            Order::NoteLeft { from, reason } => self.record.left(from, reason),
        }
        State::Running
    }

    /// Refuses if the client has heard nothing yet; otherwise dropping the relay ends the body.
    fn end_early(&mut self, reason: RefuseReason, attempts: u32) {
        if let Some(client) = self.client.take() {
            debug!(pull = %self.pull, %reason, "pull refused");
            self.metrics.pull_miss(&self.request.registry, reason);
            self.record.end = PullEnd::Refused(reason);
            // An error means that the client has just gone, and the core need not know: for it
            // the pull is over.
            let _ = client.send(Outcome::Refused { reason, attempts });
        } else {
            debug!(pull = %self.pull, %reason, sent = self.sent(), "pull truncated");
            self.metrics.pull_truncated(reason);
            self.record.end = PullEnd::Truncated(reason);
        }
    }

    async fn fetch(
        &mut self,
        attempt: AttemptId,
        peer: PeerId,
        addr: SocketAddr,
        skip: u64,
        check_bytes_max: u64,
    ) -> State {
        if !self.resolved {
            self.resolved = true;
            self.metrics.pull_resolved(self.requested_at.elapsed());
        }
        self.record.asked(attempt, peer, addr);
        if self.asking.len() + self.answered.len() >= ATTEMPTS_MAX {
            return self.report_failure(attempt, FetchError::Connect).await;
        }
        let (dialer, request, promise) = (self.dialer.clone(), self.request.clone(), self.promise);
        let range = answer::range_to_ask(&request, promise.as_ref(), skip);
        let path_and_query = request.path_and_query();
        let method = if request.head { Method::HEAD } else { Method::GET };
        let shown = self.trust.show(&peer, &method, &path_and_query);
        let message = PeerRequest { method, path_and_query, range, shown };
        let trust = self.trust.clone();
        let asking = async move {
            let mut response = peer::fetch(&dialer, addr, &message).await?;
            let answer = answer::read(&request, promise.as_ref(), skip, range, &response.head)?;
            if !trust.believes(&message.shown, &response.head) {
                return Err(FetchError::Malformed);
            }
            let whole = !request.head && answer.begin == 0 && request.range.is_none();
            if let Some(digest) = request.wanted.digest()
                && whole
                && answer.promise.span.length <= check_bytes_max
                && !digest.matches(&response.body.read_ahead(answer.promise.span.length).await?)
            {
                return Err(FetchError::WrongContent);
            }
            Ok(Box::new(Answered { answer, body: response.body, skip }))
        };
        self.asking.insert(attempt, Box::pin(asking));
        State::Running
    }

    async fn note_answer(
        &mut self,
        attempt: AttemptId,
        outcome: Result<Box<Answered<D::Stream>>, FetchError>,
    ) -> State {
        match outcome {
            Ok(answered) => {
                let length = answered.answer.promise.span.length.saturating_sub(answered.skip);
                let body_bytes = if self.request.head { 0 } else { length };
                let backlog_bytes = answered.answer.backlog_bytes;
                self.answered.insert(attempt, answered);
                let pull = self.pull;
                self.report(Input::FetchAnswered { pull, attempt, body_bytes, backlog_bytes }).await
            }
            Err(cause) => self.report_failure(attempt, cause).await,
        }
    }

    async fn forward(
        &mut self,
        attempt: AttemptId,
        answered: Box<Answered<D::Stream>>,
        report_interval: Duration,
    ) -> State {
        let Answered { answer, body, skip } = *answered;
        // An attempt may have been made before another one's head went to the client.
        let fits =
            self.promise.is_none_or(|promise| promise == answer.promise) && answer.begin <= self.sent();
        if !fits {
            return self.report_failure(attempt, FetchError::Malformed).await;
        }
        self.promise = Some(answer.promise);
        if let Some(client) = self.client.take() {
            let (status, headers) = answer.client_head(&self.request);
            let length = answer.promise.span.length;
            let (relay, body) = Relay::new(length, self.metrics.clone());
            self.relay = Some(relay);
            // An error means that the client has gone, which the relay tells: the body went with it.
            let _ = client.send(Outcome::Forwarded { status, headers, length, body });
        }
        let interval = report_interval.max(REPORT_INTERVAL_MIN);
        let report_at = Instant::now() + interval;
        self.forwarding = Some(Forwarding { attempt, reported: skip, interval, report_at });
        if self.request.head || self.sent() == answer.promise.span.length {
            return self.complete().await;
        }
        if let Some(relay) = &self.relay {
            relay.forward(body, answer.begin);
        }
        State::Running
    }

    /// Bytes given to the client.
    fn sent(&self) -> u64 {
        self.relay.as_ref().map_or(0, Relay::sent)
    }

    async fn note_news(&mut self, news: News) -> State {
        match (news, &self.forwarding) {
            (News::Complete, Some(_)) => self.complete().await,
            // The core has just ordered otherwise; whatever it orders next ends the pull.
            (News::Complete | News::Interrupted, None) => State::Running,
            (News::Interrupted, Some(_)) => {
                let Some((attempt, bytes, starved)) = self.take_report() else { return State::Running };
                self.forwarding = None;
                let progressed = Input::FetchProgressed { pull: self.pull, attempt, bytes, starved };
                if bytes > 0 && self.report(progressed).await == State::Over {
                    return State::Over;
                }
                self.report_failure(attempt, FetchError::Interrupted).await
            }
            (News::ClientGone, _) => {
                self.report(Input::PullAbandoned { pull: self.pull }).await;
                State::Over
            }
        }
    }

    async fn complete(&mut self) -> State {
        if let Some((attempt, bytes, _)) = self.take_report() {
            let bytes = if self.request.head { 0 } else { bytes };
            self.record.end = PullEnd::Complete;
            self.metrics.pull_hit(&self.request.registry);
            self.report(Input::FetchCompleted { pull: self.pull, attempt, bytes }).await;
        }
        State::Over
    }

    async fn report_progress(&mut self) -> State {
        let Some((attempt, bytes, starved)) = self.take_report() else { return State::Running };
        self.report(Input::FetchProgressed { pull: self.pull, attempt, bytes, starved }).await
    }

    /// The bytes that went to the client since the last report, and how long it waited for others.
    fn take_report(&mut self) -> Option<(AttemptId, u64, Duration)> {
        let (forwarding, now) = (self.forwarding.as_mut()?, Instant::now());
        let (position, starved) = self.relay.as_ref()?.progress(now);
        let bytes = position.saturating_sub(forwarding.reported);
        forwarding.reported += bytes;
        // Where holders overlap, the later one repeats what the client has.
        let sent = self.relay.as_ref().map_or(0, Relay::sent);
        self.record.gave(forwarding.attempt, sent.saturating_sub(self.recorded));
        self.recorded = sent;
        forwarding.report_at = now + forwarding.interval;
        Some((forwarding.attempt, bytes, starved))
    }

    async fn report_failure(&mut self, attempt: AttemptId, cause: FetchError) -> State {
        debug!(pull = %self.pull, %attempt, ?cause, "attempt failed");
        self.record.failed(attempt, cause);
        self.report(Input::FetchFailed { pull: self.pull, attempt, cause }).await
    }

    async fn report(&mut self, input: Input) -> State {
        // The core's end of the queue only goes away with the process.
        if self.inputs.send(input).await.is_ok() { State::Running } else { State::Over }
    }
}

async fn gone<S: Stream>(client: Option<&mut oneshot::Sender<Outcome<S>>>) {
    match client {
        Some(client) => client.closed().await,
        None => std::future::pending().await,
    }
}

async fn next_news<S: Stream>(relay: Option<&Relay<S>>) -> News {
    match relay {
        Some(relay) => relay.news().await,
        None => std::future::pending().await,
    }
}

/// The attempt that is answered first; of several at once, the earliest made.
async fn first_answer<S: Stream>(
    asking: &mut BTreeMap<AttemptId, Asking<S>>,
) -> (AttemptId, Result<Box<Answered<S>>, FetchError>) {
    let (attempt, outcome) = poll_fn(|cx| {
        let ready = asking.iter_mut().find_map(|(attempt, asking)| match asking.as_mut().poll(cx) {
            Poll::Ready(outcome) => Some((*attempt, outcome)),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await;
    asking.remove(&attempt);
    (attempt, outcome)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
