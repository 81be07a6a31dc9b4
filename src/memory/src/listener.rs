//! Which process listens on a port or a socket.
//!
//! The containers of a pod share their network; that they see each other's processes is for the deployer to allow.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::process::{all, folder, topmost};

/// How the server's process is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// It answers who dials this address and TCP port; the unspecified address is this machine's own, 127.0.0.1 or ::1.
    Port(IpAddr, u16),
    /// It listens on this Unix socket.
    Socket(PathBuf),
    /// It has this number.
    Pid(u32),
    /// Its program has this name.
    Named(String),
}

/// The sockets at which it is to be found, by inode; `None` where it is known by something else.
pub(crate) fn sockets(root: &Path, which: &Which) -> Option<BTreeSet<u64>> {
    let read = |path: &str| fs::read_to_string(root.join("proc").join(path)).unwrap_or_default();
    match which {
        Which::Pid(_) | Which::Named(_) => None,
        Which::Port(at, port) => {
            let all: Vec<_> = ["net/tcp", "net/tcp6"].iter().flat_map(|file| listening(&read(file), *port)).collect();
            Some(nearest(&all, *at))
        }
        Which::Socket(path) => Some(bound(&read("net/unix"), path).into_iter().collect()),
    }
}

/// The server's process now, which has one of `sockets` open where it is known by those. Where several fit, the one that
/// started the others. Looks at every process.
pub(crate) fn find(root: &Path, which: &Which, sockets: &BTreeSet<u64>) -> Option<u32> {
    match which {
        Which::Pid(pid) => folder(root, *pid).is_dir().then_some(*pid),
        Which::Named(name) => {
            let has_it = |pid: &u32| {
                let line = fs::read(folder(root, *pid).join("cmdline")).unwrap_or_default();
                let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
                Path::new(&*String::from_utf8_lossy(program)).file_name().is_some_and(|program| program == name.as_str())
            };
            let found: Vec<u32> = all(root).into_iter().filter(has_it).collect();
            topmost(root, &found)
        }
        Which::Port(..) | Which::Socket(_) => holder(root, sockets),
    }
}

/// Of sockets that listen, those that answer whoever dials this address: the ones that are bound to it, else those that are bound
/// to all addresses.
fn nearest(listening: &[(IpAddr, u64)], at: IpAddr) -> BTreeSet<u64> {
    let inodes = |fits: &dyn Fn(IpAddr) -> bool| -> BTreeSet<u64> {
        listening.iter().filter(|(address, _)| fits(*address)).map(|(_, inode)| *inode).collect()
    };
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let bound = inodes(&|address| address == at || at.is_unspecified() && own.contains(&address));
    if bound.is_empty() { inodes(&|address| address.is_unspecified()) } else { bound }
}

/// An address as the kernel's tables have it: words of 32 bits in hexadecimal, each in the machine's own order.
fn address(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> =
        (0..text.len() / 8).map(|at| u32::from_str_radix(text.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes)).collect();
    let bytes = words?.concat();
    if text.len() == 8 {
        return Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)));
    }
    let six = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
    Some(six.to_ipv4_mapped().map_or(IpAddr::V6(six), IpAddr::V4))
}

/// The sockets that listen on `port` by address and inode, from the lines of `/proc/net/tcp`.
fn listening(table: &str, port: u16) -> Vec<(IpAddr, u64)> {
    const LISTENS: &str = "0A";
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (host, local) = fields.get(1)?.rsplit_once(':')?;
        let fits = fields.get(3) == Some(&LISTENS) && u16::from_str_radix(local, 16) == Ok(port);
        fits.then(|| Some((address(host)?, fields.get(9)?.parse().ok()?))).flatten()
    };
    table.lines().filter_map(inode).collect()
}

/// The inodes of the sockets that listen at `path`, from the lines of `/proc/net/unix`.
fn bound(table: &str, path: &Path) -> Vec<u64> {
    const ACCEPTS: u32 = 0x1_0000;
    let inode = |line: &str| {
        let mut fields = line.splitn(8, ' ').map(str::trim);
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let rest = line.split_whitespace().skip(6).collect::<Vec<_>>();
        let (inode, name) = rest.split_first()?;
        (flags & ACCEPTS != 0 && Path::new(&name.join(" ")) == path).then(|| inode.parse().ok()).flatten()
    };
    table.lines().filter_map(inode).collect()
}

/// The process that has one of these sockets open.
fn holder(root: &Path, inodes: &BTreeSet<u64>) -> Option<u32> {
    if inodes.is_empty() {
        return None;
    }
    let has_one = |pid: &u32| {
        let open = fs::read_dir(folder(root, *pid).join("fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|link| {
            let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode| inodes.contains(&inode))
        })
    };
    let found: Vec<u32> = all(root).into_iter().filter(has_one).collect();
    topmost(root, &found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
        0: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1 0\n   \
        1: 0100007F:1F41 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 42 1 0\n   \
        2: 00000000:1F42 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 43 1 0\n   \
        3: 0200007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 44 1 0\n";
    const TCP6: &str = "  sl  local_address                         remote_address                        st\n   \
        0: 00000000000000000000000000000000:1F43 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 51 1 0\n   \
        1: 0000000000000000FFFF00000100007F:1F43 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 52 1 0\n   \
        2: 00000000000000000000000001000000:1F43 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 53 1 0\n";

    #[test]
    fn only_sockets_that_listen_at_the_place_count() {
        let at = |last| IpAddr::from([127, 0, 0, last]);
        assert_eq!(listening(TCP, 0x1F41), [(at(1), 41), (at(2), 44)]);
        assert_eq!(listening(TCP, 0x1F43), []);
        let unix = "Num RefCount Protocol Flags Type St Inode Path\n\
            00000000f47033e0: 00000002 00000000 00010000 0001 01 77 /run/a socket\n\
            00000000f47033e1: 00000003 00000000 00000000 0001 03 78 /run/a socket\n\
            00000000f47033e2: 00000002 00000000 00010000 0001 01 79 @abstract\n\
            00000000f47033e3: 00000002 00000000 00010000 0001 01 80\n";
        assert_eq!(bound(unix, Path::new("/run/a socket")), [77]);
        assert_eq!(bound(unix, Path::new("/run/a")), Vec::<u64>::new());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn of_two_servers_on_one_port_the_one_at_the_address_counts() {
        let all = |port| [listening(TCP, port), listening(TCP6, port)].concat();
        for (port, at, expected) in [
            (0x1F41, "127.0.0.1", &[41][..]),
            (0x1F41, "127.0.0.2", &[44]),
            (0x1F41, "127.0.0.3", &[]),
            (0x1F41, "0.0.0.0", &[41]),
            (0x1F42, "127.0.0.1", &[43]),
            (0x1F43, "127.0.0.1", &[52]),
            (0x1F43, "::1", &[53]),
            (0x1F43, "10.0.0.1", &[51]),
            (0x1F43, "0.0.0.0", &[52, 53]),
            (0x1F42, "0.0.0.0", &[43]),
        ] {
            let at: IpAddr = at.parse().expect("an address");
            assert_eq!(nearest(&all(port), at).into_iter().collect::<Vec<_>>(), expected, "{port:x} at {at}");
        }
        for damaged in ["", "0100007", "0100007F0", "é100007F", "xyzxyzxy"] {
            assert_eq!(address(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn the_process_that_started_the_others_is_the_server() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path();
        fs::create_dir_all(root.join("proc/net")).expect("writable");
        fs::write(root.join("proc/net/tcp"), TCP).expect("writable");
        for (pid, parent, socket, line) in
            [(30, 1, "socket:[41]", "/bin/server\0-v\0"), (31, 30, "socket:[41]", "/bin/server\0"), (9, 1, "/dev/null", "server-x\0")]
        {
            let folder = folder(root, pid);
            fs::create_dir_all(folder.join("fd")).expect("writable");
            std::os::unix::fs::symlink(socket, folder.join("fd/3")).expect("writable");
            fs::write(folder.join("cmdline"), line).expect("writable");
            fs::write(folder.join("stat"), format!("{pid} (s) S {parent} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 0")).expect("writable");
        }
        let local = IpAddr::from([127, 0, 0, 1]);
        for (which, expected) in [
            (Which::Port(local, 0x1F41), Some(30)),
            (Which::Port(local, 0x1F42), None),
            (Which::Named("server".to_owned()), Some(30)),
            (Which::Named("other".to_owned()), None),
            (Which::Pid(9), Some(9)),
            (Which::Pid(10), None),
            (Which::Socket("/run/none".into()), None),
        ] {
            let sockets = sockets(root, &which).unwrap_or_default();
            assert_eq!(find(root, &which, &sockets), expected, "{which:?}");
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a real socket is what is looked for")]
    fn this_process_is_found_by_its_own_sockets() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("s");
        let _unix = std::os::unix::net::UnixListener::bind(&path).expect("a new socket");
        let port = tcp.local_addr().expect("it is bound").port();
        let addresses = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0])];
        for which in addresses.map(|at| Which::Port(at, port)).into_iter().chain([Which::Socket(path)]) {
            let root = Path::new("/");
            let sockets = sockets(root, &which).expect("it is known by one");
            assert_eq!(find(root, &which, &sockets), Some(std::process::id()), "{which:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn no_table_makes_the_readers_panic(text in ".{0,200}") {
            let _ = (listening(&text, 1), bound(&text, Path::new("/a")), address(&text));
        }
    }
}
