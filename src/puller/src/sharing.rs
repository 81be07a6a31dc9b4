//! Downloads under way that want the same bytes.
//!
//! One of them fetches those and the others wait for it, whichever comes first. What somebody waits for is therefore as urgent
//! in all downloads that want it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use berth_disk::BlobId;
use parking_lot::Mutex;

use crate::pace::Haste;

/// Who wants which bytes. Each download is in it while it fetches.
#[derive(Debug, Default)]
pub(crate) struct Sharing(Mutex<HashMap<BlobId, Vec<Arc<Haste>>>>);

/// A download's entries; taken out when dropped.
#[derive(Debug)]
pub(crate) struct Wants<'a> {
    sharing: &'a Sharing,
    blobs: Vec<BlobId>,
    haste: Arc<Haste>,
}

impl Sharing {
    /// A download that is as urgent as `haste` says begins to fetch `blobs`.
    pub(crate) fn join(&self, blobs: Vec<BlobId>, haste: &Arc<Haste>) -> Wants<'_> {
        let mut tied = Vec::new();
        let mut sharing = self.0.lock();
        for blob in &blobs {
            let all = sharing.entry(*blob).or_default();
            for other in all.iter() {
                if !Arc::ptr_eq(other, haste) && !tied.iter().any(|known| Arc::ptr_eq(known, other)) {
                    tied.push(Arc::clone(other));
                }
            }
            all.push(Arc::clone(haste));
        }
        drop(sharing);
        for other in &tied {
            haste.tie(other);
        }
        Wants { sharing: self, blobs, haste: Arc::clone(haste) }
    }
}

impl Drop for Wants<'_> {
    fn drop(&mut self) {
        let mut sharing = self.sharing.0.lock();
        for blob in &self.blobs {
            let Entry::Occupied(mut all) = sharing.entry(*blob) else { continue };
            if let Some(at) = all.get().iter().position(|one| Arc::ptr_eq(one, &self.haste)) {
                all.get_mut().swap_remove(at);
            }
            if all.get().is_empty() {
                all.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Urgency;

    #[test]
    fn whoever_wants_the_same_bytes_is_raised_with_it_and_nobody_else() {
        let sharing = Sharing::default();
        let [a, b, c, d]: [Arc<Haste>; 4] = std::array::from_fn(|_| Arc::new(Haste::new(Urgency::Background)));
        let blob = |n: u8| BlobId([n; 16]);
        let _a = sharing.join(vec![blob(1), blob(2), blob(2)], &a);
        let _b = sharing.join(vec![blob(2), blob(3)], &b);
        let _c = sharing.join(vec![blob(3)], &c);
        let _d = sharing.join(vec![blob(4)], &d);
        assert!(![&a, &b, &c, &d].iter().any(|haste| haste.is_waited_for()));
        a.raise();
        assert_eq!([&a, &b, &c, &d].map(|haste| haste.is_waited_for()), [true, true, true, false], "also those that stand behind another");
        // Who joins what is waited for is waited for, and raises.
        let late = Arc::new(Haste::new(Urgency::Waited));
        let _late = sharing.join(vec![blob(4)], &late);
        assert!(d.is_waited_for());
    }

    #[test]
    fn who_leaves_is_met_by_nobody_who_comes_later_and_nothing_stays_behind() {
        let sharing = Sharing::default();
        let [a, b]: [Arc<Haste>; 2] = std::array::from_fn(|_| Arc::new(Haste::new(Urgency::Background)));
        drop(sharing.join(vec![BlobId([1; 16]), BlobId([1; 16])], &a));
        let wants = sharing.join(vec![BlobId([1; 16])], &b);
        b.raise();
        assert!(!a.is_waited_for());
        drop(wants);
        assert!(sharing.0.lock().is_empty());
    }
}
