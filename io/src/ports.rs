//! Where the core's outputs go in production: each to the adapter that carries it out.

use spegel_core::{Input, Output};
use tokio::sync::{mpsc, watch};
use tracing::{debug, trace};

use crate::{
    containerd::ContainerdHandle, content::watch::WatchHandle, control::ControlHandle, metrics::Metrics,
    mirror::Pulls, net::Dialer, notice, questions::Questions, registry::Serving, resolve::Resolver, shell,
};

/// All adapters of one process.
#[derive(Debug)]
pub struct Ports<D> {
    /// containerd.
    pub containerd: ContainerdHandle,
    /// containerd's content directory.
    pub watch: WatchHandle,
    /// Control messages.
    pub control: ControlHandle,
    /// The bootstrapper.
    pub resolver: Resolver,
    /// Where the bootstrapper's answers go.
    pub inputs: mpsc::Sender<Input>,
    /// Content and tags served locally.
    pub serving: Serving,
    /// What people ask.
    pub questions: Questions,
    /// Requests being pulled.
    pub pulls: Pulls<D>,
    /// Counters.
    pub metrics: Metrics,
    /// What `/readyz` says.
    pub ready: watch::Sender<bool>,
    /// Becomes true when every farewell has been said.
    pub farewell: watch::Sender<bool>,
}

/// Decisions about pulls are what a developer looks for; the rest is said by notices, or is too
/// much to read.
fn log(output: &Output) {
    match output {
        Output::Fetch { .. }
        | Output::CancelFetch { .. }
        | Output::Forward { .. }
        | Output::Refuse { .. }
        | Output::Truncate { .. }
        | Output::Dial { .. }
        | Output::Disconnect { .. } => debug!(?output, "decided"),
        Output::ConnectContainerd { .. }
        | Output::ProbeContainerd { .. }
        | Output::List { .. }
        | Output::Inspect { .. }
        | Output::ReadManifest { .. }
        | Output::WatchContent { .. }
        | Output::ServeContent { .. }
        | Output::StopServingContent { .. }
        | Output::ServeTag { .. }
        | Output::StopServingTag { .. }
        | Output::ResolveBootstrap { .. }
        | Output::Send { .. }
        | Output::Reply { .. }
        | Output::TellHolders { .. }
        | Output::SetReady { .. }
        | Output::ShutdownComplete
        | Output::Notice(_) => trace!(?output, "decided"),
    }
}

impl<D: Dialer> shell::Ports for Ports<D> {
    fn observe(&mut self, input: &Input) {
        trace!(?input, "input");
    }

    fn perform(&mut self, output: Output) {
        log(&output);
        if self.serving.perform(&output) || self.pulls.perform(&output) || self.questions.perform(&output) {
            return;
        }
        let Some(output) = self.control.perform(output) else { return };
        match output {
            Output::ConnectContainerd { .. }
            | Output::ProbeContainerd { .. }
            | Output::List { .. }
            | Output::Inspect { .. }
            | Output::ReadManifest { .. } => {
                self.containerd.perform(output);
            }
            Output::WatchContent { scan } => self.watch.perform(scan),
            Output::ResolveBootstrap { timeout } => self.resolver.perform(timeout, self.inputs.clone()),
            Output::SetReady { ready } => {
                debug!(ready, "readiness changed");
                self.ready.send_replace(ready);
            }
            Output::ShutdownComplete => {
                self.farewell.send_replace(true);
            }
            Output::Notice(notice) => {
                self.metrics.noticed(&notice);
                notice::log(&notice);
            }
            Output::ServeContent { .. }
            | Output::StopServingContent { .. }
            | Output::ServeTag { .. }
            | Output::StopServingTag { .. }
            | Output::Dial { .. }
            | Output::Send { .. }
            | Output::Reply { .. }
            | Output::Disconnect { .. }
            | Output::Fetch { .. }
            | Output::CancelFetch { .. }
            | Output::Forward { .. }
            | Output::Refuse { .. }
            | Output::Truncate { .. }
            | Output::TellHolders { .. } => unreachable!("carried out above"),
        }
    }
}
