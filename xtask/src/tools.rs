//! Programs that must be on the machine already, because installing or testing starts from them.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// A program that must be there already: how to ask for it, why, and its Debian package.
pub(crate) struct Tool {
    name: &'static str,
    ask: &'static [&'static str],
    needed_for: &'static str,
    package: &'static str,
}

/// Says yes to Go 1.24 and newer.
const IS_GO: &str = "case $(go env GOVERSION) in go1.2[4-9]* | go1.[3-9][0-9]*) ;; *) exit 1 ;; esac";
const IS_PYTHON: &str = "import sys; sys.exit(sys.version_info < (3, 11))";
const IS_LIBPYTHON: &str = "import ctypes, sysconfig; ctypes.CDLL(sysconfig.get_config_var('INSTSONAME'))";
const IS_NODE: &str = "process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)";

const IS_JAVA: &str = "case $(java -version 2>&1) in *'version \"1'[7-9]* | *'version \"'[2-9]*) ;; *) exit 1 ;; esac";

const CC: Tool = Tool { name: "cc", ask: &["cc", "--version"], needed_for: "compile C and assembly of dependencies", package: "gcc libc6-dev" };
const CURL: Tool = Tool { name: "curl", ask: &["curl", "--version"], needed_for: "test as a user would call", package: "curl" };
const GIT: Tool = Tool { name: "git", ask: &["git", "--version"], needed_for: "fetch the advisory database", package: "git" };
const GO: Tool = Tool { name: "go, 1.24 or newer", ask: &["sh", "-c", IS_GO], needed_for: "build servers and clients", package: "golang-go" };
const PYTHON: Tool = Tool { name: "python3, 3.11 or newer", ask: &["python3", "-c", IS_PYTHON], needed_for: "run the clients", package: "python3" };
const VENV: Tool =
    Tool { name: "python3's venv", ask: &["python3", "-c", "import venv, ensurepip"], needed_for: "install the clients", package: "python3-venv" };
const LIBPYTHON: Tool = Tool {
    name: "python3's shared library",
    ask: &["python3", "-c", IS_LIBPYTHON],
    needed_for: "run Triton's Python backend",
    package: "libpython3-dev",
};
const NODE: Tool = Tool { name: "node, 18 or newer", ask: &["node", "-e", IS_NODE], needed_for: "run the Azure server", package: "nodejs" };
const NPM: Tool = Tool { name: "npm", ask: &["npm", "--version"], needed_for: "install the Azure server", package: "npm" };
const APT: Tool = Tool { name: "apt-get", ask: &["apt-get", "--version"], needed_for: "fetch ready-built programs", package: "apt" };
const DPKG: Tool = Tool { name: "dpkg", ask: &["dpkg", "--version"], needed_for: "unpack ready-built programs", package: "dpkg" };
const JAVA: Tool = Tool { name: "java, 17 or newer", ask: &["sh", "-c", IS_JAVA], needed_for: "run TorchServe", package: "openjdk-17-jre-headless" };
const DEBIAN_PYTHON: Tool = Tool {
    name: "Debian's python3 and venv",
    ask: &["/usr/bin/python3", "-c", "import venv, ensurepip"],
    needed_for: "run TorchServe's workers",
    package: "python3 python3-venv",
};
const UNSHARE: Tool = Tool { name: "unshare", ask: &["unshare", "--version"], needed_for: "test with a disk that is full", package: "util-linux" };

/// What the real lane starts from.
pub(crate) const FOR_TESTS: [Tool; 14] = [CC, CURL, GIT, GO, PYTHON, VENV, LIBPYTHON, NODE, NPM, JAVA, DEBIAN_PYTHON, APT, DPKG, UNSHARE];
/// What the download bench starts from.
pub(crate) const FOR_BENCHES: [Tool; 6] = [CC, GO, PYTHON, VENV, APT, DPKG];

/// Checks that every one of `tools` is there, for `user`, who is told what else would do.
///
/// # Errors
/// One message that names all that are missing, with their packages.
pub(crate) fn require(tools: &[Tool], user: &str) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !answers(tool.ask)).collect();
    if missing.is_empty() { Ok(()) } else { bail!(message(&missing, user)) }
}

fn answers(ask: &[&str]) -> bool {
    let asked = Command::new(ask[0]).args(&ask[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

fn message(missing: &[&Tool], user: &str) -> String {
    let mut text = format!("{user}:");
    for tool in missing {
        text += &format!("\n  {:<22} to {}; Debian: {}", tool.name, tool.needed_for, tool.package);
    }
    let packages: BTreeSet<&str> = missing.iter().flat_map(|tool| tool.package.split(' ')).collect();
    text + &format!("\non Debian: apt-get install {}", packages.into_iter().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_names_every_missing_tool_and_each_package_once() {
        let text = message(&FOR_TESTS.iter().collect::<Vec<_>>(), "tests need tools");
        for tool in &FOR_TESTS {
            assert!(text.contains(tool.name) && text.contains(tool.package), "{} in {text}", tool.name);
        }
        let all = "apt-get install apt curl dpkg gcc git golang-go libc6-dev libpython3-dev nodejs npm openjdk-17-jre-headless python3 python3-venv util-linux";
        assert!(text.starts_with("tests need tools:\n") && text.ends_with(all), "{text}");
    }

    #[test]
    fn a_program_that_is_not_there_does_not_answer() {
        assert!(answers(&["true"]) && !answers(&["false"]) && !answers(&["no-program-is-called-this"]));
    }
}
