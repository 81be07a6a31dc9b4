//! The names of log fields, one place for all crates.
//!
//! `tracing` wants field names as literals, so they are listed here rather than used from here:
//!
//! | field | what |
//! |---|---|
//! | `model` | model id, `<name>__<owner>-<hash>` |
//! | `name` | name of an InferenceService or Predictor |
//! | `step` | [`berth_types::Step`] as one word |
//! | `size` | a [`berth_types::ByteSize`] as text |
//! | `bytes`, `resumed` | how much of `size` is here, and was here before, as text |
//! | `rate` | bytes per second as text, [`rate`] |
//! | `percent`, `eta` | how far something is, and how long it will take at its present rate |
//! | `objects` | how many objects of a store |
//! | `stage` | where a download is |
//! | `took` | duration of what the line reports, [`took`] |
//! | `reason` | one of the five words of the status |
//! | `error` | text of an error, without secrets |
//! | `times` | how often it happened since the last line that says so |
//! | `addr` | a socket address that we listen on |
//! | `path` | a file or folder on this machine |

use std::time::Duration;

use berth_types::ByteSize;

/// A duration for the `took` field: `1.234s`, `56.7ms`, `89.1us`.
#[must_use]
pub fn took(duration: Duration) -> String {
    let micros = duration.as_micros();
    if micros >= 1_000_000 {
        format!("{}.{:03}s", micros / 1_000_000, micros / 1_000 % 1_000)
    } else if micros >= 1_000 {
        format!("{}.{}ms", micros / 1_000, micros / 100 % 10)
    } else {
        format!("{micros}us")
    }
}

/// A speed for the `rate` field: `310.4 MiB/s`.
#[must_use]
pub fn rate(per_second: ByteSize) -> String {
    format!("{per_second}/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_and_keep_three_digits() {
        for (nanos, text) in [(999, "0us"), (89_100, "89us"), (56_780_000, "56.7ms"), (1_234_567_000, "1.234s")] {
            assert_eq!(took(Duration::from_nanos(nanos)), text);
        }
    }
}
