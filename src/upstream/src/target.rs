//! Where a server listens, as people write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use berth_telemetry::Peer;
use http::uri::Authority;

/// The longest path that the file of a Unix socket can have.
const LONGEST_PATH: usize = 107;

/// Where a server listens: `host:port`, `http://host:port`, `port:8085` (on this host), `unix:/path` or `/path`.
///
/// Prints as `host:port` or `unix:/path`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target(Arc<Place>);

#[derive(PartialEq, Eq, Hash)]
struct Place {
    peer: Peer,
    /// What calls carry as `:authority`.
    authority: Authority,
}

/// Why a text names no server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no server: {why}; write host:port, http://host:port, unix:/path or /path")]
pub struct TargetError {
    text: String,
    why: &'static str,
}

impl Target {
    /// Where to connect.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.0.authority
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        parse(text.trim()).map(|place| Target(Arc::new(place))).map_err(|why| TargetError { text: text.to_owned(), why })
    }
}

fn parse(text: &str) -> Result<Place, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(path.strip_prefix("//").unwrap_or(path));
    }
    if text.starts_with('/') {
        return unix(text);
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return match scheme.to_ascii_lowercase().as_str() {
            "http" => tcp(rest.strip_suffix('/').unwrap_or(rest)),
            "https" | "grpcs" => Err("servers are called in plain text only"),
            _ => Err("the scheme is not http"),
        };
    }
    if let Some(port) = text.strip_prefix("port:") {
        return tcp(&format!("localhost:{port}"));
    }
    tcp(text)
}

fn unix(path: &str) -> Result<Place, &'static str> {
    if !path.starts_with('/') {
        return Err("the path of a Unix socket must be absolute");
    }
    if path.contains('\0') {
        return Err("the path has a null byte");
    }
    if path.len() > LONGEST_PATH {
        return Err("the path of a Unix socket has more than 107 bytes");
    }
    Ok(Place { peer: Peer::Unix(PathBuf::from(path)), authority: Authority::from_static("localhost") })
}

fn tcp(text: &str) -> Result<Place, &'static str> {
    if text.contains(['/', '?', '#']) {
        return Err("there is something after the port");
    }
    if text.contains('@') {
        return Err("it has a user");
    }
    let Some((host, port)) = text.rsplit_once(':') else { return Err("it has no port") };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("the port is not a number");
    }
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or("the port is not between 1 and 65535")?;
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let bare = inside.unwrap_or(host);
    if bare.is_empty() {
        return Err("it has no host");
    }
    match inside {
        Some(address) if address.parse::<std::net::Ipv6Addr>().is_err() => return Err("what is in brackets is no IPv6 address"),
        None if host.contains(':') => return Err("an IPv6 address must be in brackets"),
        Some(_) | None => {}
    }
    let authority = Authority::try_from(text).map_err(|_| "the host is no name")?;
    Ok(Place { peer: Peer::Tcp { host: bare.to_owned(), port }, authority })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.peer {
            Peer::Tcp { .. } => fmt::Display::fmt(&self.0.authority, f),
            Peer::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_prints_in_one_form_however_it_was_written() {
        for (text, printed) in [
            ("localhost:8085", "localhost:8085"),
            (" 10.0.0.1:1 ", "10.0.0.1:1"),
            ("[::1]:8085", "[::1]:8085"),
            ("http://runtime.pod:65535", "runtime.pod:65535"),
            ("HTTP://a:80/", "a:80"),
            ("port:8085", "localhost:8085"),
            ("unix:/tmp/mmesh/grpc.sock", "unix:/tmp/mmesh/grpc.sock"),
            ("unix:///tmp/mmesh/grpc.sock", "unix:/tmp/mmesh/grpc.sock"),
            ("/tmp/grpc.sock", "unix:/tmp/grpc.sock"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), printed, "{text}");
            assert_eq!(target.to_string().parse(), Ok(target), "{text}: what is printed can be read");
        }
        let six: Target = "[::1]:8085".parse().unwrap();
        assert_eq!(six.peer(), &Peer::Tcp { host: "::1".to_owned(), port: 8085 }, "without brackets for the system");
    }

    #[test]
    fn what_names_no_server_is_refused_with_the_reason() {
        let long = format!("unix:/{}", "x".repeat(107));
        for (text, why) in [
            ("", "empty"),
            ("localhost", "no port"),
            ("localhost:", "between 1 and 65535"),
            ("localhost:http", "not a number"),
            ("localhost:+80", "not a number"),
            ("localhost:0", "between 1 and 65535"),
            ("localhost:65536", "between 1 and 65535"),
            (":8085", "no host"),
            ("::1:8085", "in brackets"),
            ("[::g]:8085", "no IPv6 address"),
            ("a b:8085", "no name"),
            ("user@host:1", "a user"),
            ("http://host:1/path", "after the port"),
            ("https://host:1", "plain text"),
            ("ftp://host:1", "scheme"),
            ("unix:grpc.sock", "absolute"),
            ("unix:", "absolute"),
            ("unix://relative/grpc.sock", "absolute"),
            (long.as_str(), "107"),
        ] {
            let fault = text.parse::<Target>().unwrap_err().to_string();
            assert!(fault.contains(why) && fault.contains("write host:port"), "{text}: {fault}");
        }
    }
}
