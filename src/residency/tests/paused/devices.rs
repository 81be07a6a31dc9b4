//! Several GPUs: a copy is on one of them, and what happens on one is nothing to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use berth_adapters::LoadFault;
use berth_adapters::fake::Script;
use berth_puller::fake::Scripted;
use berth_residency::WaitError;
use berth_types::{ByteSize, ContentDigest, Footprint, Pool, Reading, Real, Refusal, Usage};

use crate::rig::{Parts, Pod, declaring, kib, secs};

/// No GPU.
const NONE: u16 = u16::MAX;

/// Two GPUs of 100 KiB each beside 1000 KiB of main memory, of which one can go.
fn pod(gone: &Arc<AtomicU16>, change: impl FnOnce(&mut Parts)) -> Pod {
    let gone = Arc::clone(gone);
    let mut parts = Parts::with_memory(kib(1000)).beside().measured_by(move |runtime| {
        let gpu = |index: u16| {
            let held = runtime.takes().get(Pool::Gpu(index));
            let there = gone.load(Ordering::Relaxed) != index;
            let usage = Usage { used: held, limit: kib(120) };
            let usage = if there { usage } else { Usage { used: ByteSize::ZERO, limit: ByteSize::ZERO } };
            (Pool::Gpu(index), Real { held: there.then_some(held), usage: Some(usage) })
        };
        let host = Real { held: Some(kib(50) + runtime.takes().get(Pool::Host)), usage: None };
        Reading { pools: [(Pool::Host, host), gpu(0), gpu(1)].into(), life: Some(1), ..Reading::default() }
    });
    parts.budget = parts.budget.plus(&Footprint::of([(Pool::Gpu(0), kib(100)), (Pool::Gpu(1), kib(100))]));
    change(&mut parts);
    parts.start()
}

fn two_gpus() -> Pod {
    pod(&Arc::new(AtomicU16::new(NONE)), |_| {})
}

impl Pod {
    async fn charged_in(&self, pool: Pool) -> ByteSize {
        self.snapshot().await.pools.iter().find(|used| used.pool == pool).map(|used| used.charged).unwrap_or_default()
    }

    fn gpu_of(&self, name: &str) -> Option<u16> {
        self.runtime.gpus().into_iter().find(|(model, _)| model == name).map(|(_, gpu)| gpu)
    }
}

#[tokio::test(start_paused = true)]
async fn copies_spread_over_the_gpus_and_what_must_go_is_of_the_chosen_one() {
    let pod = two_gpus();
    for name in ["a", "b", "c", "d"] {
        pod.fetch.always(name, Scripted::arrives(kib(40)));
        pod.runtime.script(name, Script::default().taking_of_a_gpu(kib(60)));
    }
    pod.use_once("a").await;
    pod.use_once("b").await;
    assert_eq!((pod.gpu_of("a"), pod.gpu_of("b")), (Some(0), Some(1)), "the emptier one");
    assert_eq!((pod.charged_in(Pool::Gpu(0)).await, pod.charged_in(Pool::Gpu(1)).await), (kib(60), kib(60)), "as measured there");
    // There is room for a guess of 40 on either. What it really takes is more: the other copy on the same GPU goes.
    pod.use_once("c").await;
    pod.pass(secs(3)).await;
    assert_eq!((pod.gpu_of("c"), pod.held()), (Some(0), vec!["b".to_owned(), "c".to_owned()]));
    // Nothing is known of its files, and both GPUs have 40 left. It takes as much as there is.
    pod.use_once("b").await;
    pod.fetch.always("d", Scripted::arrives(kib(50)));
    pod.use_once("d").await;
    assert_eq!((pod.gpu_of("d"), pod.held()), (Some(0), vec!["b".to_owned(), "d".to_owned()]), "where the older copy must go");
    assert_eq!(pod.charged_in(Pool::Host).await, ByteSize::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_size_that_was_learned_on_one_gpu_holds_for_the_other() {
    let (pod, files) = (two_gpus(), ContentDigest([7; 32]));
    pod.fetch.content("one", files).content("other", files);
    pod.runtime.script_all(Script::default().taking_of_a_gpu(kib(80)).loading_for(secs(5)));
    pod.use_once("one").await;
    let caller = pod.caller("other", secs(60));
    pod.pass(secs(2)).await;
    assert_eq!((pod.charged_in(Pool::Gpu(0)).await, pod.charged_in(Pool::Gpu(1)).await), (kib(80), kib(80)), "before it is loaded");
    assert!(caller.await.expect("no panic").is_ok());
    assert_eq!((pod.gpu_of("one"), pod.gpu_of("other")), (Some(0), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn what_is_for_no_gpu_stays_in_main_memory() {
    let pod = two_gpus();
    pod.use_once("plain").await;
    assert_eq!(pod.runtime.gpus(), []);
    assert_eq!((pod.charged_in(Pool::Host).await, pod.charged_in(Pool::Gpu(0)).await), (kib(4), ByteSize::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_gpu_that_is_gone_loses_its_idle_copies_and_gets_no_new_ones_and_the_other_keeps_its_own() {
    let gone = Arc::new(AtomicU16::new(NONE));
    let pod = pod(&gone, |_| {});
    pod.runtime.script_all(Script::default().taking_of_a_gpu(kib(40)));
    pod.use_once("a").await;
    pod.use_once("b").await;
    let busy = pod.ensure("c", secs(5)).await.expect("room");
    assert_eq!([pod.gpu_of("a"), pod.gpu_of("b"), pod.gpu_of("c")], [Some(0), Some(1), Some(0)]);
    gone.store(0, Ordering::Relaxed);
    pod.pass(secs(3)).await;
    assert_eq!(pod.held(), ["b", "c"], "the one on the other GPU stays, and the one in use as long as it is");
    drop(busy);
    pod.pass(secs(3)).await;
    assert_eq!(pod.held(), ["b"]);
    for name in ["a", "c"] {
        pod.use_once(name).await;
        assert_eq!(pod.gpu_of(name), Some(1), "{name}");
    }
    assert_eq!(pod.charged_in(Pool::Gpu(0)).await, ByteSize::ZERO);
    gone.store(NONE, Ordering::Relaxed);
    pod.pass(secs(3)).await;
    pod.use_once("d").await;
    assert_eq!(pod.gpu_of("d"), Some(0), "it is there again");
}

#[tokio::test(start_paused = true)]
async fn what_is_declared_for_a_model_on_a_gpu_counts_there() {
    let pod = pod(&Arc::new(AtomicU16::new(NONE)), |parts| {
        parts.budget = Footprint::host(kib(50)).plus(&Footprint::of([(Pool::Gpu(0), kib(100))]));
    });
    pod.runtime.script_all(Script::default().taking_of_a_gpu(kib(80)));
    drop(pod.residency.ensure_loaded(&declaring("m", kib(90)), pod.clock.deadline_in(secs(5))).await.expect("it fits on the GPU"));
    assert_eq!((pod.charged_in(Pool::Host).await, pod.charged_in(Pool::Gpu(0)).await), (ByteSize::ZERO, kib(90)));
    let refused = pod.residency.ensure_loaded(&declaring("huge", kib(200)), pod.clock.deadline_in(secs(5))).await;
    assert!(matches!(refused, Err(WaitError::Refused(Refusal::NeverFits { .. }))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_load_that_ran_out_of_a_gpus_memory_is_tried_again_with_one_copy_less_on_that_gpu() {
    let pod = two_gpus();
    pod.runtime.script_all(Script::default().taking_of_a_gpu(kib(30)));
    pod.runtime.script("cpu", Script::default());
    for name in ["first", "cpu", "a", "b"] {
        pod.use_once(name).await;
    }
    assert_eq!([pod.gpu_of("first"), pod.gpu_of("cpu"), pod.gpu_of("a"), pod.gpu_of("b")], [Some(0), None, Some(1), Some(0)]);
    pod.runtime.script("c", Script::default().taking_of_a_gpu(kib(30)).failing(1, LoadFault::OutOfMemory));
    pod.use_once("c").await;
    assert_eq!(pod.held(), ["b", "c", "cpu", "first"], "on the GPU where it was tried, not the oldest of all");
    assert_eq!(pod.gpu_of("c"), Some(1));
}
