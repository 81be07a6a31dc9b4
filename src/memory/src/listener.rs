//! Which process listens on a port or a socket.
//!
//! The containers of a pod share their network; that they see each other's processes is for the deployer to allow.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::process::{all, folder, topmost};

/// How the server's process is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// It listens on this TCP port.
    Port(u16),
    /// It listens on this Unix socket.
    Socket(PathBuf),
    /// It has this number.
    Pid(u32),
    /// Its program has this name.
    Named(String),
}

/// The server's process now. Where several fit, the one that started the others.
pub(crate) fn find(root: &Path, which: &Which) -> Option<u32> {
    let read = |path: &str| fs::read_to_string(root.join("proc").join(path)).unwrap_or_default();
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
        Which::Port(port) => {
            let inodes = ["net/tcp", "net/tcp6"].iter().flat_map(|file| listening(&read(file), *port)).collect();
            holder(root, &inodes)
        }
        Which::Socket(path) => holder(root, &bound(&read("net/unix"), path).into_iter().collect()),
    }
}

/// The inodes of the sockets that listen on `port`, from the lines of `/proc/net/tcp`.
fn listening(table: &str, port: u16) -> Vec<u64> {
    const LISTENS: &str = "0A";
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let fits = fields.get(3) == Some(&LISTENS) && u16::from_str_radix(local, 16) == Ok(port);
        fits.then(|| fields.get(9)?.parse().ok()).flatten()
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
fn holder(root: &Path, inodes: &HashSet<u64>) -> Option<u32> {
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
        2: 00000000:1F42 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 43 1 0\n";

    #[test]
    fn only_sockets_that_listen_at_the_place_count() {
        assert_eq!(listening(TCP, 0x1F41), [41]);
        assert_eq!(listening(TCP, 0x1F43), Vec::<u64>::new());
        let unix = "Num RefCount Protocol Flags Type St Inode Path\n\
            00000000f47033e0: 00000002 00000000 00010000 0001 01 77 /run/a socket\n\
            00000000f47033e1: 00000003 00000000 00000000 0001 03 78 /run/a socket\n\
            00000000f47033e2: 00000002 00000000 00010000 0001 01 79 @abstract\n\
            00000000f47033e3: 00000002 00000000 00010000 0001 01 80\n";
        assert_eq!(bound(unix, Path::new("/run/a socket")), [77]);
        assert_eq!(bound(unix, Path::new("/run/a")), Vec::<u64>::new());
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
        for (which, expected) in [
            (Which::Port(0x1F41), Some(30)),
            (Which::Port(0x1F42), None),
            (Which::Named("server".to_owned()), Some(30)),
            (Which::Named("other".to_owned()), None),
            (Which::Pid(9), Some(9)),
            (Which::Pid(10), None),
            (Which::Socket("/run/none".into()), None),
        ] {
            assert_eq!(find(root, &which), expected, "{which:?}");
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
        for which in [Which::Port(port), Which::Socket(path)] {
            assert_eq!(find(Path::new("/"), &which), Some(std::process::id()), "{which:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn no_table_makes_the_readers_panic(text in ".{0,200}") {
            let _ = (listening(&text, 1), bound(&text, Path::new("/a")));
        }
    }
}
