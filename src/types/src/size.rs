//! Sizes in bytes: parsed from and printed as people write them.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A size in bytes, printed as `1.5 GiB`. Predicted and measured sizes are two fields, never one with a sign.
///
/// Addition saturates: a sum of sizes that does not fit 64 bits is "more than anything has". Subtraction is spelled
/// [`ByteSize::checked_sub`] or [`ByteSize::saturating_sub`], so that each place says what an underflow means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// No bytes.
    pub const ZERO: ByteSize = ByteSize(0);
    /// The largest size there is.
    pub const MAX: ByteSize = ByteSize(u64::MAX);

    /// `n` times 1,024 bytes.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        ByteSize(n.saturating_mul(1 << 10))
    }

    /// `n` times 1,048,576 bytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        ByteSize(n.saturating_mul(1 << 20))
    }

    /// The difference, or `None` when `other` is larger.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(n) => Some(ByteSize(n)),
            None => None,
        }
    }

    /// The difference, or zero when `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        ByteSize(self.0.saturating_sub(other.0))
    }

    /// The size times `percent` / 100, rounded up, saturating.
    #[must_use]
    pub fn percent(self, percent: u32) -> Self {
        let wide = (u128::from(self.0) * u128::from(percent)).div_ceil(100);
        ByteSize(u64::try_from(wide).unwrap_or(u64::MAX))
    }
}

impl Add for ByteSize {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        ByteSize(self.0.saturating_add(other.0))
    }
}

impl AddAssign for ByteSize {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for ByteSize {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(ByteSize::ZERO, Add::add)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        for (unit, bytes) in UNITS {
            if self.0 >= bytes {
                // One decimal, cut (not rounded), so that a size below a limit never prints as the limit.
                let tenths = u128::from(self.0) * 10 / u128::from(bytes);
                return match (tenths / 10, tenths % 10) {
                    (whole, 0) => write!(f, "{whole} {unit}"),
                    (whole, tenth) => write!(f, "{whole}.{tenth} {unit}"),
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: write a number with an optional unit, such as 512Mi, 1.5GiB, 2G or 1048576")]
pub struct ParseByteSizeError(pub String);

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    /// Reads `512Mi`, `512MiB`, `1.5 GiB`, `2G`, `2GB`, `1048576`: Kubernetes' quantities and the usual longer forms.
    /// `Ki`, `Mi`, `Gi`, `Ti` are powers of 1,024; `k`, `M`, `G`, `T` powers of 1,000. Fractions of a byte are cut.
    fn from_str(text: &str) -> Result<Self, ParseByteSizeError> {
        let fault = || ParseByteSizeError(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let scale: u64 = match unit.trim().to_ascii_lowercase().trim_end_matches('b') {
            "" => 1,
            "k" => 1_000,
            "m" => 1_000_000,
            "g" => 1_000_000_000,
            "t" => 1_000_000_000_000,
            "ki" => 1 << 10,
            "mi" => 1 << 20,
            "gi" => 1 << 30,
            "ti" => 1 << 40,
            _ => return Err(fault()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 12 {
            return Err(fault());
        }
        let whole: u128 = whole.parse().map_err(|_| fault())?;
        let mut bytes = whole.checked_mul(u128::from(scale)).ok_or_else(fault)?;
        if !fraction.is_empty() {
            let digits: u128 = fraction.parse().map_err(|_| fault())?;
            let power = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| fault())?);
            bytes += digits * u128::from(scale) / power;
        }
        u64::try_from(bytes).map(ByteSize).map_err(|_| fault())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512Mi", 512 << 20),
            ("512MiB", 512 << 20),
            (" 1.5 GiB ", 3 << 29),
            ("2G", 2_000_000_000),
            ("2gb", 2_000_000_000),
            ("64k", 64_000),
            ("7 b", 7),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_size_is_refused_with_itself_in_the_message() {
        for text in ["", "Mi", "-1", "1.Gi", ".5Gi", "1 parsec", "99999999999999999999Ti", "1e3", "1.2.3", "1_000"] {
            let fault = text.parse::<ByteSize>().expect_err(text);
            assert!(fault.to_string().contains(&format!("{text:?}")), "{fault}");
        }
    }

    #[test]
    fn sizes_print_in_the_largest_unit_that_fits() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (6 << 20, "6 MiB"), ((1 << 30) - 1, "1023.9 MiB")] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn reading_what_was_printed_loses_less_than_a_tenth_of_the_unit(bytes in 0u64..1 << 50) {
            let size = ByteSize(bytes);
            let back: ByteSize = size.to_string().parse().map_err(|e| proptest::test_runner::TestCaseError::fail(format!("{e}")))?;
            proptest::prop_assert!(back <= size);
            proptest::prop_assert!(u128::from(size.0 - back.0) * 10 <= u128::from(bytes.max(10)));
        }
    }
}
