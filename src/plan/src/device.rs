//! On which GPU a copy goes.
//!
//! A copy is on one GPU. Each of them makes an [`Offer`], which is what [`crate::admit()`] says of it, and the best one
//! counts: room that is there, then room that is coming back anyway, then the fewest copies that must go for it, and of
//! as many the ones that were unused for longest. Where memory is the same the emptier GPU is taken, then the one with
//! the lower number, so that one state of the books gives one answer.
//!
//! What a copy takes is known for a GPU, not for this or that one: a size that was learned on one holds for all of them.

use std::cell::Cell;
use std::cmp::Reverse;

use berth_types::{ByteSize, Footprint, ModelId, Pool, Reading, Refusal, UnixMillis, Usage};

use crate::{Admission, Memory, Resident};

/// What there is for a copy on one GPU, or where it takes memory anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which GPU; `None` where nobody chooses.
    pub gpu: Option<u16>,
    /// What the copy takes when it goes there.
    pub need: Footprint,
    /// Whether it fits there.
    pub admission: Admission,
    /// What is free there, or all that there is for a copy that never fits.
    room: ByteSize,
    /// When the last of the copies that must go was used; of no meaning where none must.
    youngest: UnixMillis,
}

/// How good an offer is: the smallest wins, fields compared from top to bottom.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    ease: Ease,
    /// The fewest copies that must go,
    victims: usize,
    /// unused for longest,
    youngest: UnixMillis,
    /// where most is free.
    room: Reverse<ByteSize>,
    gpu: Option<u16>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Ease {
    Fits,
    Returns,
    Evicts,
    NotNow,
    Never,
}

impl Offer {
    fn rank(&self) -> Rank {
        let (ease, victims) = match &self.admission {
            Admission::Fits => (Ease::Fits, 0),
            Admission::AwaitReturning => (Ease::Returns, 0),
            Admission::Evict(victims) => (Ease::Evicts, victims.len()),
            Admission::Refuse(Refusal::NoRoomNow { .. }) => (Ease::NotNow, 0),
            Admission::Refuse(Refusal::NeverFits { .. }) => (Ease::Never, 0),
        };
        let youngest = if victims > 0 { self.youngest } else { UnixMillis::default() };
        Rank { ease, victims, youngest, room: Reverse(self.room), gpu: self.gpu }
    }
}

/// What `gpu` has for a copy that takes `need` there, as `decide` has it of those residents, least recently used first.
#[must_use]
pub fn offer(
    gpu: Option<u16>,
    need: Footprint,
    memory: &Memory,
    residents: impl IntoIterator<Item = Resident>,
    decide: impl FnOnce(&Footprint, &Memory, &mut dyn Iterator<Item = Resident>) -> Admission,
) -> Offer {
    // The walk ends with the copy that makes the others suffice, and that one is never spared.
    let youngest = Cell::new(UnixMillis::default());
    let admission = decide(&need, memory, &mut residents.into_iter().inspect(|copy| youngest.set(copy.last_used)));
    let pool = gpu.map_or(Pool::Host, Pool::Gpu);
    let never = matches!(admission, Admission::Refuse(Refusal::NeverFits { .. }));
    let room = if never { memory.budget.get(pool) } else { memory.free().get(pool) };
    Offer { gpu, need, admission, room, youngest: youngest.get() }
}

/// The best of them; `None` of none.
#[must_use]
pub fn best(offers: impl IntoIterator<Item = Offer>) -> Option<Offer> {
    offers.into_iter().min_by_key(Offer::rank)
}

/// The GPUs that a copy can be put on: those that have a budget, but for those that are gone while any other is left.
#[must_use]
pub fn choices(budget: &Footprint, reading: Option<&Reading>) -> Vec<u16> {
    let is_there = |gpu: &u16| !reading.and_then(|reading| reading.usage(Pool::Gpu(*gpu))).is_some_and(is_gone);
    let there: Vec<u16> = budget.gpus().filter(is_there).collect();
    if there.is_empty() { budget.gpus().collect() } else { there }
}

/// Whether a GPU has gone: it was there, and has no memory at all any more.
#[must_use]
pub fn is_gone(usage: Usage) -> bool {
    usage.limit == ByteSize::ZERO
}

/// The memories of which a load may have run out: main memory where the kernel `killed` for want of it, else the GPU that was
/// chosen for it, else the GPUs that it was thought to take some of. Where the server chooses among GPUs nobody knows which.
#[must_use]
pub fn ran_out(killed: bool, gpu: Option<u16>, need: &Footprint, budget: &Footprint) -> Vec<Pool> {
    let chosen: Vec<Pool> = gpu.into_iter().chain(need.gpus().filter(|_| gpu.is_none())).map(Pool::Gpu).collect();
    match chosen.is_empty() {
        _ if killed => vec![Pool::Host],
        false => chosen,
        true => std::iter::once(Pool::Host).chain(budget.gpus().map(Pool::Gpu)).collect(),
    }
}

/// The idle copy that goes so that a load that ran out of one of these memories is tried once more: the least recently used
/// one that takes some of it. `None`: nothing that could go would help. `residents` come least recently used first.
#[must_use]
pub fn makes_way(pools: &[Pool], residents: impl IntoIterator<Item = Resident>) -> Option<ModelId> {
    let helps = |copy: &Resident| pools.iter().any(|pool| copy.footprint.get(*pool) > ByteSize::ZERO);
    residents.into_iter().find(|copy| copy.in_flight == 0 && !copy.pinned && helps(copy)).map(|copy| copy.model)
}

/// The memory that is too small for `need`, with what it needs there and what there is, also when what it takes of one GPU
/// is taken of the largest. `None`: it fits once enough has gone.
#[must_use]
pub fn too_small(need: &Footprint, budget: &Footprint) -> Option<(Pool, ByteSize, ByteSize)> {
    let fault = need.exceeds(budget)?;
    (!fits_on_some(need, budget)).then_some(fault)
}

/// Whether `need` fits into `free`, also when what it takes of one GPU is taken of another.
#[must_use]
pub fn fits_on_some(need: &Footprint, free: &Footprint) -> bool {
    let moves = need.gpus().count() == 1;
    need.fits(free) || moves && free.gpus().any(|gpu| need.on_gpu(gpu).fits(free))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_types::Real;
    use proptest::prelude::*;

    use super::*;
    use crate::{MayEvict, admit};

    const NOW: UnixMillis = UnixMillis(1_000);

    fn on(gpu: u16, bytes: u64) -> Footprint {
        Footprint::of([(Pool::Gpu(gpu), ByteSize(bytes))])
    }

    fn both(first: u64, second: u64) -> Footprint {
        on(0, first).plus(&on(1, second))
    }

    fn copy(name: &str, gpu: u16, bytes: u64, age: u64) -> Resident {
        Resident {
            model: ModelId::new(name).expect("a test's id is valid"),
            footprint: on(gpu, bytes),
            last_used: UnixMillis(NOW.0 - age),
            held_for: Duration::ZERO,
            used_since_load: true,
            in_flight: 0,
            pinned: false,
        }
    }

    fn memory(budget: Footprint, residents: &[Resident], returning: Footprint) -> Memory {
        let charged = residents.iter().fold(returning.clone(), |sum, copy| sum.plus(&copy.footprint));
        Memory { budget, charged, returning, ..Memory::default() }
    }

    fn chosen(need: u64, memory: &Memory, residents: &[Resident]) -> Offer {
        let decide =
            |need: &Footprint, memory: &Memory, residents: &mut dyn Iterator<Item = Resident>| admit(need, memory, residents, MayEvict::AnyIdle, NOW);
        let each = choices(&memory.budget, None).into_iter().map(|gpu| offer(Some(gpu), on(gpu, need), memory, residents.to_vec(), decide));
        best(each).expect("there is a GPU")
    }

    #[test]
    fn the_gpu_with_room_and_most_of_it_then_where_least_is_lost() {
        let ids = |names: &[&str]| names.iter().map(|name| ModelId::new(*name).expect("valid")).collect::<Vec<_>>();
        let none = || both(0, 0);
        for (case, need, budget, residents, returning, expected) in [
            ("both are empty: the first", 5, both(10, 10), vec![], none(), (0, Admission::Fits)),
            ("the larger one", 5, both(10, 20), vec![], none(), (1, Admission::Fits)),
            ("the emptier one", 5, both(10, 10), vec![copy("a", 0, 1, 9)], none(), (1, Admission::Fits)),
            ("room, though another has more of it in all", 5, both(10, 40), vec![copy("a", 1, 36, 9)], none(), (0, Admission::Fits)),
            (
                "what comes back anyway, before anything goes",
                5,
                both(10, 10),
                vec![copy("a", 0, 10, 9), copy("b", 1, 4, 8)],
                on(1, 6),
                (1, Admission::AwaitReturning),
            ),
            (
                "of one each the older, whoever else is there",
                4,
                both(10, 10),
                vec![copy("a", 0, 5, 9), copy("b", 0, 5, 8), copy("c", 1, 10, 1)],
                none(),
                (0, Admission::Evict(ids(&["a"]))),
            ),
            (
                "of one each the older",
                8,
                both(10, 10),
                vec![copy("old", 1, 10, 9), copy("young", 0, 10, 1)],
                none(),
                (1, Admission::Evict(ids(&["old"]))),
            ),
            (
                "two must go on one, one on the other",
                9,
                both(10, 10),
                vec![copy("a", 0, 5, 9), copy("b", 0, 5, 8), copy("c", 1, 10, 1)],
                none(),
                (1, Admission::Evict(ids(&["c"]))),
            ),
            ("too large for the first", 15, both(10, 20), vec![copy("c", 1, 20, 1)], none(), (1, Admission::Evict(ids(&["c"])))),
            (
                "too large for both: the larger one says so",
                25,
                both(10, 20),
                vec![],
                none(),
                (1, Admission::Refuse(Refusal::NeverFits { pool: Pool::Gpu(1), need: ByteSize(25), budget: ByteSize(20) })),
            ),
        ] {
            let offer = chosen(need, &memory(budget, &residents, returning), &residents);
            assert_eq!((offer.gpu, &offer.admission), (Some(expected.0), &expected.1), "{case}");
            assert_eq!(offer.need, on(expected.0, need), "{case}");
        }
    }

    #[test]
    fn a_gpu_that_is_gone_is_chosen_only_when_none_is_left() {
        let seen = |sizes: &[(u16, u64)]| {
            let pools = sizes.iter().map(|(gpu, limit)| {
                let usage = Some(Usage { used: ByteSize::ZERO, limit: ByteSize(*limit) });
                (Pool::Gpu(*gpu), Real { usage, ..Real::default() })
            });
            Reading { pools: pools.collect(), ..Reading::default() }
        };
        let budget = both(10, 10).plus(&Footprint::of([(Pool::Gpu(2), ByteSize::ZERO)]));
        for (case, reading, expected) in [
            ("nobody tells", None, &[0, 1][..]),
            ("one that nobody sees may be there", Some(seen(&[(0, 16)])), &[0, 1]),
            ("one has gone", Some(seen(&[(0, 0), (1, 16)])), &[1]),
            ("all have", Some(seen(&[(0, 0), (1, 0)])), &[0, 1]),
        ] {
            assert_eq!(choices(&budget, reading.as_ref()), expected, "{case}");
        }
    }

    #[test]
    fn what_ran_out_is_what_the_load_took_of_and_only_a_copy_that_frees_some_of_it_makes_way() {
        const HOST: Pool = Pool::Host;
        let (gpus, host) = ([Pool::Gpu(0), Pool::Gpu(1)], Footprint::host(ByteSize(9)));
        let budget = host.plus(&both(9, 9));
        for (case, killed, gpu, need, expected) in [
            ("the GPU that was chosen", false, Some(1), host.plus(&on(1, 5)), vec![gpus[1]]),
            ("whatever it was thought to take there", false, Some(1), Footprint::default(), vec![gpus[1]]),
            ("the kernel killed: main memory", true, Some(1), on(1, 5), vec![HOST]),
            ("the GPUs that it took", false, None, both(5, 5), gpus.to_vec()),
            ("nobody knows where it went", false, None, host.clone(), vec![HOST, gpus[0], gpus[1]]),
        ] {
            assert_eq!(ran_out(killed, gpu, &need, &budget), expected, "{case}");
        }
        assert_eq!(ran_out(false, None, &host, &host), [HOST], "there are no GPUs");

        let busy = Resident { in_flight: 1, ..copy("busy", 1, 5, 9) };
        let pinned = Resident { pinned: true, ..copy("pinned", 1, 5, 8) };
        let in_main_memory = Resident { footprint: Footprint::host(ByteSize(5)), ..copy("cpu", 0, 0, 7) };
        let residents = [busy, pinned, in_main_memory, copy("other", 0, 5, 6), copy("empty", 1, 0, 5), copy("old", 1, 5, 4), copy("young", 1, 5, 3)];
        for (pools, expected) in [(&gpus[1..], Some("old")), (&gpus, Some("other")), (&[HOST], Some("cpu")), (&[Pool::Gpu(7)], None), (&[], None)] {
            let goes = makes_way(pools, residents.to_vec());
            assert_eq!(goes.as_ref().map(ModelId::as_str), expected, "{pools:?}");
        }
    }

    #[test]
    fn what_one_gpu_cannot_hold_another_may() {
        let budget = Footprint::host(ByteSize(4)).plus(&both(10, 20));
        let with_host = |host: u64, gpu: Footprint| Footprint::host(ByteSize(host)).plus(&gpu);
        for (case, need, expected) in [
            ("it was learned on the smaller one", on(0, 15), None),
            ("too large for each", on(0, 25), Some(Pool::Gpu(0))),
            ("main memory is one", with_host(5, on(0, 15)), Some(Pool::Host)),
            ("on two at a time, nobody moves it", both(15, 1), Some(Pool::Gpu(0))),
            ("a GPU that is not there is another's", on(7, 20), None),
        ] {
            assert_eq!(too_small(&need, &budget).map(|(pool, ..)| pool), expected, "{case}");
            assert_eq!(fits_on_some(&need, &budget), expected.is_none(), "{case}");
        }
    }

    fn residents() -> impl Strategy<Value = Vec<Resident>> {
        prop::collection::vec((0u16..3, 1u64..20, 0u64..50, prop::bool::weighted(0.2)), 0..12).prop_map(|mut all| {
            all.sort_by_key(|copy| std::cmp::Reverse(copy.2));
            let each = all.into_iter().enumerate();
            each.map(|(at, (gpu, bytes, age, busy))| Resident { in_flight: u32::from(busy), ..copy(&format!("m{at}"), gpu, bytes, age) }).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(13), ..Default::default() })]

        /// Held against every GPU by itself.
        #[test]
        fn no_other_gpu_would_have_lost_less_and_only_copies_of_the_chosen_one_go(
            residents in residents(), need in 1u64..30, room in (5u64..60, 5u64..60, 5u64..60),
        ) {
            let budget = both(room.0, room.1).plus(&on(2, room.2));
            let memory = memory(budget, &residents, Footprint::default());
            let best = chosen(need, &memory, &residents);
            let gpu = best.gpu.ok_or_else(|| TestCaseError::fail("no GPU"))?;
            prop_assert_eq!(best.need.gpus().collect::<Vec<_>>(), [gpu]);
            let of = |name: &ModelId| residents.iter().find(|copy| copy.model == *name);
            let lost = |victims: &[ModelId]| (victims.len(), victims.iter().filter_map(of).map(|copy| copy.last_used).max());
            for other in 0u16..3 {
                let alone = admit(&on(other, need), &memory, residents.clone(), MayEvict::AnyIdle, NOW);
                match (&best.admission, &alone) {
                    (Admission::Fits, Admission::Fits) => {
                        prop_assert!(memory.free().get(Pool::Gpu(gpu)) >= memory.free().get(Pool::Gpu(other)));
                    }
                    (Admission::Fits, _) | (_, Admission::Refuse(_)) => {}
                    (Admission::Evict(ours), Admission::Evict(theirs)) => prop_assert!(lost(ours) <= lost(theirs), "{ours:?} {theirs:?}"),
                    (ours, theirs) => prop_assert!(false, "{ours:?} although {theirs:?} on {other}"),
                }
            }
            if let Admission::Evict(victims) = &best.admission {
                prop_assert!(victims.iter().filter_map(of).all(|copy| copy.footprint.gpus().eq([gpu]) && copy.in_flight == 0));
            }
        }
    }
}
