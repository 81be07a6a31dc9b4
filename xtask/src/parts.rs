//! The real servers and clients that the whole-system tests talk to: installed once, found again.
//!
//! Each part is a folder of its own in the cache, named by what is in it and its version. It is built beside its place
//! and renamed into it, so a folder that is there is whole. Installs hold a lock: two runs do not build the same thing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::group::{End, Group, now};
use crate::say;
use crate::step::{Step, cargo, root};

const VERSITYGW: &str = "1.8.0";
const CARGO_DENY: &str = "0.20.2";
/// Python packages of the tests, with versions.
const REQUIREMENTS: &str = include_str!("../../tests/requirements.txt");

/// The longest that one command of an installation may take, beside compilers on two cores.
const INSTALLING: Duration = Duration::from_mins(30);
/// The longest that fetching the advisory database may take.
const FETCHING: Duration = Duration::from_mins(2);

/// What is installed, and where.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    folder: PathBuf,
    versitygw: PathBuf,
    python: PathBuf,
    onnx_library: PathBuf,
    cargo_deny: PathBuf,
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n== parts in {}", self.folder.display())?;
        [&self.versitygw, &self.python, &self.onnx_library, &self.cargo_deny]
            .iter()
            .try_for_each(|path| write!(f, "\n   {}", path.strip_prefix(&self.folder).unwrap_or(path).display()))
    }
}

/// A program that must be there already: how to ask for it, why, and its Debian package.
struct Tool {
    name: &'static str,
    ask: &'static [&'static str],
    needed_for: &'static str,
    package: &'static str,
}

/// Says yes to Go 1.24 and newer.
const GO: &str = "case $(go env GOVERSION) in go1.2[4-9]* | go1.[3-9][0-9]*) ;; *) exit 1 ;; esac";
const PYTHON: &str = "import sys; sys.exit(sys.version_info < (3, 11))";

const TOOLS: [Tool; 6] = [
    Tool { name: "cc", ask: &["cc", "--version"], needed_for: "compile C and assembly of dependencies", package: "gcc libc6-dev" },
    Tool { name: "curl", ask: &["curl", "--version"], needed_for: "test as a user would call", package: "curl" },
    Tool { name: "git", ask: &["git", "--version"], needed_for: "fetch the advisory database", package: "git" },
    Tool { name: "go, 1.24 or newer", ask: &["sh", "-c", GO], needed_for: "build the S3 server", package: "golang-go" },
    Tool { name: "python3, 3.11 or newer", ask: &["python3", "-c", PYTHON], needed_for: "run the clients", package: "python3" },
    Tool { name: "python3's venv", ask: &["python3", "-c", "import venv, ensurepip"], needed_for: "install the clients", package: "python3-venv" },
];

/// Checks that every tool is there that installing needs.
///
/// # Errors
/// One message that names all that are missing, with their packages.
pub(crate) fn require_tools() -> Result<()> {
    let missing: Vec<&Tool> = TOOLS.iter().filter(|tool| !answers(tool.ask)).collect();
    if missing.is_empty() { Ok(()) } else { bail!(missing_message(&missing)) }
}

fn answers(ask: &[&str]) -> bool {
    let asked = Command::new(ask[0]).args(&ask[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

fn missing_message(missing: &[&Tool]) -> String {
    let mut text = "the real lane needs tools that are not here (cargo xtask test --quick needs none of them):".to_owned();
    for tool in missing {
        text += &format!("\n  {:<22} to {}; Debian: {}", tool.name, tool.needed_for, tool.package);
    }
    let packages: BTreeSet<&str> = missing.iter().map(|tool| tool.package).collect();
    text + &format!("\non Debian: apt-get install {}", packages.into_iter().collect::<Vec<_>>().join(" "))
}

/// `~/.cache/berth/parts`, or what BERTH_PARTS names.
fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("BERTH_PARTS") {
        return std::path::absolute(folder).context("BERTH_PARTS");
    }
    let home = std::env::var_os("HOME").context("neither BERTH_PARTS nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/berth/parts"))
}

/// FNV-1a: the same on every machine and with every compiler, which is all that a folder's name needs.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Parts {
    /// Installs what is missing and says where everything is.
    pub(crate) fn install() -> Result<Parts> {
        require_tools()?;
        let folder = cache()?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(folder.join("lock")).context("cannot make the lock file")?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            say("parts: another run is installing, waiting for it");
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("cannot lock the parts folder")?;
        }
        let versitygw = part(&folder, &format!("versitygw-{VERSITYGW}"), |place, log| {
            let package = format!("github.com/versity/versitygw/cmd/versitygw@v{VERSITYGW}");
            let mut go = gently("go");
            go.args(["install", "-trimpath", "-ldflags", "-s -w", &package]);
            go.env("GOBIN", place).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false");
            logged(&mut go, log)
        })?;
        let version = Command::new("python3").arg("--version").output().context("cannot run python3")?;
        let python = fingerprint(&format!("{REQUIREMENTS}{}", String::from_utf8_lossy(&version.stdout)));
        let python = part(&folder, &format!("py-{python:016x}"), |place, log| {
            logged(gently("python3").args(["-m", "venv"]).arg(place), log)?;
            let mut pip = gently(place.join("bin/python"));
            pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r"]).arg(root().join("tests/requirements.txt"));
            logged(&mut pip, log)
        })?;
        let deny = part(&folder, &format!("cargo-deny-{CARGO_DENY}"), |place, log| {
            let mut install = gently(cargo());
            // Outside the repository, so that its settings do not reach in.
            install.current_dir(&folder).args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--root"]).arg(place);
            logged(&mut install, log)
        })?;
        Ok(Parts {
            onnx_library: onnx_library(&python)?,
            versitygw: versitygw.join("versitygw"),
            python: python.join("bin/python"),
            cargo_deny: deny.join("bin/cargo-deny"),
            folder,
        })
    }

    /// A run of cargo-deny.
    pub(crate) fn deny(&self, args: &[&str]) -> Step {
        Step::program("deny", &self.cargo_deny).args(args)
    }

    /// True when the advisory database could be fetched; that host is not reachable from everywhere.
    pub(crate) fn have_advisories(&self) -> bool {
        let log = self.folder.join("advisories.log");
        let mut fetch = Command::new(&self.cargo_deny);
        fetch.args(["fetch", "db"]).current_dir(root());
        logged_within(FETCHING, &mut fetch, &log).is_ok()
    }

    /// The variables that tell the whole-system tests where things are.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 5] {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        [
            ("BERTH_BIN", target.join("release/berth")),
            ("BERTH_PARTS", self.folder.clone()),
            ("BERTH_ONNX_LIBRARY", self.onnx_library.clone()),
            ("BERTH_PYTHON", self.python.clone()),
            ("BERTH_VERSITYGW", self.versitygw.clone()),
        ]
    }
}

/// The folder of the part `name`, built by `build` when it is not there. `build` is given a folder to fill and a log.
fn part(cache: &Path, name: &str, build: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
    let place = cache.join(name);
    if place.is_dir() {
        return Ok(place);
    }
    let log = cache.join(format!("{name}.log"));
    say(&format!("parts: installing {name}, log in {}", log.display()));
    File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let unfinished = cache.join(format!("{name}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context("cannot remove what an interrupted install left")?;
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
    build(&unfinished, &log).with_context(|| format!("cannot install {name}; its log is {}", log.display()))?;
    fs::rename(&unfinished, &place).with_context(|| format!("cannot rename {}", unfinished.display()))?;
    say(&format!("parts: {name} is installed"));
    Ok(place)
}

/// A program that leaves the cores to the tests and compilers that run at the same time.
fn gently(program: impl AsRef<OsStr>) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "10"]).arg(program);
    nice
}

/// Runs `command` with all it writes going to the end of `log`.
fn logged(command: &mut Command, log: &Path) -> Result<()> {
    logged_within(INSTALLING, command, log)
}

fn logged_within(limit: Duration, command: &mut Command, log: &Path) -> Result<()> {
    let out = File::options().append(true).create(true).open(log).with_context(|| format!("cannot write {}", log.display()))?;
    let errors = out.try_clone().context("cannot share the log")?;
    match Group::start(command.stdin(Stdio::null()).stdout(out).stderr(errors))?.wait(Some(now() + limit), |_| Ok(()))? {
        End::By(status) => ensure!(status.success(), "{command:?} failed: {status}"),
        End::OutOfTime => bail!("{command:?} was killed after {} min", limit.as_secs() / 60),
    }
    Ok(())
}

/// ONNX Runtime's shared library inside the Python package.
fn onnx_library(python: &Path) -> Result<PathBuf> {
    let mut folders = vec![python.join("lib")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("libonnxruntime.so") || name.starts_with("libonnxruntime.") && name.ends_with(".dylib") {
                return Ok(path);
            }
            let on_the_way = name.starts_with("python3") || ["site-packages", "onnxruntime", "capi"].contains(&&*name);
            if on_the_way && path.is_dir() {
                folders.push(path);
            }
        }
    }
    bail!("there is no libonnxruntime below {}", python.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("berth-xtask-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    #[test]
    fn one_message_names_every_missing_tool_and_each_package_once() {
        let text = missing_message(&TOOLS.iter().collect::<Vec<_>>());
        for tool in &TOOLS {
            assert!(text.contains(tool.name) && text.contains(tool.package), "{} in {text}", tool.name);
        }
        assert!(text.ends_with("apt-get install curl gcc libc6-dev git golang-go python3 python3-venv"), "{text}");
    }

    #[test]
    fn a_part_is_built_once_and_never_left_half_built() {
        let cache = scratch("parts");
        let failed = part(&cache, "p-1", |place, _| {
            fs::write(place.join("half"), "")?;
            bail!("no room")
        });
        assert!(format!("{:#}", failed.expect_err("it failed")).contains("p-1.log"));
        assert!(!cache.join("p-1").exists());
        let place = part(&cache, "p-1", |place, _| Ok(fs::write(place.join("whole"), "")?)).expect("built");
        assert!(place.join("whole").exists() && !place.join("half").exists());
        part(&cache, "p-1", |_, _| bail!("built a second time")).expect("found again");
        fs::remove_dir_all(&cache).expect("removed");
    }

    #[test]
    fn fingerprints_tell_texts_apart() {
        assert_eq!(fingerprint(""), 0xcbf2_9ce4_8422_2325);
        assert_ne!(fingerprint("a==1"), fingerprint("a==2"));
    }
}
