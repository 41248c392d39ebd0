//! The way of a pull's bytes. The pull's task says which peer they come from, and hears what
//! became of it; the client's connection moves them, at its own pace, so that a client that is
//! slow holds back the peer and nobody else.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream as Chunks;
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::Notify,
    time::{Instant, Sleep, sleep},
};

use crate::{
    metrics::{Metrics, Source},
    net::Stream,
    peer::PeerBody,
    zero_copy::{Call, Lane, Pipe, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN},
};

/// What is moved at once makes the next move wait for [`GATHER`] if it is as large as this, so that
/// bytes come fast, and smaller than [`GATHER_BYTES_MAX`], so that waiting lets them gather. Smaller
/// and slow transfers are delayed for nothing; larger and fast ones wake the process for each packet.
const GATHER_BYTES_MIN: usize = 32 * 1024;

/// See [`GATHER_BYTES_MIN`]. Larger and a transfer for which the process is awake anyway is delayed.
const GATHER_BYTES_MAX: usize = 128 * 1024;

/// Shorter and less gathers; longer and the peer's window, which holds what comes meanwhile, limits
/// how fast it sends. The timers of the runtime know nothing shorter.
const GATHER: Duration = Duration::from_millis(1);

/// Bytes gather only where the socket can hold this many times as many. Fewer and the peer has to stop
/// sending while they do; more and a socket that has not grown yet wakes the process more often.
const GATHER_ROOM_TIMES: usize = 8;

/// What became of the peer that bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The client has been given everything.
    Complete,
    /// The peer has no more bytes.
    Interrupted,
    /// The client is gone.
    ClientGone,
}

/// The task's end.
pub(super) struct Relay<S: Stream>(Arc<Shared<S>>);

/// The connection's end: the body of the response.
pub(crate) struct RelayBody<S: Stream> {
    shared: Arc<Shared<S>>,
    metrics: Metrics,
    way: Way,
}

/// How bytes get to the client.
#[derive(Default)]
struct Way {
    /// Of the client's connection.
    lane: Option<Lane>,
    /// `None` if they are copied.
    pipe: Option<Arc<Pipe>>,
    /// Runs while bytes gather in the socket.
    gathering: Option<Pin<Box<Sleep>>>,
}

struct Shared<S: Stream> {
    state: Mutex<State<S>>,
    /// For the task: there is something in `news`.
    told: Notify,
}

/// Offsets count from the start of what the client asked for.
struct State<S: Stream> {
    source: Option<PeerBody<S>>,
    /// Up to where the source, or the last one, has been read.
    position: u64,
    /// Up to where the client has been given bytes.
    sent: u64,
    length: u64,
    /// Time that the client has waited for the source, and since when it does.
    starved: Duration,
    starving_since: Option<Instant>,
    news: Option<News>,
    /// There will be no other source.
    is_over: bool,
    body: Option<Waker>,
}

impl<S: Stream> Relay<S> {
    /// A body of so many bytes, without a source.
    pub(super) fn new(length: u64, metrics: Metrics) -> (Self, RelayBody<S>) {
        let state = State {
            source: None,
            position: 0,
            sent: 0,
            length,
            starved: Duration::ZERO,
            starving_since: None,
            news: None,
            is_over: false,
            body: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), told: Notify::new() });
        let body = RelayBody { shared: Arc::clone(&shared), metrics, way: Way::default() };
        (Self(shared), body)
    }

    /// Goes on with this source, whose next byte is that at `position`.
    pub(super) fn forward(&self, source: PeerBody<S>, position: u64) {
        let mut state = self.0.state();
        state.source = Some(source);
        state.position = position;
        state.forget();
        state.wake_body();
    }

    /// Drops the source.
    pub(super) fn stop(&self) {
        let mut state = self.0.state();
        state.source = None;
        state.forget();
    }

    /// Up to where the client has been given bytes.
    pub(super) fn sent(&self) -> u64 {
        self.0.state().sent
    }

    /// Up to where the source has been read, and how long the client has waited for it since this
    /// was asked last.
    pub(super) fn progress(&self, now: Instant) -> (u64, Duration) {
        let mut state = self.0.state();
        let is_starving = state.starving_since.is_some();
        // Of what has arrived and was not taken yet, the peer is innocent: this process is late.
        if state.source.as_ref().is_some_and(PeerBody::has_arrived) {
            state.starving_since = None;
        }
        state.count_starving(now);
        state.starving_since = is_starving.then_some(now);
        (state.position, std::mem::take(&mut state.starved))
    }

    /// Waits for news. Nothing is lost when the future is dropped.
    pub(super) async fn news(&self) -> News {
        loop {
            if let Some(news) = self.0.state().news.take() {
                return news;
            }
            self.0.told.notified().await;
        }
    }
}

impl<S: Stream> Drop for Relay<S> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_over = true;
        state.source = None;
        state.wake_body();
    }
}

impl<S: Stream> Shared<S> {
    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: &mut State<S>, news: News) {
        state.source = None;
        state.news = Some(news);
        self.told.notify_one();
    }
}

impl<S: Stream> State<S> {
    fn wake_body(&mut self) {
        if let Some(body) = self.body.take() {
            body.wake();
        }
    }

    /// What is known of the last source says nothing of the next one.
    fn forget(&mut self) {
        (self.starved, self.starving_since) = (Duration::ZERO, None);
        self.news.take_if(|news| *news == News::Interrupted);
    }

    fn starve(&mut self) {
        if self.source.is_some() && self.starving_since.is_none() {
            self.starving_since = Some(Instant::now());
        }
    }

    fn count_starving(&mut self, now: Instant) {
        if let Some(since) = self.starving_since.take() {
            self.starved += now.saturating_duration_since(since);
        }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>, way: &mut Way) -> Poll<Result<Bytes, News>> {
        let Some(source) = &mut self.source else { return Poll::Pending };
        // What the client got from an earlier source.
        while self.position < self.sent {
            let most = usize::try_from(self.sent - self.position).unwrap_or(usize::MAX);
            let chunk = ready!(source.poll_chunk(cx, most)).map_err(|_| News::Interrupted)?;
            self.position += chunk.len() as u64;
        }
        way.poll_chunk(cx, source, usize::try_from(self.length - self.sent).unwrap_or(usize::MAX))
    }
}

impl Way {
    /// Waits until the client has taken what it was given.
    fn poll_emptied(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.pipe.as_ref().map_or(Poll::Ready(()), |pipe| pipe.poll_emptied(cx))
    }

    /// Waits until it makes sense to look for more.
    fn poll_gathered(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(gathering) = &mut self.gathering {
            ready!(gathering.as_mut().poll(cx));
            self.gathering = None;
        }
        Poll::Ready(())
    }

    /// The next bytes of the source, or a frame that stands for them; never more than are left.
    fn poll_chunk<S: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut PeerBody<S>,
        left: usize,
    ) -> Poll<Result<Bytes, News>> {
        if let (Some(socket), Some(lane), Some(pipe)) = (source.socket(), &self.lane, &self.pipe)
            && lane.is_open(Call::Splice)
        {
            match ready!(pipe.poll_fill(cx, socket, left.min(SEGMENT_BYTES_MAX))) {
                Ok(0) => return Poll::Ready(Err(News::Interrupted)),
                Ok(filled) => {
                    if (GATHER_BYTES_MIN..GATHER_BYTES_MAX).contains(&filled) && has_room(socket, filled) {
                        self.gathering = Some(Box::pin(sleep(GATHER)));
                    }
                    // Nobody knows what the client would get.
                    return Poll::Ready(lane.pipe(pipe, filled).map_err(|_| News::ClientGone));
                }
                Err(error) if lane.refused(Call::Splice, &error) => {}
                Err(_) => return Poll::Ready(Err(News::Interrupted)),
            }
        }
        source.poll_chunk(cx, left).map_err(|_| News::Interrupted)
    }
}

/// Whether the socket can hold what comes while bytes gather.
fn has_room(socket: &TcpStream, gathered: usize) -> bool {
    SockRef::from(socket).recv_buffer_size().is_ok_and(|holds| holds >= gathered * GATHER_ROOM_TIMES)
}

impl<S: Stream> RelayBody<S> {
    /// Lets the kernel move what is worth it.
    pub(crate) fn by_way_of(mut self, lane: Option<&Lane>) -> Self {
        let lane = lane.filter(|_| self.shared.state().length >= SEGMENT_BYTES_MIN);
        self.way = Way { lane: lane.cloned(), pipe: lane.and_then(Lane::open_pipe), gathering: None };
        self
    }
}

impl<S: Stream> Chunks for RelayBody<S> {
    type Item = Bytes;

    /// Ends early where the task has ended or the client is not to be trusted with more.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Self { shared, metrics, way } = &mut *self;
        ready!(way.poll_emptied(cx));
        let gathered = way.poll_gathered(cx);
        let mut state = shared.state();
        if state.is_over {
            return Poll::Ready(None);
        }
        if gathered.is_pending() {
            // The client has taken all that there was: it waits for the source.
            state.starve();
            return Poll::Pending;
        }
        let chunk = match state.poll_chunk(cx, way) {
            Poll::Ready(chunk) => chunk,
            Poll::Pending => {
                state.body = Some(cx.waker().clone());
                state.starve();
                return Poll::Pending;
            }
        };
        state.count_starving(Instant::now());
        match chunk {
            Ok(chunk) => {
                let length = chunk.len() as u64;
                state.position += length;
                state.sent += length;
                metrics.bytes_served(Source::Peer, length);
                if state.sent == state.length {
                    shared.tell(&mut state, News::Complete);
                }
                Poll::Ready(Some(chunk))
            }
            Err(news) => {
                shared.tell(&mut state, news);
                state.body = Some(cx.waker().clone());
                if news == News::ClientGone { Poll::Ready(None) } else { Poll::Pending }
            }
        }
    }
}

impl<S: Stream> Drop for RelayBody<S> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if state.sent < state.length {
            self.shared.tell(&mut state, News::ClientGone);
        }
    }
}
