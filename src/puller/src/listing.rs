//! Finds the objects of a model: asks for the object and lists what may lie under its name, however many pages that takes.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use berth_stores::{Answer, Ask, Fault, FaultKind, Object, Page, Remote};
use berth_telemetry::Clock;
use berth_types::Retry;

use crate::PullerConfig;
use crate::pace::{Lane, Turn};
use crate::paths::StorePath;
use crate::patience::Patience;
use crate::tally::Tally;

/// More than this is not a model but a bucket named by mistake.
const MOST_OBJECTS: usize = 100_000;

/// What finding needs of its surroundings.
#[derive(Clone, Copy)]
pub(crate) struct Finder<'a> {
    pub(crate) remote: &'a dyn Remote,
    pub(crate) config: &'a PullerConfig,
    pub(crate) clock: &'a Clock,
    pub(crate) lane: &'a Lane,
    pub(crate) tally: &'a Tally,
}

/// What is at a path.
pub(crate) enum Found {
    /// One object, whose first bytes are coming already.
    Single(Box<First>),
    /// What the listing says.
    Listed {
        /// These are at the path or under it, others that only start alike among them. May be none.
        objects: Vec<Object>,
        /// How the store answered to the question for the object itself, where it refused.
        status: Option<u16>,
    },
}

/// An answer to the question whether a path is an object, with its body still to come.
pub(crate) struct First {
    pub(crate) answer: Answer,
    pub(crate) turn: Turn,
}

impl Finder<'_> {
    /// Every object whose key is `path` or lies under it.
    ///
    /// The object itself is asked for and the listing is begun at once: whichever is meant is known after one round trip.
    /// An object with bytes in it that has others under its name is listed with them; whoever lays out says what to do.
    pub(crate) async fn find(&self, path: &StorePath) -> Result<Found, Fault> {
        if !self.remote.lists() {
            return self.object(path).await.map(|first| Found::Single(Box::new(first)));
        }
        if path.is_folder() {
            return self.all(&path.children(), Vec::new(), None, |_| false).await.map(listed);
        }
        let (key, range) = (path.as_str(), 0..self.config.part_size.0);
        // Both in one turn: an answer that keeps its turn must not wait for another one, which others like it may hold.
        let both = || async {
            let object = self.remote.get(Ask { key, range: Some(&range), version: None });
            match tokio::join!(object, self.remote.list(key, None)) {
                (Err(fault), _) | (_, Err(fault)) if fault.kind.retry() == Retry::Later => Err(fault),
                (object, page) => Ok((object, page)),
            }
        };
        let ((object, page), turn) = self.patience(key, 0).hold(self.lane, both).await?;
        let full = |answer: &Answer| answer.object.size.0 > 0;
        match (object, page) {
            // A credential may be allowed to read and not to list; then the object that was asked for is the model.
            (Ok(answer), Err(fault)) if full(&answer) && fault.kind == FaultKind::Denied => Ok(Found::Single(Box::new(First { answer, turn }))),
            (_, Err(fault)) => Err(fault),
            (Ok(answer), Ok(page)) if full(&answer) && page.next.is_none() && !has_children(&page, path) => {
                Ok(Found::Single(Box::new(First { answer, turn })))
            }
            // Some stores refuse to say that something is missing; the listing knows. What is listed and cannot be read is
            // refused when it is fetched.
            (object, Ok(page)) => {
                let (single, status) = match object {
                    Ok(answer) => (Some(answer.object), None),
                    Err(fault) => (None, fault.status),
                };
                drop(turn);
                let objects = self.pages(path, page, single).await?;
                Ok(Found::Listed { objects, status })
            }
        }
    }

    /// The object at `path`, with the first part of its bytes.
    pub(crate) async fn object(&self, path: &StorePath) -> Result<First, Fault> {
        let range = 0..self.config.part_size.0;
        let work = || self.remote.get(Ask { key: path.as_str(), range: Some(&range), version: None });
        let (answer, turn) = self.patience(path.as_str(), 1).hold(self.lane, work).await?;
        Ok(First { answer, turn })
    }

    /// The rest of what `page`, the first of those that start with `path`, belongs to.
    async fn pages(&self, path: &StorePath, page: Page, single: Option<Object>) -> Result<Vec<Object>, Fault> {
        let children = path.children();
        let Some(next) = page.next.clone() else { return Ok(page.objects) };
        // Once the folder's objects have come, the rest of them is behind this page. Before that there may be any number of
        // names that only start alike: then the folder is listed alone, and whether there is an object of that very name the
        // store has said already.
        if has_children(&page, path) {
            return self
                .all(path.as_str(), page.objects, Some(next), |page| {
                    page.objects.iter().all(|object| object.key > children) && !has_children(page, path)
                })
                .await;
        }
        self.all(&children, single.into_iter().collect(), None, |_| false).await
    }

    /// `objects`, and all of the listing of `prefix` from `next` on, until a page says that it is `past` what is wanted.
    async fn all(
        &self,
        prefix: &str,
        mut objects: Vec<Object>,
        mut next: Option<String>,
        past: impl Fn(&Page) -> bool,
    ) -> Result<Vec<Object>, Fault> {
        let what = || format!("listing {prefix:?} of {}", self.remote.place());
        for _page in 0..MOST_OBJECTS {
            let page = self.page(prefix, next.as_deref()).await?;
            if past(&page) && page.next.is_some() && !page.objects.is_empty() {
                return Ok(objects);
            }
            objects.extend(page.objects);
            if objects.len() > MOST_OBJECTS {
                let why = format!("more than {MOST_OBJECTS} objects lie there: name a longer path");
                return Err(Fault::new(FaultKind::Config, what(), why));
            }
            match page.next {
                None => return Ok(objects),
                Some(token) if Some(&token) == next.as_ref() => {
                    return Err(Fault::new(FaultKind::Corrupt, what(), "it does not get on: the store repeats its continuation token"));
                }
                Some(token) => next = Some(token),
            }
        }
        Err(Fault::new(FaultKind::Corrupt, what(), "it does not end"))
    }

    async fn page(&self, prefix: &str, after: Option<&str>) -> Result<Page, Fault> {
        let work = || self.remote.list(prefix, after);
        self.patience(prefix, 0).hold(self.lane, work).await.map(|(page, _turn)| page)
    }

    fn patience(&self, key: &str, offset: u64) -> Patience {
        Patience::new(self.config, self.clock, self.tally, seed(key, offset))
    }
}

/// How long a body may wait for our own disk before its turn is given to others.
const IDLE: Duration = Duration::from_millis(250);

/// `work`, which may wait for somebody else's download. Where that takes long the body of `first` is given up with its turn,
/// which the other download may need.
pub(crate) async fn keep<T>(clock: &Clock, first: &mut Option<First>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if first.is_some() {
        if let Some(done) = clock.until(clock.deadline_in(IDLE), &mut work).await {
            return done;
        }
        *first = None;
    }
    work.await
}

fn listed(objects: Vec<Object>) -> Found {
    Found::Listed { objects, status: None }
}

fn has_children(page: &Page, path: &StorePath) -> bool {
    page.objects.iter().any(|object| object.key.starts_with(&path.children()))
}

/// A number that differs between requests and not between runs.
pub(crate) fn seed(key: &str, offset: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, offset).hash(&mut hasher);
    hasher.finish()
}
