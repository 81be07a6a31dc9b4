//! Budgeted memories and what a copy takes of each.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// A memory with a budget of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// Main memory.
    Host,
    /// The memory of the GPU with this index.
    Gpu(u16),
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pool::Host => f.write_str("host"),
            Pool::Gpu(index) => write!(f, "gpu:{index}"),
        }
    }
}

/// Bytes per pool of one copy, or of a budget. A pool that is not listed counts as zero.
///
/// Nearly every copy lives in one pool, so that case takes no heap memory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    first: (Pool, ByteSize),
    /// Sorted by pool, none equal to `first.0`; empty for the usual copy.
    more: Box<[(Pool, ByteSize)]>,
}

impl Default for Footprint {
    fn default() -> Self {
        Footprint::host(ByteSize::ZERO)
    }
}

impl Footprint {
    /// Bytes in main memory only.
    #[must_use]
    pub fn host(bytes: ByteSize) -> Self {
        Footprint { first: (Pool::Host, bytes), more: Box::new([]) }
    }

    /// Bytes in several pools; entries of one pool are added up.
    #[must_use]
    pub fn of(parts: impl IntoIterator<Item = (Pool, ByteSize)>) -> Self {
        let mut whole = Footprint::default();
        for (pool, bytes) in parts {
            whole.add(pool, bytes);
        }
        whole
    }

    fn add(&mut self, pool: Pool, bytes: ByteSize) {
        if self.first.0 == pool {
            self.first.1 += bytes;
        } else {
            match self.more.binary_search_by_key(&pool, |entry| entry.0) {
                Ok(at) => self.more[at].1 += bytes,
                Err(at) => {
                    let mut more = std::mem::take(&mut self.more).into_vec();
                    more.insert(at, (pool, bytes));
                    self.more = more.into_boxed_slice();
                }
            }
        }
    }

    /// The bytes in `pool`.
    #[must_use]
    pub fn get(&self, pool: Pool) -> ByteSize {
        self.iter().find(|entry| entry.0 == pool).map_or(ByteSize::ZERO, |entry| entry.1)
    }

    /// Every pool with its bytes, zero ones included.
    pub fn iter(&self) -> impl Iterator<Item = (Pool, ByteSize)> + '_ {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }

    /// The sum over all pools.
    #[must_use]
    pub fn total(&self) -> ByteSize {
        self.iter().map(|entry| entry.1).sum()
    }

    /// Pool by pool, `self` plus `other`.
    #[must_use]
    pub fn plus(&self, other: &Footprint) -> Footprint {
        Footprint::of(self.iter().chain(other.iter()))
    }

    /// Pool by pool, `self` minus `other`, stopping at zero.
    #[must_use]
    pub fn minus(&self, other: &Footprint) -> Footprint {
        Footprint::of(
            self.iter()
                .chain(other.iter().map(|(pool, _)| (pool, ByteSize::ZERO)))
                .map(|(pool, bytes)| (pool, bytes.saturating_sub(other.get(pool)))),
        )
    }

    /// Pool by pool, the larger of both.
    #[must_use]
    pub fn max(&self, other: &Footprint) -> Footprint {
        let mut whole = self.clone();
        for (pool, bytes) in other.iter() {
            whole.add(pool, bytes.saturating_sub(whole.get(pool)));
        }
        whole
    }

    /// The same with all that it takes of GPUs on this one.
    #[must_use]
    pub fn on_gpu(&self, index: u16) -> Footprint {
        let (host, gpus) = (self.get(Pool::Host), self.total().saturating_sub(self.get(Pool::Host)));
        Footprint::of([(Pool::Host, host)].into_iter().chain((gpus > ByteSize::ZERO).then_some((Pool::Gpu(index), gpus))))
    }

    /// The GPUs of which it has something.
    pub fn gpus(&self) -> impl Iterator<Item = u16> + '_ {
        self.iter().filter_map(|(pool, bytes)| match pool {
            Pool::Gpu(index) if bytes > ByteSize::ZERO => Some(index),
            Pool::Gpu(_) | Pool::Host => None,
        })
    }

    /// True when no pool needs more than `free` has there.
    #[must_use]
    pub fn fits(&self, free: &Footprint) -> bool {
        self.iter().all(|(pool, bytes)| bytes <= free.get(pool))
    }

    /// The first pool in which `self` needs more than `limit` has, with both sizes.
    #[must_use]
    pub fn exceeds(&self, limit: &Footprint) -> Option<(Pool, ByteSize, ByteSize)> {
        self.iter().find_map(|(pool, need)| (need > limit.get(pool)).then(|| (pool, need, limit.get(pool))))
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (pool, bytes) in self.iter().filter(|entry| entry.1 > ByteSize::ZERO || self.more.is_empty()) {
            write!(f, "{separator}{bytes} {pool}")?;
            separator = " + ";
        }
        Ok(())
    }
}

impl fmt::Debug for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Footprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(host: u64, gpu: u64) -> Footprint {
        Footprint::of([(Pool::Gpu(0), ByteSize(gpu)), (Pool::Host, ByteSize(host))])
    }

    #[test]
    fn pools_are_added_subtracted_and_compared_one_by_one() {
        assert_eq!(two(3, 4).plus(&two(1, 1)), two(4, 5));
        assert_eq!(two(3, 4).minus(&two(1, 9)), two(2, 0));
        assert_eq!(two(3, 4).max(&two(1, 9)), two(3, 9));
        assert!(two(3, 4).fits(&two(3, 4)));
        assert!(!two(3, 4).fits(&Footprint::host(ByteSize(100))), "a pool that is not there has no room");
        assert_eq!(two(3, 4).exceeds(&two(9, 1)), Some((Pool::Gpu(0), ByteSize(4), ByteSize(1))));
        assert_eq!(two(3, 4).total(), ByteSize(7));
        let spread = two(3, 4).plus(&Footprint::of([(Pool::Gpu(5), ByteSize(2))]));
        assert_eq!(spread.on_gpu(1), Footprint::of([(Pool::Host, ByteSize(3)), (Pool::Gpu(1), ByteSize(6))]));
        assert_eq!(spread.gpus().collect::<Vec<_>>(), [0, 5]);
        assert_eq!(two(3, 0).on_gpu(1), Footprint::host(ByteSize(3)), "of what takes nothing there, nothing is moved");
    }
}
