//! Whether pods serve the same bytes under one model id.
//!
//! A model id stands for one version, and nobody promises that the bytes behind its path stay what they were. The first
//! good content of an id is what later ones are held against: another one is served all the same, and told.

use berth_types::ContentDigest;

/// What the content of a copy says, held against the first good content of its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// There was none before: from now on this is it.
    First,
    /// The same bytes.
    Same,
    /// Other bytes.
    Drift {
        /// This was not said of this pod yet.
        news: bool,
    },
}

/// Holds `seen`, which a pod has loaded, against the `first` good content of the model. `told` is what that pod was last
/// said to have instead of it, if it was.
#[must_use]
pub fn compare(first: Option<ContentDigest>, told: Option<ContentDigest>, seen: ContentDigest) -> Comparison {
    match first {
        None => Comparison::First,
        Some(first) if first == seen => Comparison::Same,
        Some(_) => Comparison::Drift { news: told != Some(seen) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_than_the_first_good_ones_are_drift_and_are_news_once_per_pod() {
        let [a, b, c] = [1, 2, 3].map(|n| ContentDigest([n; 32]));
        for (case, first, told, seen, expected) in [
            ("the first one is good by definition", None, None, a, Comparison::First),
            ("the same bytes", Some(a), None, a, Comparison::Same),
            ("the same bytes again, after others", Some(a), Some(b), a, Comparison::Same),
            ("other bytes", Some(a), None, b, Comparison::Drift { news: true }),
            ("the same other bytes", Some(a), Some(b), b, Comparison::Drift { news: false }),
            ("yet other bytes", Some(a), Some(b), c, Comparison::Drift { news: true }),
        ] {
            assert_eq!(compare(first, told, seen), expected, "{case}");
        }
    }
}
