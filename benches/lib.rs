//! How we measure: two things side by side in one run, in interleaved blocks, as a ratio with an interval.
//!
//! Absolute times on a shared machine say little; the ratio of two things measured within milliseconds of each other
//! says much. Each block runs both contenders once, in alternating order; the result is the median of the blocks' ratios
//! with the distribution-free 95 % interval of a median (order statistics of the binomial).

use std::fmt;
use std::time::Duration;

/// What one block of one contender took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Wall time.
    pub wall: Duration,
    /// User plus system time of this process.
    pub cpu: Duration,
}

/// A median with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The median.
    pub value: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
}

impl Median {
    /// The median of `values` with its interval. At least six values are needed for a 95 % interval; with fewer the
    /// interval is the whole range.
    ///
    /// # Panics
    /// When `values` is empty.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "a median needs values");
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let value = if count % 2 == 1 { values[count / 2] } else { f64::midpoint(values[count / 2 - 1], values[count / 2]) };
        let cut = order_statistic(count);
        Median { value, low: values[cut], high: values[count - 1 - cut] }
    }
}

impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.value, self.low, self.high)
    }
}

/// How many values may be cut off at each end so that what is left covers the median with at least 95 %: the largest k
/// with P(Binomial(n, 1/2) <= k) <= 2.5 %.
fn order_statistic(count: usize) -> usize {
    let mut term = 0.5f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut below = 0.0;
    for k in 0..count / 2 {
        below += term;
        if below > 0.025 {
            return k.saturating_sub(1);
        }
        term *= (count - k) as f64 / (k + 1) as f64;
    }
    0
}

/// Two things measured side by side.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What is compared.
    pub name: &'static str,
    /// Wall time of the thing over wall time of the baseline.
    pub wall: Median,
    /// The same for CPU time.
    pub cpu: Median,
    /// Median wall time per operation: baseline, thing.
    pub per_operation: (Duration, Duration),
    /// Median of (thing - baseline) per operation, microseconds.
    pub added_micros: Median,
}

impl Comparison {
    /// From the costs of each block (baseline, thing), each block being `operations` operations.
    #[must_use]
    pub fn of(name: &'static str, operations: u32, blocks: &[(Cost, Cost)]) -> Self {
        let ratio = |pick: fn(&Cost) -> Duration| {
            Median::of(blocks.iter().map(|(base, thing)| pick(thing).as_secs_f64() / pick(base).as_secs_f64().max(1e-9)).collect())
        };
        let per_operation = |pick: fn(&(Cost, Cost)) -> Duration| {
            let median = Median::of(blocks.iter().map(|block| pick(block).as_secs_f64()).collect());
            Duration::from_secs_f64(median.value) / operations.max(1)
        };
        let added =
            blocks.iter().map(|(base, thing)| (thing.wall.as_secs_f64() - base.wall.as_secs_f64()) * 1e6 / f64::from(operations.max(1))).collect();
        Comparison {
            name,
            wall: ratio(|cost| cost.wall),
            cpu: ratio(|cost| cost.cpu),
            per_operation: (per_operation(|block| block.0.wall), per_operation(|block| block.1.wall)),
            added_micros: Median::of(added),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, thing) = self.per_operation;
        write!(f, "{}: {thing:?} against {base:?}; wall ratio {}; CPU ratio {}; added {} us", self.name, self.wall, self.cpu, self.added_micros)
    }
}

/// User plus system time of this process so far.
#[must_use]
pub fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(spent.tv_sec).unwrap_or_default(), u32::try_from(spent.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_median_covers_95_percent() {
        // Table values of the sign test: with 20 values ranks 6 and 15, with 6 values ranks 1 and 6.
        assert_eq!(order_statistic(20), 5);
        assert_eq!(order_statistic(6), 0);
        assert_eq!(order_statistic(9), 1);
        let median = Median::of((1..=20).map(f64::from).collect());
        assert_eq!((median.value, median.low, median.high), (10.5, 6.0, 15.0));
    }
}
