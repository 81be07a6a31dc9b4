//! A persistent map: a copy is one reference count, a change copies the path to the changed entry and shares the rest.
//!
//! The view is such a map, so that publishing a change costs the same with ten models and with a hundred thousand: a
//! hash trie with up to 32 slots per node is about log32(n) nodes deep, and a changed path is that many small copies.
//! Entries carry their key, so nothing is stored twice. The hash is fixed (not seeded): the same names give the same
//! shape in every process.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::quality::FixedState;

/// What a [`Map`] holds: cheap to clone, with its own key.
pub(crate) trait Entry: Clone {
    /// Never changes while the entry is in a map.
    fn key(&self) -> &str;

    /// Of two entries with the same key: whether they say the same. May be false where they do.
    fn same(&self, other: &Self) -> bool;
}

/// Bits of the hash that one level uses.
const BITS: u32 = 5;
/// Levels that one 64-bit hash feeds. Keys that agree in all of them are hashed again with another start.
const LEVELS: u32 = 12;

#[derive(Clone)]
enum Slot<E> {
    Leaf(E),
    Node(Arc<Node<E>>),
}

/// Bit `i` of `used` says that slot `i` exists; existing slots are stored without gaps.
#[derive(Clone)]
struct Node<E> {
    used: u32,
    slots: Box<[Slot<E>]>,
}

impl<E> Default for Node<E> {
    fn default() -> Self {
        Node { used: 0, slots: Box::default() }
    }
}

/// A persistent map of entries by their key.
#[derive(Clone)]
pub(crate) struct Map<E> {
    root: Arc<Node<E>>,
    len: usize,
}

impl<E> Default for Map<E> {
    fn default() -> Self {
        Map { root: Arc::default(), len: 0 }
    }
}

fn hash(key: &str, round: u32) -> u64 {
    FixedState::with_seed(round.into()).hash_one(key)
}

/// Where a key goes, level by level.
struct Way<'k> {
    key: &'k str,
    hash: u64,
}

impl<'k> Way<'k> {
    fn of(key: &'k str) -> Self {
        Way { key, hash: hash(key, 0) }
    }

    fn bit(&self, level: u32) -> u32 {
        let bits = match level / LEVELS {
            0 => self.hash,
            round => hash(self.key, round),
        };
        1 << ((bits >> (level % LEVELS * BITS)) & 31)
    }
}

impl<E> Node<E> {
    fn at(&self, bit: u32) -> usize {
        (self.used & (bit - 1)).count_ones() as usize
    }

    fn slot(&self, bit: u32) -> Option<&Slot<E>> {
        (self.used & bit != 0).then(|| &self.slots[self.at(bit)])
    }

    fn add(&mut self, bit: u32, slot: Slot<E>) {
        let at = self.at(bit);
        let mut slots = std::mem::take(&mut self.slots).into_vec();
        slots.reserve_exact(1);
        slots.insert(at, slot);
        self.slots = slots.into_boxed_slice();
        self.used |= bit;
    }

    fn drop_slot(&mut self, bit: u32) -> Slot<E> {
        let at = self.at(bit);
        let mut slots = std::mem::take(&mut self.slots).into_vec();
        let gone = slots.remove(at);
        self.slots = slots.into_boxed_slice();
        self.used &= !bit;
        gone
    }
}

impl<E: Entry> Map<E> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, key: &str) -> Option<&E> {
        let way = Way::of(key);
        let (mut node, mut level) = (&*self.root, 0);
        loop {
            match node.slot(way.bit(level))? {
                Slot::Leaf(entry) => return (entry.key() == key).then_some(entry),
                Slot::Node(child) => (node, level) = (child, level + 1),
            }
        }
    }

    /// Puts `entry` in, and gives back the one that had its key.
    pub(crate) fn insert(&mut self, entry: E) -> Option<E> {
        let old = insert(&mut self.root, 0, entry);
        self.len += usize::from(old.is_none());
        old
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<E> {
        // Asked first, so that removing what is not there copies nothing.
        self.get(key)?;
        let old = remove(&mut self.root, 0, &Way::of(key));
        self.len -= usize::from(old.is_some());
        old
    }

    /// Tells `tell` of each entry that differs from the one in `before`: what was there, and what is. Costs what has changed,
    /// where one map came from the other.
    pub(crate) fn compare<'m>(&'m self, before: &'m Self, mut tell: impl FnMut(Option<&'m E>, Option<&'m E>)) {
        compare(&before.root, &self.root, &mut tell);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &E> {
        let mut open = vec![self.root.slots.iter()];
        std::iter::from_fn(move || {
            loop {
                match open.last_mut()?.next() {
                    None => drop(open.pop()),
                    Some(Slot::Leaf(entry)) => return Some(entry),
                    Some(Slot::Node(child)) => open.push(child.slots.iter()),
                }
            }
        })
    }
}

/// Tells `tell` how two nodes of one place differ: what was there, and what is. What both share is not looked at.
fn compare<'e, E: Entry>(before: &'e Arc<Node<E>>, after: &'e Arc<Node<E>>, tell: &mut impl FnMut(Option<&'e E>, Option<&'e E>)) {
    if Arc::ptr_eq(before, after) {
        return;
    }
    let mut left = before.used | after.used;
    while left != 0 {
        let bit = left & left.wrapping_neg();
        left &= !bit;
        match (before.slot(bit), after.slot(bit)) {
            (None, None) => {}
            (Some(Slot::Node(before)), Some(Slot::Node(after))) => compare(before, after, tell),
            (old, new) => {
                let (mut there, mut here) = (Vec::new(), Vec::new());
                old.iter().for_each(|slot| slot.gather(&mut there));
                new.iter().for_each(|slot| slot.gather(&mut here));
                for old in &there {
                    match here.iter().find(|new| new.key() == old.key()) {
                        Some(new) if old.same(new) => {}
                        new => tell(Some(*old), new.copied()),
                    }
                }
                here.into_iter().filter(|new| !there.iter().any(|old| old.key() == new.key())).for_each(|new| tell(None, Some(new)));
            }
        }
    }
}

impl<E> Slot<E> {
    fn gather<'e>(&'e self, into: &mut Vec<&'e E>) {
        match self {
            Slot::Leaf(entry) => into.push(entry),
            Slot::Node(child) => child.slots.iter().for_each(|slot| slot.gather(into)),
        }
    }
}

fn insert<E: Entry>(node: &mut Arc<Node<E>>, level: u32, entry: E) -> Option<E> {
    let node = Arc::make_mut(node);
    let bit = Way::of(entry.key()).bit(level);
    if node.used & bit == 0 {
        node.add(bit, Slot::Leaf(entry));
        return None;
    }
    let at = node.at(bit);
    match &mut node.slots[at] {
        Slot::Node(child) => insert(child, level + 1, entry),
        Slot::Leaf(old) if old.key() == entry.key() => Some(std::mem::replace(old, entry)),
        slot => {
            let mut child = Arc::default();
            if let Slot::Leaf(old) = slot {
                insert(&mut child, level + 1, old.clone());
            }
            insert(&mut child, level + 1, entry);
            *slot = Slot::Node(child);
            None
        }
    }
}

fn remove<E: Entry>(node: &mut Arc<Node<E>>, level: u32, way: &Way<'_>) -> Option<E> {
    let node = Arc::make_mut(node);
    let bit = way.bit(level);
    let at = node.at(bit);
    match &mut node.slots[at] {
        Slot::Leaf(_) => match node.drop_slot(bit) {
            Slot::Leaf(old) => Some(old),
            Slot::Node(_) => None,
        },
        Slot::Node(child) => {
            let old = remove(child, level + 1, way);
            // A child with one entry left is that entry: the shape depends on the entries only, not on their history.
            if let [Slot::Leaf(last)] = &*child.slots {
                let last = last.clone();
                node.slots[at] = Slot::Leaf(last);
            }
            old
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    impl Entry for (String, u32) {
        fn key(&self) -> &str {
            &self.0
        }

        fn same(&self, other: &Self) -> bool {
            self == other
        }
    }

    fn contents(map: &Map<(String, u32)>) -> BTreeMap<String, u32> {
        map.iter().cloned().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() })]

        #[test]
        fn it_answers_like_an_ordinary_map_and_older_copies_stay_as_they_were(
            steps in prop::collection::vec((0u32..300, prop::option::of(any::<u32>())), 0..500)
        ) {
            let (mut map, mut model) = (Map::default(), BTreeMap::new());
            let mut kept = Vec::new();
            for (number, (key, value)) in steps.into_iter().enumerate() {
                let key = format!("model-{key}");
                if number % 50 == 0 {
                    kept.push((map.clone(), model.clone()));
                }
                let (was, expected) = match value {
                    Some(value) => (map.insert((key.clone(), value)), model.insert(key.clone(), value)),
                    None => (map.remove(&key), model.remove(&key)),
                };
                prop_assert_eq!(was.map(|entry| entry.1), expected);
                prop_assert_eq!(map.get(&key).map(|entry| entry.1), model.get(&key).copied());
                prop_assert_eq!(map.len(), model.len());
            }
            prop_assert_eq!(contents(&map), model);
            for (before, model) in kept {
                prop_assert_eq!(contents(&before), model);
                // Either way: what is told makes the one of the other.
                for (from, to) in [(&before, &map), (&map, &before)] {
                    let (mut made, mut told) = (from.clone(), 0);
                    to.compare(from, |old, new| {
                        told += 1;
                        let was = match (old, new) {
                            (_, Some(new)) => made.insert(new.clone()),
                            (Some(old), None) => made.remove(old.key()),
                            (None, None) => None,
                        };
                        assert_eq!(was.as_ref(), old);
                        assert_ne!(old, new);
                    });
                    prop_assert_eq!((contents(&made), made.len()), (contents(to), to.len()));
                    prop_assert!(told <= from.len() + to.len());
                }
            }
        }
    }

    #[test]
    fn a_change_shares_all_but_one_path_with_the_copy_before() {
        let mut map = Map::default();
        for n in 0..20_000 {
            map.insert((format!("model-{n}"), n));
        }
        let before = map.clone();
        map.insert(("model-7".to_owned(), 0));
        let of = |map: &Map<(String, u32)>| {
            let mut nodes = std::collections::BTreeSet::new();
            let mut open = vec![Arc::clone(&map.root)];
            while let Some(node) = open.pop() {
                nodes.insert(Arc::as_ptr(&node) as usize);
                open.extend(node.slots.iter().filter_map(|slot| match slot {
                    Slot::Node(child) => Some(Arc::clone(child)),
                    Slot::Leaf(_) => None,
                }));
            }
            nodes
        };
        let (old, new) = (of(&before), of(&map));
        assert!(new.difference(&old).count() <= 5, "{} of {} nodes are new", new.difference(&old).count(), new.len());
    }

    #[test]
    fn entries_whose_hashes_agree_in_every_level_of_the_first_round_are_told_apart() {
        // Two entries pushed down to the level where the second hash begins: what a full collision would come to.
        let mut node = Arc::default();
        insert(&mut node, LEVELS, ("a".to_owned(), 1));
        insert(&mut node, LEVELS, ("b".to_owned(), 2));
        let bits: Vec<u32> = ["a", "b"].map(|key| Way::of(key).bit(LEVELS)).to_vec();
        assert_ne!(Way::of("a").bit(0), 0);
        assert_eq!(node.used, bits[0] | bits[1]);
    }
}
