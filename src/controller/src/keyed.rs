//! A hash table of things that carry their own key, one pointer per place: with a hundred thousand of them, keys that are
//! kept twice and places that are left empty count.

use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;

/// Something with a key that never changes while it is in a table.
pub(crate) trait Keyed {
    /// What it is found by.
    type Key: Eq + Hash + Clone;

    /// Its key.
    fn key(&self) -> &Self::Key;
}

/// Things by their keys.
pub(crate) struct Table<T: Keyed> {
    places: HashTable<Box<T>>,
    hasher: RandomState,
}

impl<T: Keyed> Default for Table<T> {
    fn default() -> Self {
        Table { places: HashTable::new(), hasher: RandomState::new() }
    }
}

impl<T: Keyed> Table<T> {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn get(&self, key: &T::Key) -> Option<&T> {
        self.places.find(self.hasher.hash_one(key), |one| one.key() == key).map(|one| &**one)
    }

    pub(crate) fn get_mut(&mut self, key: &T::Key) -> Option<&mut T> {
        self.places.find_mut(self.hasher.hash_one(key), |one| one.key() == key).map(|one| &mut **one)
    }

    /// Puts `one` in the place of whatever had its key.
    pub(crate) fn insert(&mut self, one: T) {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(one.key());
        match self.places.entry(hash, |other| other.key() == one.key(), |other| hasher.hash_one(other.key())) {
            hashbrown::hash_table::Entry::Occupied(mut place) => **place.get_mut() = one,
            hashbrown::hash_table::Entry::Vacant(place) => drop(place.insert(Box::new(one))),
        }
    }

    pub(crate) fn remove(&mut self, key: &T::Key) -> Option<T> {
        let found = self.places.find_entry(self.hasher.hash_one(key), |one| one.key() == key).ok()?;
        Some(*found.remove().0)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.places.iter().map(|one| &**one)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &T::Key> {
        self.values().map(T::key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    impl Keyed for (u32, u64) {
        type Key = u32;

        fn key(&self) -> &u32 {
            &self.0
        }
    }

    #[test]
    fn a_table_holds_what_a_map_would_hold() {
        let (mut table, mut map) = (Table::default(), BTreeMap::new());
        for step in 0..20_000u64 {
            let key = u32::try_from(step * 7_919 % 97).expect("small");
            match step % 5 {
                0 | 1 => {
                    table.insert((key, step));
                    map.insert(key, step);
                }
                2 => assert_eq!(table.remove(&key).map(|one| one.1), map.remove(&key)),
                3 => {
                    table.get_mut(&key).into_iter().for_each(|one| one.1 += 1);
                    map.get_mut(&key).into_iter().for_each(|one| *one += 1);
                }
                _ => assert_eq!(table.get(&key).map(|one| one.1), map.get(&key).copied()),
            }
            assert_eq!(table.len(), map.len());
        }
        assert_eq!(table.values().copied().collect::<BTreeMap<_, _>>(), map);
        assert_eq!(table.keys().count(), map.len());
    }
}
