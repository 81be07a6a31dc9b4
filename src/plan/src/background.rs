//! Loads that nobody waits for: the first one after creation, retries after failures, and warming what was evicted.
//!
//! A version is loaded once after it was registered, tried again about ten minutes after each failure, and otherwise
//! left alone until it is used or until room appears. A failure to reach the storage, or to find room on the disk, says
//! nothing about the model and passes by itself: it is tried again sooner, and what failed for want of its files is tried
//! again at once when the storage configuration of its pod has changed. When something is due next is computed from what pods report, never
//! stored, so a new leader knows it as well and starts no storm. Queueing these loads, and how many run at a time, is the
//! caller's business.

use std::time::Duration;

use berth_types::{ByteSize, Failure, Footprint, ModelId, PodId, Pool, Retry, Step, UnixMillis};

use crate::admit::MayEvict;

/// A failure counts this long after it happened: in `failedCopies` and in the choice of a pod.
pub const FAILURE_COUNTS_FOR: Duration = Duration::from_secs(15 * 60);
/// Between a failure and the next try on that pod, give or take a tenth.
pub const RETRY_AFTER: Duration = Duration::from_secs(10 * 60);
/// Between the first failures for want of storage and the next try; from then on as long as it has been away, so that
/// waits double, up to [`RETRY_AFTER`].
pub const AWAY_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// After a failure, other pods are tried at once until this many have failed.
pub const PODS_TRIED_AT_ONCE: usize = 3;
/// First loads and retries may evict copies that nobody used for this long.
pub const LONG_IDLE: Duration = Duration::from_secs(60 * 60);
/// After a load that nobody waits for was refused for lack of room: doubled each time, up to [`RETRY_AFTER`].
pub const REFUSED_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// A copy that was just evicted is not warmed before this: what pushed it out is still being used.
pub const WARM_AFTER: Duration = Duration::from_secs(30);

/// Until when a failure counts.
#[must_use]
pub fn counts_until(failure: &Failure) -> UnixMillis {
    failure.time.after(FAILURE_COUNTS_FOR)
}

/// True when the files could not be had for a reason that passes by itself: the storage was away or busy, or the disk had
/// no room. It says nothing about the model.
#[must_use]
pub fn storage_was_away(failure: &Failure) -> bool {
    (failure.step, failure.retry) == (Step::Fetch, Retry::Later)
}

/// When `pod` may try again after this failure: ten minutes, or less where the storage has been away since `away_since`,
/// spread over the pods and models that failed together.
#[must_use]
pub fn retry_at(failure: &Failure, away_since: Option<UnixMillis>, pod: &PodId) -> UnixMillis {
    let wait = away_since.map_or(RETRY_AFTER, |since| failure.time.since(since).clamp(AWAY_AGAIN_AFTER, RETRY_AFTER));
    failure.time.after(spread(wait, &failure.model, pod.as_str()))
}

/// `wait`, give or take a tenth by a hash of model and place, so that what failed together does not come back together.
#[must_use]
pub fn spread(wait: Duration, model: &ModelId, place: &str) -> Duration {
    let spread = wait / 5;
    let share = u32::try_from(hash(model, place) % 1024).unwrap_or(0);
    wait - spread / 2 + spread * share / 1024
}

/// True when other settings of the storage may cure it.
#[must_use]
pub fn was_for_want_of_files(failure: &Failure) -> bool {
    failure.step == Step::Fetch
}

/// FNV-1a over both names, mixed: the same on every machine and in every release, which std's hasher does not promise.
fn hash(model: &ModelId, place: &str) -> u64 {
    let bytes = model.as_str().bytes().chain([0]).chain(place.bytes());
    let folded = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (folded ^ (folded >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

/// What one pod holds of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCopy<'a> {
    /// Which pod.
    pub pod: &'a PodId,
    /// Loaded, or on its way.
    pub held: bool,
    /// Being unloaded: the pod is not asked until that has ended.
    pub leaving: bool,
    /// The most recent failure there.
    pub failure: Option<&'a Failure>,
    /// When the first of the failures in a row happened that end with this one and were all for want of storage; `None`
    /// when this one was not.
    pub away_since: Option<UnixMillis>,
    /// What the failure was due to may have been mended since: the next try waits for nothing but its turn.
    pub mended: bool,
}

/// A load that nobody waited for was refused for lack of room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// When, the last time.
    pub at: UnixMillis,
    /// How many times in a row, at least 1.
    pub times: u32,
}

impl Refused {
    /// When to ask again.
    #[must_use]
    pub fn again_at(self) -> UnixMillis {
        let doublings = self.times.saturating_sub(1).min(10);
        self.at.after((REFUSED_AGAIN_AFTER * (1 << doublings)).min(RETRY_AFTER))
    }
}

/// All that [`due`] needs to know about one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadFacts<'a> {
    /// Which.
    pub model: &'a ModelId,
    /// It reached Loaded since it was registered.
    pub loaded_once: bool,
    /// The last answer was "no room".
    pub refused: Option<Refused>,
    /// What pods report about it.
    pub copies: &'a [PodCopy<'a>],
    /// The live pods whose runtime may load it.
    pub pods: &'a [&'a PodId],
}

/// Why a load is asked for; the order is the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// So that the version reaches Loaded once.
    First,
    /// After a failure.
    Retry,
    /// Because there is room.
    Warm,
}

/// A load to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Of which pod.
    pub pod: PodId,
    /// Why.
    pub purpose: Purpose,
    /// What it may push out.
    pub may_evict: MayEvict,
}

/// The answer of [`due`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// To be asked for now.
    pub ask: Option<Ask>,
    /// When time alone may change the answer; `None`: only a report, a pod or a runtime can.
    pub look_again: Option<UnixMillis>,
}

/// Whether a version wants a load that nobody waits for, and where.
#[must_use]
pub fn due(facts: &LoadFacts<'_>, now: UnixMillis) -> Due {
    let failed = |pod: &PodId| {
        let copy = facts.copies.iter().find(|copy| copy.pod == pod)?;
        copy.failure.filter(|failure| counts_until(failure) > now).map(|failure| (failure, copy))
    };
    let failures: Vec<&Failure> = facts.copies.iter().filter_map(|copy| failed(copy.pod)).map(|(failure, _)| failure).collect();
    let expiry = failures.iter().map(|failure| counts_until(failure)).min();
    if facts.copies.iter().any(|copy| copy.held) {
        return Due { ask: None, look_again: expiry };
    }
    if let Some(refused) = facts.refused.filter(|refused| refused.again_at() > now) {
        return Due { ask: None, look_again: expiry.into_iter().chain([refused.again_at()]).min() };
    }
    let leaving = |pod: &PodId| facts.copies.iter().any(|copy| copy.pod == pod && copy.leaving);
    let open = || facts.pods.iter().filter(|pod| !leaving(pod));
    // A model is loaded once when it is new, whatever is there: at first at the cost of copies that nobody misses, then of
    // the least recently used one. The next new model takes the place of this one, not of another that is used.
    let may_evict = if facts.loaded_once || facts.refused.is_none() { MayEvict::UnusedFor(LONG_IDLE) } else { MayEvict::AnyIdle };
    let ask = |pod: &PodId, purpose| Some(Ask { pod: pod.clone(), purpose, may_evict });
    let purpose = if failures.is_empty() { Purpose::First } else { Purpose::Retry };
    if failures.len() < PODS_TRIED_AT_ONCE && (!facts.loaded_once || !failures.is_empty()) {
        let fresh = open().filter(|pod| failed(pod).is_none()).min_by_key(|pod| hash(facts.model, pod.as_str()));
        if let Some(pod) = fresh {
            return Due { ask: ask(pod, purpose), look_again: expiry };
        }
    }
    let again_at = |failure: &Failure, copy: &PodCopy<'_>| if copy.mended { now } else { retry_at(failure, copy.away_since, copy.pod) };
    let retry = open().filter_map(|pod| failed(pod).map(|(failure, copy)| (again_at(failure, copy), pod))).min();
    match retry {
        Some((at, pod)) if at <= now => Due { ask: ask(pod, Purpose::Retry), look_again: expiry },
        Some((at, _)) => Due { ask: None, look_again: expiry.into_iter().chain([at]).min() },
        None => Due { ask: None, look_again: expiry },
    }
}

/// A version that was loaded once, is loaded nowhere now, and did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby<'a> {
    /// Which.
    pub model: &'a ModelId,
    /// What it took when it was last loaded, or what it is declared to take.
    pub size: Option<&'a Footprint>,
}

/// From when a version on standby may be warmed: not while what pushed it out is fresh, nor right after "no room".
#[must_use]
pub fn warm_from(lost: Option<UnixMillis>, refused: Option<Refused>) -> Option<UnixMillis> {
    lost.map(|lost| lost.after(WARM_AFTER)).into_iter().chain(refused.map(Refused::again_at)).max()
}

/// The first of `standby` (hottest first) that fits into `free` and leaves a tenth of `budget`: without that margin the
/// next small load would push out what was just warmed. Only memories that it takes something of count, and of several GPUs
/// any will do. An unknown size counts as zero here; the pod, which is told to
/// evict nothing, has the last word.
#[must_use]
pub fn warm<'a>(standby: impl IntoIterator<Item = Standby<'a>>, free: &Footprint, budget: &Footprint) -> Option<&'a ModelId> {
    let leaves_enough = |size: &Footprint| {
        let parts = size.iter().filter(|(pool, bytes)| *pool == Pool::Host || *bytes > ByteSize::ZERO);
        parts.into_iter().all(|(pool, bytes)| bytes + budget.get(pool).percent(10) <= free.get(pool))
    };
    let fits = |size: &Footprint| {
        let on_another = size.gpus().count() == 1 && free.gpus().any(|gpu| leaves_enough(&size.on_gpu(gpu)));
        on_another || leaves_enough(size)
    };
    standby.into_iter().find(|one| fits(one.size.unwrap_or(&Footprint::default()))).map(|one| one.model)
}

#[cfg(test)]
mod tests {
    use berth_types::{Location, Reason, Retry, Step};
    use proptest::prelude::*;

    use super::*;

    const T0: UnixMillis = UnixMillis(1_800_000_000_000);

    fn pod(name: &str) -> PodId {
        PodId::new(name).expect("valid")
    }

    fn model(name: &str) -> ModelId {
        ModelId::new(name).expect("valid")
    }

    fn failure(model: &ModelId, time: UnixMillis, retry: Retry) -> Failure {
        Failure {
            reason: Reason::ModelLoadFailed,
            step: Step::Load,
            location: Location::of_pod_name("p"),
            model: model.clone(),
            message: "no".to_owned(),
            time,
            retry,
        }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// What is due: `-` or purpose and pod, then the seconds from `T0` at which to look again.
    fn shown(due: &Due) -> String {
        let ask = due.ask.as_ref().map_or("-".to_owned(), |ask| format!("{:?} {}", ask.purpose, ask.pod));
        due.look_again.map_or(ask.clone(), |at| format!("{ask}, {}", at.since(T0).as_secs()))
    }

    #[test]
    fn first_loads_and_retries_are_due_by_the_rules() {
        let id = model("m");
        let (p, q) = (pod("p"), pod("q"));
        let at = |seconds: u64| T0.after(secs(seconds));
        let old = failure(&id, T0, Retry::AfterChange);
        let retry_p = retry_at(&old, None, &p).since(T0).as_secs();
        let soon_p = retry_at(&old, Some(T0), &p).since(T0).as_secs();
        let none: &[PodCopy] = &[];
        let absent = |pod, failure| PodCopy { pod, held: false, leaving: false, failure, away_since: None, mended: false };
        let mended = PodCopy { mended: true, ..absent(&p, Some(&old)) };
        let away = PodCopy { away_since: Some(T0), ..absent(&p, Some(&old)) };
        let held = PodCopy { held: true, ..absent(&p, None) };
        let leaving = PodCopy { leaving: true, ..absent(&p, None) };
        let refused = Some(Refused { at: T0, times: 1 });
        for (case, loaded_once, refused, copies, pods, now, expected) in [
            ("a new version is loaded once", false, None, none, &[&p][..], at(0), "First p".to_owned()),
            ("no pod of its runtime lives", false, None, none, &[], at(0), "-".to_owned()),
            ("it is loaded", false, None, std::slice::from_ref(&held), &[&p], at(0), "-".to_owned()),
            ("it is being unloaded there", false, None, std::slice::from_ref(&leaving), &[&p], at(0), "-".to_owned()),
            ("it was loaded once and evicted", true, None, none, &[&p], at(0), "-".to_owned()),
            ("refused just now", false, refused, none, &[&p], at(29), "-, 30".to_owned()),
            ("refused half a minute ago", false, refused, none, &[&p], at(30), "First p".to_owned()),
            ("failed on the only pod, for good or not", false, None, &[absent(&p, Some(&old))], &[&p], at(1), format!("-, {retry_p}")),
            ("ten minutes later", false, None, &[absent(&p, Some(&old))], &[&p], at(retry_p + 1), "Retry p, 900".to_owned()),
            ("another pod is tried at once", false, None, &[absent(&p, Some(&old))], &[&p, &q], at(1), "Retry q, 900".to_owned()),
            ("also when it was loaded before", true, None, &[absent(&p, Some(&old))], &[&p, &q], at(1), "Retry q, 900".to_owned()),
            ("the failure is forgotten: the first load is still due", false, None, &[absent(&p, Some(&old))], &[&p], at(900), "First p".to_owned()),
            ("the failure is forgotten: nothing is due", true, None, &[absent(&p, Some(&old))], &[&p], at(900), "-".to_owned()),
            ("the storage was away", true, None, std::slice::from_ref(&away), &[&p], at(1), format!("-, {soon_p}")),
            ("the storage was mended", true, None, std::slice::from_ref(&mended), &[&p], at(1), "Retry p, 900".to_owned()),
            ("the storage was mended, and there is no room", true, refused, std::slice::from_ref(&mended), &[&p], at(1), "-, 30".to_owned()),
            ("half a minute later", true, None, std::slice::from_ref(&away), &[&p], at(soon_p + 1), "Retry p, 900".to_owned()),
            ("the pod of the failure is gone", false, None, &[absent(&p, Some(&old))], &[&q], at(1), "Retry q, 900".to_owned()),
        ] {
            let facts = LoadFacts { model: &id, loaded_once, refused, copies, pods };
            assert_eq!(shown(&due(&facts, now)), expected, "{case}");
        }
    }

    #[test]
    fn after_three_failed_pods_the_others_wait_ten_minutes() {
        let id = model("m");
        let pods: Vec<PodId> = ["a", "b", "c", "d"].map(pod).into();
        let failed = failure(&id, T0, Retry::Later);
        let copies: Vec<PodCopy> = pods[..3]
            .iter()
            .map(|pod| PodCopy { pod, held: false, leaving: false, failure: Some(&failed), away_since: None, mended: false })
            .collect();
        let pods: Vec<&PodId> = pods.iter().collect();
        let facts = LoadFacts { model: &id, loaded_once: false, refused: None, copies: &copies, pods: &pods };
        let waiting = due(&facts, T0.after(secs(1)));
        assert_eq!(waiting.ask, None);
        let at = waiting.look_again.expect("a time");
        assert!((540..=660).contains(&at.since(T0).as_secs()));
        assert_eq!(due(&facts, at).ask.map(|ask| ask.purpose), Some(Purpose::Retry));
    }

    #[test]
    fn while_the_storage_is_away_the_tries_come_less_and_less_often() {
        let (id, p) = (model("m"), pod("p"));
        let mut failed = failure(&id, T0, Retry::Later);
        let mut tries = Vec::new();
        for _ in 0..9 {
            let again = retry_at(&failed, Some(T0), &p);
            let (wait, away) = (again.since(failed.time).as_secs(), failed.time.since(T0).as_secs().clamp(30, 600));
            assert!(wait.abs_diff(away) <= away / 10 + 1, "{wait} s after {away} s");
            failed.time = again;
            tries.push(again.since(T0).as_secs());
        }
        assert!(tries[0] <= 33 && tries[8] - tries[7] >= 540, "{tries:?}");
        for (step, retry, away) in [
            (Step::Fetch, Retry::Later, true),
            (Step::Fetch, Retry::AfterChange, false),
            (Step::Load, Retry::Later, false),
            (Step::Admit, Retry::AfterChange, false),
        ] {
            assert_eq!(storage_was_away(&Failure { step, retry, ..failed.clone() }), away, "{step} {retry:?}");
        }
    }

    #[test]
    fn a_first_load_evicts_what_nobody_used_for_long_and_what_is_idle_only_after_a_refusal() {
        let (id, p) = (model("m"), pod("p"));
        let facts = LoadFacts { model: &id, loaded_once: false, refused: None, copies: &[], pods: &[&p] };
        assert_eq!(due(&facts, T0).ask.map(|ask| ask.may_evict), Some(MayEvict::UnusedFor(secs(3_600))));
        let refused = Some(Refused { at: T0, times: 1 });
        let again = T0.after(REFUSED_AGAIN_AFTER);
        assert_eq!(due(&LoadFacts { refused, ..facts.clone() }, again).ask.map(|ask| ask.may_evict), Some(MayEvict::AnyIdle));
        // One that was loaded before is tried again at nobody's cost.
        let failed = failure(&id, T0, Retry::AfterChange);
        let copies = [PodCopy { pod: &p, held: false, leaving: false, failure: Some(&failed), away_since: None, mended: false }];
        let retried = LoadFacts { loaded_once: true, refused, copies: &copies, ..facts };
        assert_eq!(due(&retried, T0.after(RETRY_AFTER * 2)).ask.map(|ask| ask.may_evict), None, "its failure is forgotten by then");
        let due = due(&retried, T0.after(RETRY_AFTER * 11 / 10));
        assert_eq!(due.ask.map(|ask| ask.may_evict), Some(MayEvict::UnusedFor(LONG_IDLE)));
    }

    #[test]
    fn the_spread_is_the_same_on_every_machine_and_in_every_release() {
        for (id, name, expected) in [("m", "p", 0xab3827957cd), ("digits__isvc-0123456789", "local", 0x31e73f3743), ("mp", "x", 0xf2d191b2641)] {
            assert_eq!(hash(&model(id), name), expected, "{id} {name}");
        }
    }

    #[test]
    fn refusals_are_asked_about_less_and_less_often() {
        for (times, seconds) in [(1, 30), (2, 60), (3, 120), (5, 480), (6, 600), (4_000_000_000, 600)] {
            assert_eq!(Refused { at: T0, times }.again_at().since(T0), secs(seconds), "{times}");
        }
    }

    #[test]
    fn a_model_is_warmed_only_into_room_with_a_margin_hottest_first() {
        let size = |mib: u64| Footprint::host(ByteSize::mib(mib));
        let (hot, cold, unknown) = (model("hot"), model("cold"), model("unknown"));
        let (big, small) = (size(50), size(5));
        let budget = size(100);
        for (case, free, standby, expected) in [
            ("the hottest that fits", size(70), vec![(&hot, Some(&big)), (&cold, Some(&small))], Some(&hot)),
            ("a big one does not block a small one", size(59), vec![(&hot, Some(&big)), (&cold, Some(&small))], Some(&cold)),
            ("fitting exactly is not enough", size(14), vec![(&cold, Some(&small))], None),
            ("fitting with the margin is", size(15), vec![(&cold, Some(&small))], Some(&cold)),
            ("an unknown size is left to the pod", size(10), vec![(&unknown, None)], Some(&unknown)),
            ("but not when the pod is full", size(9), vec![(&unknown, None)], None),
        ] {
            let standby = standby.into_iter().map(|(model, size)| Standby { model, size });
            assert_eq!(warm(standby, &free, &budget), expected, "{case}");
        }
        assert_eq!(warm_from(None, None), None);
        assert_eq!(warm_from(Some(T0), None), Some(T0.after(WARM_AFTER)));
        assert_eq!(warm_from(Some(T0), Some(Refused { at: T0, times: 3 })), Some(T0.after(secs(120))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn retries_come_within_a_tenth_of_ten_minutes_and_apart(names in prop::collection::btree_set("[a-z]{1,8}", 20)) {
            let p = pod("p");
            let times: Vec<u64> = names.iter().map(|name| retry_at(&failure(&model(name), T0, Retry::Later), None, &p).since(T0).as_secs()).collect();
            prop_assert!(times.iter().all(|seconds| (540..=660).contains(seconds)));
            let (first, last) = (times.iter().min().expect("some"), times.iter().max().expect("some"));
            prop_assert!(last - first > 20, "spread: {:?}", times);
        }

        #[test]
        fn what_is_not_due_now_says_when_and_is_due_then(
            loaded_once in any::<bool>(),
            failed in prop::collection::vec(prop::option::of((0u64..2_000, prop::option::of(0u64..2_000))), 1..5),
            refused in prop::option::of((0u64..2_000, 1u32..9)),
            now in 2_000u64..4_000,
        ) {
            let id = model("m");
            let pods: Vec<PodId> = (0..failed.len()).map(|at| pod(&format!("p{at}"))).collect();
            let failures: Vec<Option<Failure>> = failed.iter().map(|at| at.map(|(at, _)| failure(&id, T0.after(secs(at)), Retry::Later))).collect();
            let away = failed.iter().map(|at| at.and_then(|(at, away)| Some(T0.after(secs(at.saturating_sub(away?))))));
            let copies: Vec<PodCopy> = pods.iter().zip(&failures).zip(away)
                .map(|((pod, failure), away_since)| PodCopy { pod, held: false, leaving: false, failure: failure.as_ref(), away_since, mended: false })
                .collect();
            let pods: Vec<&PodId> = pods.iter().collect();
            let facts = LoadFacts { model: &id, loaded_once, refused: refused.map(|(at, times)| Refused { at: T0.after(secs(at)), times }), copies: &copies, pods: &pods };
            let mut now = T0.after(secs(now));
            // Following `look_again` ends at a load, or at rest when it was loaded once.
            for _ in 0..20 {
                let found = due(&facts, now);
                if found.ask.is_some() { return Ok(()); }
                match found.look_again {
                    Some(later) => { prop_assert!(later > now); now = later; }
                    None => { prop_assert!(loaded_once); return Ok(()); }
                }
            }
            prop_assert!(false, "never at rest");
        }
    }
}
