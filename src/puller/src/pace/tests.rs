use std::future::Future;

use berth_types::UnixMillis;
use futures::FutureExt;
use futures::future::{join_all, poll_immediate};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

const A: Fingerprint = [1; 32];
const B: Fingerprint = [2; 32];

fn limits(requests: usize, parts_per_download: usize) -> Limits {
    Limits { requests, parts_per_download, bytes_per_second: None }
}

fn core(requests: usize) -> Core {
    Core::new(&limits(requests, requests))
}

fn clock() -> Clock {
    Clock::starting_at(UnixMillis(0))
}

fn pace(requests: usize) -> Pace {
    Pace::new(limits(requests, requests), clock(), &Metrics::default())
}

fn haste(class: Urgency) -> Arc<Haste> {
    Arc::new(Haste::new(class))
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Core {
    fn ask_all<const N: usize>(&mut self, lane: LaneId) -> [Ticket; N] {
        std::array::from_fn(|_| self.ask(lane, false))
    }

    /// All that may go now, in order.
    fn grants(&mut self, now: Instant) -> Vec<Ticket> {
        std::iter::from_fn(|| self.next_grant(now)).collect()
    }

    fn limit(&self, store: Fingerprint) -> usize {
        self.stores.get(&store).or_else(|| self.idle.peek(&store)).map_or(self.requests, |store| store.limit)
    }
}

#[test]
fn turns_go_round_the_downloads_and_in_order_within_one() {
    let (mut core, now) = (core(3), clock().now());
    let (many, few, one) = (core.open(A, Urgency::Waited), core.open(B, Urgency::Waited), core.open(A, Urgency::Waited));
    let m: [Ticket; 2000] = core.ask_all(many);
    let f: [Ticket; 2] = core.ask_all(few);
    let [o] = core.ask_all(one);
    assert_eq!(core.grants(now), [m[0], f[0], o]);
    for (lane, next) in [(many, m[1]), (one, f[1]), (few, m[2]), (many, m[3])] {
        core.done(lane, false);
        assert_eq!(core.grants(now), [next]);
    }
    let late = core.open(B, Urgency::Waited);
    let [l] = core.ask_all(late);
    core.done(many, false);
    core.done(many, false);
    assert_eq!(core.grants(now), [m[4], l], "whoever comes late waits one turn of each other, not 2,000");
}

#[test]
fn large_parts_are_limited_for_each_download_and_small_objects_pass_them() {
    let (mut core, now) = (Core::new(&limits(10, 2)), clock().now());
    let (a, b) = (core.open(A, Urgency::Waited), core.open(A, Urgency::Waited));
    let [l1, l2, l3] = std::array::from_fn(|_| core.ask(a, true));
    let small = core.ask(a, false);
    let other = core.ask(b, true);
    assert_eq!(core.grants(now), [l1, other, l2, small]);
    core.done(a, false);
    assert!(core.grants(now).is_empty(), "a small object's turn is not a part");
    core.done(a, true);
    assert_eq!(core.grants(now), [l3]);
}

#[test]
fn background_leaves_room_for_a_first_request_and_half_while_somebody_waits() {
    for (limit, alone, beside) in [(1, 1, 1), (2, 1, 0), (3, 2, 1), (8, 7, 4), (64, 56, 32)] {
        let (mut core, now) = (core(limit), clock().now());
        let background = core.open(A, Urgency::Background);
        let _: [Ticket; 200] = core.ask_all(background);
        assert_eq!(core.grants(now).len(), alone, "{limit}: nobody waits");
        let waited = core.open(B, Urgency::Waited);
        let [first] = core.ask_all(waited);
        let at_once = limit > 1;
        assert_eq!(core.grants(now), if at_once { vec![first] } else { vec![] }, "{limit}: the first request of a waited-for download");
        for _ in 0..alone {
            core.done(background, false);
        }
        let granted = core.grants(now);
        let of_background = granted.iter().filter(|ticket| **ticket != first).count();
        assert_eq!(of_background, if at_once { beside } else { 0 }, "{limit}: beside one that is waited for");
        core.done(waited, false);
        let more = core.grants(now).len();
        assert_eq!(more + of_background, alone, "{limit}: it is alone again");
    }
}

#[test]
fn what_is_waited_for_comes_first_and_keeps_its_store_for_itself() {
    let (mut core, now) = (core(8), clock().now());
    let (background, waited) = (core.open(A, Urgency::Background), core.open(A, Urgency::Waited));
    let b: [Ticket; 9] = core.ask_all(background);
    let w: [Ticket; 9] = core.ask_all(waited);
    assert_eq!(core.grants(now), w[..8]);
    core.done(waited, false);
    assert_eq!(core.grants(now), w[8..], "although the other came first");
    core.done(waited, false);
    assert!(core.grants(now).is_empty(), "the last eighth is for a first request");
    core.done(waited, false);
    assert_eq!(core.grants(now), b[..1]);
}

#[test]
fn a_raise_takes_effect_at_the_next_grant() {
    let (mut core, now) = (core(4), clock().now());
    let (first, second, waited) = (core.open(A, Urgency::Background), core.open(A, Urgency::Background), core.open(A, Urgency::Waited));
    let f: [Ticket; 3] = core.ask_all(first);
    assert_eq!(core.grants(now), f);
    let [f4] = core.ask_all(first);
    let s: [Ticket; 2] = core.ask_all(second);
    let w: [Ticket; 3] = core.ask_all(waited);
    assert_eq!(core.grants(now), w[..1]);
    core.raise(second);
    let background = |core: &Core| (core.load.under_way, core.load.queued);
    let by = |waited, background| ByClass { waited, background };
    assert_eq!(background(&core), (by(1, 3), by(4, 1)));
    for next in [w[1], s[0], w[2]] {
        core.done(first, false);
        assert_eq!(core.grants(now), [next], "its turns come among those that are waited for");
    }
    core.raise(second);
    core.done(waited, false);
    assert_eq!(core.grants(now), [s[1]]);
    for lane in [waited, waited, second, second] {
        core.done(lane, false);
    }
    assert_eq!(core.grants(now), [f4]);
    core.raise(first);
    assert_eq!(background(&core), (by(1, 0), by(0, 0)), "what is under way is raised too");
    core.done(first, false);
    assert_eq!(core.load, Load::default());
}

#[test]
fn a_busy_store_s_limit_halves_once_a_round_and_grows_by_one_after_a_limit_of_answers() {
    let (mut core, now) = (core(16), clock().now());
    let lane = core.open(A, Urgency::Waited);
    let ask = |core: &mut Core, n: usize| {
        (0..n).for_each(|_| _ = core.ask(lane, false));
        core.grants(now).iter().map(|_| core.begin(lane)).collect::<Vec<_>>()
    };
    let rounds = ask(&mut core, 16);
    for round in &rounds {
        core.busy(lane, *round, None, now);
        assert_eq!(core.limit(A), 8, "all of them were sent before the store said so");
    }
    for round in &rounds[..9] {
        core.fine(lane, *round);
        core.done(lane, false);
    }
    assert_eq!(core.limit(A), 8, "old answers do not count");
    assert_eq!(ask(&mut core, 3).len(), 1, "7 are under way still");
    (0..8).for_each(|_| core.done(lane, false));
    let rounds = ask(&mut core, 6);
    assert_eq!(rounds.len(), 8);
    core.busy(lane, rounds[0], None, now);
    assert_eq!(core.limit(A), 4);
    (0..8).for_each(|_| core.done(lane, false));
    for (answers, expected) in [(4, 5), (4, 5), (1, 6), (6, 7), (7 + 8 + 9, 10), (1000, 16)] {
        for _ in 0..answers {
            let rounds = ask(&mut core, 1);
            core.fine(lane, rounds[0]);
            core.done(lane, false);
        }
        assert_eq!(core.limit(A), expected);
    }
}

#[test]
fn a_limit_that_nobody_came_near_is_cut_to_half_of_what_was_tried_and_never_below_one() {
    let (mut core, now) = (core(64), clock().now());
    let lane = core.open(A, Urgency::Waited);
    for (tried, expected) in [(5, 2), (2, 1), (1, 1)] {
        let _: Vec<Ticket> = (0..tried).map(|_| core.ask(lane, false)).collect();
        let rounds: Vec<u64> = core.grants(now).iter().map(|_| core.begin(lane)).collect();
        assert_eq!(rounds.len(), tried);
        core.busy(lane, rounds[tried - 1], None, now);
        assert_eq!(core.limit(A), expected);
        (0..tried).for_each(|_| core.done(lane, false));
    }
}

#[test]
fn stores_are_told_apart_and_remembered_after_use() {
    let (mut core, now) = (core(8), clock().now());
    let make_busy = |core: &mut Core, store| {
        let lane = core.open(store, Urgency::Waited);
        core.ask(lane, false);
        assert_eq!(core.grants(now).len(), 1);
        let round = core.begin(lane);
        core.busy(lane, round, Some(secs(5)), now);
        core.close(lane);
        core.done(lane, false);
    };
    make_busy(&mut core, A);
    let (a, b) = (core.open(A, Urgency::Waited), core.open(B, Urgency::Waited));
    let _: [Ticket; 2] = core.ask_all(a);
    let b_all: [Ticket; 4] = core.ask_all(b);
    assert_eq!(core.grants(now), b_all, "another store's trouble is not theirs");
    assert_eq!(core.next_time(now), Some(now + secs(5)));
    assert_eq!(core.grants(now + secs(5)).len(), 1, "the limit is 1 still");
    core.done(a, false);
    assert_eq!(core.grants(now + secs(5)).len(), 1);
    core.done(a, false);
    core.close(a);
    for n in 0..64u8 {
        assert_eq!(core.limit(A), 1, "remembered beside {n} others");
        let mut other = [9; 32];
        other[0] = n;
        make_busy(&mut core, other);
    }
    assert_eq!((core.limit(A), core.idle.len(), core.stores.len()), (8, 64, 1), "64 later ones are remembered instead");
}

#[test]
fn a_pause_holds_new_requests_back_and_the_longest_one_counts_up_to_a_minute() {
    for (case, pauses, expected) in [
        ("none", vec![None], 0),
        ("one", vec![Some(2)], 2),
        ("a shorter one later", vec![Some(9), Some(2)], 9),
        ("a longer one later", vec![Some(2), Some(9), None], 9),
        ("a day", vec![Some(86_400)], 60),
        ("for ever", vec![Some(u64::MAX)], 60),
    ] {
        let (mut core, now) = (core(64), clock().now());
        let lane = core.open(A, Urgency::Waited);
        let _: [Ticket; 8] = core.ask_all(lane);
        let rounds: Vec<u64> = core.grants(now).iter().map(|_| core.begin(lane)).collect();
        for (pause, round) in pauses.iter().zip(rounds) {
            core.busy(lane, round, pause.map(secs), now);
        }
        (0..8).for_each(|_| core.done(lane, false));
        let more: [Ticket; 1] = core.ask_all(lane);
        let at = now + secs(expected);
        if expected > 0 {
            assert!(core.grants(at - Duration::from_nanos(1)).is_empty(), "{case}");
            assert_eq!(core.next_time(now), Some(at), "{case}");
        }
        assert_eq!(core.grants(at), more, "{case}");
        assert_eq!(core.next_time(at), None, "{case}");
    }
}

#[test]
fn whoever_leaves_holds_nobody_back() {
    let (mut core, now) = (core(1), clock().now());
    let (a, b) = (core.open(A, Urgency::Waited), core.open(A, Urgency::Waited));
    let [a1, a2, a3] = core.ask_all(a);
    let [b1] = core.ask_all(b);
    assert_eq!(core.grants(now), [a1]);
    core.leave(a, a2);
    core.leave(b, b1);
    core.done(a, false);
    assert_eq!(core.grants(now), [a3]);
    core.done(a, false);
    assert_eq!(core.load, Load::default());
    core.close(a);
    core.close(b);
    assert!(core.lanes.is_empty() && core.stores.is_empty() && core.rings == ByClass::default());
}

const MIB: u64 = 1 << 20;

/// Bytes that the bucket has granted up to each moment at which it granted some, milliseconds from the start.
fn drain(core: &mut Core, mut now: Instant, mut granted: impl FnMut(Ticket)) -> Vec<u128> {
    let begin = now;
    let mut times = Vec::new();
    loop {
        for ticket in core.grants(now) {
            granted(ticket);
            times.push((now - begin).as_millis());
        }
        match core.next_time(now) {
            Some(next) => now = next,
            None => return times,
        }
    }
}

#[test]
fn bytes_come_at_the_rate_after_a_burst() {
    for (case, rate, asks, expected) in [
        ("a tenth of a second's at once", 10 * MIB, vec![MIB; 3], vec![0, 100, 200]),
        ("at least 256 KiB at once", 1024, vec![128 << 10; 3], vec![0, 0, 128_000]),
        ("more than the bucket holds is paid back", MIB, vec![2 * MIB, 1], vec![0, 1750]),
        ("no rate at all is one byte a second", 0, vec![256 << 10, 1, 1], vec![0, 1000, 2000]),
        ("no number is too large", 1, vec![u64::MAX], vec![0]),
    ] {
        let now = clock().now();
        let mut core = Core::new(&Limits { bytes_per_second: Some(ByteSize(rate)), ..limits(1, 1) });
        let lane = core.open(A, Urgency::Waited);
        for n in asks {
            core.ask_bytes(lane, n);
        }
        assert_eq!(drain(&mut core, now, drop), expected, "{case}");
    }
}

#[test]
fn bytes_are_shared_by_downloads_not_by_frames_and_waited_for_ones_take_all() {
    let now = clock().now();
    let mut core = Core::new(&Limits { bytes_per_second: Some(ByteSize(10 * MIB)), ..limits(9, 9) });
    let (background, a, b) = (core.open(A, Urgency::Background), core.open(A, Urgency::Waited), core.open(B, Urgency::Waited));
    let mut owners = HashMap::new();
    for (lane, frame, frames) in [(background, MIB, 4), (a, MIB, 40), (b, MIB / 4, 160)] {
        owners.extend((0..frames).map(|_| (core.ask_bytes(lane, frame), (lane, frame))));
    }
    let (mut had, mut order) = (HashMap::from([(a, 0), (b, 0), (background, 0)]), Vec::new());
    drain(&mut core, now, |ticket| {
        let (lane, frame) = owners[&ticket];
        *had.get_mut(&lane).expect("listed") += frame;
        order.push(lane);
        if had[&background] == 0 {
            assert!(had[&a].abs_diff(had[&b]) <= MIB, "{had:?}");
        }
    });
    assert_eq!(order.iter().position(|lane| *lane == background), Some(200), "after all that is waited for");
    assert_eq!(had, HashMap::from([(a, 40 * MIB), (b, 40 * MIB), (background, 4 * MIB)]));
}

#[test]
fn a_download_that_joins_late_owes_and_is_owed_nothing() {
    let now = clock().now();
    let mut core = Core::new(&Limits { bytes_per_second: Some(ByteSize(10 * MIB)), ..limits(9, 9) });
    let (early, late, raised) = (core.open(A, Urgency::Waited), core.open(A, Urgency::Waited), core.open(A, Urgency::Background));
    let alone: Vec<Ticket> = (0..10).map(|_| core.ask_bytes(early, MIB)).collect();
    let mut order = Vec::new();
    drain(&mut core, now, |ticket| order.push(ticket));
    assert_eq!(order, alone);
    let e: [Ticket; 3] = std::array::from_fn(|_| core.ask_bytes(early, MIB));
    let l: [Ticket; 3] = std::array::from_fn(|_| core.ask_bytes(late, MIB));
    let r: [Ticket; 2] = std::array::from_fn(|_| core.ask_bytes(raised, MIB));
    core.raise(raised);
    let gone = core.ask_bytes(raised, MIB);
    core.leave(raised, gone);
    core.leave(late, l[0]);
    let mut order = Vec::new();
    drain(&mut core, now + secs(60), |ticket| order.push(ticket));
    assert_eq!(order, [l[1], r[0], e[0], l[2], r[1], e[1], e[2]]);
}

#[test]
fn what_a_download_had_in_the_background_is_not_held_against_it() {
    let now = clock().now();
    let mut core = Core::new(&Limits { bytes_per_second: Some(ByteSize(10 * MIB)), ..limits(9, 9) });
    let (raised, waited) = (core.open(A, Urgency::Background), core.open(A, Urgency::Waited));
    (0..10).for_each(|_| _ = core.ask_bytes(raised, MIB));
    drain(&mut core, now, drop);
    let r: [Ticket; 2] = std::array::from_fn(|_| core.ask_bytes(raised, MIB));
    let w: [Ticket; 2] = std::array::from_fn(|_| core.ask_bytes(waited, MIB));
    core.raise(raised);
    let mut order = Vec::new();
    drain(&mut core, now + secs(60), |ticket| order.push(ticket));
    assert_eq!(order, [r[0], w[0], r[1], w[1]]);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Open { store: u8, class: Urgency },
    Ask { lane: usize, large: bool },
    Answer { which: usize, fine: bool },
    Busy { which: usize, pause: Option<u8> },
    Leave { which: usize },
    Raise { lane: usize },
    Pass { millis: u16 },
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u16>().prop_map(usize::from);
    let class = || prop::sample::select(vec![Urgency::Waited, Urgency::Background]);
    prop_oneof![
        1 => (0u8..3, class()).prop_map(|(store, class)| Op::Open { store, class }),
        8 => (n.clone(), any::<bool>()).prop_map(|(lane, large)| Op::Ask { lane, large }),
        5 => (n.clone(), any::<bool>()).prop_map(|(which, fine)| Op::Answer { which, fine }),
        1 => (n.clone(), prop::option::of(0u8..4)).prop_map(|(which, pause)| Op::Busy { which, pause }),
        1 => n.clone().prop_map(|which| Op::Leave { which }),
        1 => n.prop_map(|lane| Op::Raise { lane }),
        1 => (0u16..3000).prop_map(|millis| Op::Pass { millis }),
    ]
}

/// What the rules are, told apart from how `Core` keeps them: lists that are searched from end to end.
struct Model {
    limits: Limits,
    lanes: Vec<(LaneId, Fingerprint, Urgency)>,
    /// Lane, large, ticket.
    queued: Vec<(LaneId, bool, Ticket)>,
    /// Lane, large, round.
    under_way: Vec<(LaneId, bool, u64)>,
    held: HashMap<Fingerprint, Instant>,
    /// How often the first was passed by the second since it could go.
    passed: HashMap<(LaneId, LaneId), u32>,
}

impl Model {
    fn about(&self, lane: LaneId) -> (Fingerprint, Urgency) {
        self.lanes.iter().find(|(id, ..)| *id == lane).map(|(_, store, class)| (*store, *class)).expect("opened")
    }

    fn count<T>(&self, all: &[(LaneId, bool, T)], store: Option<Fingerprint>, class: Option<Urgency>) -> usize {
        let counts = |lane| {
            let (its_store, its_class) = self.about(lane);
            store.is_none_or(|store| store == its_store) && class.is_none_or(|class| class == its_class)
        };
        all.iter().filter(|(lane, ..)| counts(*lane)).count()
    }

    /// Whether the rules let a request of `lane` begin.
    fn may(&self, core: &Core, lane: LaneId, large: bool, now: Instant) -> bool {
        let (store, class) = self.about(lane);
        let within = |store: Option<Fingerprint>, limit: usize| {
            let (all, background) = (self.count(&self.under_way, store, None), self.count(&self.under_way, store, Some(Urgency::Background)));
            let waited = self.count(&self.under_way, store, Some(Urgency::Waited)) + self.count(&self.queued, store, Some(Urgency::Waited));
            let room = all < limit;
            let reserve = limit == 1 || (all as f64) < limit as f64 - (limit as f64 / 8.0).ceil();
            let half = waited == 0 || background < (limit / 2).max(1);
            room && (class == Urgency::Waited || (reserve && half))
        };
        let parts = self.under_way.iter().filter(|(other, large, _)| *other == lane && *large).count();
        within(None, self.limits.requests)
            && within(Some(store), core.limit(store))
            && (!large || parts < self.limits.parts_per_download)
            && self.held.get(&store).is_none_or(|until| *until <= now)
    }

    /// Downloads of which something may go.
    fn able(&self, core: &Core, class: Urgency, now: Instant) -> Vec<LaneId> {
        let able = |lane| self.queued.iter().any(|(other, large, _)| *other == lane && self.may(core, lane, *large, now));
        self.lanes.iter().filter(|(lane, _, its)| *its == class && able(*lane)).map(|(lane, ..)| *lane).collect()
    }

    fn settle(&mut self, core: &mut Core, now: Instant) -> Result<(), TestCaseError> {
        loop {
            let (waited, background) = (self.able(core, Urgency::Waited, now), self.able(core, Urgency::Background, now));
            let Some(ticket) = core.next_grant(now) else {
                prop_assert!(waited.is_empty() && background.is_empty(), "{waited:?} and {background:?} could go");
                return Ok(());
            };
            let at = self.queued.iter().position(|(.., other)| *other == ticket).expect("was asked for");
            let (lane, large, _) = self.queued[at];
            let (_, class) = self.about(lane);
            prop_assert!(self.may(core, lane, large, now), "a limit is broken");
            prop_assert!(class == Urgency::Waited || waited.is_empty(), "{waited:?} is waited for");
            let earlier = self.queued[..at].iter().find(|(other, large, _)| *other == lane && self.may(core, lane, *large, now));
            prop_assert!(earlier.is_none(), "{earlier:?} came first");
            for other in if class == Urgency::Waited { waited } else { background } {
                let times = self.passed.entry((other, lane)).or_default();
                *times += u32::from(other != lane);
                prop_assert!(*times <= 1, "{other} was passed twice by {lane}");
            }
            self.passed.retain(|(waits, _), _| *waits != lane);
            self.queued.remove(at);
            self.under_way.push((lane, large, core.begin(lane)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() })]

    #[test]
    fn limits_hold_nobody_is_passed_twice_and_whatever_may_go_goes(
        requests in 1usize..20, parts in 1usize..4, ops in prop::collection::vec(op(), 1..150),
    ) {
        let limits = limits(requests, parts);
        let (mut core, mut now) = (Core::new(&limits), clock().now());
        let (lanes, queued, under_way, held, passed) = Default::default();
        let mut model = Model { limits, lanes, queued, under_way, held, passed };
        for op in ops {
            match op {
                Op::Open { store, class } => model.lanes.push((core.open([store; 32], class), [store; 32], class)),
                Op::Ask { lane, large } if !model.lanes.is_empty() => {
                    let lane = model.lanes[lane % model.lanes.len()].0;
                    model.queued.push((lane, large, core.ask(lane, large)));
                }
                Op::Answer { which, fine } if !model.under_way.is_empty() => {
                    let (lane, large, round) = model.under_way.remove(which % model.under_way.len());
                    if fine {
                        core.fine(lane, round);
                    }
                    core.done(lane, large);
                }
                Op::Busy { which, pause } if !model.under_way.is_empty() => {
                    let (lane, large, round) = model.under_way.remove(which % model.under_way.len());
                    let pause = pause.map(|n| secs(u64::from(n)));
                    let store = model.about(lane).0;
                    let before = core.limit(store);
                    core.busy(lane, round, pause, now);
                    prop_assert!((1..=before).contains(&core.limit(store)));
                    if let Some(pause) = pause {
                        let until = model.held.entry(store).or_insert(now);
                        *until = (*until).max(now + pause);
                    }
                    core.done(lane, large);
                }
                Op::Leave { which } if !model.queued.is_empty() => {
                    let (lane, _, ticket) = model.queued.remove(which % model.queued.len());
                    core.leave(lane, ticket);
                    if !model.queued.iter().any(|(other, ..)| *other == lane) {
                        model.passed.retain(|(waits, _), _| *waits != lane);
                    }
                }
                Op::Raise { lane } if !model.lanes.is_empty() => {
                    let at = lane % model.lanes.len();
                    let (lane, _, class) = &mut model.lanes[at];
                    core.raise(*lane);
                    if *class == Urgency::Background {
                        model.passed.retain(|(waits, _), _| waits != lane);
                    }
                    *class = Urgency::Waited;
                }
                Op::Pass { millis } => now += Duration::from_millis(u64::from(millis)),
                _ => {} // there is nothing to do it to
            }
            model.settle(&mut core, now)?;
            let by = |all: &dyn Fn(Urgency) -> usize| ByClass { waited: all(Urgency::Waited), background: all(Urgency::Background) };
            let under_way = by(&|class| model.count(&model.under_way, None, Some(class)));
            let queued = by(&|class| model.count(&model.queued, None, Some(class)));
            prop_assert_eq!(core.load, Snapshot { under_way, queued });
        }
        // Answers and time are all that anybody waits for.
        while let Some((lane, large, _)) = model.under_way.pop() {
            core.done(lane, large);
            model.settle(&mut core, now)?;
            if let Some(next) = core.next_time(now).filter(|_| model.under_way.is_empty()) {
                now = next;
                model.settle(&mut core, now)?;
            }
        }
        if let Some(next) = core.next_time(now) {
            prop_assert!(next > now);
        }
        let left = model.queued.iter().map(|(lane, ..)| model.about(*lane).0);
        prop_assert!(left.clone().all(|store| model.held.get(&store).is_some_and(|until| *until > now)), "{:?} wait for ever", model.queued);
    }

    #[test]
    fn no_span_of_time_sees_more_bytes_than_the_rate_and_a_burst(
        rate in 1u64..50_000_000, asks in prop::collection::vec((0usize..4, 1u64..2_000_000, 0u64..300), 1..60),
    ) {
        let begin = clock().now();
        let mut core = Core::new(&Limits { bytes_per_second: Some(ByteSize(rate)), ..limits(1, 1) });
        let lanes = [Urgency::Waited, Urgency::Background, Urgency::Waited, Urgency::Background].map(|class| (core.open(A, class), class));
        let burst = (rate / 10).max(SMALLEST_BURST);
        let (mut now, mut waiting, mut taken) = (begin, Vec::new(), Vec::<(Instant, u64)>::new());
        let mut settle = |core: &mut Core, waiting: &mut Vec<(Ticket, Urgency, u64)>, now: Instant| {
            while let Some(ticket) = core.next_grant(now) {
                let at = waiting.iter().position(|(other, ..)| *other == ticket).expect("was asked for");
                let (_, class, n) = waiting.remove(at);
                prop_assert!(class == Urgency::Waited || waiting.iter().all(|(_, other, _)| *other == Urgency::Background));
                taken.push((now, n));
                let mut sum = 0u128;
                for (then, n) in taken.iter().rev() {
                    sum += u128::from(*n);
                    let filled = (now - *then).as_nanos() * u128::from(rate) / 1_000_000_000;
                    // The last one may be more than the bucket holds: it waited until the bucket was full.
                    let most = u128::from(burst) + filled + u128::from(taken[taken.len() - 1].1.saturating_sub(burst));
                    prop_assert!(sum <= most, "{} bytes where {} may be", sum, most);
                }
            }
            Ok(())
        };
        for (lane, n, millis) in asks {
            let (lane, class) = lanes[lane];
            waiting.push((core.ask_bytes(lane, n), class, n));
            settle(&mut core, &mut waiting, now)?;
            let later = now + Duration::from_millis(millis);
            while let Some(next) = core.next_time(now).filter(|next| *next <= later) {
                let before = waiting.len();
                settle(&mut core, &mut waiting, next)?;
                prop_assert!(waiting.len() < before, "the moment was announced, and nothing came");
                now = next;
            }
            now = later;
        }
        while let Some(next) = core.next_time(now) {
            now = next;
            let before = waiting.len();
            settle(&mut core, &mut waiting, now)?;
            prop_assert!(waiting.len() < before, "the moment was announced, and nothing came");
        }
        prop_assert!(waiting.is_empty());
    }
}

fn can_be_sent<F: Future + Send>(future: F) -> F {
    future
}

#[tokio::test(start_paused = true)]
async fn a_turn_waits_for_a_free_request_and_comes_when_one_is_dropped() {
    let pace = pace(1);
    let lane = pace.lane(A, haste(Urgency::Waited));
    let held = can_be_sent(lane.turn(true)).await;
    let mut next = Box::pin(can_be_sent(lane.turn(false)));
    assert!(poll_immediate(&mut next).await.is_none());
    let by = |waited| ByClass { waited, background: 0 };
    assert_eq!(pace.snapshot(), Snapshot { under_way: by(1), queued: by(1) });
    drop(held);
    let turn = next.await;
    assert_eq!(pace.snapshot(), Snapshot { under_way: by(1), queued: by(0) });
    drop(lane);
    turn.busy(None);
    drop(turn);
    assert_eq!(pace.snapshot(), Snapshot::default());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_goes_leaves_the_queue_and_its_permit_to_the_next() {
    let pace = pace(1);
    let lane = pace.lane(A, haste(Urgency::Waited));
    let held = lane.turn(true).await;
    let (mut gone, mut granted, mut last) = (Box::pin(lane.turn(true)), Box::pin(lane.turn(true)), Box::pin(lane.turn(true)));
    for queued in [&mut gone, &mut granted, &mut last] {
        assert!(poll_immediate(queued).await.is_none());
    }
    drop(gone);
    assert_eq!(pace.snapshot().queued.waited, 2);
    drop(held); // its permit goes to `granted`, which never learns it
    assert_eq!(pace.snapshot().queued.waited, 1);
    drop(granted);
    assert!(poll_immediate(&mut last).await.is_some());
    assert_eq!(pace.snapshot(), Snapshot::default());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_asks_for_a_pause_gets_it_from_all_and_others_go_on() {
    let (clock, pace) = (clock(), pace(8));
    let begin = clock.now();
    let (a, b) = (pace.lane(A, haste(Urgency::Waited)), pace.lane(B, haste(Urgency::Waited)));
    let first = a.turn(false).await;
    let second = a.turn(false).await;
    first.busy(Some(secs(7)));
    drop(first);
    assert!(b.turn(false).now_or_never().is_some());
    let (mut keeper, mut other) = (Box::pin(a.turn(false)), Box::pin(a.turn(false)));
    assert!(poll_immediate(&mut keeper).await.is_none() && poll_immediate(&mut other).await.is_none());
    second.busy(Some(secs(9)));
    drop(second);
    drop(keeper); // it was the one that slept for both
    other.await;
    assert_eq!(clock.now() - begin, secs(9));
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_begins_while_others_wait_wakes_them_when_it_ends() {
    let (clock, pace) = (clock(), pace(1));
    let begin = clock.now();
    let lane = pace.lane(A, haste(Urgency::Waited));
    let turn = lane.turn(false).await;
    let queued = join_all((0..5).map(|_| lane.turn(false).map(drop)));
    let refused = async {
        clock.sleep(secs(1)).await;
        turn.busy(Some(secs(3)));
        drop(turn);
    };
    tokio::join!(queued, refused);
    assert_eq!(clock.now() - begin, secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_short_pause_is_not_slept_out_with_a_longer_one() {
    let (clock, pace) = (clock(), pace(8));
    let begin = clock.now();
    let (a, b) = (pace.lane(A, haste(Urgency::Waited)), pace.lane(B, haste(Urgency::Waited)));
    a.turn(false).await.busy(Some(secs(50)));
    b.turn(false).await.busy(Some(secs(2)));
    let ends = |lane| {
        let clock = &clock;
        Lane::turn(lane, false).map(move |_turn| clock.now() - begin)
    };
    assert_eq!(tokio::join!(ends(&a), ends(&b)), (secs(50), secs(2)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_once() {
    let pace = pace(8);
    let lane = pace.lane(A, haste(Urgency::Waited));
    lane.turn(false).await.busy(None);
    let turn = lane.turn(false).await;
    for _ in 0..9 {
        turn.fine();
        assert_eq!(pace.0.desk.lock().core.limit(A), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_raise_moves_queued_requests_up_at_once() {
    let pace = pace(8);
    let (urgent, other) = (haste(Urgency::Background), haste(Urgency::Background));
    let (lane, beside) = (pace.lane(A, Arc::clone(&urgent)), pace.lane(A, other));
    let _held = join_all((0..7).map(|_| beside.turn(false))).await;
    let (mut behind, mut raised) = (Box::pin(beside.turn(false)), Box::pin(lane.turn(false)));
    assert!(poll_immediate(&mut behind).await.is_none() && poll_immediate(&mut raised).await.is_none());
    urgent.raise();
    assert!(poll_immediate(&mut raised).await.is_some(), "the last eighth is for it");
    assert!(poll_immediate(&mut behind).await.is_none());
    let later = pace.lane(B, Arc::clone(&urgent));
    let _turn = later.turn(true).await;
    assert_eq!(pace.snapshot().under_way, ByClass { waited: 1, background: 7 }, "what begins later is waited for too");
    urgent.raise();
}

#[tokio::test(start_paused = true)]
async fn lanes_that_are_over_are_forgotten_by_their_urgency() {
    let pace = pace(8);
    let haste = haste(Urgency::Background);
    let other = Pace::new(limits(1, 1), clock(), &Metrics::default());
    let (a, b) = (pace.lane(A, Arc::clone(&haste)), other.lane(A, Arc::clone(&haste)));
    assert_eq!(a.id, b.id);
    drop(a);
    assert_eq!(haste.0.lock().lanes.len(), 1);
    haste.raise();
    assert_eq!(b.turn(false).map(|_turn| other.snapshot().under_way.waited).await, 1);
    assert!(pace.0.desk.lock().core.lanes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn bytes_without_a_limit_are_free_and_with_one_take_their_time() {
    let free = pace(1).lane(A, haste(Urgency::Waited));
    assert!(free.bytes(u64::MAX).now_or_never().is_some());
    let clock = clock();
    let pace = Pace::new(Limits { bytes_per_second: Some(ByteSize(10 * MIB)), ..limits(8, 8) }, clock.clone(), &Metrics::default());
    let begin = clock.now();
    let (a, b) = (pace.lane(A, haste(Urgency::Waited)), pace.lane(B, haste(Urgency::Background)));
    let took = |lane: Lane| async {
        let lane = lane;
        join_all((0..4).map(|_| async {
            for _ in 0..80 {
                lane.bytes(MIB / 16).await;
            }
        }))
        .await;
        clock.now() - begin
    };
    let (waited, all) = tokio::join!(took(a), took(b));
    // 20 MiB each, 1 MiB of them in the bucket at the start; timers are good to a millisecond.
    for (took, expected) in [(waited, 1.9), (all, 3.9)] {
        assert!((expected..expected + 0.01).contains(&took.as_secs_f64()), "{took:?} for {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() })]

    /// Tasks that ask, are refused, give up waiting at any point and are raised: all of them end, and nothing is left.
    #[test]
    fn tasks_that_come_and_go_lose_no_permit_and_no_wake_up(
        requests in 1usize..6,
        jobs in prop::collection::vec((0u8..3, any::<bool>(), 0u64..40, 0u64..60, 0u64..200, prop::option::of(0u64..30)), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let clock = clock();
            let pace = Pace::new(Limits { requests, parts_per_download: 2, bytes_per_second: Some(ByteSize(4 * MIB)) }, clock.clone(), &Metrics::default());
            let ms = Duration::from_millis;
            let hastes: Vec<_> = (0..3).map(|n| haste(if n == 0 { Urgency::Waited } else { Urgency::Background })).collect();
            let lanes: Vec<_> = hastes.iter().enumerate().map(|(n, haste)| pace.lane([n as u8 % 2; 32], Arc::clone(haste))).collect();
            let all = join_all(jobs.iter().map(|(which, large, starts, work, patience, busy)| {
                let (lane, haste, clock) = (&lanes[usize::from(*which)], &hastes[usize::from(*which)], &clock);
                async move {
                    clock.sleep(ms(*starts)).await;
                    let work = async {
                        let turn = lane.turn(*large).await;
                        lane.bytes(100 << 10).await;
                        clock.sleep(ms(*work)).await;
                        match busy {
                            Some(pause) => turn.busy(Some(ms(*pause)).filter(|pause| !pause.is_zero())),
                            None => turn.fine(),
                        }
                    };
                    if *patience < 150 {
                        clock.until(clock.deadline_in(ms(*patience)), work).await;
                    } else {
                        work.await;
                    }
                    if *patience % 16 == 0 {
                        haste.raise();
                    }
                }
            }));
            let ended = clock.until(clock.deadline_in(secs(3600)), all).await;
            assert!(ended.is_some(), "somebody was forgotten: {:?}", pace.snapshot());
            assert_eq!(pace.snapshot(), Snapshot::default());
            drop(lanes);
            let desk = pace.0.desk.lock();
            assert!(desk.waiting.is_empty() && desk.granted.is_empty() && desk.core.lanes.is_empty() && desk.core.stores.is_empty());
        });
    }
}
