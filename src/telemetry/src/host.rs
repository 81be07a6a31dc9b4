//! Whose name a request was led here by, as its `Host` header says.
//!
//! A page in a browser may point a name of its own at any address and then read from there as if from its own server. The header
//! still carries that name, so a server that no page should reach answers for addresses and `localhost` only.

use std::net::IpAddr;

use http::uri::Authority;

/// What a `Host` header, or the authority of an HTTP/2 request, names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// `localhost`.
    Localhost,
    /// An address.
    Address(IpAddr),
    /// Any other name.
    Name,
}

impl Host {
    /// Of `text`, with or without a port; `None` where it names nothing that a client could have meant.
    #[must_use]
    pub fn of(text: &str) -> Option<Host> {
        let authority: Authority = text.parse().ok()?;
        let host = authority.host();
        // Of what stands around the host only a port may be there: no user, nothing that is no number.
        if authority.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")) != text {
            return None;
        }
        if let Some(inside) = host.strip_prefix('[') {
            return inside.strip_suffix(']')?.parse().ok().map(|address| Host::Address(IpAddr::V6(address)));
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        if name.is_empty() {
            return None;
        }
        Some(match name.parse() {
            Ok(address) => Host::Address(address),
            Err(_) if name.eq_ignore_ascii_case("localhost") => Host::Localhost,
            Err(_) => Host::Name,
        })
    }

    /// Whether it is this machine, whichever that is.
    #[must_use]
    pub fn is_local(self) -> bool {
        match self {
            Host::Localhost => true,
            Host::Address(address) => address.is_loopback(),
            Host::Name => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_localhost_an_address_or_some_name_and_what_cannot_be_read_is_none() {
        let address = |text: &str| Some(Host::Address(text.parse().unwrap()));
        for (text, host) in [
            ("localhost", Some(Host::Localhost)),
            ("LOCALHOST:8088", Some(Host::Localhost)),
            ("localhost.:8088", Some(Host::Localhost)),
            ("127.0.0.1:8088", address("127.0.0.1")),
            ("127.0.0.1", address("127.0.0.1")),
            ("10.0.0.1", address("10.0.0.1")),
            ("[::1]:8088", address("::1")),
            ("[::1]", address("::1")),
            ("[2001:db8::1]:8088", address("2001:db8::1")),
            ("evil.example:8088", Some(Host::Name)),
            ("localhost.evil.example", Some(Host::Name)),
            ("127.0.0.1.evil.example", Some(Host::Name)),
            ("", None),
            (".", None),
            (":8088", None),
            ("[::1", None),
            ("::1", None),
            ("[::1]x", None),
            ("[localhost]", None),
            ("localhost:x", None),
            ("localhost:99999", None),
            ("evil.example@localhost", None),
            ("localhost@evil.example", None),
            ("localhost/x", None),
            ("localhost evil.example", None),
        ] {
            assert_eq!(Host::of(text), host, "{text:?}");
        }
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for (text, local) in
            [("localhost", true), ("127.9.9.9:1", true), ("[::1]:1", true), ("10.0.0.1", false), ("[2001:db8::1]", false), ("evil.example", false)]
        {
            assert_eq!(Host::of(text).is_some_and(Host::is_local), local, "{text}");
        }
    }
}
