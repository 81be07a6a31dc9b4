//! How long something took or has lasted, as Kubernetes writes it in its tables: one unit, two where a second one still
//! says something.

use std::time::Duration;

/// `5s`, `3m10s`, `47m`, `2h`, `4d`.
#[must_use]
pub fn short_duration(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const YEAR: u64 = 365 * DAY;
    let seconds = duration.as_secs();
    // Below the limit in the first column: whole units of the second, and of the third unless that is zero.
    let (unit, letter, finer) = match seconds {
        0..120 => (1, "s", None),
        120..600 => (MINUTE, "m", Some((1, "s"))),
        600..10_800 => (MINUTE, "m", None),
        10_800..28_800 => (HOUR, "h", Some((MINUTE, "m"))),
        28_800..172_800 => (HOUR, "h", None),
        172_800..691_200 => (DAY, "d", Some((HOUR, "h"))),
        691_200..63_072_000 => (DAY, "d", None),
        63_072_000..252_288_000 => (YEAR, "y", Some((DAY, "d"))),
        252_288_000.. => (YEAR, "y", None),
    };
    let whole = format!("{}{letter}", seconds / unit);
    match finer.map(|(small, letter)| (seconds % unit / small, letter)) {
        Some((count, letter)) if count > 0 => format!("{whole}{count}{letter}"),
        _ => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_kubectl() {
        for (seconds, text) in [
            (0, "0s"),
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (190, "3m10s"),
            (599, "9m59s"),
            (600, "10m"),
            (3_600, "60m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (7 * 3_600 + 90, "7h1m"),
            (8 * 3_600, "8h"),
            (47 * 3_600 + 3_599, "47h"),
            (48 * 3_600, "2d"),
            (49 * 3_600, "2d1h"),
            (4 * 86_400, "4d"),
            (8 * 86_400 + 7_200, "8d"),
            (729 * 86_400, "729d"),
            (730 * 86_400, "2y"),
            (731 * 86_400, "2y1d"),
            (9 * 365 * 86_400, "9y"),
        ] {
            assert_eq!(short_duration(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }
}
