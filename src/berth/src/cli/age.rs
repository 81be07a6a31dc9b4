//! How long ago something was, as kubectl says it.

use std::time::{Duration, UNIX_EPOCH};

use berth_api::short_duration;
use berth_types::UnixMillis;

/// The age at `now` of what happened at `then`, an RFC 3339 time; `<unknown>` when that is no time.
pub(crate) fn age(then: Option<&str>, now: UnixMillis) -> String {
    let then = then.and_then(|text| humantime::parse_rfc3339(text).ok()).and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    match then {
        // Another machine's clock may be ahead of ours.
        Some(then) => short_duration(Duration::from_millis(now.0).saturating_sub(then)),
        None => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_time_ahead_of_ours_is_nothing_and_of_no_time_unknown() {
        let now = UnixMillis(1_795_333_424_999);
        assert_eq!(age(Some("2026-11-22T07:43:34Z"), now), "10s");
        assert_eq!(age(Some("2026-11-22T08:43:14Z"), now), "0s");
        assert_eq!(age(Some("yesterday"), now), "<unknown>");
        assert_eq!(age(None, now), "<unknown>");
    }
}
