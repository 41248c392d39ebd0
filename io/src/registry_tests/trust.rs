//! Whom a registry answers, and whom a mirror believes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;
use spegel_core::{CLIENT_USERNAME, ClusterSecrets, FetchError, NodeRequest, RefuseReason};

use super::*;
use crate::clock;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER_SECRET: &str = "fedcba9876543210fedcba9876543210";

fn secrets(lines: &[&str]) -> ClusterSecrets {
    ClusterSecrets::parse(lines.join("\n").as_bytes()).unwrap()
}

/// The sender replaces the secrets.
fn trust(lines: &[&str], credentials: Option<Credentials>) -> (Trust, watch::Sender<ClusterSecrets>) {
    let (sender, receiver) = watch::channel(secrets(lines));
    let trust = Trust::new(PeerId::from_public_key(PEER), credentials, Some(receiver), Refusals::default());
    (trust, sender)
}

fn basic(username: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{username}:{password}")))
}

fn of_client(secrets: &ClusterSecrets) -> String {
    basic(CLIENT_USERNAME, &secrets.client_passwords().next().unwrap())
}

fn of_node(secrets: &ClusterSecrets, to: [u8; 32], method: &Method, target: &str, at_ms: u64) -> String {
    let peer = PeerId::from_public_key(to);
    let request = NodeRequest { peer: &peer, method: method.as_str(), target };
    let signature = secrets.sign(request, at_ms).signature;
    format!("X-Spegel-Mirrored: true\r\nX-Spegel-Signature: {signature}\r\n")
}

fn refused(answer: &Seen) -> String {
    assert_eq!(answer.status, 401, "{answer:?}");
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["errors"][0]["code"], "UNAUTHORIZED");
    body["errors"][0]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn strangers_get_nothing_from_a_cluster_with_a_secret() {
    let (trust, _sender) = trust(&[SECRET], None);
    let node = Node::start_with(trust).await;
    let uri = blob_uri(&node.add(b"private"));
    let now = clock::unix_ms();
    let sign = |lines: &[&str], to, uri: &str, at_ms| of_node(&secrets(lines), to, &Method::GET, uri, at_ms);
    for (headers, cause) in [
        (String::new(), "invalid credentials"),
        (basic(CLIENT_USERNAME, "guess"), "invalid credentials"),
        (of_client(&secrets(&[OTHER_SECRET])), "invalid credentials"),
        ("X-Spegel-Mirrored: true\r\n".into(), "not signed"),
        // What containerd shows is no signature.
        (format!("X-Spegel-Mirrored: true\r\n{}", of_client(&secrets(&[SECRET]))), "not signed"),
        ("X-Spegel-Mirrored: true\r\nX-Spegel-Signature: v1\r\n".into(), "cannot be read"),
        (sign(&[OTHER_SECRET], PEER, &uri, now), "is wrong"),
        (sign(&[SECRET], [2; 32], &uri, now), "is wrong"),
        (sign(&[SECRET], PEER, &blob_uri(&Digest::sha256_of(b"another")), now), "is wrong"),
        (sign(&[SECRET], PEER, &uri, now - 125_000), "clocks"),
        (sign(&[SECRET], PEER, &uri, now + 125_000), "clocks"),
    ] {
        let message = refused(&ask(node.addr, "GET", &uri, &headers).await);
        assert!(message.contains(cause), "{headers}: {message}");
        assert_eq!(ask(node.addr, "HEAD", &uri, &headers).await.status, 401, "{headers}");
        assert_eq!(ask(node.addr, "GET", "/v2/", &headers).await.status, 401, "{headers}");
    }
    assert_eq!(ask(node.addr, "GET", "/livez", "").await.status, 200, "the kubelet has no secret");
}

#[tokio::test]
async fn nodes_and_containerd_get_what_they_ask_for() {
    let (trust, sender) = trust(&[SECRET], None);
    let node = Node::start_with(trust).await;
    let uri = blob_uri(&node.add(b"private"));
    let old = secrets(&[SECRET]);
    let ask_as_node = || async {
        let signed = of_node(&old, PEER, &Method::GET, &uri, clock::unix_ms());
        ask(node.addr, "GET", &uri, &signed).await
    };
    assert_eq!(ask(node.addr, "GET", &uri, &of_client(&old)).await.text(), "private");
    let answer = ask_as_node().await;
    assert_eq!(answer.text(), "private");
    assert!(answer.header("x-spegel-signature").is_some(), "nodes are shown that a node answers");
    // While it is replaced, the old one is as good.
    sender.send_replace(secrets(&[OTHER_SECRET, SECRET]));
    assert_eq!(ask(node.addr, "GET", &uri, &of_client(&old)).await.text(), "private");
    assert_eq!(ask_as_node().await.text(), "private");
    sender.send_replace(secrets(&[OTHER_SECRET]));
    refused(&ask(node.addr, "GET", &uri, &of_client(&old)).await);
    refused(&ask_as_node().await);
}

#[tokio::test]
async fn chosen_credentials_take_the_place_of_those_made_of_the_secret() {
    let (trust, _sender) = trust(&[SECRET], Some(Credentials::new(b"user", b"secret")));
    let node = Node::start_with(trust).await;
    let uri = blob_uri(&node.add(b"private"));
    let (chosen, secrets) = (basic("user", "secret"), secrets(&[SECRET]));
    assert_eq!(ask(node.addr, "GET", &uri, &chosen).await.text(), "private");
    refused(&ask(node.addr, "GET", &uri, &of_client(&secrets)).await);
    let signed = of_node(&secrets, PEER, &Method::GET, &uri, clock::unix_ms());
    assert_eq!(ask(node.addr, "GET", &uri, &signed).await.text(), "private");
    let chosen_as_node = format!("X-Spegel-Mirrored: true\r\n{chosen}");
    refused(&ask(node.addr, "GET", &uri, &chosen_as_node).await);
}

#[tokio::test]
async fn node_pulls_from_a_node_with_the_same_secret() {
    let credentials = || Some(Credentials::new(b"user", b"secret"));
    for credentials in [None, credentials()] {
        let (holder, _a) = trust(&[SECRET, OTHER_SECRET], credentials.clone());
        let (asker, _b) = trust(&[OTHER_SECRET, SECRET], credentials.clone());
        let (holder, mut node) = (Node::start_with(holder).await, Node::start_with(asker).await);
        let digest = holder.add(b"shared");
        let shown =
            if credentials.is_some() { basic("user", "secret") } else { of_client(&secrets(&[SECRET])) };
        let client = asking(node.addr, "GET", &blob_uri(&digest), &shown);
        let pull = node.pull_requested().await;
        node.fetch(pull, 1, holder.addr, 0);
        let Input::FetchAnswered { .. } = node.input().await else { panic!("the holder answers") };
        node.forward(pull, 1);
        let answer = seen(client).await;
        assert_eq!(answer.text(), "shared");
        assert_eq!(answer.header("x-spegel-signature"), None, "clients have no use for it");
    }
}

/// An address may have passed to another pod, which knows nothing but what it was just asked, and
/// learns nothing that would be of use elsewhere.
#[tokio::test]
async fn answer_of_a_stranger_at_a_nodes_address_is_not_believed() {
    let (asker, _sender) = trust(&[SECRET], Some(Credentials::new(b"user", b"secret")));
    let mut node = Node::start_with(asker).await;
    let tag = manifest_uri("latest");
    let client = asking(node.addr, "HEAD", &tag, &basic("user", "secret"));
    let pull = node.pull_requested().await;
    let forged = of_node(&secrets(&[OTHER_SECRET]), PEER, &Method::HEAD, &tag, clock::unix_ms());
    for (attempt, signature) in [(1, ""), (2, forged.as_str())] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n\
             Docker-Content-Digest: {}\r\n{signature}\r\n",
            Digest::sha256_of(b"evil")
        );
        let (stranger, request) = scripted_peer(answer.into_bytes(), Then::Stall).await;
        node.fetch(pull, attempt, stranger, 0);
        let attempt = AttemptId(attempt);
        assert_eq!(node.input().await, Input::FetchFailed { pull, attempt, cause: FetchError::Malformed });
        let request = request.await.unwrap().to_lowercase();
        assert!(
            request.contains("x-spegel-signature: v1 ") && !request.contains("authorization:"),
            "{request}"
        );
    }
    assert!(node.pulls.perform(&Output::Refuse {
        pull,
        reason: RefuseReason::HoldersExhausted,
        attempts: 2
    }));
    assert_eq!(seen(client).await.status, 404);
}
