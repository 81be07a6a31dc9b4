//! What every [`Remote`] must do, as one suite: the store in memory passes it, and each real kind of store against its server.
//!
//! It is a test and panics where a store falls short; nothing but tests calls it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;

use crate::memory::sums_of;
use crate::{Answer, Ask, Fault, FaultKind, Object, Remote, Sums, Version};

/// A bucket under test: how it is read, and how the suite writes into it.
#[async_trait]
pub trait Shelf: Send + Sync {
    /// The bucket. Nothing lies under `suite/` in it.
    fn remote(&self) -> Arc<dyn Remote>;

    /// A bucket that does not exist, in the same store.
    fn elsewhere(&self) -> Option<Arc<dyn Remote>> {
        None
    }

    /// The bucket, asked with a credential that is wrong.
    fn denied(&self) -> Option<Arc<dyn Remote>> {
        None
    }

    /// How many objects a page of a listing holds, where the suite may put a few more than two pages of them.
    fn page(&self) -> Option<usize> {
        None
    }

    /// Keys that this kind of store cannot hold, or its server mistreats.
    fn spared(&self) -> &[&str] {
        &[]
    }

    /// Puts an object, or a new version of it.
    async fn put(&self, key: &str, bytes: Bytes);

    /// Removes an object.
    async fn remove(&self, key: &str);
}

/// Keys that break careless encoding. No two differ by case or normal form only.
pub const ODD_KEYS: [&str; 16] = [
    "suite/odd/plain.bin",
    "suite/odd/a space.bin",
    "suite/odd/a+plus.bin",
    "suite/odd/100%.bin",
    "suite/odd/100%25.bin",
    "suite/odd/%2F.bin",
    "suite/odd/üñí/模型.bin",
    "suite/odd/a&b=c;d.bin",
    "suite/odd/<tag> \"quoted\" 'single'.bin",
    "suite/odd/question?mark#hash.bin",
    "suite/odd/a:b@c,d!e$f(g)*.bin",
    "suite/odd/[brackets]{braces}^~`|.bin",
    "suite/odd/.hidden",
    "suite/odd/...",
    "suite/odd/x/a//b.bin",
    "suite/odd/trailing. ",
];

/// Runs the suite.
///
/// # Panics
/// Where the remote does something else than it should.
pub async fn conforms(shelf: &dyn Shelf) {
    odd_keys(shelf).await;
    ranges(shelf).await;
    versions(shelf).await;
    empty_objects(shelf).await;
    pages(shelf).await;
    what_is_not_there(shelf).await;
    credentials(shelf).await;
}

fn content(length: usize, salt: u8) -> Bytes {
    // No period that a range could hide in.
    (0..length).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ usize::from(salt)) as u8).collect::<Vec<u8>>().into()
}

fn ask<'a>(key: &'a str, range: Option<&'a Range<u64>>, version: Option<&'a Version>) -> Ask<'a> {
    Ask { key, range, version }
}

async fn body(answer: Answer) -> Vec<u8> {
    let mut frames = answer.frames;
    let mut bytes = Vec::new();
    while let Some(frame) = frames.next().await {
        bytes.extend_from_slice(&frame.expect("a sound connection"));
    }
    bytes
}

fn kind(outcome: Result<Answer, Fault>) -> Result<(), FaultKind> {
    outcome.map(|_| ()).map_err(|fault| fault.kind)
}

/// Everything under `prefix`. A key twice, or a listing without an end, is a failure.
async fn listed(remote: &dyn Remote, prefix: &str) -> (BTreeMap<String, Object>, usize) {
    let (mut objects, mut pages, mut after) = (BTreeMap::new(), 0, None);
    loop {
        let page = remote.list(prefix, after.as_deref()).await.expect("a listing");
        pages += 1;
        assert!(pages < 1000, "the listing of {prefix:?} does not end");
        for object in page.objects {
            assert!(object.key.starts_with(prefix), "{:?} was listed under {prefix:?}", object.key);
            let twice = objects.insert(object.key.clone(), object);
            assert!(twice.is_none(), "listed twice: {twice:?}");
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return (objects, pages),
        }
    }
}

/// What is stated must be right.
fn check(sums: Sums, bytes: &[u8], case: &str) {
    let right = sums_of(bytes);
    assert!(sums.crc32c.is_none_or(|sum| Some(sum) == right.crc32c), "{case}: CRC-32C is {:?}, stated {:?}", right.crc32c, sums.crc32c);
    assert!(sums.md5.is_none_or(|sum| Some(sum) == right.md5), "{case}: MD5 is {:?}, stated {:?}", right.md5, sums.md5);
}

async fn odd_keys(shelf: &dyn Shelf) {
    let remote = shelf.remote();
    let keys: Vec<&str> = ODD_KEYS.into_iter().filter(|key| !shelf.spared().contains(key)).collect();
    for (salt, key) in (0..).zip(&keys) {
        shelf.put(key, content(100 + usize::from(salt), salt)).await;
    }
    if remote.lists() {
        let (objects, _) = listed(&*remote, "suite/odd/").await;
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        assert_eq!(objects.keys().collect::<Vec<_>>(), sorted);
        for key in ["suite/odd/a+", "suite/odd/üñí/", "suite/odd/100%", "suite/odd/a&b=c;d.bin"] {
            let expected: Vec<&str> = sorted.iter().filter(|held| held.starts_with(key)).copied().collect();
            assert_eq!(listed(&*remote, key).await.0.keys().collect::<Vec<_>>(), expected, "prefix {key:?}");
        }
    }
    for (salt, key) in (0..).zip(&keys) {
        let bytes = content(100 + usize::from(salt), salt);
        let answer = remote.get(ask(key, None, None)).await.unwrap_or_else(|fault| panic!("{key:?}: {fault}"));
        assert_eq!((answer.object.key.as_str(), answer.object.size.0, &answer.range), (*key, bytes.len() as u64, &(0..bytes.len() as u64)));
        check(answer.object.sums, &bytes, key);
        let object = answer.object.clone();
        assert_eq!(body(answer).await, bytes, "{key:?}");
        check(remote.sums(&object).await.expect("sums"), &bytes, key);
        let again = remote.get(ask(key, None, object.version.as_ref())).await.unwrap_or_else(|fault| panic!("{key:?}, its version: {fault}"));
        assert_eq!(again.object.version, object.version, "{key:?}");
    }
}

async fn ranges(shelf: &dyn Shelf) {
    let remote = shelf.remote();
    let (key, bytes) = ("suite/ranges", content(100_000, 1));
    shelf.put(key, bytes.clone()).await;
    let version = remote.get(ask(key, None, None)).await.expect("answered").object.version;
    for pinned in [None, version.as_ref()] {
        for (range, expected) in [
            (0..1, 0..1),
            (0..100_000, 0..100_000),
            (1..65_537, 1..65_537),
            (99_999..100_000, 99_999..100_000),
            (99_990..100_010, 99_990..100_000),
            (0..u64::MAX >> 1, 0..100_000),
        ] {
            let case = format!("range {range:?} of {pinned:?}");
            let answer = remote.get(ask(key, Some(&range), pinned)).await.unwrap_or_else(|fault| panic!("{case}: {fault}"));
            // A store that knows no ranges says so by answering with all.
            assert!(answer.range == expected || answer.range == (0..100_000), "{case}: {:?}", answer.range);
            assert_eq!(answer.object.size.0, 100_000, "{case}: the size is the whole object's");
            assert_eq!(answer.object.version, version, "{case}");
            check(answer.object.sums, &bytes, &case);
            let held = answer.range.start as usize..answer.range.end as usize;
            assert_eq!(body(answer).await, bytes[held], "{case}");
        }
        for range in [100_000..100_001, 200_000..200_010] {
            match remote.get(ask(key, Some(&range), pinned)).await {
                Ok(answer) => assert_eq!(answer.range, 0..100_000, "an answer to {range:?} can only hold all"),
                Err(fault) => assert_eq!(fault.kind, FaultKind::Changed, "{range:?} begins after the end: {fault}"),
            }
        }
    }
}

async fn versions(shelf: &dyn Shelf) {
    let remote = shelf.remote();
    let key = "suite/versions";
    shelf.put(key, content(1000, 2)).await;
    let first = remote.get(ask(key, None, None)).await.expect("answered").object;
    if remote.lists() {
        let (objects, _) = listed(&*remote, key).await;
        assert_eq!(objects[key].version, first.version, "listing and answer name one version alike");
        assert_eq!(objects[key].size, first.size);
        check(objects[key].sums, &content(1000, 2), "listed sums");
    }
    // The same length: only the version tells.
    shelf.put(key, content(1000, 3)).await;
    let range = 10..20;
    let second = remote.get(ask(key, None, None)).await.expect("answered").object;
    let Some(version) = &first.version else { return };
    assert_ne!(second.version.as_ref(), Some(version), "two versions have one name");
    assert_eq!(kind(remote.get(ask(key, None, Some(version))).await), Err(FaultKind::Changed), "a version that was replaced");
    assert_eq!(kind(remote.get(ask(key, Some(&range), Some(version))).await), Err(FaultKind::Changed), "a range of it");
    let answer = remote.get(ask(key, Some(&range), second.version.as_ref())).await.expect("answered");
    let held = answer.range.start as usize..answer.range.end as usize;
    assert_eq!(body(answer).await, content(1000, 3)[held]);
    shelf.remove(key).await;
    assert_eq!(kind(remote.get(ask(key, None, second.version.as_ref())).await), Err(FaultKind::Changed), "a version whose object was removed");
    assert_eq!(kind(remote.get(ask(key, Some(&range), second.version.as_ref())).await), Err(FaultKind::Changed), "a range of it");
    assert_eq!(kind(remote.get(ask(key, None, None)).await), Err(FaultKind::Missing), "an object that was removed");
}

async fn empty_objects(shelf: &dyn Shelf) {
    let remote = shelf.remote();
    let key = "suite/empty";
    shelf.put(key, Bytes::new()).await;
    let version = remote.get(ask(key, None, None)).await.expect("answered").object.version;
    for range in [None, Some(0..10)] {
        for version in [None, version.as_ref()] {
            let answer = remote.get(ask(key, range.as_ref(), version)).await.unwrap_or_else(|fault| panic!("{range:?} of {version:?}: {fault}"));
            assert_eq!((&answer.range, answer.object.size.0), (&(0..0), 0), "{range:?}");
            assert!(body(answer).await.is_empty());
        }
    }
}

async fn pages(shelf: &dyn Shelf) {
    let remote = shelf.remote();
    if !remote.lists() {
        return;
    }
    let (none, pages) = listed(&*remote, "suite/nothing/").await;
    assert!(none.is_empty() && pages == 1, "nothing under a prefix is one empty page");
    let Some(page) = shelf.page() else { return };
    // Pages of thousands are asked for by real servers only, whose own tests may spare the time.
    let count = if page > 100 { 3 } else { 2 * page + 1 };
    for i in 0..count {
        shelf.put(&format!("suite/pages/{i:05}"), content(i, 4)).await;
    }
    shelf.put("suite/pagesx", content(1, 4)).await;
    let (objects, pages) = listed(&*remote, "suite/pages/").await;
    assert_eq!(objects.len(), count);
    assert!(page > 100 || pages >= 3, "{count} objects came in {pages} pages of {page}");
    for (i, object) in objects.values().enumerate() {
        assert_eq!((object.key.as_str(), object.size.0), (format!("suite/pages/{i:05}").as_str(), i as u64));
    }
    assert_eq!(listed(&*remote, "suite/pages").await.0.len(), count + 1, "a prefix is text, not a folder");
}

async fn what_is_not_there(shelf: &dyn Shelf) {
    let remote = shelf.remote();
    let fault = remote.get(ask("suite/none", None, None)).await.map(|_| ()).expect_err("no such object");
    assert_eq!(fault.kind, FaultKind::Missing, "{fault}");
    for part in ["suite/none", remote.place()] {
        assert!(fault.to_string().contains(part), "{fault}");
    }
    let Some(elsewhere) = shelf.elsewhere() else { return };
    let fault = elsewhere.get(ask("suite/none", None, None)).await.map(|_| ()).expect_err("no such bucket");
    assert_eq!(fault.kind, FaultKind::Missing, "{fault}");
    if elsewhere.lists() {
        let fault = elsewhere.list("suite/", None).await.map(|_| ()).expect_err("no such bucket");
        assert_eq!(fault.kind, FaultKind::Missing, "{fault}");
        assert!(fault.to_string().contains("does not exist"), "{fault}");
    }
}

async fn credentials(shelf: &dyn Shelf) {
    let Some(denied) = shelf.denied() else { return };
    shelf.put("suite/denied", content(1, 5)).await;
    let fault = denied.get(ask("suite/denied", None, None)).await.map(|_| ()).expect_err("a wrong credential");
    assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
    if denied.lists() {
        let fault = denied.list("suite/", None).await.map(|_| ()).expect_err("a wrong credential");
        assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
    }
}
