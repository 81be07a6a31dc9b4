//! Files that count as they are now: looked at again and again, the last good content standing in for a faulty one.
//!
//! A look every few seconds notices what any file system does, the flip of a mounted secret or config map among it.

use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::Clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often a file is read again.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// What a look has shown that was not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    None,
    Replaced,
    Wrong(String),
    RightAgain,
}

/// Reads again and again until `stop`, hands on each new value, and tells what there was to see.
pub(crate) async fn follow<T: Clone + PartialEq + Send + 'static>(
    read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    value: watch::Sender<T>,
    told: impl Fn(&News),
    clock: Clock,
    stop: CancellationToken,
) {
    let (read, mut follower) = (Arc::new(read), Follower { value, wrong: None });
    while stop.run_until_cancelled(clock.sleep(LOOK_EVERY)).await.is_some() {
        let read = Arc::clone(&read);
        // A local file; where a mount hangs, only this look does, and the next one waits for it.
        let Ok(found) = tokio::task::spawn_blocking(move || read()).await else { continue };
        told(&follower.take(found));
    }
}

struct Follower<T> {
    value: watch::Sender<T>,
    /// What was wrong at the last look; said once.
    wrong: Option<String>,
}

impl<T: Clone + PartialEq> Follower<T> {
    fn take(&mut self, found: Result<T, String>) -> News {
        match found {
            Ok(found) => {
                let was_wrong = self.wrong.take().is_some();
                let replaced = self.value.send_if_modified(|present| std::mem::replace(present, found.clone()) != found);
                match (replaced, was_wrong) {
                    (true, _) => News::Replaced,
                    (false, true) => News::RightAgain,
                    (false, false) => News::None,
                }
            }
            Err(why) if self.wrong.as_ref() == Some(&why) => News::None,
            Err(why) => {
                self.wrong = Some(why.clone());
                News::Wrong(why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_value_counts_and_while_there_is_none_the_last_one_does() {
        let (sender, receiver) = watch::channel("one");
        let mut follower = Follower { value: sender, wrong: None };
        let empty = || Err("f: is empty".to_owned());
        let gone = || Err("f: no such file".to_owned());
        for (found, news, counts) in [
            (Ok("one"), News::None, "one"),
            (empty(), News::Wrong("f: is empty".to_owned()), "one"),
            (empty(), News::None, "one"),
            (gone(), News::Wrong("f: no such file".to_owned()), "one"),
            (Ok("one"), News::RightAgain, "one"),
            (gone(), News::Wrong("f: no such file".to_owned()), "one"),
            (Ok("two"), News::Replaced, "two"),
            (Ok("two"), News::None, "two"),
        ] {
            assert_eq!(follower.take(found), news);
            assert_eq!(*receiver.borrow(), counts);
        }
    }
}
