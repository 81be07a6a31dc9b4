//! Random schedules: a puller over a store that fails, stalls, truncates and lies, against a model of what must come out.
//!
//! Each schedule has a few models that share objects, several fetched at once, some given up or forgotten on the way, and
//! a puller that is dropped and opened again in between, as after a crash. Whatever happened, files that are handed out
//! are those of a version that the store had, whole; and once the store behaves, everything arrives.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_stores::memory::{Manner, MemoryStore, Rates, Stated};
use berth_telemetry::{Clock, Metrics};
use berth_types::{ByteSize, Registration, UnixMillis};

use crate::suite::model;
use crate::tests::config;
use crate::{Fetch, PullError, Puller, PullerConfig, Urgency};

const SCHEDULES: u64 = 2_000;
const ENTRY: &str = r#"{"type":"s3","endpoint_url":"http://memory:1","region":"","bucket":"b","access_key_id":"","secret_access_key":""}"#;

/// A small generator, so that a seed is a schedule.
struct Dice(u64);

impl Dice {
    fn up_to(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % (most + 1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.up_to(n - 1) == 0
    }
}

/// Every version of every object, ever.
#[derive(Default)]
struct Truth(BTreeMap<String, Vec<Vec<u8>>>);

impl Truth {
    fn put(&mut self, store: &MemoryStore, dice: &mut Dice, key: &str) {
        let sizes = [0, 1, 700, 1023, 1024, 1025, 4096, 5000, 20_000];
        let size = usize::try_from(sizes[usize::try_from(dice.up_to(8)).expect("small")]).expect("small");
        let bytes: Vec<u8> = (0..size).map(|_| u8::try_from(dice.up_to(255)).expect("a byte")).collect();
        store.put(key, bytes.clone());
        self.0.entry(key.to_owned()).or_default().push(bytes);
    }

    /// The files under `folder` are each a version of the object of that name.
    fn had(&self, prefix: &str, folder: &Path) -> Result<(), String> {
        for (key, versions) in self.0.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix)) {
            let file = folder.join(&key[prefix.len()..]);
            let bytes = std::fs::read(&file).map_err(|fault| format!("{}: {fault}", file.display()))?;
            if !versions.contains(&bytes) {
                return Err(format!("{} has {} bytes that the store never had", file.display(), bytes.len()));
            }
        }
        Ok(())
    }

    /// The files under `folder` are what the store has now.
    fn has(&self, prefix: &str, folder: &Path) -> Result<(), String> {
        self.had(prefix, folder)?;
        for (key, versions) in self.0.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix)) {
            let bytes = std::fs::read(folder.join(&key[prefix.len()..])).map_err(|fault| fault.to_string())?;
            if versions.last() != Some(&bytes) {
                return Err(format!("{key} is of an earlier version"));
            }
        }
        Ok(())
    }
}

fn small(folder: &Path) -> PullerConfig {
    PullerConfig {
        part_size: ByteSize(4096),
        grain: 1024,
        requests: 4,
        parts_per_model: 2,
        small: 2048,
        stall_timeout: Duration::from_secs(2),
        give_up_after: Duration::from_secs(10),
        ..config(folder, &[("k", ENTRY)])
    }
}

async fn open(folder: &Path, clock: &Clock, store: &Arc<MemoryStore>) -> Arc<Puller> {
    let stores = Arc::clone(store);
    Puller::open_with(small(folder), clock.clone(), Metrics::default(), stores).await.expect("opens")
}

async fn schedule(seed: u64) -> Result<(), String> {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let folder = tempfile::tempdir().map_err(|fault| fault.to_string())?;
    let clock = Clock::starting_at(UnixMillis(1_000_000));
    let store = MemoryStore::new(clock.clone());
    let stated = [Stated::Nowhere, Stated::Everywhere, Stated::WholeAnswers][usize::try_from(dice.up_to(2)).expect("small")];
    let manner = Manner {
        stated,
        versions: !dice.one_in(5),
        ranges: !dice.one_in(8),
        page: usize::try_from(1 + dice.up_to(3)).expect("small"),
        frame: usize::try_from(1 + dice.up_to(3000)).expect("small"),
        ..Manner::default()
    };
    store.manner(|of| *of = manner);
    let mut truth = Truth::default();
    for prefix in ["a", "b"] {
        for n in 0..=dice.up_to(3) {
            truth.put(&store, &mut dice, &format!("{prefix}/{n}"));
        }
    }
    // Two names for one folder, and another folder.
    let models: Vec<(Registration, &str)> = vec![(model("one", "k", "a/"), "a/"), (model("two", "k", "a"), "a/"), (model("other", "k", "b"), "b/")];
    let rate = |dice: &mut Dice| u32::try_from(dice.up_to(80)).expect("small");
    let rates = Rates {
        away: rate(&mut dice),
        busy: rate(&mut dice),
        delay: rate(&mut dice),
        cut: rate(&mut dice),
        end: rate(&mut dice),
        silent: rate(&mut dice),
        // A flipped bit where nothing is stated cannot be noticed by anybody.
        flip: if stated == Stated::Nowhere { 0 } else { rate(&mut dice) },
    };
    store.random(seed, rates);
    let mut puller = open(folder.path(), &clock, &store).await;
    for _ in 0..dice.up_to(4) {
        let mut under_way = Vec::new();
        for (wanted, prefix) in &models {
            if dice.one_in(3) {
                continue;
            }
            let urgency = if dice.one_in(2) { Urgency::Waited } else { Urgency::Background };
            let (puller, wanted, patience) = (Arc::clone(&puller), wanted.clone(), Duration::from_millis(dice.up_to(40_000)));
            let clock = clock.clone();
            let fetch = async move { clock.until(clock.deadline_in(patience), puller.fetch(&wanted, urgency)).await };
            under_way.push((tokio::spawn(fetch), *prefix));
        }
        if dice.one_in(3) {
            let keys: Vec<String> = truth.0.keys().cloned().collect();
            let key = &keys[usize::try_from(dice.up_to(keys.len() as u64 - 1)).expect("small")];
            truth.put(&store, &mut dice, key);
        }
        if dice.one_in(4) {
            puller.forget(&models[usize::try_from(dice.up_to(2)).expect("small")].0);
        }
        for (fetch, prefix) in under_way {
            match fetch.await.map_err(|fault| fault.to_string())? {
                None => {}
                Some(Ok(pinned)) => truth.had(prefix, &pinned.model)?,
                // A store that is away, or whose bytes never fit: all that may go wrong here.
                Some(Err(PullError::Unavailable(_) | PullError::Corrupt(_))) => {}
                Some(Err(other)) => return Err(format!("{other:?}")),
            }
        }
        if dice.one_in(3) {
            drop(puller);
            // What it had begun on the thread for files ends before the next one looks, as it does with a process.
            tokio::task::spawn_blocking(|| ()).await.map_err(|fault| fault.to_string())?;
            puller = open(folder.path(), &clock, &store).await;
        }
    }
    store.peace();
    for (wanted, prefix) in &models {
        let pinned = puller.fetch(wanted, Urgency::Waited).await.map_err(|fault| format!("at peace: {fault:?}"))?;
        truth.had(prefix, &pinned.model)?;
        drop(pinned);
        puller.forget(wanted);
    }
    for (wanted, prefix) in &models {
        let pinned = puller.fetch(wanted, Urgency::Waited).await.map_err(|fault| format!("fetched anew: {fault:?}"))?;
        truth.has(prefix, &pinned.model)?;
    }
    Ok(())
}

#[test]
fn whatever_a_store_does_files_are_whole_and_of_a_version_it_had() {
    for seed in 0..SCHEDULES {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).max_blocking_threads(1).build().expect("a runtime");
        if let Err(why) = runtime.block_on(schedule(seed)) {
            panic!("schedule {seed}: {why}");
        }
    }
}
