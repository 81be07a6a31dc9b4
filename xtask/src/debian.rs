//! Programs that Debian has built already: fetched with its own client and unpacked, without being root and without
//! changing what is installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::install::{gently, logged};

/// The release that packages come from, such as `debian-12`. Within it there is one version of a package, but for
/// corrections, so this stands for the version.
pub(crate) fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release, which names the release of Debian")?;
    Ok(release_in(&text))
}

fn release_in(text: &str) -> String {
    let value = |key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or("unknown").trim_matches(['"', '\'']).to_owned()
    };
    format!("{}-{}", value("ID"), value("VERSION_ID"))
}

/// Fetches `packages` and unpacks them into `place`; what they depend on is taken from the machine.
pub(crate) fn unpack(packages: &[&str], place: &Path, log: &Path) -> Result<()> {
    let unpacked = fetch(&["download"], packages, place, log)?;
    ensure!(unpacked == packages.len(), "{unpacked} packages came of {}: {}", packages.len(), packages.join(", "));
    Ok(())
}

/// The same with all that they depend on and the machine lacks.
pub(crate) fn unpack_whole(packages: &[&str], place: &Path, log: &Path) -> Result<()> {
    // Nothing is installed, so nobody is to be kept from installing.
    fetch(&["install", "--download-only", "--yes", "--no-install-recommends", "-o", "Debug::NoLocking=1"], packages, place, log).map(drop)
}

/// Has the client get `packages` by `command`, and unpacks what it got. How many there were.
fn fetch(command: &[&str], packages: &[&str], place: &Path, log: &Path) -> Result<usize> {
    let work = place.join("debian");
    // Lists of its own: the machine's may be missing or too old, and only root may bring them up to date.
    let (lists, archives) = (work.join("lists"), work.join("cache"));
    for folder in [lists.join("partial"), archives.join("archives/partial")] {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let apt = |command: &[&str]| {
        let mut apt = gently("apt-get");
        apt.arg("-o").arg(format!("Dir::State::Lists={}", lists.display())).arg("-o").arg(format!("Dir::Cache={}", archives.display()));
        // Otherwise it warns that another user, which it takes on as root, cannot read these folders.
        apt.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none", "--quiet"]).args(command).current_dir(&work);
        apt
    };
    logged(&mut apt(&["update"]), log)?;
    logged(apt(command).args(packages), log)?;
    let mut unpacked = 0;
    // It lays what it downloads where it stands, and what it would install in its cache.
    for entry in fs::read_dir(&work)?.chain(fs::read_dir(archives.join("archives"))?) {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            logged(Command::new("dpkg").arg("--extract").arg(&path).arg(place), log)?;
            unpacked += 1;
        }
    }
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_with_and_without_quotes() {
        for (text, expected) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\n", "debian-12"),
            ("ID=ubuntu\nID_LIKE=debian\nVERSION_ID='24.04'\n", "ubuntu-24.04"),
            ("", "unknown-unknown"),
        ] {
            assert_eq!(release_in(text), expected);
        }
    }
}
