//! The other side of bootstrap over HTTP (`--http-bootstrap-addr`): says who this node is and where
//! it can be reached. Answers from memory only, so that nodes that ask each other in a circle
//! through a load balancer do no more than one request each.

use std::net::SocketAddr;

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use serde::Serialize;
use spegel_core::PeerId;
use tokio::sync::watch;

use crate::control::to_multiaddr;

#[derive(Clone)]
struct Own {
    peer: PeerId,
    listening: watch::Receiver<Vec<SocketAddr>>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Addrs")]
    addrs: Vec<String>,
}

/// Answers `GET /id` with a list of one: this node, at the addresses it has at that moment.
pub fn id_router(peer: PeerId, listening: watch::Receiver<Vec<SocketAddr>>) -> Router {
    Router::new().route("/id", get(id)).with_state(Own { peer, listening })
}

async fn id(State(own): State<Own>) -> impl IntoResponse {
    let addrs = own.listening.borrow().iter().map(|addr| to_multiaddr(*addr).to_string()).collect();
    let entry = Entry { id: own.peer.to_string(), addrs };
    let body = serde_json::to_vec(&[entry]).expect("texts always have a JSON form");
    ([(header::CONTENT_TYPE, "application/json")], body)
}
