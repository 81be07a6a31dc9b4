//! A store in memory, for the tests of whoever fetches: it answers as a real one would, and fails as it is told to.
//!
//! Every put makes a new version, a version that was asked for and is there no more is `Changed`, pages end where
//! [`Manner::page`] says. Trouble is scripted ([`MemoryStore::trouble`]) or drawn with a seed ([`MemoryStore::random`]), per
//! request, and passes through the [`Clock`] that was handed in: under paused time nothing here waits for real. What
//! was asked and served is counted ([`MemoryStore::requests`], [`MemoryStore::served`], [`MemoryStore::most_at_once`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_telemetry::Clock;
use berth_types::ByteSize;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Answer, Ask, ConfigFault, Fault, FaultKind, Object, Open, Page, Remote, Settings, Sums, Version};

/// How messages name the store.
pub const PLACE: &str = "bucket b of the memory store";

/// What is asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// [`Remote::list`].
    List,
    /// [`Remote::get`].
    Get,
    /// [`Remote::sums`].
    Sums,
}

/// One request, as the store saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it is.
    pub op: Op,
    /// The object's key; of a listing the prefix.
    pub key: String,
    /// The bytes that were asked for; `None` is all.
    pub range: Option<Range<u64>>,
    /// The version that was asked for.
    pub version: Option<Version>,
    /// Of a listing: where the page begins.
    pub after: Option<String>,
}

impl Request {
    /// Whether it is a GET of `key`.
    #[must_use]
    pub fn gets(&self, key: &str) -> bool {
        self.op == Op::Get && self.key == key
    }
}

/// What happens to a request. Bytes are counted from the start of the answer's body, but for [`Trouble::Flip`].
#[derive(Clone, Debug)]
pub enum Trouble {
    /// No answer comes: [`FaultKind::Away`].
    Away,
    /// [`FaultKind::Busy`].
    Busy(Option<Duration>),
    /// [`FaultKind::Denied`].
    Denied,
    /// Any other fault.
    Refuse(FaultKind),
    /// The answer's head comes this much later.
    Delay(Duration),
    /// The answer's head waits for [`MemoryStore::release`].
    Hold,
    /// Each frame of the body comes this much after the one before.
    Slow(Duration),
    /// The connection breaks after so many bytes of the body.
    Cut(u64),
    /// The body ends, without an error, after so many bytes.
    End(u64),
    /// Nothing more comes after so many bytes of the body, and no error either.
    Silent(u64),
    /// The lowest bit of the object's byte at this offset is another one, where the answer holds that byte.
    Flip(u64),
    /// A new version is put before the request is looked at.
    Replace(Bytes),
    /// A new version is put after so many bytes of the body, which goes on with the old one.
    ReplaceAfter(u64, Bytes),
    /// The object is removed before the request is looked at.
    Remove,
    /// A listing names the first object of its page twice.
    Twice,
    /// A listing's page is followed by itself, for ever.
    Loop,
    /// A listing says that its objects have this length.
    Length(u64),
    /// A listing or answer calls the version so.
    Rename(Version),
    /// The answer holds all bytes, whatever was asked for.
    Whole,
    /// The answer holds as many bytes as were asked for, but begins so much later in the object.
    Shift(u64),
}

/// How likely each trouble is, in a thousand requests. Lengths and offsets are drawn too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// [`Trouble::Away`].
    pub away: u32,
    /// [`Trouble::Busy`], half of them with a pause of up to two seconds.
    pub busy: u32,
    /// [`Trouble::Delay`] of up to a second.
    pub delay: u32,
    /// [`Trouble::Cut`].
    pub cut: u32,
    /// [`Trouble::End`].
    pub end: u32,
    /// [`Trouble::Silent`].
    pub silent: u32,
    /// [`Trouble::Flip`].
    pub flip: u32,
}

/// Where the store states checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stated {
    /// Nowhere.
    Nowhere,
    /// In listings and in every answer.
    Everywhere,
    /// In answers that hold the whole object, and when asked ([`Remote::sums`]).
    WholeAnswers,
}

/// What kind of store this is.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Whether it can be listed.
    pub lists: bool,
    /// Whether it tells versions apart.
    pub versions: bool,
    /// Whether it knows ranges; otherwise every answer holds all bytes.
    pub ranges: bool,
    /// Where checksums are stated.
    pub stated: Stated,
    /// How many objects a page of a listing holds. Not zero.
    pub page: usize,
    /// How many bytes a frame of a body holds. Not zero.
    pub frame: usize,
}

impl Default for Manner {
    fn default() -> Self {
        Manner { lists: true, versions: true, ranges: true, stated: Stated::WholeAnswers, page: 1000, frame: 64 << 10 }
    }
}

/// The store. Its methods script it and look at it; [`Open`] and [`MemoryStore::remote`] give what fetches.
pub struct MemoryStore(Arc<Inner>);

struct Inner {
    clock: Clock,
    state: Mutex<State>,
    /// How many requests have come.
    seen: watch::Sender<usize>,
    /// How often held requests were released.
    releases: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    manner: Manner,
    objects: BTreeMap<String, Held>,
    versions: u64,
    scripts: Vec<Script>,
    random: Option<(u64, Rates)>,
    requests: Vec<Request>,
    served: BTreeMap<String, u64>,
    at_once: usize,
    most_at_once: usize,
}

#[derive(Clone)]
struct Held {
    bytes: Bytes,
    version: Version,
    sums: Sums,
}

struct Script {
    matching: Box<dyn Fn(&Request) -> bool + Send>,
    trouble: Trouble,
    times: usize,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    #[allow(clippy::new_ret_no_self, reason = "tests hand it on as a shared opener")]
    pub fn new(clock: Clock) -> Arc<Self> {
        let inner = Inner { clock, state: Mutex::default(), seen: watch::Sender::new(0), releases: watch::Sender::new(0) };
        Arc::new(MemoryStore(Arc::new(inner)))
    }

    /// Changes what kind of store this is.
    pub fn manner(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.0.state.lock().manner);
    }

    /// Puts a new version of an object, whose CRC-32C and MD5 the store will state.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Version {
        let bytes = bytes.into();
        let sums = sums_of(&bytes);
        self.put_stating(key, bytes, sums)
    }

    /// Puts a new version of an object, of which the store will state these sums, be they right or wrong.
    pub fn put_stating(&self, key: &str, bytes: impl Into<Bytes>, sums: Sums) -> Version {
        self.0.state.lock().put(key, bytes.into(), sums)
    }

    /// Removes an object.
    pub fn remove(&self, key: &str) {
        self.0.state.lock().objects.remove(key);
    }

    /// Lets `trouble` happen to the next `times` requests that match (`usize::MAX`: to all). All that match one request
    /// happen to it, in the order in which they were scripted, until one refuses it. `matching` must not ask the store.
    pub fn trouble(&self, matching: impl Fn(&Request) -> bool + Send + 'static, trouble: Trouble, times: usize) {
        self.0.state.lock().scripts.push(Script { matching: Box::new(matching), trouble, times });
    }

    /// Draws trouble for every request from now on, beside what is scripted.
    pub fn random(&self, seed: u64, rates: Rates) {
        self.0.state.lock().random = Some((seed, rates));
    }

    /// No trouble from now on, of either kind.
    pub fn peace(&self) {
        let mut state = self.0.state.lock();
        state.scripts.clear();
        state.random = None;
    }

    /// Lets the requests go on that are held now.
    pub fn release(&self) {
        self.0.releases.send_modify(|releases| *releases += 1);
    }

    /// All requests so far, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.0.state.lock().requests.clone()
    }

    /// How many requests of this kind have come.
    #[must_use]
    pub fn count(&self, op: Op) -> usize {
        self.0.state.lock().requests.iter().filter(|request| request.op == op).count()
    }

    /// Waits until a request has come that matches.
    pub async fn asked(&self, matching: impl Fn(&Request) -> bool) {
        let mut seen = self.0.seen.subscribe();
        // The sender lives as long as `self`: this cannot fail.
        let _ = seen.wait_for(|_| self.0.state.lock().requests.iter().any(&matching)).await;
    }

    /// How many bytes of `key` were taken out of answers.
    #[must_use]
    pub fn served(&self, key: &str) -> u64 {
        self.0.state.lock().served.get(key).copied().unwrap_or_default()
    }

    /// How many bytes were taken out of answers.
    #[must_use]
    pub fn served_in_all(&self) -> u64 {
        self.0.state.lock().served.values().sum()
    }

    /// How many requests are under way: a GET is until its body has ended or is dropped.
    #[must_use]
    pub fn at_once(&self) -> usize {
        self.0.state.lock().at_once
    }

    /// The most requests that were under way at once.
    #[must_use]
    pub fn most_at_once(&self) -> usize {
        self.0.state.lock().most_at_once
    }

    /// The store as whoever fetches sees it.
    #[must_use]
    pub fn remote(&self) -> Arc<dyn Remote> {
        Arc::new(MemoryRemote { inner: Arc::clone(&self.0), lists: self.0.state.lock().manner.lists })
    }
}

impl Open for MemoryStore {
    fn open(&self, _settings: &Settings) -> Result<Arc<dyn Remote>, ConfigFault> {
        Ok(self.remote())
    }
}

/// The sums that a store states of `bytes`.
#[must_use]
pub fn sums_of(bytes: &[u8]) -> Sums {
    use md5::Digest as _;
    // The 32 bits of the checksum are the lower ones.
    let crc32c = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) & u64::from(u32::MAX);
    Sums { crc32c: u32::try_from(crc32c).ok(), md5: Some(md5::Md5::digest(bytes).into()), ..Sums::default() }
}

impl State {
    fn put(&mut self, key: &str, bytes: Bytes, sums: Sums) -> Version {
        self.versions += 1;
        let version = Version(format!("\"v{}\"", self.versions));
        self.objects.insert(key.to_owned(), Held { bytes, version: version.clone(), sums });
        version
    }

    /// What happens to this request, in order.
    fn draw(&mut self, request: &Request) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        for script in &mut self.scripts {
            if script.times > 0 && (script.matching)(request) {
                script.times -= usize::from(script.times != usize::MAX);
                troubles.push(script.trouble.clone());
            }
        }
        self.scripts.retain(|script| script.times > 0);
        let size = self.objects.get(&request.key).map_or(0, |held| held.bytes.len() as u64);
        if let Some((seed, rates)) = &mut self.random {
            troubles.extend(rates.draw(seed, request, size));
        }
        troubles
    }

    fn object(&self, key: &str, held: &Held, stated: bool) -> Object {
        Object {
            key: key.to_owned(),
            size: ByteSize(held.bytes.len() as u64),
            version: self.manner.versions.then(|| held.version.clone()),
            sums: if stated { held.sums } else { Sums::default() },
        }
    }
}

impl Rates {
    fn draw(&self, seed: &mut u64, request: &Request, size: u64) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        let asked = request.range.clone().unwrap_or(0..size);
        let length = asked.end.min(size).saturating_sub(asked.start);
        let mut hits = |per_mille: u32| {
            // Both are drawn for each kind, so that one rate does not shift what another one draws.
            let (luck, value) = (next(seed), next(seed));
            (luck % 1000 < u64::from(per_mille)).then_some(value)
        };
        if let Some(value) = hits(self.delay) {
            troubles.push(Trouble::Delay(Duration::from_millis(value % 1000)));
        }
        if hits(self.away).is_some() {
            troubles.push(Trouble::Away);
        }
        if let Some(value) = hits(self.busy) {
            troubles.push(Trouble::Busy((value % 2 == 0).then(|| Duration::from_millis(value / 2 % 2000))));
        }
        let (cut, end, silent, flip) = (hits(self.cut), hits(self.end), hits(self.silent), hits(self.flip));
        if request.op == Op::Get && length > 0 {
            troubles.extend(cut.map(|value| Trouble::Cut(value % length)));
            troubles.extend(end.map(|value| Trouble::End(value % length)));
            troubles.extend(silent.map(|value| Trouble::Silent(value % length)));
            troubles.extend(flip.map(|value| Trouble::Flip(asked.start + value % length)));
        }
        troubles
    }
}

/// SplitMix64: small, and the same everywhere.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

struct MemoryRemote {
    inner: Arc<Inner>,
    lists: bool,
}

impl std::fmt::Debug for MemoryRemote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryRemote")
    }
}

/// A request under way.
struct Running(Arc<Inner>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state.lock().at_once -= 1;
    }
}

impl MemoryRemote {
    /// Counts the request and lets happen to it what comes before it is looked at.
    async fn admit(&self, request: Request, what: &str) -> Result<(Running, Vec<Trouble>), Fault> {
        let key = request.key.clone();
        let troubles = {
            let mut state = self.inner.state.lock();
            state.at_once += 1;
            state.most_at_once = state.most_at_once.max(state.at_once);
            let troubles = state.draw(&request);
            state.requests.push(request);
            troubles
        };
        let running = Running(Arc::clone(&self.inner));
        let mut releases = self.inner.releases.subscribe();
        self.inner.seen.send_modify(|seen| *seen += 1);
        for trouble in &troubles {
            let refused = |kind, why: &str| Err(Fault::new(kind, what, why));
            match trouble {
                Trouble::Away => return refused(FaultKind::Away, "cannot connect: Connection refused (os error 111)"),
                Trouble::Busy(pause) => {
                    return refused(FaultKind::Busy { pause: *pause }, "SlowDown: reduce your request rate").map_err(|f| f.with_status(503));
                }
                Trouble::Denied => return refused(FaultKind::Denied, "AccessDenied: access denied").map_err(|f| f.with_status(403)),
                Trouble::Refuse(kind) => return refused(*kind, "refused as the test wants it"),
                Trouble::Delay(delay) => self.inner.clock.sleep(*delay).await,
                Trouble::Hold => {
                    // The sender lives as long as `self`: this cannot fail.
                    let _ = releases.changed().await;
                }
                Trouble::Replace(bytes) => {
                    self.inner.state.lock().put(&key, bytes.clone(), sums_of(bytes));
                }
                Trouble::Remove => {
                    self.inner.state.lock().objects.remove(&key);
                }
                _ => {}
            }
        }
        Ok((running, troubles))
    }
}

#[async_trait]
impl Remote for MemoryRemote {
    fn place(&self) -> &str {
        PLACE
    }

    fn lists(&self) -> bool {
        self.lists
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, Fault> {
        let what = format!("listing {prefix:?} of {PLACE}");
        let request = Request { op: Op::List, key: prefix.to_owned(), range: None, version: None, after: after.map(str::to_owned) };
        let (_running, troubles) = self.admit(request, &what).await?;
        let mut page = {
            let state = self.inner.state.lock();
            if !state.manner.lists {
                return Err(Fault::new(FaultKind::Config, what, "it cannot be listed"));
            }
            let stated = state.manner.stated == Stated::Everywhere;
            let mut objects = state.objects.iter().filter(|(key, _)| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after));
            let found: Vec<_> = objects.by_ref().take(state.manner.page).map(|(key, held)| state.object(key, held, stated)).collect();
            let next = objects.next().and(found.last()).map(|last| last.key.clone());
            Page { objects: found, next }
        };
        for trouble in troubles {
            match trouble {
                Trouble::Twice => page.objects.extend(page.objects.first().cloned()),
                Trouble::Loop => page.next = Some(after.unwrap_or_default().to_owned()),
                Trouble::Length(length) => page.objects.iter_mut().for_each(|object| object.size = ByteSize(length)),
                Trouble::Rename(version) => page.objects.iter_mut().for_each(|object| object.version = Some(version.clone())),
                _ => {}
            }
        }
        Ok(page)
    }

    async fn get(&self, ask: Ask<'_>) -> Result<Answer, Fault> {
        let what = format!("object {:?} of {PLACE}", ask.key);
        let request = Request { op: Op::Get, key: ask.key.to_owned(), range: ask.range.cloned(), version: ask.version.cloned(), after: None };
        let (running, troubles) = self.admit(request, &what).await?;
        let (held, manner) = {
            let state = self.inner.state.lock();
            (state.objects.get(ask.key).cloned(), state.manner)
        };
        let changed = |why: &str| Fault::new(FaultKind::Changed, &what, why);
        let Some(held) = held else {
            let kind = if ask.version.is_some() { FaultKind::Changed } else { FaultKind::Missing };
            return Err(Fault::new(kind, &what, "NoSuchKey: it does not exist").with_status(404));
        };
        if ask.version.is_some_and(|version| *version != held.version) {
            return Err(changed("it changed after it was listed").with_status(412));
        }
        let total = held.bytes.len() as u64;
        let whole = !manner.ranges || troubles.iter().any(|trouble| matches!(trouble, Trouble::Whole));
        let mut range = match ask.range {
            Some(range) if !whole && total > 0 && range.start >= total => return Err(changed("it is shorter than it was listed").with_status(416)),
            Some(range) if !whole => range.start.min(total)..range.end.min(total),
            _ => 0..total,
        };
        let stated = match manner.stated {
            Stated::Nowhere => false,
            Stated::Everywhere => true,
            Stated::WholeAnswers => range == (0..total),
        };
        let mut object = self.inner.state.lock().object(ask.key, &held, stated);
        let mut bytes = held.bytes.clone();
        for trouble in &troubles {
            match trouble {
                Trouble::Flip(at) if *at < total => {
                    let mut flipped = bytes.to_vec();
                    // It is less than the length of a slice in memory.
                    flipped[*at as usize] ^= 1;
                    bytes = flipped.into();
                }
                Trouble::Shift(by) => range = range.start.saturating_add(*by).min(total)..range.end.saturating_add(*by).min(total),
                Trouble::Rename(version) => object.version = Some(version.clone()),
                Trouble::Length(length) => object.size = ByteSize(*length),
                _ => {}
            }
        }
        let body = Body {
            // Ranges lie within a slice in memory.
            rest: bytes.slice(range.start as usize..range.end as usize),
            given: 0,
            key: ask.key.to_owned(),
            frame: manner.frame.max(1),
            troubles,
            running,
        };
        Ok(Answer { object, range, frames: body.frames() })
    }

    async fn sums(&self, object: &Object) -> Result<Sums, Fault> {
        let what = format!("checksums of object {:?} of {PLACE}", object.key);
        if self.inner.state.lock().manner.stated != Stated::WholeAnswers {
            return Ok(object.sums);
        }
        let request = Request { op: Op::Sums, key: object.key.clone(), range: None, version: object.version.clone(), after: None };
        let (_running, _) = self.admit(request, &what).await?;
        let state = self.inner.state.lock();
        match state.objects.get(&object.key) {
            Some(held) if object.version.as_ref().is_none_or(|version| *version == held.version) => Ok(object.sums.or(held.sums)),
            _ => Err(Fault::new(FaultKind::Changed, what, "it changed after it was listed")),
        }
    }
}

/// The rest of an answer.
struct Body {
    rest: Bytes,
    given: u64,
    key: String,
    frame: usize,
    troubles: Vec<Trouble>,
    running: Running,
}

/// What comes next.
enum Turn {
    Frame(Bytes),
    Broken,
    End,
    Never,
}

impl Body {
    fn frames(self) -> BoxStream<'static, Result<Bytes, String>> {
        Box::pin(stream::unfold(Some(self), |body| async move {
            let mut body = body?;
            for trouble in &body.troubles {
                if let Trouble::Slow(pause) = trouble {
                    let clock = body.running.0.clock.clone();
                    clock.sleep(*pause).await;
                }
            }
            match body.turn() {
                Turn::Frame(frame) => Some((Ok(frame), Some(body))),
                // `None` as the next state drops the body: the request is over.
                Turn::Broken => Some((Err("the connection broke: connection reset by the test".to_owned()), None)),
                Turn::End => None,
                Turn::Never => std::future::pending().await,
            }
        }))
    }

    fn turn(&mut self) -> Turn {
        // Frames end where something happens.
        let mut length = self.rest.len().min(self.frame);
        let given = self.given;
        let mut puts = Vec::new();
        for trouble in &mut self.troubles {
            let (at, turn) = match trouble {
                Trouble::Cut(at) => (*at, Some(Turn::Broken)),
                Trouble::End(at) => (*at, Some(Turn::End)),
                Trouble::Silent(at) => (*at, Some(Turn::Never)),
                Trouble::ReplaceAfter(at, _) => (*at, None),
                _ => continue,
            };
            if at > given {
                length = length.min(usize::try_from(at - given).unwrap_or(usize::MAX));
                continue;
            }
            match (turn, &mut *trouble) {
                (Some(turn), _) => return turn,
                (None, Trouble::ReplaceAfter(_, bytes)) => puts.push(std::mem::take(bytes)),
                (None, _) => {}
            }
        }
        if !puts.is_empty() {
            self.troubles.retain(|trouble| !matches!(trouble, Trouble::ReplaceAfter(at, _) if *at <= given));
            let mut state = self.running.0.state.lock();
            for bytes in puts {
                let sums = sums_of(&bytes);
                state.put(&self.key, bytes, sums);
            }
        }
        if length == 0 {
            return Turn::End;
        }
        let frame = self.rest.split_to(length);
        self.given += length as u64;
        *self.running.0.state.lock().served.entry(self.key.clone()).or_default() += length as u64;
        Turn::Frame(frame)
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, TryStreamExt as _};

    use super::*;

    fn store() -> Arc<MemoryStore> {
        let store = MemoryStore::new(Clock::starting_at(berth_types::UnixMillis(0)));
        store.manner(|manner| manner.frame = 4);
        store
    }

    fn content(length: u8) -> Bytes {
        (0..length).collect::<Vec<u8>>().into()
    }

    async fn taken(answer: Answer) -> (Vec<u8>, Option<String>) {
        let mut frames = answer.frames;
        let mut bytes = Vec::new();
        while let Some(frame) = frames.next().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame),
                Err(why) => return (bytes, Some(why)),
            }
        }
        (bytes, None)
    }

    fn whole(key: &str) -> Ask<'_> {
        Ask { key, range: None, version: None }
    }

    struct Shelf(Arc<MemoryStore>, usize);

    #[async_trait]
    impl crate::suite::Shelf for Shelf {
        fn remote(&self) -> Arc<dyn Remote> {
            self.0.remote()
        }
        fn page(&self) -> Option<usize> {
            Some(self.1)
        }
        async fn put(&self, key: &str, bytes: Bytes) {
            self.0.put(key, bytes);
        }
        async fn remove(&self, key: &str) {
            self.0.remove(key);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_store_conforms_in_every_manner() {
        for page in [1, 3, 1000] {
            for stated in [Stated::Nowhere, Stated::Everywhere, Stated::WholeAnswers] {
                for bits in 0..8 {
                    let store = store();
                    let (lists, versions, ranges) = (bits & 1 == 0, bits & 2 == 0, bits & 4 == 0);
                    store.manner(|manner| *manner = Manner { lists, versions, ranges, stated, page, frame: 5000 });
                    crate::suite::conforms(&Shelf(store, page)).await;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_suite_finds_every_store_that_lies() {
        for trouble in [
            Trouble::Denied,
            Trouble::Cut(1),
            Trouble::End(50),
            Trouble::Flip(20),
            Trouble::Shift(1),
            Trouble::Length(77),
            Trouble::Rename(Version("same".to_owned())),
            Trouble::Twice,
            Trouble::Loop,
            Trouble::Remove,
        ] {
            let store = store();
            store.manner(|manner| manner.frame = 5000);
            store.trouble(|_| true, trouble.clone(), usize::MAX);
            let suite = tokio::spawn(async move { crate::suite::conforms(&Shelf(store, 3)).await });
            assert!(suite.await.is_err_and(|fault| fault.is_panic()), "{trouble:?} goes unnoticed");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn scripted_trouble_comes_as_often_as_it_was_scripted_and_in_order() {
        let store = store();
        store.put("m/a", content(10));
        let remote = store.remote();
        store.trouble(|request| request.gets("m/a"), Trouble::Delay(Duration::from_secs(5)), usize::MAX);
        store.trouble(|request| request.gets("m/a"), Trouble::Busy(Some(Duration::from_secs(2))), 1);
        store.trouble(|request| request.gets("m/a"), Trouble::Cut(6), 2);
        let start = store.0.clock.now();
        let kinds = remote.get(whole("m/a")).await.map(|_| ()).expect_err("busy").kind;
        assert_eq!(kinds, FaultKind::Busy { pause: Some(Duration::from_secs(2)) });
        assert_eq!(store.0.clock.now() - start, Duration::from_secs(5));
        let (bytes, broken) = taken(remote.get(whole("m/a")).await.expect("answered")).await;
        assert_eq!((bytes, broken.is_some()), (content(6).to_vec(), true), "the cut matched the busy request too, which never got so far");
        assert_eq!(taken(remote.get(whole("m/a")).await.expect("answered")).await, (content(10).to_vec(), None));
        assert_eq!((store.served("m/a"), store.count(Op::Get), store.at_once(), store.most_at_once()), (16, 3, 0, 1));
        store.peace();
        assert!(remote.get(whole("m/a")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_end_stall_flip_and_are_overtaken_where_they_are_told_to() {
        let store = store();
        let old = store.put("k", content(10));
        let remote = store.remote();
        let of_k = |request: &Request| request.gets("k");
        store.trouble(of_k, Trouble::End(3), 1);
        assert_eq!(taken(remote.get(whole("k")).await.expect("answered")).await, (content(3).to_vec(), None));
        store.trouble(of_k, Trouble::Flip(7), 1);
        let range = 6..9;
        let (bytes, _) = taken(remote.get(Ask { range: Some(&range), ..whole("k") }).await.expect("answered")).await;
        assert_eq!(bytes, [6, 6, 8]);
        store.trouble(of_k, Trouble::Silent(5), 1);
        let mut frames = remote.get(whole("k")).await.expect("answered").frames;
        let read = async { while frames.next().await.is_some() {} };
        let clock = store.0.clock.clone();
        assert_eq!(clock.until(clock.deadline_in(Duration::from_secs(3600)), read).await, None, "it says nothing for ever");
        assert_eq!(store.at_once(), 1, "a silent body is under way until it is dropped");
        drop(frames);
        assert_eq!(store.at_once(), 0);
        store.trouble(of_k, Trouble::ReplaceAfter(5, Bytes::from_static(b"new")), 1);
        let answer = remote.get(Ask { version: Some(&old), ..whole("k") }).await.expect("answered");
        assert_eq!(taken(answer).await.0, content(10), "the body goes on with the old version");
        let fault = remote.get(Ask { version: Some(&old), ..whole("k") }).await.map(|_| ()).expect_err("replaced");
        assert_eq!(fault.kind, FaultKind::Changed);
        let new: Vec<Bytes> = remote.get(whole("k")).await.expect("answered").frames.try_collect().await.expect("sound");
        assert_eq!(new.concat(), b"new");
    }

    #[tokio::test(start_paused = true)]
    async fn listings_lie_as_they_are_told_to() {
        let store = store();
        for key in ["a", "b", "c"] {
            store.put(key, content(2));
        }
        store.manner(|manner| manner.page = 2);
        let remote = store.remote();
        store.trouble(|request| request.op == Op::List, Trouble::Twice, 1);
        store.trouble(|request| request.op == Op::List, Trouble::Length(99), 1);
        let page = remote.list("", None).await.expect("listed");
        let listed: Vec<_> = page.objects.iter().map(|object| (object.key.as_str(), object.size.0)).collect();
        assert_eq!(listed, [("a", 99), ("b", 99), ("a", 99)]);
        store.trouble(|request| request.op == Op::List, Trouble::Loop, usize::MAX);
        let page = remote.list("", Some("b")).await.expect("listed");
        assert_eq!((page.objects.len(), page.next.as_deref()), (1, Some("b")), "its next page is itself");
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_request_waits_for_its_release() {
        let store = store();
        store.put("k", content(3));
        store.trouble(|_| true, Trouble::Hold, 1);
        let remote = store.remote();
        let held = tokio::spawn(async move { taken(remote.get(whole("k")).await.expect("answered")).await.0 });
        store.asked(|request| request.gets("k")).await;
        assert_eq!((store.at_once(), held.is_finished()), (1, false));
        store.release();
        assert_eq!(held.await.expect("it ends"), content(3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_draws_the_same_trouble() {
        async fn outcomes(seed: u64) -> Vec<String> {
            let store = store();
            store.put("k", content(200));
            store.random(seed, Rates { away: 100, busy: 100, delay: 100, cut: 100, end: 100, silent: 0, flip: 100 });
            let remote = store.remote();
            let mut outcomes = Vec::new();
            for _ in 0..200 {
                outcomes.push(match remote.get(whole("k")).await {
                    Ok(answer) => format!("{:?}", taken(answer).await),
                    Err(fault) => format!("{:?}", fault.kind),
                });
            }
            outcomes
        }
        let first = outcomes(7).await;
        assert_eq!(first, outcomes(7).await);
        assert_ne!(first, outcomes(8).await);
        let sound = format!("{:?}", (content(200).to_vec(), None::<String>));
        let fine = first.iter().filter(|outcome| **outcome == sound).count();
        assert!((50..170).contains(&fine), "{fine} of 200 went well");
    }
}
