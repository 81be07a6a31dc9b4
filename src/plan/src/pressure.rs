//! What follows from what is really in use.
//!
//! The ledger says what copies are charged with; what somebody measured says what is so. Where the two differ, the worse of
//! them counts: a load is admitted only into memory that both have, and copies go when a memory is nearly full although the
//! ledger has room. What the server holds is taken as `base + what its copies take + what it kept of copies that have gone`.

use std::collections::BTreeMap;

use berth_types::{ByteSize, Footprint, Pool, Reading, Usage};

/// When a memory counts as nearly full, in percent of its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// From here on copies go.
    pub high_percent: u32,
    /// Until so little is used again.
    pub low_percent: u32,
}

impl Default for Marks {
    fn default() -> Self {
        Marks { high_percent: 92, low_percent: 85 }
    }
}

/// How a memory stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    /// Nearly full, and not yet relieved since.
    pub strained: bool,
    /// What must come free before it is relieved.
    pub excess: ByteSize,
}

/// How a memory stands that was `strained` before: from the high mark on, until it is below the low one.
#[must_use]
pub fn strain(strained: bool, usage: Usage, marks: Marks) -> Strain {
    let high = usage.limit.percent(marks.high_percent);
    let low = usage.limit.percent(marks.low_percent.min(marks.high_percent));
    let strained = usage.limit > ByteSize::ZERO && usage.used > low && (strained || usage.used >= high);
    Strain { strained, excess: if strained { usage.used.saturating_sub(low) } else { ByteSize::ZERO } }
}

/// What is known of a GPU of which nobody tells how much of it the server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// As far as can be told nobody else came or went since the server began.
    Alone {
        /// So much was in use before the server loaded anything.
        before: ByteSize,
        /// So much was when it last began to do nothing; `None` while it does something.
        at_rest: Option<ByteSize>,
    },
    /// Somebody else uses it, too: nobody knows how much.
    Others,
}

impl Share {
    /// A GPU of which so much was in use before the server loaded anything.
    #[must_use]
    pub fn alone(before: ByteSize) -> Self {
        Share::Alone { before, at_rest: None }
    }

    /// Another look: so much is in use, and the server did nothing since the last one (`rests`), or did. Somebody else has come
    /// when more is in use although it did nothing, and was there before when less is in use than when it began; both by more
    /// than a hundredth of the GPU.
    fn seen(self, usage: Usage, rests: bool) -> Self {
        let Share::Alone { before, at_rest } = self else { return self };
        let at_rest = if rests { at_rest.or(Some(usage.used)) } else { None };
        let slack = usage.limit.percent(1);
        let grew = at_rest.is_some_and(|at_rest| usage.used > at_rest + slack);
        if grew || usage.used + slack < before { Share::Others } else { Share::Alone { before, at_rest } }
    }
}

/// What is known of the GPUs once `reading` has come, after `known`. `untouched`: the server has not been told to load anything
/// yet. `rests`: it was told nothing and computed nothing since the last reading.
///
/// Nothing is of a server that is not seen, nor where of any GPU it is said what the server holds: then that is said of all.
#[must_use]
pub fn shares(known: &BTreeMap<Pool, Share>, reading: &Reading, untouched: bool, rests: bool) -> BTreeMap<Pool, Share> {
    let gpus = || reading.pools.iter().filter(|(pool, _)| **pool != Pool::Host);
    if reading.life.is_none() || gpus().any(|(_, real)| real.held.is_some()) {
        return BTreeMap::new();
    }
    let mut shares = known.clone();
    for (pool, usage, others) in gpus().filter_map(|(pool, real)| Some((*pool, real.usage?, real.others))) {
        let share = match known.get(&pool) {
            // One that has dropped out says nothing.
            _ if usage.limit == ByteSize::ZERO => continue,
            Some(_) | None if untouched => Share::alone(usage.used),
            Some(known) => known.seen(usage, rests),
            None => continue,
        };
        shares.insert(pool, if others { Share::Others } else { share });
    }
    shares
}

/// The reading with what the server holds of the GPUs that it has alone: all that is in use there. What was in use before it
/// loaded anything is part of its [`base`] then.
#[must_use]
pub fn attributed(mut reading: Reading, shares: &BTreeMap<Pool, Share>) -> Reading {
    for (pool, real) in &mut reading.pools {
        if matches!(shares.get(pool), Some(Share::Alone { .. })) && real.held.is_none() {
            real.held = real.usage.map(|usage| usage.used);
        }
    }
    reading
}

/// What was in use of the GPUs that the server has alone before it loaded anything.
#[must_use]
pub fn base(shares: &BTreeMap<Pool, Share>) -> Footprint {
    Footprint::of(shares.iter().filter_map(|(pool, share)| match share {
        Share::Alone { before, .. } => Some((*pool, *before)),
        Share::Others => None,
    }))
}

/// What the server kept of copies that have gone, or took beside them: what it holds beyond `base` and `charged`.
#[must_use]
pub fn retained(held: &Footprint, base: &Footprint, charged: &Footprint) -> Footprint {
    held.minus(base).minus(charged)
}

/// The part of the budget that is not there: of what the ledger counts as free, what is not free in truth. `coming` is what
/// loads that are under way will take, which nobody has measured yet.
///
/// Where nothing is charged at all, what the server kept counts as free: the next copy is made of it, and nothing that could
/// go would change it.
#[must_use]
pub fn withheld(budget: &Footprint, charged: &Footprint, coming: &Footprint, retained: &Footprint, reading: &Reading, marks: Marks) -> Footprint {
    let short = |(pool, all): (Pool, ByteSize)| {
        let usage = reading.usage(pool)?;
        let reusable = if charged.get(pool) == ByteSize::ZERO { retained.get(pool) } else { ByteSize::ZERO };
        let used = usage.used.saturating_sub(reusable) + coming.get(pool);
        let there = usage.limit.percent(marks.high_percent).saturating_sub(used);
        Some((pool, all.saturating_sub(charged.get(pool)).saturating_sub(there)))
    };
    Footprint::of(budget.iter().filter_map(short))
}

/// What loads under way have still to take of what they have `leased`: less what is used more than when they began. What was
/// `used` then and is now is held against what was `settled`, which is charged to everything else.
#[must_use]
pub fn still_coming(leased: &Footprint, used: [&Footprint; 2], settled: [&Footprint; 2]) -> Footprint {
    let ([used_before, used_now], [settled_before, settled_now]) = (used, settled);
    let grown = used_now.plus(settled_before).minus(&used_before.plus(settled_now));
    leased.minus(&grown)
}

/// What a copy is charged with that was thought to take `need` and with whose load the server has `grown`, while it had
/// `kept` memory of others.
///
/// It takes at least what the server has grown by, and at most that and all that was kept, of which it may have been made. So
/// what was thought is corrected as far as that shows it to be wrong and no further: kept memory never makes a copy look
/// smaller than it may be.
#[must_use]
pub fn charge(need: &Footprint, grown: &Footprint, kept: &Footprint) -> Footprint {
    let pools = need.plus(grown);
    Footprint::of(pools.iter().map(|(pool, _)| {
        let (least, most) = (grown.get(pool), grown.get(pool) + kept.get(pool));
        (pool, need.get(pool).max(least).min(most))
    }))
}

/// Whether what was measured so may be kept as the size of these files: what is uncertain of it is a tenth at most.
#[must_use]
pub fn is_certain(grown: &Footprint, kept: &Footprint) -> bool {
    grown.total() > ByteSize::ZERO && grown.iter().all(|(pool, bytes)| kept.get(pool) <= bytes.percent(10))
}

/// The same where requests were computed meanwhile, which make the server grow and shrink as well: what was thought is raised by
/// that, and not lowered.
#[must_use]
pub fn charge_in_traffic(need: &Footprint, grown: &Footprint, kept: &Footprint) -> Footprint {
    charge(need, grown, kept).max(need)
}

/// Whether the load of a copy tells anything of what it takes, which is thought to be `need`. A server that grew next to nothing
/// may take the memory at the first request or from files, or somebody else was looked at. Where `need` was `seen` at an
/// earlier load of the same files, that was wrong then, unless the copy was made of what was kept.
#[must_use]
pub fn tells_something(need: &Footprint, grown: &Footprint, kept: &Footprint, seen: bool) -> bool {
    let little = grown.total() < need.total().percent(10);
    !little || seen && is_certain(grown, kept)
}

/// Whether a copy of files that were never loaded has the server's loads to itself, so that what it takes can be told: when
/// it is thought to take more than a twentieth of a memory.
#[must_use]
pub fn learns_alone(need: &Footprint, budget: &Footprint) -> bool {
    need.iter().any(|(pool, bytes)| bytes > budget.get(pool).percent(5))
}

/// How much room a copy gets for its load whose files were never loaded and that is thought to take `need`: sixteen times
/// that, but no more than three tenths of a memory. A guess by the size of files is that far off at times, and what is not
/// needed of it is given back when the load has ended.
#[must_use]
pub fn cautious(need: &Footprint, budget: &Footprint) -> Footprint {
    Footprint::of(need.iter().map(|(pool, bytes)| (pool, bytes.max(bytes.percent(1600).min(budget.get(pool).percent(30))))))
}

/// Whether the server has so much that it gives to nobody that it had better be started anew: what it `kept`, and what copies
/// hold that it does not unload, against `percent` of a memory. Copies that are `loaded` may have taken as much again as they
/// are charged with when they computed: that is theirs.
#[must_use]
pub fn is_bloated(kept: &Footprint, loaded: &Footprint, unconfirmed: &Footprint, budget: &Footprint, percent: u32) -> bool {
    let kept = kept.minus(loaded);
    budget.iter().any(|(pool, all)| {
        let lost = kept.get(pool).max(unconfirmed.get(pool));
        lost > ByteSize::ZERO && lost >= all.percent(percent)
    })
}

#[cfg(test)]
mod tests {
    use berth_types::Real;
    use proptest::prelude::*;

    use super::*;

    const MARKS: Marks = Marks { high_percent: 90, low_percent: 80 };

    fn host(bytes: u64) -> Footprint {
        Footprint::host(ByteSize(bytes))
    }

    fn usage(used: u64, limit: u64) -> Usage {
        Usage { used: ByteSize(used), limit: ByteSize(limit) }
    }

    fn reading(used: u64, limit: u64) -> Reading {
        Reading { pools: [(Pool::Host, Real { usage: Some(usage(used, limit)), ..Real::default() })].into(), ..Reading::default() }
    }

    const GPU: Pool = Pool::Gpu(0);

    /// One GPU of 1000 of which nobody tells who has what.
    fn gpu(used: u64) -> Reading {
        Reading { pools: [(GPU, Real { usage: Some(usage(used, 1000)), ..Real::default() })].into(), life: Some(1), ..Reading::default() }
    }

    #[test]
    fn a_gpu_is_the_servers_alone_until_somebody_else_is_seen_to_come_or_go() {
        const RESTS: bool = true;
        // How much is in use at each look from the first load on, and whether the server did nothing since the one before.
        for (case, looks, alone) in [
            ("loads and requests take memory and give it back", &[(300, false), (700, false), (100, false)][..], true),
            ("at rest it stays as it is, nearly", &[(300, false), (300, RESTS), (309, RESTS), (291, RESTS), (310, RESTS)], true),
            ("somebody came while it was at rest", &[(300, RESTS), (311, RESTS)], false),
            ("by and by", &[(300, RESTS), (305, RESTS), (310, RESTS), (315, RESTS)], false),
            (
                "what it takes when it works is its own, and where it rests from then on",
                &[(300, RESTS), (600, false), (605, RESTS), (610, RESTS)],
                true,
            ),
            ("it gives memory back late", &[(600, false), (600, RESTS), (300, RESTS)], true),
            ("somebody went who had been there before", &[(300, false), (89, false)], false),
            ("once somebody was there it stays so", &[(89, false), (300, false)], false),
            ("a GPU that drops out says nothing", &[(300, RESTS), (0, RESTS), (300, RESTS)], true),
        ] {
            let mut known = shares(&BTreeMap::new(), &gpu(100), true, RESTS);
            for (used, rests) in looks {
                let mut reading = gpu(*used);
                if *used == 0 {
                    reading.pools.insert(GPU, Real { usage: Some(usage(0, 0)), ..Real::default() });
                }
                known = shares(&known, &reading, false, *rests);
            }
            assert_eq!(matches!(known[&GPU], Share::Alone { before: ByteSize(100), .. }), alone, "{case}: {known:?}");
            let (used, _) = looks[looks.len() - 1];
            let expected = if alone { (Some(ByteSize(used)), 100) } else { (None, 0) };
            assert_eq!((attributed(gpu(used), &known).pools[&GPU].held, base(&known).get(GPU).0), expected, "{case}");
        }
    }

    #[test]
    fn of_which_gpus_it_is_worked_out_what_the_server_holds() {
        let told = |held: Option<u64>, others: bool, life: Option<u64>| {
            let real = Real { held: held.map(ByteSize), others, usage: Some(usage(100, 1000)) };
            Reading { pools: [(GPU, real), (Pool::Gpu(1), Real { held: None, ..real })].into(), life, ..Reading::default() }
        };
        let before = BTreeMap::from([(GPU, Share::alone(ByteSize(70)))]);
        for (case, reading, untouched, expected) in [
            (
                "before its first load",
                told(None, false, Some(1)),
                true,
                vec![(GPU, Share::alone(ByteSize(100))), (Pool::Gpu(1), Share::alone(ByteSize(100)))],
            ),
            ("later of the one that was known", told(None, false, Some(1)), false, vec![(GPU, Share::alone(ByteSize(70)))]),
            ("somebody else is seen there", told(None, true, Some(1)), false, vec![(GPU, Share::Others)]),
            ("a server that is not seen", told(None, false, None), true, vec![]),
            ("it is said of one, and so of all", told(Some(40), false, Some(1)), true, vec![]),
            ("nothing is said of any GPU", Reading { life: Some(1), ..Reading::default() }, false, vec![(GPU, Share::alone(ByteSize(70)))]),
        ] {
            assert_eq!(shares(&before, &reading, untouched, false), expected.into_iter().collect(), "{case}");
        }
        let own_word = attributed(told(Some(40), false, Some(1)), &before);
        assert_eq!((own_word.pools[&GPU].held, own_word.pools[&Pool::Gpu(1)].held), (Some(ByteSize(40)), None), "what is said counts");
    }

    #[test]
    fn a_memory_is_strained_from_the_high_mark_until_below_the_low_one() {
        for (case, before, used, expected) in [
            ("far from full", false, 500, (false, 0)),
            ("between the marks on the way up", false, 899, (false, 0)),
            ("at the high mark", false, 900, (true, 100)),
            ("between the marks on the way down", true, 810, (true, 10)),
            ("at the low mark", true, 800, (false, 0)),
            ("beyond its limit", false, 1200, (true, 400)),
        ] {
            assert_eq!(strain(before, usage(used, 1000), MARKS), Strain { strained: expected.0, excess: ByteSize(expected.1) }, "{case}");
        }
        assert!(!strain(false, usage(0, 0), MARKS).strained, "a memory without a size is none");
    }

    #[test]
    fn of_the_budget_only_what_is_there_in_truth_is_given_out() {
        for (case, charged, coming, kept, used, expected) in [
            ("the ledger is right", 40, 0, 0, 400, 0),
            ("others use what the ledger counts on", 40, 0, 0, 850, 10),
            ("and a load under way will, which is charged already", 60, 20, 0, 850, 10),
            ("nothing is left at all", 40, 0, 0, 950, 60),
            ("what was kept is no room while copies are loaded", 40, 0, 30, 870, 30),
            ("and is room when none is", 0, 0, 30, 870, 40),
            ("a memory of which nothing is kept, with nothing loaded", 0, 0, 0, 870, 70),
        ] {
            let answer = withheld(&host(100), &host(charged), &host(coming), &host(kept), &reading(used, 1000), MARKS);
            assert_eq!(answer, host(expected), "{case}");
        }
        let unknown = withheld(&host(100), &host(5), &host(0), &host(0), &Reading::default(), MARKS);
        assert_eq!(unknown.total(), ByteSize::ZERO, "of what nobody can tell, the ledger's word counts");
    }

    #[test]
    fn what_is_learned_is_bounded_by_what_was_kept() {
        for (case, need, grown, kept, expected) in [
            ("nothing was kept: the growth is the size", 100, 40, 0, 40),
            ("also when it is more than was thought", 100, 140, 0, 140),
            ("what was kept may be in it: it is not lowered", 100, 40, 70, 100),
            ("but not beyond what there can be", 100, 40, 30, 70),
            ("it is raised", 100, 140, 30, 140),
        ] {
            assert_eq!(charge(&host(need), &host(grown), &host(kept)), host(expected), "{case}");
        }
        assert!(is_certain(&host(100), &host(10)) && !is_certain(&host(100), &host(11)) && !is_certain(&host(0), &host(0)));
        assert!(learns_alone(&host(6), &host(100)) && !learns_alone(&host(5), &host(100)));
        assert_eq!(retained(&host(100), &host(30), &host(50)), host(20));
    }

    #[test]
    fn a_first_load_gets_room_for_a_guess_that_is_far_off() {
        for (need, expected) in [(1, 16), (5, 30), (40, 40), (0, 0)] {
            assert_eq!(cautious(&host(need), &host(100)), host(expected), "{need}");
        }
    }

    #[test]
    fn a_server_is_bloated_by_what_it_keeps_or_does_not_unload() {
        for (kept, loaded, unconfirmed, expected) in
            [(0, 0, 0, false), (49, 0, 49, false), (50, 0, 0, true), (50, 1, 0, false), (70, 20, 0, true), (0, 90, 50, true)]
        {
            assert_eq!(is_bloated(&host(kept), &host(loaded), &host(unconfirmed), &host(100), 50), expected, "{kept} {loaded} {unconfirmed}");
        }
        assert!(!is_bloated(&host(0), &host(0), &host(0), &host(0), 50));
    }

    #[test]
    fn what_loads_have_taken_already_is_not_expected_once_more() {
        for (case, leased, used, settled, expected) in [
            ("nothing has come yet", 50, [100, 100], [30, 30], 50),
            ("a part of it has", 50, [100, 120], [30, 30], 30),
            ("all of it, and more", 50, [100, 170], [30, 30], 0),
            ("another load has ended meanwhile, whose memory that is", 50, [100, 140], [30, 70], 50),
            ("a copy has gone, and the load has taken as much", 50, [100, 100], [30, 10], 30),
            ("less is used, for no reason that is known", 50, [100, 80], [30, 30], 50),
        ] {
            let ([before, now], [then, since]) = (used.map(host), settled.map(host));
            assert_eq!(still_coming(&host(leased), [&before, &now], [&then, &since]), host(expected), "{case}");
        }
    }

    #[test]
    fn requests_during_a_load_and_a_server_that_hardly_grew_lower_nothing() {
        for (need, grown, expected) in [(100, 40, 100), (100, 140, 140)] {
            assert_eq!(charge_in_traffic(&host(need), &host(grown), &host(0)), host(expected), "{grown}");
        }
        for (case, grown, kept, seen, expected) in [
            ("much of what was thought", 10, 0, false, true),
            ("next to nothing of a guess", 9, 0, false, false),
            ("next to nothing of what was seen before", 9, 0, true, true),
            ("which may have been made of what was kept", 9, 2, true, false),
            ("nothing at all", 0, 0, true, false),
        ] {
            assert_eq!(tells_something(&host(100), &host(grown), &host(kept), seen), expected, "{case}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(11), ..Default::default() })]

        #[test]
        fn a_guess_that_is_enough_stays_enough_whatever_was_kept(truth in 0u64..1000, guess in 0u64..1000, kept in 0u64..1000, reused in 0u64..1000) {
            // Of a copy that takes `truth`, some was made of what was kept: only the rest is seen.
            let reused = reused.min(kept).min(truth);
            let charged = charge(&host(guess), &host(truth - reused), &host(kept)).get(Pool::Host).0;
            prop_assert!(charged >= truth - reused);
            prop_assert!(charged <= truth.max(guess).max(truth - reused + kept));
            if guess >= truth {
                prop_assert!(charged >= truth, "{charged} charged");
            }
            if kept == 0 {
                prop_assert_eq!(charged, truth);
            }
        }

        #[test]
        fn what_is_given_out_is_there_in_truth(budget in 0u64..1000, charged in 0u64..1200, coming in 0u64..500, used in 0u64..1200) {
            let withheld = withheld(&host(budget), &host(charged), &host(coming), &host(0), &reading(used, 1000), MARKS).get(Pool::Host).0;
            let free = budget.saturating_sub(charged);
            prop_assert!(withheld <= free, "no more is withheld than there is");
            let given = free - withheld;
            prop_assert!(given == 0 || used + coming + given <= 900, "{given} more");
        }

        #[test]
        fn strain_ends_when_what_it_asks_for_is_freed(used in 0u64..2000, limit in 1u64..1500, before in any::<bool>()) {
            let now = strain(before, usage(used, limit), MARKS);
            let after = strain(now.strained, usage(used - now.excess.0, limit), MARKS);
            prop_assert!(!after.strained, "{after:?}");
            prop_assert_eq!(now.strained, now.excess > ByteSize::ZERO);
        }
    }
}
