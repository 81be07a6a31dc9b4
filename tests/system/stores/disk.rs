//! A disk that is too small for what is asked of it: a file system of its own, in memory, that ends with the process.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use berth_testkit::{Berth, Gateway, Transport};

use super::{MODEL, answers, answers_in_the_end, bytes, fails_with, in_a_name_space, onnx, serves};
use crate::fixture::{Fixture, ROOMY};

const MIB: usize = 1 << 20;

/// A store with a small and a large model, and Berth on a disk of `room`.
async fn on_a_disk_of(room: usize) -> Result<(Fixture, Gateway, Berth)> {
    let mut fixture = Fixture::empty()?;
    let gateway = Gateway::start(&fixture.parts, Transport::Plain).await?;
    let ballast = fixture.path("ballast");
    fs::write(&ballast, bytes(24 * MIB, 1))?;
    gateway.put("small/model.onnx", &onnx(&fixture)).await?;
    gateway.put("iris/model.onnx", &onnx(&fixture)).await?;
    gateway.put("iris/ballast.bin", &ballast).await?;
    fixture.storage("store", &gateway.storage_entry())?;
    fixture.service("small", "store", "small")?;
    fixture.service(MODEL, "store", MODEL)?;
    fs::create_dir_all(fixture.data())?;
    fixture.parts.bin = in_a_name_space(&fixture, &format!("mount -t tmpfs -o size={room} tmpfs {}", fixture.data().display()))?;
    // The budget is larger than the disk, as where others use the disk too.
    let berth = fixture.serve(ROOMY).flag("--disk", "1GiB").start().await?;
    Ok((fixture, gateway, berth))
}

/// A path on the disk of that process.
fn there(fixture: &Fixture, berth: &mut Berth, name: &str) -> PathBuf {
    let data = fixture.data();
    PathBuf::from(format!("/proc/{}/root", berth.process().id())).join(data.strip_prefix("/").unwrap_or(&data)).join(name)
}

#[tokio::test]
async fn a_model_that_the_disk_has_no_room_for_is_refused_with_the_numbers_and_the_rest_is_served() -> Result<()> {
    let (fixture, _gateway, mut berth) = on_a_disk_of(16 * MIB).await?;
    serves(&fixture, &berth, "small").await?;
    fails_with(&berth, MODEL, &["24 MiB", "disk"]).await?;
    answers(&fixture, &berth, "small").await?;
    // Nothing of it is left there.
    let models = there(&fixture, &mut berth, "models");
    let held = crate::fixture::bytes_below(&models)?;
    assert!(held < MIB as u64, "{held} bytes in {}", models.display());
    Ok(())
}

#[tokio::test]
async fn a_disk_that_others_filled_is_used_again_when_they_are_gone() -> Result<()> {
    let (fixture, gateway, mut berth) = on_a_disk_of(40 * MIB).await?;
    serves(&fixture, &berth, "small").await?;
    serves(&fixture, &berth, MODEL).await?;
    // Another version of the large model, while somebody else takes the room.
    let filler = there(&fixture, &mut berth, "filler");
    fs::write(&filler, vec![1; 10 * MIB])?;
    let other = fixture.path("other");
    fs::write(&other, bytes(30 * MIB, 2))?;
    gateway.put("other/model.onnx", &onnx(&fixture)).await?;
    gateway.put("other/ballast.bin", &other).await?;
    fixture.service("other", "store", "other")?;
    fails_with(&berth, "other", &["30 MiB", "disk"]).await?;
    fs::remove_file(&filler)?;
    // The old version goes where nobody uses it.
    fs::remove_file(fixture.manifests().join(format!("{MODEL}.yaml")))?;
    answers_in_the_end(&fixture, &berth, "other").await
}
