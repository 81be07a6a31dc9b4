//! What is really in use, as somebody measured it.

use std::collections::BTreeMap;

use crate::{ByteSize, Footprint, Pool};

/// How full a memory is, whoever fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that cannot be had back by dropping caches.
    pub used: ByteSize,
    /// Beyond this somebody is killed or an allocation fails.
    pub limit: ByteSize,
}

impl Usage {
    /// What is left.
    #[must_use]
    pub fn free(self) -> ByteSize {
        self.limit.saturating_sub(self.used)
    }
}

/// What is known of one memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Real {
    /// What the inference server's processes hold of it; `None` where nobody can tell.
    pub held: Option<ByteSize>,
    /// How full it is; `None` where nobody can tell.
    pub usage: Option<Usage>,
    /// Somebody else was seen to use it.
    pub others: bool,
}

/// What is known of all memories at one moment. A memory that is not listed is one of which nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Memory by memory.
    pub pools: BTreeMap<Pool, Real>,
    /// How many processes the kernel has ended for want of memory where the server runs; `None` where it does not tell.
    pub oom_kills: Option<u64>,
    /// Share of the last ten seconds in which something waited for memory, in hundredths of a percent; `None` where the
    /// kernel does not tell.
    pub stalled: Option<u32>,
    /// Which life of the server this is about: another number is another process. `None` where it is not known.
    pub life: Option<u64>,
}

impl Reading {
    /// What the server holds, of the memories of which that is known; `None` when of none.
    #[must_use]
    pub fn held(&self) -> Option<Footprint> {
        let known: Vec<_> = self.pools.iter().filter_map(|(pool, real)| Some((*pool, real.held?))).collect();
        (!known.is_empty()).then(|| Footprint::of(known))
    }

    /// How full `pool` is.
    #[must_use]
    pub fn usage(&self, pool: Pool) -> Option<Usage> {
        self.pools.get(&pool)?.usage
    }
}
