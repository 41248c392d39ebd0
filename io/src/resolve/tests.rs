//! Each kind against a real server on loopback.

use std::{net::Ipv4Addr, path::Path};

use axum::{Router, routing::get};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use spegel_core::PeerId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// Far more than anything here takes on loopback.
const TIMEOUT: Duration = Duration::from_secs(10);

fn settings(kind: &str) -> ResolverSettings {
    ResolverSettings { kind: kind.into(), router_port: 5001, ..ResolverSettings::default() }
}

fn http(url: &str, cert_dir: &Path) -> Result<Resolver, ResolverError> {
    Resolver::new(&ResolverSettings {
        http_url: url.into(),
        http_cert_dir: cert_dir.into(),
        ..settings("http")
    })
}

fn found(input: Input) -> Vec<String> {
    let Input::BootstrapResolved { addrs } = input else { panic!("{input:?}") };
    addrs.iter().map(|it| it.addr.to_string()).collect()
}

fn cause(input: Input) -> String {
    let Input::BootstrapFailed { cause } = input else { panic!("{input:?}") };
    cause
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    addr
}

#[test]
fn flags_that_name_no_bootstrapper_are_explained() {
    let with = |change: fn(&mut ResolverSettings), kind: &str| {
        let mut settings = settings(kind);
        change(&mut settings);
        Resolver::new(&settings).unwrap_err().to_string()
    };
    let errors = [
        with(|_| {}, ""),
        with(|_| {}, "consul"),
        with(|_| {}, "dns"),
        with(|it| it.dns_domain = "spegel.test:5001".into(), "dns"),
        with(|_| {}, "http"),
        with(|it| it.http_url = "10.0.0.1/id".into(), "http"),
        with(|it| it.http_url = "ftp://a/id".into(), "http"),
        with(|it| it.http_url = "http://user@a/id".into(), "http"),
        with(|_| {}, "static"),
        with(|it| it.static_peers = vec!["10.0.0.1:5001".into()], "static"),
    ];
    insta::assert_snapshot!(errors.join("\n"), @r#"
    unknown bootstrap kind "": set --bootstrap-kind to dns, http or static
    unknown bootstrap kind "consul": set --bootstrap-kind to dns, http or static
    --bootstrap-kind=dns needs --dns-bootstrap-domain
    --dns-bootstrap-domain "spegel.test:5001" is not a host name: give the name alone, the port is that of --router-addr
    --bootstrap-kind=http needs --http-bootstrap-url
    --http-bootstrap-url "10.0.0.1/id" cannot be used: invalid format; expected http[s]://HOST[:PORT]/PATH
    --http-bootstrap-url "ftp://a/id" cannot be used: the scheme is neither http nor https; expected http[s]://HOST[:PORT]/PATH
    --http-bootstrap-url "http://user@a/id" cannot be used: a user name is not supported; expected http[s]://HOST[:PORT]/PATH
    --bootstrap-kind=static needs --static-bootstrap-peers
    --static-bootstrap-peers: "10.0.0.1:5001": expected /ip4/ADDRESS/tcp/PORT or /ip6/ADDRESS/tcp/PORT, optionally with /p2p/ID
    "#);
}

#[tokio::test]
async fn static_list_is_given_as_it_is() {
    let peer = PeerId::from_public_key([7; 32]);
    let static_peers = vec![format!("/ip4/10.0.0.2/tcp/5002/p2p/{peer}"), "/ip6/fd00::1/tcp/5001".into()];
    let resolver = Resolver::new(&ResolverSettings { static_peers, ..settings("static") }).unwrap();
    let (inputs, mut received) = mpsc::channel(1);
    resolver.perform(TIMEOUT, inputs);
    let expected = vec![
        BootstrapAddr { addr: "10.0.0.2:5002".parse().unwrap(), peer: Some(peer) },
        BootstrapAddr { addr: "[fd00::1]:5001".parse().unwrap(), peer: None },
    ];
    assert_eq!(received.recv().await, Some(Input::BootstrapResolved { addrs: expected }));
}

#[tokio::test]
async fn names_are_looked_up_as_the_system_does() {
    let resolver =
        Resolver::new(&ResolverSettings { dns_domain: "localhost".into(), ..settings("dns") }).unwrap();
    assert!(found(resolver.resolve(TIMEOUT).await).contains(&"127.0.0.1:5001".into()));
    let resolver =
        Resolver::new(&ResolverSettings { dns_domain: "nobody.invalid".into(), ..settings("dns") }).unwrap();
    assert!(cause(resolver.resolve(TIMEOUT).await).starts_with("DNS bootstrap nobody.invalid: "));
}

#[tokio::test]
async fn own_answer_is_understood() {
    let (sender, listening) = watch::channel(Vec::new());
    let addr = serve(id_router(PeerId::from_public_key([7; 32]), listening)).await;
    let resolver = http(&format!("http://{addr}/id"), Path::new("")).unwrap();
    assert!(cause(resolver.resolve(TIMEOUT).await).contains("no usable address"));
    sender.send_replace(vec!["10.0.0.1:5001".parse().unwrap(), "[fd00::1]:5001".parse().unwrap()]);
    assert_eq!(found(resolver.resolve(TIMEOUT).await), ["10.0.0.1:5001", "[fd00::1]:5001"]);
    let resolver = http(&format!("http://{addr}/other"), Path::new("")).unwrap();
    assert!(cause(resolver.resolve(TIMEOUT).await).contains("404"));
}

#[tokio::test]
async fn answers_that_are_too_large_or_no_http_are_refused() {
    let addr = serve(Router::new().route("/id", get(|| async { "x".repeat(64 * 1024 + 1) }))).await;
    assert!(
        cause(http(&format!("http://{addr}/id"), Path::new("")).unwrap().resolve(TIMEOUT).await)
            .contains("limit")
    );

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let resolver = http(&format!("http://{addr}/id"), Path::new("")).unwrap();
    let (answer, ()) = tokio::join!(resolver.resolve(TIMEOUT), async {
        for bytes in [&b"SSH-2.0\r\n"[..]] {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            stream.write_all(bytes).await.unwrap();
        }
    });
    cause(answer);
    let (answer, ()) =
        tokio::join!(resolver.resolve(TIMEOUT), async { drop(listener.accept().await.unwrap()) });
    cause(answer);
    drop(listener);
    assert!(cause(resolver.resolve(TIMEOUT).await).contains("refused"));
}

const CA: &[u8] = include_bytes!("testdata/ca.crt");
const SERVER: (&[u8], &[u8]) = (include_bytes!("testdata/server.crt"), include_bytes!("testdata/server.key"));
const CLIENT: (&[u8], &[u8]) = (include_bytes!("testdata/client.crt"), include_bytes!("testdata/client.key"));

/// A TLS server that answers each request with one peer, from clients with a certificate only.
async fn serve_tls() -> SocketAddr {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CA).unwrap()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(SERVER.0).unwrap()],
            PrivateKeyDer::from_pem_slice(SERVER.1).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _asked = stream.read(&mut [0; 1024]).await;
            let body = r#"[{"ID":"","Addrs":["/ip4/10.0.0.9/tcp/5001"]}]"#;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _gone = stream.write_all(answer.as_bytes()).await;
            let _gone = stream.shutdown().await;
        }
    });
    addr
}

#[tokio::test]
async fn certificates_are_used_and_wrong_ones_refused() {
    let addr = serve_tls().await;
    let url = format!("https://localhost:{}/id", addr.port());
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();

    // Only what the system trusts: not the test's authority.
    if let Ok(resolver) = http(&url, dir.path()) {
        cause(resolver.resolve(TIMEOUT).await);
    }
    put("ca.crt", CA);
    let resolver = http(&url, dir.path()).unwrap();
    cause(resolver.resolve(TIMEOUT).await);
    // Certificates are read at each attempt.
    put("tls.crt", CLIENT.0);
    assert!(http(&url, dir.path()).unwrap_err().to_string().contains("tls.key: missing"));
    put("tls.key", CLIENT.1);
    assert_eq!(found(resolver.resolve(TIMEOUT).await), ["10.0.0.9:5001"]);
    let other_name = http(&format!("https://127.0.0.2:{}/id", addr.port()), dir.path()).unwrap();
    cause(other_name.resolve(TIMEOUT).await);
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        let was = std::fs::read(dir.path().join(name)).unwrap();
        put(name, b"garbage");
        let message = http(&url, dir.path()).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
        put(name, &was);
    }
}
