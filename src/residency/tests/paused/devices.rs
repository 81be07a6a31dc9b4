//! Several GPUs: a copy is on one of them, and what happens on one is nothing to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

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
            (Pool::Gpu(index), Real { held: there.then_some(held), usage: Some(usage), others: false })
        };
        let host = Real { held: Some(kib(50) + runtime.takes().get(Pool::Host)), ..Real::default() };
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

#[tokio::test(start_paused = true)]
async fn a_load_that_ran_out_of_a_gpus_memory_takes_nothing_from_another_and_says_so() {
    let pod = two_gpus();
    pod.runtime.script_all(Script::default().taking_of_a_gpu(kib(30)));
    let busy = pod.ensure("busy", secs(5)).await.expect("room");
    pod.use_once("other").await;
    assert_eq!([pod.gpu_of("busy"), pod.gpu_of("other")], [Some(0), Some(1)]);
    pod.fetch.always("c", Scripted::arrives(kib(8)));
    pod.runtime.script("c", Script::default().taking_of_a_gpu(kib(30)).failing(1, LoadFault::OutOfMemory));
    let failure = pod.failure("c").await;
    let numbers = ["it was given 8 KiB gpu:0", "30 KiB of 120 KiB gpu:0 are in use", "no idle model takes any of gpu:0, so none could go for it"];
    assert!(numbers.iter().all(|part| failure.message.contains(part)), "{}", failure.message);
    assert_eq!(pod.held(), ["busy", "other"]);
    drop(busy);
}

#[tokio::test(start_paused = true)]
async fn a_gpu_that_drops_out_while_it_is_nearly_full_is_so_no_more() {
    for disappears in [false, true] {
        let (gone, others) = (Arc::new(AtomicU16::new(NONE)), Arc::new(AtomicU64::new(0)));
        let gone_now = Arc::clone(&gone);
        let pod = untold(&others, &Arc::default(), move |reading| {
            if gone_now.load(Ordering::Relaxed) == 0 {
                let none = Some(Usage { used: ByteSize::ZERO, limit: ByteSize::ZERO });
                reading.pools.insert(Pool::Gpu(0), Real { usage: none, ..Real::default() });
                reading.pools.retain(|pool, _| *pool == Pool::Host || !disappears);
            }
        });
        let strained = |value: u32| pod.metrics.render().contains(&format!("berth_memory_strained{{pool=\"gpu:0\"}} {value}\n"));
        others.store(110 << 10, Ordering::Relaxed);
        pod.pass(secs(2)).await;
        assert!(strained(1));
        gone.store(0, Ordering::Relaxed);
        pod.pass(secs(2)).await;
        assert!(strained(0), "disappears: {disappears}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_gpu_that_tells_the_same_before_and_after_a_load_the_guess_counts() {
    let pod = untold(&Arc::default(), &Arc::default(), |reading| {
        // A page that was written before the load, read twice.
        if let Some(gpu) = reading.pools.get_mut(&Pool::Gpu(0)) {
            gpu.usage = Some(Usage { used: kib(10), limit: kib(120) });
        }
    });
    pod.runtime.script_all(Script::default().taking_of_a_gpu(kib(60)));
    pod.fetch.always("m", Scripted::arrives(kib(30)));
    pod.pass(secs(2)).await;
    for _ in 0..2 {
        pod.use_once("m").await;
        assert_eq!(pod.charged_in(Pool::Gpu(0)).await, kib(30));
        pod.residency.retire(crate::rig::model("m")).await;
        pod.absent("m").await;
    }
}

/// A GPU of 120 KiB, 100 of them for models, whose driver does not tell what is whose. 10 KiB are in use before anything is loaded.
fn untold(others: &Arc<AtomicU64>, kept: &Arc<AtomicU64>, change: impl Fn(&mut Reading) + Send + Sync + 'static) -> Pod {
    let (others, kept) = (Arc::clone(others), Arc::clone(kept));
    let mut parts = Parts::with_memory(kib(1000)).beside().measured_by(move |runtime| {
        let more = ByteSize(kept.load(Ordering::Relaxed) + others.load(Ordering::Relaxed));
        let used = kib(10) + runtime.takes().get(Pool::Gpu(0)) + more;
        let gpu = Real { usage: Some(Usage { used, limit: kib(120) }), ..Real::default() };
        let host = Real { held: Some(kib(50) + runtime.takes().get(Pool::Host)), ..Real::default() };
        let mut reading = Reading { pools: [(Pool::Host, host), (Pool::Gpu(0), gpu)].into(), life: Some(1), ..Reading::default() };
        change(&mut reading);
        reading
    });
    parts.budget = parts.budget.plus(&Footprint::of([(Pool::Gpu(0), kib(100))]));
    parts.start()
}

#[tokio::test(start_paused = true)]
async fn what_the_server_keeps_of_a_gpu_that_it_has_alone_is_there_for_its_next_model_and_what_others_take_is_not() {
    for somebody_came in [false, true] {
        let (others, kept) = (Arc::default(), Arc::new(AtomicU64::new(0)));
        let pod = untold(&others, &kept, |_| {});
        pod.runtime.script_all(Script::default().taking_of_a_gpu(kib(60)));
        pod.pass(secs(2)).await;
        pod.use_once("first").await;
        pod.pass(secs(3)).await;
        assert_eq!(pod.charged_in(Pool::Gpu(0)).await, kib(60));
        // It keeps what the model had, or somebody else takes as much some time later.
        let taken = if somebody_came { &others } else { &kept };
        let stays = if somebody_came { secs(5) } else { secs(0) };
        pod.residency.retire(crate::rig::model("first")).await;
        pod.pass(stays).await;
        taken.store(60 << 10, Ordering::Relaxed);
        pod.absent("first").await;
        pod.pass(secs(5)).await;
        let retained = pod.snapshot().await.pools.iter().find(|used| used.pool == Pool::Gpu(0)).expect("it is there").retained;
        assert_eq!(retained, if somebody_came { ByteSize::ZERO } else { kib(60) });
        pod.fetch.always("second", Scripted::arrives(kib(60)));
        let loaded = pod.ensure("second", secs(5)).await;
        assert_eq!(loaded.is_ok(), !somebody_came, "{loaded:?}");
    }
}
