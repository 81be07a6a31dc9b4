//! Keeps web pages out of a server that listens on this machine only.
//!
//! A page in a browser may point a name of its own at 127.0.0.1 and then read from here as if from its own server. The
//! Host header still carries that name, so requests with a name that is not this machine's are refused. A page may also
//! write here without reading the answer; the Origin header tells where such a page is from.

/// True when `host` (with or without a port) is a name of this machine.
pub(crate) fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// True when `origin` (`scheme://host:port`) is the site that `host` names.
pub(crate) fn is_same(origin: &[u8], host: &str) -> bool {
    let site = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    site.is_some_and(|site| site.eq_ignore_ascii_case(host.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for (host, local) in [
            ("localhost", true),
            ("LOCALHOST:8088", true),
            ("localhost.:8088", true),
            ("127.0.0.1:8088", true),
            ("127.0.0.1", true),
            ("[::1]:8088", true),
            ("[::1]", true),
            ("", false),
            ("evil.example:8088", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
            ("[::1", false),
            ("[2001:db8::1]:8088", false),
        ] {
            assert_eq!(is_local(host), local, "{host}");
        }
    }
}
