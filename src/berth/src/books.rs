//! The books of this process's memory, as the resource API tells them.

use async_trait::async_trait;
use berth_api::{Books, CopyUse, Memory, PoolUse};
use berth_residency::{Origin, Residency};

/// What residency charges and sees.
pub(crate) struct Kept(pub(crate) Residency);

#[async_trait]
impl Books for Kept {
    async fn now(&self) -> Option<Memory> {
        let snapshot = self.0.snapshot().await?;
        let pools = snapshot.pools.into_iter().map(|used| PoolUse {
            pool: used.pool,
            capacity: used.budget,
            leased: used.charged,
            unconfirmed: used.unconfirmed,
            withheld: used.withheld,
            measured: used.real.held,
            base: used.base,
            retained: used.retained,
            usage: used.real.usage.map(|usage| (usage.used, usage.limit)),
            strained: used.strained,
        });
        let copies = snapshot.copies.into_iter().map(|copy| CopyUse {
            model: copy.model,
            phase: copy.phase.to_string(),
            footprint: copy.charged,
            from: match copy.from {
                Origin::Declared => "declared",
                Origin::Learned => "learned",
                Origin::Estimated => "estimated",
                Origin::Measured => "measured",
            },
            last_used: copy.last_used,
        });
        Some(Memory { pools: pools.collect(), copies: copies.collect() })
    }
}
