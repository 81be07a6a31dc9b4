//! What cargo knows about the members of the workspace.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::step::{cargo, root};

/// A member.
pub(crate) struct Member {
    /// Its name, without the prefix that ours have.
    pub(crate) name: String,
    /// Its name as cargo knows it.
    pub(crate) package: String,
    /// Where its manifest lies.
    pub(crate) folder: PathBuf,
    /// What it depends on other than for tests; ours with the prefix `berth-`, whatever they are called.
    pub(crate) uses: Vec<String>,
    /// Its integration tests.
    pub(crate) tests: Vec<TestTarget>,
}

/// An integration test.
pub(crate) struct TestTarget {
    /// Its name.
    pub(crate) name: String,
    /// Its first file.
    pub(crate) path: PathBuf,
}

/// All members.
pub(crate) fn members() -> Result<Vec<Member>> {
    let output = Command::new(cargo())
        .args(["metadata", "--locked", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    Ok(packages.iter().map(member).collect())
}

fn member(package: &Value) -> Member {
    let list = |key: &str| package[key].as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let path = |value: &Value| PathBuf::from(value.as_str().unwrap_or_default());
    let short = |name: String| name.strip_prefix("berth-").map_or(name.clone(), str::to_owned);
    let uses = list("dependencies").into_iter().filter(|used| used["kind"] != "dev");
    let tests = list("targets").into_iter().filter(|target| target["kind"][0] == "test");
    Member {
        name: short(name(package)),
        package: name(package),
        folder: path(&package["manifest_path"]).parent().map(PathBuf::from).unwrap_or_default(),
        uses: uses.map(|used| if used["path"].is_string() { format!("berth-{}", short(name(&used))) } else { name(&used) }).collect(),
        tests: tests.map(|target| TestTarget { name: name(&target), path: path(&target["src_path"]) }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_with_their_own_dependencies_and_tests() {
        let members = members().expect("cargo knows this workspace");
        let one = |name: &str| members.iter().find(|member| member.name == name).expect("a member");
        assert!(one("plan").uses.iter().any(|used| used == "berth-types"));
        assert!(one("plan").uses.iter().all(|used| used != "proptest"), "what only tests use does not count");
        let system = one("tests").tests.iter().find(|test| test.name == "system").expect("the system tests");
        assert!(system.path.is_file() && system.path.starts_with(&one("tests").folder), "{:?}", system.path);
    }
}
