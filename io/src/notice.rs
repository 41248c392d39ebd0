//! What the core wants an operator to read, in words.

use spegel_core::Notice;
use tracing::{debug, info, warn};

/// Writes a notice to the log.
pub fn log(notice: &Notice) {
    match notice {
        Notice::ContainerdLost { cause } => {
            warn!(%cause, "containerd cannot be reached; what is known is served on, and it is tried again");
        }
        Notice::ContentUnwatched { cause } => {
            warn!(%cause, "content directory is not watched; that is tried again, and containerd listed");
        }
        Notice::ContainerdListed { images, contents } => {
            info!(images, contents, "containerd was listed");
        }
        Notice::ImageUnusual { image, digest, reason, detail } => {
            warn!(%image, %digest, reason, %detail, "image is unusual; its content is shared all the same");
        }
        Notice::BootstrapIsSelf { addr } => {
            info!(%addr, "bootstrap address leads to this node itself; it is not dialled again for a while");
        }
        Notice::MirrorBypassed { images, example } => {
            warn!(
                images,
                %example,
                "containerd pulled images without asking this mirror: is there a proxy in its environment \
                 (HTTP_PROXY or HTTPS_PROXY, with no exception for the mirror in NO_PROXY)? Is its config_path the \
                 directory with the mirror's hosts.toml? nerdctl and ctr ask the mirror only with --hosts-dir"
            );
        }
        Notice::BootstrapFailed { cause } => {
            warn!(%cause, "the bootstrapper names no nodes; it is asked again");
        }
        Notice::MemberUp { member } => {
            let zone = member.zone.as_ref().map(|zone| zone.as_str());
            info!(peer = %member.peer, addrs = ?member.addrs, zone, "node joined");
        }
        Notice::MemberDown { peer } => info!(%peer, "node left or failed"),
        Notice::PeerShunned { peer, reason, duration } => {
            warn!(%peer, reason, duration_ms = duration.as_millis(), "node is not asked for content for a while");
        }
        Notice::PeerTrusted { peer } => info!(%peer, "node is asked for content again"),
        Notice::MessageMalformed { peer, cause } => {
            warn!(%peer, %cause, "node sent a control message that makes no sense; does it run another release?");
        }
        Notice::PullResumed { pull, from, reason, at_bytes } => {
            debug!(%pull, %from, reason, at_bytes, "transfer continues from another node");
        }
    }
}
