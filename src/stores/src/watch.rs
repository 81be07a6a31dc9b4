//! Notices that the storage configuration changed.
//!
//! A mounted secret changes by an atomic flip of its `..data` link, a folder on somebody's machine by an edit, and it may
//! appear long after we did. The kernel tells of most of that at once; some mounts tell nothing, and a file behind a link
//! changes where nobody looks. So the folder is looked at again every few seconds too. What counts is what it says: a
//! flip to the same keys is no change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::Clock;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tracing::{debug, info};

use crate::Entries;

/// How often the folder is looked at when the kernel tells nothing.
const LOOK: Duration = Duration::from_secs(5);

/// How long a burst of news is let pass before the folder is read: a kubelet writes several files.
const SETTLE: Duration = Duration::from_millis(50);

/// A number that grows whenever what `folder` says changed. A task keeps it, and ends with the last receiver.
///
/// # Panics
/// Outside a tokio runtime.
#[must_use]
pub fn watch(folder: &Path, clock: Clock) -> watch::Receiver<u64> {
    watch_every(folder, clock, LOOK)
}

fn watch_every(folder: &Path, clock: Clock, look: Duration) -> watch::Receiver<u64> {
    let (generation, receiver) = watch::channel(0);
    let keeper = Keeper { folder: folder.to_owned(), said: None, news: None };
    tokio::spawn(keep(keeper, generation, clock, look));
    receiver
}

async fn keep(mut keeper: Keeper, generation: watch::Sender<u64>, clock: Clock, look: Duration) {
    let told = Arc::new(Notify::new());
    loop {
        let heard = Arc::clone(&told);
        // A file system may hang; then so does this one thread, and the last generation stands.
        let looked = tokio::task::spawn_blocking(move || {
            let changed = keeper.look(&heard);
            (keeper, changed)
        });
        let Ok((back, changed)) = looked.await else { return };
        keeper = back;
        if changed {
            generation.send_modify(|generation| *generation += 1);
            info!(folder = %keeper.folder.display(), "the storage configuration changed");
        }
        tokio::select! {
            () = generation.closed() => return,
            () = told.notified() => clock.sleep(SETTLE).await,
            () = clock.sleep(look) => {}
        }
    }
}

struct Keeper {
    folder: PathBuf,
    /// What it said last, or why it could not be read; `None` before the first look.
    said: Option<Result<[u8; 32], String>>,
    /// What the kernel tells us by, and which folder it is about (device and number): another one may take its place.
    news: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Keeper {
    /// True when the folder says something else than at the last look; the first is no change.
    fn look(&mut self, told: &Arc<Notify>) -> bool {
        // First to listen, then to read: what happens between the two is told.
        self.listen(told);
        let said = Entries::read(Some(&self.folder)).map(|entries| entries.digest()).map_err(|fault| fault.to_string());
        let changed = self.said.as_ref().is_some_and(|before| *before != said);
        self.said = Some(said);
        changed
    }

    fn listen(&mut self, told: &Arc<Notify>) {
        let Some(is) = identity(&self.folder) else {
            self.news = None;
            return;
        };
        if self.news.as_ref().is_some_and(|(_, about)| *about == is) {
            return;
        }
        let told = Arc::clone(told);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the folder is an event of its own, and must not be the reason to read it.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                told.notify_one();
            }
        });
        let listening = watcher.and_then(|mut watcher| watcher.watch(&self.folder, RecursiveMode::NonRecursive).map(|()| watcher));
        self.news = match listening {
            Ok(watcher) => Some((watcher, is)),
            Err(fault) => {
                debug!(folder = %self.folder.display(), error = %fault, "changes of the storage configuration are looked for only");
                None
            }
        };
    }
}

/// Which folder a path leads to.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(folder).ok().map(|about| (about.dev(), about.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Longer than any test waits for news, so that only the kernel can have told.
    const NEVER: Duration = Duration::from_secs(3600);
    const OFTEN: Duration = Duration::from_millis(20);

    /// A receiver whose keeper has looked once: what is done from now on is a change.
    async fn looking(folder: &Path, look: Duration) -> watch::Receiver<u64> {
        let (generation, receiver) = watch::channel(0);
        let mut keeper = Keeper { folder: folder.to_owned(), said: None, news: None };
        // The keeper's own listener is set up anew by the task, with its own bell; what it said stays.
        assert!(!keeper.look(&Arc::new(Notify::new())));
        keeper.news = None;
        tokio::spawn(keep(keeper, generation, Clock::system(), look));
        receiver
    }

    async fn changes(receiver: &mut watch::Receiver<u64>, why: &str) {
        let clock = Clock::system();
        let changed = clock.until(clock.deadline_in(Duration::from_secs(20)), receiver.changed()).await;
        assert!(matches!(changed, Some(Ok(()))), "{why}: {changed:?}");
        receiver.mark_unchanged();
    }

    /// A secret as a kubelet mounts it: files behind a link that is flipped.
    fn flip(folder: &Path, version: &str, text: &str) {
        let data = folder.join(format!("..{version}"));
        fs::create_dir(&data).expect("made");
        fs::write(data.join("k"), text).expect("written");
        symlink(format!("..{version}"), folder.join("..data_tmp")).expect("linked");
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("flipped");
    }

    #[tokio::test]
    async fn an_edit_a_new_key_and_a_removed_one_are_told_by_the_kernel() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("k"), "1").expect("written");
        let mut receiver = looking(folder.path(), NEVER).await;
        // Until the task listens, a change is found by its first look; either way it is told once.
        fs::write(folder.path().join("k"), "2").expect("written");
        changes(&mut receiver, "an edit").await;
        fs::write(folder.path().join("new"), "1").expect("written");
        changes(&mut receiver, "a new key").await;
        fs::remove_file(folder.path().join("new")).expect("removed");
        changes(&mut receiver, "a removed key").await;
    }

    #[tokio::test]
    async fn a_flip_of_a_mounted_secret_is_a_change_only_where_it_says_something_else() {
        let folder = tempfile::tempdir().expect("a folder");
        flip(folder.path(), "v1", "one");
        symlink("..data/k", folder.path().join("k")).expect("linked");
        let mut receiver = looking(folder.path(), NEVER).await;
        flip(folder.path(), "v2", "two");
        changes(&mut receiver, "a flip").await;
        let before = *receiver.borrow();
        flip(folder.path(), "v3", "two");
        flip(folder.path(), "v4", "three");
        changes(&mut receiver, "another flip").await;
        assert_eq!(*receiver.borrow(), before + 1, "the same text is no change");
    }

    #[tokio::test]
    async fn a_folder_may_come_late_be_replaced_and_hold_what_cannot_be_read() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("config");
        let mut receiver = looking(&folder, OFTEN).await;
        fs::create_dir(&folder).expect("made");
        changes(&mut receiver, "an empty folder is another than none").await;
        fs::write(folder.join("k"), [0xff, 0xfe]).expect("written");
        changes(&mut receiver, "a key that is no text").await;
        fs::write(folder.join("k"), "text").expect("written");
        changes(&mut receiver, "a key that is text now").await;
        let other = parent.path().join("other");
        fs::create_dir(&other).expect("made");
        fs::write(other.join("k"), "other").expect("written");
        fs::rename(&folder, parent.path().join("old")).expect("moved away");
        fs::rename(&other, &folder).expect("moved in");
        eventually_says(&mut receiver, &folder).await;
        fs::write(folder.join("k"), "edited").expect("written");
        changes(&mut receiver, "the folder in its place is listened to").await;
        fs::remove_dir_all(&folder).expect("removed");
        changes(&mut receiver, "a folder that is gone").await;
    }

    /// The two renames may be seen as one change or as two.
    async fn eventually_says(receiver: &mut watch::Receiver<u64>, folder: &Path) {
        changes(receiver, "another folder in its place").await;
        let probe = folder.join("probe");
        fs::write(&probe, "").expect("written");
        changes(receiver, "a probe").await;
    }

    #[tokio::test]
    async fn the_keeper_ends_with_its_last_receiver() {
        let folder = tempfile::tempdir().expect("a folder");
        let (generation, receiver) = watch::channel(0);
        let keeper = Keeper { folder: folder.path().to_owned(), said: None, news: None };
        let task = tokio::spawn(keep(keeper, generation, Clock::system(), NEVER));
        drop(receiver);
        let clock = Clock::system();
        let ended = clock.until(clock.deadline_in(Duration::from_secs(20)), task).await;
        assert!(matches!(ended, Some(Ok(()))), "{ended:?}");
    }
}
