//! The one place here that reads a clock: other processes do not run in paused time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `look` again and again until it finds something, for what a process tells in no other way.
///
/// # Errors
/// After `within`, with `what` was waited for and what `look` saw last; at once when `look` itself fails.
pub async fn eventually<T, F>(what: &str, within: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Found<T>>>,
{
    let start = now();
    let mut pause = Duration::from_millis(5);
    loop {
        match look().await? {
            Found::Yes(found) => return Ok(found),
            Found::NotYet(seen) if start.elapsed() > within => bail!("waited {within:?} for {what}; last seen: {seen}"),
            Found::NotYet(_) => sleep(pause).await,
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}

/// What one look found.
pub enum Found<T> {
    /// What was looked for.
    Yes(T),
    /// Something else, for the message in the end.
    NotYet(String),
}

#[allow(clippy::disallowed_methods, reason = "other processes do not run in paused time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "the pause between two looks at another process, and how slow a relay is")]
pub(crate) async fn sleep(pause: Duration) {
    tokio::time::sleep(pause).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_never_comes_is_told_with_what_was_seen() {
        let never = eventually::<(), _>("rain", Duration::from_millis(20), || async { Ok(Found::NotYet("sun".to_owned())) }).await;
        assert_eq!(never.expect_err("no rain").to_string(), "waited 20ms for rain; last seen: sun");
    }

    #[tokio::test]
    async fn what_comes_later_is_found() {
        let mut left = 3;
        let found = eventually("three looks", Duration::from_secs(5), || {
            left -= 1;
            std::future::ready(Ok(if left == 0 { Found::Yes("here") } else { Found::NotYet(left.to_string()) }))
        });
        assert_eq!(found.await.expect("found"), "here");
    }
}
