//! Who may use the API: whoever is on this machine, or whoever knows a token.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use berth_telemetry::Host;
use http::HeaderMap;
use http::Uri;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::failure::Failure;

/// Who may use the API.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// Everybody on this machine: the socket must have a loopback address, and requests must be for a name of this machine
    /// and not come from another site's page in a browser.
    #[default]
    Loopback,
    /// Everybody who sends `Authorization: Bearer` with the token that the channel holds at that moment.
    Token(watch::Receiver<Token>),
}

/// The secret of an API that can be reached from elsewhere.
#[derive(Clone)]
pub struct Token(Arc<str>);

/// A text that cannot be sent in a header as a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidToken;

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the token must be visible ASCII characters without blanks, at least one")
    }
}

impl std::error::Error for InvalidToken {}

impl Token {
    /// A token as it stands in a file or variable; blanks and line ends around it are not part of it.
    ///
    /// # Errors
    /// [`InvalidToken`].
    pub fn new(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) { Err(InvalidToken) } else { Ok(Token(text.into())) }
    }

    /// The token itself, to be sent and never to be shown.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// Takes as long for a wrong token as for the right one of the same length; the length itself is no secret.
    fn is_equal(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.is_equal(other.0.as_bytes())
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The API could be reached from elsewhere, and nothing would ask who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unprotected(SocketAddr);

impl fmt::Display for Unprotected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the resource API on {} can be reached from elsewhere: give it a token or a loopback address", self.0)
    }
}

impl std::error::Error for Unprotected {}

impl Access {
    /// Access with a token that never changes.
    #[must_use]
    pub fn token(token: Token) -> Self {
        Access::Token(watch::channel(token).1)
    }

    /// Refuses a socket that others could reach while nothing asks them who they are.
    pub(crate) fn check_socket(&self, addr: SocketAddr) -> Result<(), Unprotected> {
        match self {
            Access::Loopback if !addr.ip().is_loopback() => Err(Unprotected(addr)),
            Access::Loopback | Access::Token(_) => Ok(()),
        }
    }

    /// `changes`: the request wants to change something.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap, changes: bool) -> Result<(), Failure> {
        match self {
            Access::Token(token) => {
                let Some(header) = headers.get(AUTHORIZATION) else { return Err(Failure::without_token()) };
                let right = bearer(header.as_bytes()).is_some_and(|given| token.borrow().is_equal(given));
                if right { Ok(()) } else { Err(Failure::wrong_token()) }
            }
            Access::Loopback => check_local(uri, headers, changes),
        }
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn check_local(uri: &Uri, headers: &HeaderMap, changes: bool) -> Result<(), Failure> {
    // HTTP/2 has the authority of the target instead of the header.
    let header = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(http::uri::Authority::as_str).or(header).unwrap_or_default();
    if !Host::of(host).is_some_and(Host::is_local) {
        let host: String = host.chars().take(80).collect();
        return Err(Failure::forbidden(format!(
            "this server listens on a loopback address and answers for localhost only, not for {host:?}: \
             call it localhost, or give it a token"
        )));
    }
    // A page of any site may send some kinds of POST here without asking first; browsers say where the page is from.
    match headers.get(ORIGIN) {
        Some(origin) if changes && !is_same(origin.as_bytes(), host) => {
            Err(Failure::forbidden("a page of another site may not change anything here"))
        }
        Some(_) | None => Ok(()),
    }
}

/// True when `origin` (`scheme://host:port`) is the site that `host` names.
fn is_same(origin: &[u8], host: &str) -> bool {
    let site = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    site.is_some_and(|site| site.eq_ignore_ascii_case(host.as_bytes()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_token_is_asked_for_in_one_form_only() {
        let access = Access::token(Token::new(" s3cret\n").unwrap());
        for (header, fine) in [
            ("Bearer s3cret", true),
            ("bearer  s3cret ", true),
            ("Bearer s3cre", false),
            ("Bearer s3cretx", false),
            ("Bearer S3cret", false),
            ("Bearer ", false),
            ("Bearer", false),
            ("s3cret", false),
            ("Basic s3cret", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(header))]);
            assert_eq!(access.check(&Uri::from_static("http://far.example/"), &headers, true).is_ok(), fine, "{header:?}");
        }
        assert!(access.check(&Uri::from_static("/"), &HeaderMap::new(), false).is_err());
    }

    #[test]
    fn a_token_is_not_printed_and_not_every_text_is_one() {
        let shown = format!("{:?}", Access::token(Token::new("s3cret").unwrap()));
        assert!(shown.contains("Token(..)") && !shown.contains("s3cret"), "{shown}");
        for text in ["", "  ", "a b", "ä", "a\u{7f}"] {
            assert_eq!(Token::new(text).err(), Some(InvalidToken), "{text:?}");
        }
    }

    #[test]
    fn a_new_token_takes_the_place_of_the_one_before_at_once() {
        let (sender, receiver) = watch::channel(Token::new("old").unwrap());
        let access = Access::Token(receiver);
        let lets_in = |token: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}")).unwrap())]);
            access.check(&Uri::from_static("/"), &headers, true).is_ok()
        };
        assert_eq!((lets_in("old"), lets_in("new")), (true, false));
        sender.send_replace(Token::new("new").unwrap());
        assert_eq!((lets_in("old"), lets_in("new")), (false, true));
    }

    #[test]
    fn without_a_token_only_a_loopback_socket_will_do() {
        for (addr, token, fine) in [
            ("127.0.0.1:1", false, true),
            ("[::1]:1", false, true),
            ("0.0.0.0:1", false, false),
            ("10.0.0.1:1", false, false),
            ("0.0.0.0:1", true, true),
        ] {
            let access = if token { Access::token(Token::new("x").unwrap()) } else { Access::Loopback };
            assert_eq!(access.check_socket(addr.parse().unwrap()).is_ok(), fine, "{addr}");
        }
    }

    #[test]
    fn whoever_was_led_here_by_another_name_is_refused() {
        for (host, fine) in
            [("localhost:8088", true), ("[::1]", true), ("evil.example:8088", false), ("10.0.0.1", false), ("[::1", false), ("me@localhost", false)]
        {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            assert_eq!(Access::Loopback.check(&Uri::from_static("/"), &headers, false).is_ok(), fine, "{host}");
        }
        assert!(Access::Loopback.check(&Uri::from_static("/"), &HeaderMap::new(), false).is_err(), "nobody is named");
    }

    #[test]
    fn a_page_of_another_site_changes_nothing() {
        for (origin, changes, fine) in [
            (None, true, true),
            (Some("http://localhost:8088"), true, true),
            (Some("https://evil.example"), true, false),
            (Some("http://localhost:3000"), true, false),
            (Some("null"), true, false),
            (Some("https://evil.example"), false, true),
        ] {
            let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("localhost:8088"))]);
            headers.extend(origin.map(|origin| (ORIGIN, HeaderValue::from_static(origin))));
            assert_eq!(Access::Loopback.check(&Uri::from_static("/"), &headers, changes).is_ok(), fine, "{origin:?}");
        }
    }
}
