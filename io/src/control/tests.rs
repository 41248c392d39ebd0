//! Two or three adapters talk over loopback.

use std::{
    io::Write,
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use spegel_core::{ExchangeId, PeerId};
use tokio::{sync::mpsc::Receiver, time::timeout};

use super::{addr::to_core_peer, codec::MESSAGE_SIZE_MAX, *};
use crate::clock;

const SECOND: Duration = Duration::from_secs(1);

struct Node {
    handle: ControlHandle,
    inputs: Receiver<Input>,
    peer: PeerId,
    addr: SocketAddr,
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn settings(keypair: Keypair, secrets: Option<watch::Receiver<ClusterSecrets>>) -> ControlSettings {
    ControlSettings { keypair, listen: vec![loopback(0)], secrets, refusals: Refusals::default() }
}

fn settings_at(listen: Vec<SocketAddr>) -> ControlSettings {
    ControlSettings { listen, ..settings(Keypair::generate_ed25519(), None) }
}

impl Node {
    async fn start() -> Self {
        Self::start_with(Keypair::generate_ed25519(), 64).await
    }

    async fn start_with(keypair: Keypair, room: usize) -> Self {
        Self::start_with_secrets(keypair, room, None).await
    }

    async fn start_with_secrets(
        keypair: Keypair,
        room: usize,
        secrets: Option<watch::Receiver<ClusterSecrets>>,
    ) -> Self {
        let peer = to_core_peer(&keypair.public().to_peer_id()).unwrap();
        let (sender, inputs) = mpsc::channel(room);
        let handle = spawn(settings(keypair, secrets), sender).unwrap();
        let mut listening = handle.listening();
        let addr = timeout(SECOND, listening.wait_for(|addrs| !addrs.is_empty())).await.unwrap().unwrap()[0];
        let mut node = Self { handle, inputs, peer, addr };
        assert_eq!(node.next().await, Input::ListenAddrsChanged { addrs: vec![loopback(0).ip()] });
        node
    }

    async fn next(&mut self) -> Input {
        timeout(8 * SECOND, self.inputs.recv()).await.expect("an input arrives in time").unwrap()
    }

    async fn silent_for(&mut self, duration: Duration) {
        assert!(timeout(duration, self.inputs.recv()).await.is_err(), "no input is expected");
    }

    fn send(&self, to: PeerId, addrs: &[SocketAddr], exchange: u64, message: &[u8], timeout: Duration) {
        let order = Output::Send {
            to,
            addrs: addrs.to_vec(),
            exchange: ExchangeId(exchange),
            message: message.to_vec(),
            timeout,
        };
        assert_eq!(self.handle.perform(order), None);
    }

    fn dial(&self, addr: SocketAddr, peer: Option<PeerId>) {
        assert_eq!(self.handle.perform(Output::Dial { addr, peer, timeout: 4 * SECOND }), None);
    }

    /// Replies to the next message with the same bytes.
    async fn echo(&mut self) -> PeerId {
        let Input::MessageReceived { from, exchange, message } = self.next().await else { panic!() };
        assert_eq!(self.handle.perform(Output::Reply { exchange, message }), None);
        from
    }

    async fn exchange_with(&mut self, other: &mut Self, exchange: u64) {
        self.send(other.peer, &[other.addr], exchange, b"hello", SECOND);
        assert_eq!(other.echo().await, self.peer);
        let reply = Input::ReplyReceived { exchange: ExchangeId(exchange), message: b"hello".to_vec() };
        assert_eq!(self.next().await, reply);
    }
}

fn failed_cause(input: Input, exchange: u64) -> String {
    let Input::SendFailed { exchange: failed, cause } = input else { panic!("{input:?}") };
    assert_eq!(failed, ExchangeId(exchange));
    cause
}

/// An address that nobody listens on.
fn dead_addr() -> SocketAddr {
    TcpListener::bind(loopback(0)).unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn messages_are_exchanged_both_ways() {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    a.exchange_with(&mut b, 1).await;
    // Over the connection that is open: no address needed.
    b.send(a.peer, &[], 9, b"", SECOND);
    a.echo().await;
    assert_eq!(b.next().await, Input::ReplyReceived { exchange: ExchangeId(9), message: Vec::new() });
}

#[tokio::test]
async fn largest_message_travels_and_a_larger_one_is_refused() {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    a.send(b.peer, &[b.addr], 1, &vec![1; MESSAGE_SIZE_MAX], 5 * SECOND);
    b.echo().await;
    assert!(
        matches!(a.next().await, Input::ReplyReceived { message, .. } if message.len() == MESSAGE_SIZE_MAX)
    );
    a.send(b.peer, &[b.addr], 2, &vec![1; MESSAGE_SIZE_MAX + 1], SECOND);
    assert!(failed_cause(a.next().await, 2).contains("larger"));
    // A reply that is too large is not sent; the asker is told that none comes.
    a.send(b.peer, &[], 3, b"x", 5 * SECOND);
    let Input::MessageReceived { exchange, .. } = b.next().await else { panic!() };
    assert_eq!(b.handle.perform(Output::Reply { exchange, message: vec![1; MESSAGE_SIZE_MAX + 1] }), None);
    failed_cause(a.next().await, 3);
}

#[tokio::test]
async fn unreachable_peers_fail_once_and_soon() {
    let mut a = Node::start().await;
    let stranger = PeerId::from_public_key([3; 32]);
    let nobody = dead_addr();
    a.send(stranger, &[nobody], 1, b"x", 3 * SECOND);
    failed_cause(a.next().await, 1);
    a.send(stranger, &[], 2, b"x", 3 * SECOND);
    assert!(failed_cause(a.next().await, 2).contains("no address"));
    a.send(a.peer, &[a.addr], 3, b"x", 3 * SECOND);
    assert!(failed_cause(a.next().await, 3).contains("this node"));
    a.dial(nobody, None);
    assert!(
        matches!(a.next().await, Input::DialFailed { addr, cause } if addr == nobody && cause.contains("refused"))
    );
    a.silent_for(SECOND / 10).await;
}

#[tokio::test]
async fn another_peer_at_the_address_gets_no_message() {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    let expected = PeerId::from_public_key([3; 32]);
    a.send(expected, &[b.addr], 1, b"x", 3 * SECOND);
    failed_cause(a.next().await, 1);
    a.dial(b.addr, Some(expected));
    let Input::DialFailed { cause, .. } = a.next().await else { panic!() };
    assert!(cause.contains(&b.peer.to_string()) && cause.contains(&expected.to_string()), "{cause}");
    b.silent_for(SECOND / 10).await;
}

#[tokio::test]
async fn dial_says_who_is_there() {
    let (mut a, b) = (Node::start().await, Node::start().await);
    let there = Input::Dialed { addr: b.addr, peer: b.peer };
    // Two at once share an attempt and are both answered; a third finds the connection open.
    a.dial(b.addr, None);
    a.dial(b.addr, Some(b.peer));
    assert_eq!(a.next().await, there);
    assert_eq!(a.next().await, there);
    a.dial(b.addr, None);
    assert_eq!(a.next().await, there);
    a.silent_for(SECOND / 10).await;
}

#[tokio::test]
async fn dial_that_leads_back_says_so() {
    let mut a = Node::start().await;
    a.dial(a.addr, None);
    assert_eq!(a.next().await, Input::Dialed { addr: a.addr, peer: a.peer });
    // Through an address that is not its own: a forwarder, as a Service's virtual address is.
    let vip = tokio::net::TcpListener::bind(loopback(0)).await.unwrap();
    let addr = vip.local_addr().unwrap();
    let target = a.addr;
    let forwarder = tokio::spawn(async move {
        loop {
            let (mut near, _) = vip.accept().await.unwrap();
            let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    for expected in [None, Some(a.peer), Some(PeerId::from_public_key([3; 32]))] {
        a.dial(addr, expected);
        assert_eq!(a.next().await, Input::Dialed { addr, peer: a.peer });
    }
    forwarder.abort();
}

#[tokio::test]
async fn dial_to_a_socket_that_never_answers_fails_in_time() {
    let mut a = Node::start().await;
    let silent = TcpListener::bind(loopback(0)).unwrap();
    let addr = silent.local_addr().unwrap();
    let begin = clock::now();
    assert_eq!(a.handle.perform(Output::Dial { addr, peer: None, timeout: SECOND / 5 }), None);
    assert!(matches!(a.next().await, Input::DialFailed { .. }));
    assert!((SECOND / 5..4 * SECOND).contains(&(clock::now() - begin)));
}

#[tokio::test]
async fn peer_that_never_replies_costs_exactly_the_timeout() {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    a.exchange_with(&mut b, 1).await;
    let begin = clock::now();
    a.send(b.peer, &[], 2, b"x", SECOND / 5);
    assert!(failed_cause(a.next().await, 2).contains("in time"));
    assert!((SECOND / 5..4 * SECOND).contains(&(clock::now() - begin)));
    let Input::MessageReceived { exchange, message, .. } = b.next().await else { panic!() };
    // A late reply, and one to an exchange that never was, are nobody's business.
    assert_eq!(b.handle.perform(Output::Reply { exchange, message }), None);
    assert_eq!(b.handle.perform(Output::Reply { exchange: ExchangeId(777), message: Vec::new() }), None);
    a.silent_for(SECOND / 5).await;
    a.exchange_with(&mut b, 3).await;
}

#[tokio::test]
async fn exchanges_that_time_out_do_not_use_up_the_connection() {
    let (mut a, mut b) = (
        Node::start_with(Keypair::generate_ed25519(), 2000).await,
        Node::start_with(Keypair::generate_ed25519(), 2000).await,
    );
    a.exchange_with(&mut b, 0).await;
    for exchange in 1..=600 {
        a.send(b.peer, &[], exchange, b"x", SECOND / 20);
        if exchange % 100 == 0 {
            for _ in 0..100 {
                assert!(matches!(a.next().await, Input::SendFailed { .. }));
            }
            // The replies come too late.
            for _ in 0..100 {
                b.echo().await;
            }
        }
    }
    a.exchange_with(&mut b, 1000).await;
}

#[tokio::test]
async fn core_that_does_not_listen_for_a_while_loses_nothing_and_blocks_nobody() {
    let (mut a, mut b) = (
        Node::start_with(Keypair::generate_ed25519(), 64).await,
        Node::start_with(Keypair::generate_ed25519(), 1).await,
    );
    a.exchange_with(&mut b, 0).await;
    for exchange in 1..=50 {
        a.send(b.peer, &[], exchange, b"x", 5 * SECOND);
    }
    tokio::time::sleep(SECOND / 5).await;
    for _ in 0..50 {
        b.echo().await;
    }
    for _ in 0..50 {
        assert!(matches!(a.next().await, Input::ReplyReceived { .. }));
    }
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    let mut open = Vec::new();
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff", b""]
    {
        let mut stream = std::net::TcpStream::connect(b.addr).unwrap();
        stream.write_all(bytes).unwrap();
        open.push(stream);
    }
    a.exchange_with(&mut b, 1).await;
    drop(open);
    a.exchange_with(&mut b, 2).await;
}

#[tokio::test]
async fn port_in_use_is_said_at_start() {
    let a = Node::start().await;
    let plain = TcpListener::bind(loopback(0)).unwrap();
    for addr in [a.addr, plain.local_addr().unwrap()] {
        let settings = settings_at(vec![addr]);
        let error = spawn(settings, mpsc::channel(1).0).unwrap_err();
        assert!(matches!(error, ControlError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("--router-addr"));
    }
    let foreign = "192.0.2.1:0".parse().unwrap();
    let settings = settings_at(vec![foreign]);
    assert!(matches!(spawn(settings, mpsc::channel(1).0), Err(ControlError::Listen { .. })));
}

#[tokio::test]
async fn both_families_listen_on_one_port_and_loopback_is_not_reported() {
    let (sender, mut inputs) = mpsc::channel(8);
    let port = dead_addr().port();
    let listen = listen::parse(&format!(":{port}")).unwrap();
    let _handle = spawn(settings_at(listen), sender).unwrap();
    let Some(Input::ListenAddrsChanged { addrs }) = inputs.recv().await else { panic!() };
    assert!(addrs.iter().all(|ip| !ip.is_loopback()), "{addrs:?}");
    assert!(addrs.is_sorted_by_key(|ip| ip.is_ipv4()), "IPv6 comes first: {addrs:?}");
    assert!(std::net::TcpStream::connect(loopback(port)).is_ok());
    assert!(timeout(SECOND / 5, inputs.recv()).await.is_err(), "one start, one report");
}

#[tokio::test]
async fn disconnect_closes_and_the_next_message_dials_again() {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    a.exchange_with(&mut b, 1).await;
    a.send(b.peer, &[], 2, b"x", 5 * SECOND);
    assert!(matches!(b.next().await, Input::MessageReceived { .. }));
    assert_eq!(a.handle.perform(Output::Disconnect { peer: b.peer }), None);
    assert!(failed_cause(a.next().await, 2).contains("connection"));
    a.send(b.peer, &[], 3, b"x", SECOND);
    failed_cause(a.next().await, 3);
    a.exchange_with(&mut b, 4).await;
    assert_eq!(a.handle.perform(Output::Disconnect { peer: PeerId::from_public_key([3; 32]) }), None);
}

#[tokio::test]
async fn dial_after_a_disconnect_opens_another_connection() {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    for exchange in 1..=2 {
        a.dial(b.addr, None);
        assert_eq!(a.next().await, Input::Dialed { addr: b.addr, peer: b.peer });
        // Until the connection before is closed, messages may still be lost with it.
        tokio::time::sleep(SECOND / 10).await;
        a.exchange_with(&mut b, exchange).await;
        assert_eq!(a.handle.perform(Output::Disconnect { peer: b.peer }), None);
        if exchange == 2 {
            tokio::time::sleep(SECOND / 10).await;
            a.send(b.peer, &[], 3, b"x", SECOND);
            assert!(failed_cause(a.next().await, 3).contains("not connected"));
        }
    }
}

#[tokio::test]
async fn peer_that_starts_again_is_found_again() {
    let keypair = Keypair::generate_ed25519();
    let (mut a, mut b) = (Node::start().await, Node::start_with(keypair.clone(), 64).await);
    a.exchange_with(&mut b, 1).await;
    drop(b);
    let mut b = Node::start_with(keypair, 64).await;
    tokio::time::sleep(SECOND / 10).await;
    a.exchange_with(&mut b, 2).await;
}

#[tokio::test]
async fn three_nodes_dial_each_other_at_once() {
    let mut nodes = [Node::start().await, Node::start().await, Node::start().await];
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        let (peer, addr) = (nodes[to].peer, nodes[to].addr);
        nodes[from].send(peer, &[addr], u64::try_from(to).unwrap(), b"x", 5 * SECOND);
    }
    let all = nodes.iter_mut().map(async |node| {
        let mut replies = 0;
        for _ in 0..4 {
            let input = node.next().await;
            if let Input::MessageReceived { exchange, message, .. } = input {
                assert_eq!(node.handle.perform(Output::Reply { exchange, message }), None);
            } else {
                assert!(matches!(input, Input::ReplyReceived { .. }), "{input:?}");
                replies += 1;
            }
        }
        assert_eq!(replies, 2);
    });
    futures::future::join_all(all).await;
}

#[tokio::test]
async fn orders_of_other_adapters_are_handed_back() {
    let a = Node::start().await;
    assert_eq!(a.handle.perform(Output::ShutdownComplete), Some(Output::ShutdownComplete));
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER_SECRET: &str = "fedcba9876543210fedcba9876543210";

fn secrets(lines: &[&str]) -> ClusterSecrets {
    ClusterSecrets::parse(lines.join("\n").as_bytes()).unwrap()
}

async fn private(lines: &[&str]) -> (Node, watch::Sender<ClusterSecrets>) {
    let (sender, receiver) = watch::channel(secrets(lines));
    let node = Node::start_with_secrets(Keypair::generate_ed25519(), 64, Some(receiver)).await;
    (node, sender)
}

#[tokio::test]
async fn nodes_talk_only_to_those_that_have_a_secret_of_theirs() {
    let ((mut both, _a), (mut old, _b)) = (private(&[SECRET, OTHER_SECRET]).await, private(&[SECRET]).await);
    let (mut new, _c) = private(&[OTHER_SECRET]).await;
    both.exchange_with(&mut old, 1).await;
    new.exchange_with(&mut both, 1).await;
    for (mut stranger, exchange) in [(new, 2), (Node::start().await, 3)] {
        stranger.send(old.peer, &[old.addr], exchange, b"hello", SECOND);
        let cause = failed_cause(stranger.next().await, exchange);
        assert!(!cause.is_empty(), "the stranger is told something");
        old.send(stranger.peer, &[stranger.addr], exchange, b"hello", SECOND);
        failed_cause(old.next().await, exchange);
        stranger.silent_for(Duration::from_millis(100)).await;
        old.silent_for(Duration::from_millis(100)).await;
    }
    both.send(old.peer, &[], 9, b"still", SECOND);
    old.echo().await;
}

#[tokio::test]
async fn node_whose_secret_is_withdrawn_is_put_out() {
    let ((mut staying, secret), (mut leaving, _b)) = (private(&[SECRET]).await, private(&[SECRET]).await);
    staying.exchange_with(&mut leaving, 1).await;
    secret.send_replace(secrets(&[OTHER_SECRET, SECRET]));
    staying.exchange_with(&mut leaving, 2).await;
    leaving.exchange_with(&mut staying, 2).await;
    secret.send_replace(secrets(&[OTHER_SECRET]));
    // Closing takes its moment.
    tokio::time::sleep(Duration::from_millis(100)).await;
    leaving.send(staying.peer, &[staying.addr], 3, b"hello", SECOND);
    failed_cause(leaving.next().await, 3);
    staying.silent_for(Duration::from_millis(100)).await;
}
