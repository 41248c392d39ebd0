//! The loop around the core: an input or a timeout in, outputs out. It decides nothing and
//! never waits for an adapter; production and the simulator run the same one.

use spegel_core::{Input, Node, Output, Report};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::clock;

/// Inputs that may wait for the core. Fewer and adapters are held up by each burst of events;
/// more and a flood of them takes memory before anyone notices.
pub const INPUTS_MAX: usize = 4096;

/// Inputs handled before timeouts are looked at again. More and a flood of inputs delays the
/// deadline of a pull; fewer and the clock is read more often than it need be.
const BATCH_MAX: usize = 64;

/// Carries out what the core decides.
pub trait Ports {
    /// Sees each input before the core does, for logs and traces.
    fn observe(&mut self, input: &Input);

    /// Carries out one output, or passes it on; must not block.
    fn perform(&mut self, output: Output);
}

/// Asks the running core for a report.
#[derive(Clone, Debug)]
pub struct Reports(mpsc::Sender<oneshot::Sender<Report>>);

/// The core's end of [`Reports`].
#[derive(Debug)]
pub struct ReportRequests(mpsc::Receiver<oneshot::Sender<Report>>);

/// Both ends.
#[must_use]
pub fn reports() -> (Reports, ReportRequests) {
    // One waits while one is answered; whoever asks beyond that waits its turn.
    let (sender, receiver) = mpsc::channel(1);
    (Reports(sender), ReportRequests(receiver))
}

impl Reports {
    /// The report, or `None` if the core has ended.
    pub async fn report(&self) -> Option<Report> {
        let (sender, receiver) = oneshot::channel();
        self.0.send(sender).await.ok()?;
        receiver.await.ok()
    }
}

/// Runs `node` until every sender of inputs is gone.
pub async fn run(
    mut node: Node,
    mut inputs: mpsc::Receiver<Input>,
    mut report_requests: ReportRequests,
    mut ports: impl Ports,
) {
    drain(&mut node, &mut ports);
    loop {
        let wake = node.poll_timeout().map(|(at, _)| Instant::from_std(at));
        tokio::select! {
            biased;
            input = inputs.recv() => {
                let Some(input) = input else { return };
                apply(&mut node, &mut ports, input);
                for _ in 1..BATCH_MAX {
                    let Ok(input) = inputs.try_recv() else { break };
                    apply(&mut node, &mut ports, input);
                }
            }
            Some(request) = report_requests.0.recv() => {
                // Nobody waits any more: nothing to do about it.
                let _ = request.send(node.report(clock::now()));
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
        let now = clock::now();
        if node.poll_timeout().is_some_and(|(at, _)| at <= now) {
            node.handle_timeout(now);
            drain(&mut node, &mut ports);
        }
    }
}

fn apply(node: &mut Node, ports: &mut impl Ports, input: Input) {
    ports.observe(&input);
    node.handle(clock::now(), input);
    drain(node, ports);
}

fn drain(node: &mut Node, ports: &mut impl Ports) {
    while let Some(output) = node.poll_output() {
        ports.perform(output);
    }
}
