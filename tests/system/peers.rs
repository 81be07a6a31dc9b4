//! Peers that are slow, broken, gone or very many: others are served meanwhile, and what they held is given back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_testkit::{Berth, Found, Manner, Peers, eventually};

use crate::fixture::{Fixture, ROOMY, SOON};

/// How many connections a port holds easily.
const MANY: usize = 10_000;
/// What a connection may cost that rests, in bytes of resident memory. It is about half of that.
const RESTING: u64 = 48 << 10;
/// What memory may differ by from one look to the next without anybody having caused it.
const NOISE: u64 = 24 << 20;

/// What the process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    resident: u64,
    descriptors: usize,
}

fn held(berth: &mut Berth) -> Result<Held> {
    let process = format!("/proc/{}", berth.process().id());
    let status = fs::read_to_string(format!("{process}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(Held { resident: kib.context("no VmRSS")? << 10, descriptors: fs::read_dir(format!("{process}/fd"))?.count() })
}

/// Waits until no more descriptors are open than `before`, but for the few that a server may open meanwhile.
async fn given_back(berth: &mut Berth, before: Held) -> Result<Held> {
    let id = berth.process().id();
    eventually("the connections to be given back", SOON, || async {
        let open = fs::read_dir(format!("/proc/{id}/fd"))?.count();
        Ok(if open <= before.descriptors + 5 { Found::Yes(()) } else { Found::NotYet(format!("{open} instead of {}", before.descriptors)) })
    })
    .await?;
    held(berth)
}

/// Waits until about as much memory is resident as `before`.
async fn memory_given_back(berth: &mut Berth, before: Held) -> Result<()> {
    let berth = std::cell::RefCell::new(berth);
    eventually("the memory of connections that are gone to be given back", SOON, || async {
        let now = held(&mut berth.borrow_mut())?;
        Ok(if now.resident <= before.resident + NOISE { Found::Yes(()) } else { Found::NotYet(format!("{now:?} after {before:?}")) })
    })
    .await
}

/// A server with its examples, asked once so that all that is made at the first request is made.
async fn server(fixture: &Fixture) -> Result<Berth> {
    let berth = fixture.serve(ROOMY).start().await?;
    fixture.all_answer(&berth).await?;
    Ok(berth)
}

async fn rest_cheaply(manner: Manner, address: fn(&Berth) -> String) -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = server(&fixture).await?;
    let before = held(&mut berth)?;
    for round in 1..=3 {
        let peers = Peers::hold(&address(&berth), manner, MANY).await?;
        fixture.all_answer(&berth).await?;
        let with = held(&mut berth)?;
        ensure!(with.descriptors >= MANY, "{with:?} holds all of them");
        let each = with.resident.saturating_sub(before.resident) / MANY as u64;
        println!("{manner:?}, round {round}: {each} bytes of resident memory for each of {MANY} connections");
        ensure!(each <= RESTING, "round {round}: {each} bytes for each connection, {RESTING} are allowed: {before:?}, {with:?}");
        drop(peers);
        given_back(&mut berth, before).await?;
        memory_given_back(&mut berth, before).await?;
        fixture.all_answer(&berth).await?;
    }
    Ok(())
}

#[tokio::test]
async fn ten_thousand_resting_http1_connections_of_another_process_cost_little_and_are_given_back() -> Result<()> {
    rest_cheaply(Manner::RestingHttp1, Berth::rest).await
}

#[tokio::test]
async fn ten_thousand_resting_http2_connections_of_another_process_cost_little_and_are_given_back() -> Result<()> {
    rest_cheaply(Manner::RestingHttp2, Berth::grpc).await
}

#[tokio::test]
async fn a_low_limit_of_open_files_is_raised_as_far_as_the_machine_allows() -> Result<()> {
    let mut fixture = Fixture::of_folder()?;
    let limited = fixture.path("limited");
    fs::write(&limited, format!("#!/bin/sh\nulimit -Sn 512\nexec {} \"$@\"\n", fixture.parts.bin.display()))?;
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755))?;
    fixture.parts.bin = limited;
    let berth = server(&fixture).await?;
    let peers = Peers::hold(&berth.rest(), Manner::RestingHttp1, 2000).await?;
    fixture.all_answer(&berth).await?;
    drop(peers);
    Ok(())
}

#[tokio::test]
async fn peers_that_never_end_a_head_or_say_nothing_are_cut_off_and_others_are_served_meanwhile() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = server(&fixture).await?;
    let before = held(&mut berth)?;
    let mut peers = Vec::new();
    for address in [berth.rest(), berth.grpc()] {
        for manner in [Manner::SlowHead, Manner::Silent] {
            peers.push(Peers::hold(&address, manner, 300).await?);
        }
    }
    fixture.all_answer(&berth).await?;
    for peers in &mut peers {
        peers.all_ended(SOON).await?;
    }
    given_back(&mut berth, before).await?;
    fixture.all_answer(&berth).await
}

#[tokio::test]
async fn bodies_that_come_byte_by_byte_hold_nobody_else_up() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = server(&fixture).await?;
    let before = held(&mut berth)?;
    let peers = Peers::hold(&berth.rest(), Manner::SlowBody, 500).await?;
    for _ in 0..3 {
        fixture.all_answer(&berth).await?;
    }
    drop(peers);
    let after = given_back(&mut berth, before).await?;
    ensure!(after.resident <= before.resident + NOISE, "{after:?} after {before:?}");
    fixture.all_answer(&berth).await
}

#[tokio::test]
async fn garbage_and_resets_end_their_own_connection_only() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = server(&fixture).await?;
    let before = held(&mut berth)?;
    for _ in 0..3 {
        for address in [berth.rest(), berth.grpc()] {
            for manner in [Manner::Garbage, Manner::Reset] {
                let mut peers = Peers::hold(&address, manner, 300).await?;
                fixture.all_answer(&berth).await?;
                peers.all_ended(SOON).await.with_context(|| format!("{manner:?} at {address}"))?;
            }
        }
    }
    let after = given_back(&mut berth, before).await?;
    ensure!(after.resident <= before.resident + NOISE, "{after:?} after {before:?}");
    fixture.all_answer(&berth).await
}

#[tokio::test]
async fn peers_that_have_lost_their_power_are_noticed_and_given_up() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = server(&fixture).await?;
    let before = held(&mut berth)?;
    let mut peers = Peers::hold(&berth.grpc(), Manner::HalfOpen, 200).await?;
    fixture.all_answer(&berth).await?;
    // A ping after 30 seconds, and 20 for its answer.
    peers.all_ended(Duration::from_secs(50) + SOON).await?;
    given_back(&mut berth, before).await?;
    fixture.all_answer(&berth).await
}
