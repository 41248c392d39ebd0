//! Decides nothing about mirroring: says who may see the debug page. It names private images and who has
//! them, so that neighbours in the cluster, who all reach the metrics port, must not.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, StatusCode, header, uri::Authority};
use subtle::ConstantTimeEq as _;

use crate::distribution::hash;

/// Shortest token, in bytes. Shorter ones can be guessed by whoever reaches the port.
const TOKEN_BYTES_MIN: usize = 16;

/// Longest token, in bytes. Longer ones fit into no header.
const TOKEN_BYTES_MAX: usize = 1024;

/// What is said to those who may not see the page.
const HIDDEN: &str = "The debug page is shown to this machine (or pod) itself, under a name of its own: \
                      kubectl port-forward pod/<spegel pod> 9090, then http://localhost:9090/debug/web/. \
                      With --debug-web-token-file it is shown to whoever has the token.\n";

/// Who may see the page.
#[derive(Clone)]
pub enum Guard {
    /// Whoever asks from the same network namespace.
    Loopback,
    /// Whoever shows a token, from wherever. Its hash.
    Token([u8; 32]),
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error("token file {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is too short or too long.
    #[error(
        "token file {} must hold one word of {} to {} visible characters",
        path.display(), TOKEN_BYTES_MIN, TOKEN_BYTES_MAX
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
}

impl Guard {
    /// Asks for the token in a file; space around it does not count.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or holds no token.
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let content =
            fs::read(path).map_err(|source| TokenFileError::Read { path: path.to_owned(), source })?;
        let token = content.trim_ascii();
        let has_length = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len());
        if !has_length || !token.iter().all(u8::is_ascii_graphic) {
            return Err(TokenFileError::Content { path: path.to_owned() });
        }
        Ok(Self::Token(hash(token)))
    }

    /// Lets only those to `router` who may see what is there.
    pub fn protect(&self, router: Router) -> Router {
        router.route_layer(middleware::from_fn_with_state(self.clone(), check))
    }

    fn admits(&self, from: IpAddr, headers: &HeaderMap) -> Result<(), Refusal> {
        match self {
            // A page elsewhere can give its own name the address 127.0.0.1 and have a browser ask here.
            Self::Loopback if from.to_canonical().is_loopback() && is_asked_as_local(headers) => Ok(()),
            Self::Loopback => Err(Refusal::Hidden),
            // Hashes are compared, so that not even the length can be measured.
            Self::Token(known) if hash(&token(headers)).ct_eq(known).into() => Ok(()),
            Self::Token(_) => Err(Refusal::Unauthorized),
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "Loopback",
            Self::Token(_) => "Token",
        })
    }
}

/// Why somebody is not shown the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Hidden,
    Unauthorized,
}

/// Lets through only those who may see what is behind it.
async fn check(
    State(guard): State<Guard>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match guard.admits(from.ip(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(Refusal::Hidden) => (StatusCode::FORBIDDEN, HIDDEN).into_response(),
        Err(Refusal::Unauthorized) => {
            let challenge = HeaderValue::from_static("Basic realm=\"spegel debug page\", charset=\"UTF-8\"");
            let headers = [(header::WWW_AUTHENTICATE, challenge)];
            (StatusCode::UNAUTHORIZED, headers, "The token is asked for: as password, or as bearer token.\n")
                .into_response()
        }
    }
}

fn is_asked_as_local(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let host = authority.host();
    let ip = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || ip.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// What was shown: a bearer token, or the password of whatever user; empty if nothing.
fn token(headers: &HeaderMap) -> Vec<u8> {
    let sent = headers.get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
    let mut parts = sent.splitn(2, |byte| *byte == b' ');
    let (scheme, shown) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default().trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return shown.to_vec();
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Vec::new();
    }
    let pair = STANDARD.decode(shown).unwrap_or_default();
    pair.iter().position(|byte| *byte == b':').map_or_else(Vec::new, |colon| pair[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn only_loopback_asked_by_a_name_of_its_own_is_let_in() {
        let asked = |from: &str, host: &str| {
            Guard::Loopback.admits(from.parse().unwrap(), &headers(header::HOST, host)).is_ok()
        };
        for host in ["localhost", "LOCALHOST:9090", "127.0.0.1:9090", "[::1]:80"] {
            assert!(asked("127.0.0.1", host) && asked("::1", host), "{host}");
            assert!(asked("::ffff:127.0.0.1", host), "{host}");
            assert!(!asked("10.0.0.7", host) && !asked("fe80::1", host), "{host}");
            assert!(!asked("::ffff:10.0.0.7", host), "{host}");
        }
        for host in ["rebound.example", "10.0.0.1:9090", "localhost.example", "[::2]", "[::1", "", "a b"] {
            assert!(!asked("127.0.0.1", host), "{host}");
        }
        assert!(Guard::Loopback.admits("127.0.0.1".parse().unwrap(), &HeaderMap::new()).is_err());
    }

    #[test]
    fn only_who_has_the_token_is_let_in_if_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, format!("{TOKEN}\n")).unwrap();
        let guard = Guard::read(&path).unwrap();
        let shown =
            |header: &str| guard.admits("10.0.0.7".parse().unwrap(), &headers(header::AUTHORIZATION, header));
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for right in
            [format!("Bearer {TOKEN}"), format!("bearer  {TOKEN}"), basic(&format!("anyone:{TOKEN}"))]
        {
            assert_eq!(shown(&right), Ok(()), "{right}");
        }
        for wrong in [
            "Bearer 0123456789abcdeg".to_owned(),
            format!("Bearer {TOKEN}0"),
            "Bearer".to_owned(),
            basic(TOKEN),
            basic(&format!("{TOKEN}:")),
            "Basic ***".to_owned(),
            format!("Token {TOKEN}"),
        ] {
            assert_eq!(shown(&wrong), Err(Refusal::Unauthorized), "{wrong}");
        }
        let local = guard.admits("127.0.0.1".parse().unwrap(), &headers(header::HOST, "localhost"));
        assert_eq!(
            local,
            Err(Refusal::Unauthorized),
            "a proxy beside the program asks from loopback for all"
        );
    }

    #[test]
    fn tokens_that_can_be_guessed_or_sent_by_nobody_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (content, is_right) in [
            ("a".repeat(TOKEN_BYTES_MIN), true),
            ("a".repeat(TOKEN_BYTES_MIN - 1), false),
            ("a".repeat(TOKEN_BYTES_MAX), true),
            ("a".repeat(TOKEN_BYTES_MAX + 1), false),
            (String::new(), false),
            ("two words of a token".to_owned(), false),
        ] {
            fs::write(&path, &content).unwrap();
            assert_eq!(Guard::read(&path).is_ok(), is_right, "{content}");
        }
        assert!(matches!(Guard::read(&dir.path().join("missing")), Err(TokenFileError::Read { .. })));
    }
}
