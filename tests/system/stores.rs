//! Models that lie in real stores of every kind: what is served from them, what goes wrong there, and what is told then.
//!
//! What a test serves is a small real model, often with a larger file beside it that the runtime does not look at, so that
//! a download takes long enough to be disturbed.

mod azure;
mod disk;
mod faults;
mod gcs;
mod s3;
mod servers;
mod web;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_testkit::{Berth, Found, Standing, eventually, http};

use crate::fixture::{Fixture, SOON};

/// The example that is served everywhere here.
const MODEL: &str = "iris";

/// Long enough for tens of MiB over slow and broken connections on a busy machine.
const LATER: Duration = Duration::from_secs(60);

/// `size` bytes that repeat nowhere soon, so that a piece in the wrong place is seen. Other seeds, other bytes.
fn bytes(size: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ seed;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// The example's file.
fn onnx(fixture: &Fixture) -> PathBuf {
    fixture.quickstart.models().join(MODEL).join("model.onnx")
}

/// A new folder `name` with the example's file in a folder `iris`.
fn folder_with_model(fixture: &Fixture, name: &str) -> Result<PathBuf> {
    let folder = fixture.path(name);
    fs::create_dir_all(folder.join(MODEL))?;
    fs::copy(onnx(fixture), folder.join(MODEL).join("model.onnx"))?;
    Ok(folder)
}

/// Waits until `name` is loaded without having failed, and checks that it gives the example's recorded answer.
async fn serves(fixture: &Fixture, berth: &Berth, name: &str) -> Result<()> {
    ends_well(berth, name, LATER).await?;
    answers(fixture, berth, name).await
}

async fn ends_well(berth: &Berth, name: &str, within: Duration) -> Result<()> {
    let standing = berth.stands(name, within, |standing| ["Loaded", "FailedToLoad"].contains(&standing.active.as_str())).await?;
    ensure!(standing.active == "Loaded", "{name} failed: {}", standing.message);
    Ok(())
}

async fn answers(fixture: &Fixture, berth: &Berth, name: &str) -> Result<()> {
    let reply = berth.infer(name, fixture.quickstart.request(MODEL)?).await?;
    fixture.quickstart.check(MODEL, &reply.good().with_context(|| name.to_owned())?)
}

/// Waits until `name` has failed, and checks that its message holds every one of `parts`.
async fn fails_with(berth: &Berth, name: &str, parts: &[&str]) -> Result<Standing> {
    let standing = berth.stands(name, LATER, |standing| standing.active == "FailedToLoad" || standing.active == "Loaded").await?;
    ensure!(standing.active == "FailedToLoad", "{name} was loaded");
    for part in parts {
        ensure!(standing.message.contains(part), "{name}: {part:?} is missing in: {}", standing.message);
    }
    Ok(standing)
}

/// Asks for `name` until it answers rightly, as users do after they mended something.
async fn answers_in_the_end(fixture: &Fixture, berth: &Berth, name: &str) -> Result<()> {
    eventually(&format!("an answer of {name}"), LATER, || async {
        let reply = berth.infer(name, fixture.quickstart.request(MODEL)?).await?;
        if reply.status != 200 {
            return Ok(Found::NotYet(format!("status {}: {}", reply.status, reply.text())));
        }
        fixture.quickstart.check(MODEL, &reply.json()?)?;
        Ok(Found::Yes(()))
    })
    .await
}

/// Checks that none of `secrets` is in what the process has written, in its metrics or in any resource.
async fn tells_no(berth: &mut Berth, names: &[&str], secrets: &[&str]) -> Result<()> {
    let mut told = vec![("its log", berth.process().written()), ("its metrics", http::get(&berth.metrics("/metrics")).await?.text())];
    for name in names {
        told.push(("a resource", berth.resource(name).await?.to_string()));
    }
    for (place, text) in told {
        for secret in secrets {
            // Not the text itself: the message of a failed test should not hold it either.
            ensure!(!text.contains(secret), "a secret of {} bytes is told in {place}", secret.len());
        }
    }
    Ok(())
}

/// The one file called `name` below the folder of fetched models, as the runtime sees it.
fn fetched(fixture: &Fixture, name: &str) -> Result<PathBuf> {
    let mut found = below(&fixture.data().join("models"), name)?;
    // Content lies in folders of files; the same bytes may have a second name in the disk tier.
    found.retain(|path| path.ancestors().any(|folder| folder.ends_with("files")));
    ensure!(found.len() == 1, "{name} was fetched to {found:?}");
    found.pop().context("there is one")
}

fn below(folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|file| file == name) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Checks that the fetched file `name` holds `expected`, without printing either.
fn holds(fixture: &Fixture, name: &str, expected: &[u8]) -> Result<()> {
    let path = fetched(fixture, name)?;
    let got = fs::read(&path)?;
    let differs = got.iter().zip(expected).position(|(got, want)| got != want);
    ensure!(got == expected, "{}: {} bytes instead of {}, first difference at {differs:?}", path.display(), got.len(), expected.len());
    Ok(())
}

/// A program that runs Berth with file systems of its own: `prepare` is a line of shell that mounts them, as root of a
/// name space that ends with the process. Root needs none of the user's name spaces, others may have no other.
fn in_a_name_space(fixture: &Fixture, prepare: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let program = fixture.path("berth-in-a-name-space");
    let berth = fixture.parts.bin.display();
    fs::write(
        &program,
        format!(
            "#!/bin/sh
how=--mount
unshare $how true 2>/dev/null || how='--mount --map-root-user'
exec unshare $how sh -c '{prepare} && exec \"$0\" \"$@\"' '{berth}' \"$@\"
"
        ),
    )?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

/// Waits until `name` stands well without that anybody asks for it.
async fn comes_by_itself(berth: &Berth, name: &str) -> Result<Standing> {
    berth.stands(name, SOON, |standing| standing.active == "Loaded" && standing.reason.is_empty()).await
}
