//! Objects into files: in ranges, several at once, each byte written where it belongs as it arrives.
//!
//! Memory is bounded by the number of requests times two batches. A range that breaks goes on where it broke; every GET
//! insists on the version that was listed. Lengths are always checked; the MD5 digest that an ETag states is checked for
//! objects that come in one piece, where it costs no second pass.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_telemetry::Clock;
use berth_types::ByteSize;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use md5::{Digest as _, Md5};
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinHandle;

use crate::listing::seed;
use crate::paths::Item;
use crate::patience::Patience;
use crate::s3::{Fault, S3Client, md5_of_etag};
use crate::storage::S3Source;
use crate::{PullError, PullerConfig};

/// Bytes gathered before they are handed to a thread that writes them.
const BATCH: usize = 256 << 10;

/// Objects up to this size do not count against the ranges of one model: for them the round trip is what costs.
const SMALL: u64 = 1 << 20;

/// One model's download.
pub(crate) struct Transfer {
    pub(crate) client: Arc<S3Client>,
    pub(crate) source: Arc<S3Source>,
    pub(crate) config: Arc<PullerConfig>,
    pub(crate) clock: Clock,
    /// One permit per request, over all models.
    pub(crate) requests: Arc<Semaphore>,
    /// The staging folder that the files' names are relative to.
    pub(crate) folder: PathBuf,
    /// Told the bytes of each frame as it arrives.
    pub(crate) received: Box<dyn Fn(u64) + Send + Sync>,
    /// Told each time that a batch is in its file.
    pub(crate) written: Box<dyn Fn() + Send + Sync>,
    /// Told bytes of the files once they surely occupy room on disk, each byte once.
    pub(crate) occupied: Box<dyn Fn(u64) + Send + Sync>,
}

/// What was checked beyond the lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Objects whose MD5 digest was held against their ETag.
    pub(crate) digests: usize,
    /// All objects.
    pub(crate) objects: usize,
}

impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.digests, self.objects) {
            (0, _) => f.write_str("lengths, content unverified"),
            (digests, objects) if digests == objects => f.write_str("md5"),
            (digests, objects) => write!(f, "md5 of {digests} of {objects} objects, content of the others unverified"),
        }
    }
}

/// A file that several ranges are written to: made, at its full length, by the first of them.
struct Large {
    path: PathBuf,
    size: u64,
    file: OnceCell<Allocated>,
}

struct Allocated {
    file: Arc<File>,
    /// True when all of its bytes are taken from the file system already.
    in_full: bool,
}

enum Part {
    Whole(Arc<Item>),
    Range { item: Arc<Item>, range: Range<u64>, large: Arc<Large> },
}

impl Transfer {
    /// Fetches all of `items`.
    pub(crate) async fn run(self: Arc<Self>, items: Arc<[Item]>) -> Result<Checked, Fault> {
        self.prepare(&items).await?;
        let lane = Arc::new(Semaphore::new(self.config.parts_per_model));
        let digests = AtomicU64::new(0);
        // Made as they are needed, so that no more files are open than parts are under way.
        let (this, all) = (Arc::clone(&self), Arc::clone(&items));
        let parts = (0..items.len()).flat_map(move |at| this.parts(&all[at]));
        futures::stream::iter(parts)
            .map(|part| {
                let (this, lane) = (Arc::clone(&self), Arc::clone(&lane));
                async move {
                    let large = match &part {
                        Part::Whole(item) => item.object.size.0 > SMALL,
                        Part::Range { .. } => true,
                    };
                    let _turn = if large { lane.acquire().await.ok() } else { None };
                    this.part(part).await
                }
            })
            .buffer_unordered(self.config.requests)
            .try_for_each(|digest_checked| {
                digests.fetch_add(u64::from(digest_checked), Ordering::Relaxed);
                futures::future::ready(Ok(()))
            })
            .await?;
        self.check(&items).await?;
        Ok(Checked { digests: usize::try_from(digests.into_inner()).unwrap_or(usize::MAX), objects: items.len() })
    }

    fn parts(&self, item: &Item) -> Vec<Part> {
        let (size, part_size) = (item.object.size.0, self.config.part_size.0);
        if size == 0 {
            return Vec::new();
        }
        let item = Arc::new(item.clone());
        if size <= part_size {
            return vec![Part::Whole(item)];
        }
        let large = Arc::new(Large { path: self.folder.join(&item.file), size, file: OnceCell::new() });
        let starts = (0..size.div_ceil(part_size)).map(|n| n * part_size);
        let range = |start: u64| start..start.saturating_add(part_size).min(size);
        starts.map(|start| Part::Range { item: Arc::clone(&item), range: range(start), large: Arc::clone(&large) }).collect()
    }

    /// Makes all folders, and the files that have no bytes to fetch.
    async fn prepare(&self, items: &[Item]) -> Result<(), Fault> {
        let parents: BTreeSet<PathBuf> = items.iter().filter_map(|item| self.folder.join(&item.file).parent().map(Path::to_owned)).collect();
        let empty: Vec<PathBuf> = items.iter().filter(|item| item.object.size == ByteSize::ZERO).map(|item| self.folder.join(&item.file)).collect();
        let folder = self.folder.clone();
        blocking(&folder, move || {
            for parent in parents {
                std::fs::create_dir_all(parent)?;
            }
            for file in empty {
                create(&file)?;
            }
            Ok(())
        })
        .await
    }

    /// Fetches one part; true when its digest was checked.
    async fn part(&self, part: Part) -> Result<bool, Fault> {
        let (item, range, target, occupied) = match part {
            Part::Whole(item) => {
                let range = 0..item.object.size.0;
                let path = self.folder.join(&item.file);
                (item, range, Target::New(path), false)
            }
            Part::Range { item, range, large } => {
                let make = || async {
                    let allocated = preallocate(large.path.clone(), large.size).await?;
                    if allocated.in_full {
                        (self.occupied)(large.size);
                    }
                    Ok(allocated)
                };
                let Allocated { file, in_full } = large.file.get_or_try_init(make).await?;
                (item, range, Target::Open(Arc::clone(file)), *in_full)
            }
        };
        let whole = range.end - range.start == item.object.size.0;
        let expected = item.object.etag.as_deref().and_then(md5_of_etag).filter(|_| whole && self.source.verify_etag);
        let mut sink = Sink::new(&self.folder, target, range.start, expected.is_some().then(Md5::new));
        let mut patience = Patience::new(&self.config, &self.clock, seed(&item.object.key, range.start));
        let mut at = range.start;
        let mut digest_means_something = true;
        while at < range.end {
            let asked = if whole && at == 0 { None } else { Some(at..range.end) };
            let broke = self.stream(&item, asked, &mut at, range.end, &mut sink, &mut patience, &mut digest_means_something).await?;
            if let Some(why) = broke
                && at < range.end
            {
                patience.pause(why).await?;
            }
        }
        let digest = sink.finish(&self.written).await?;
        if !occupied {
            (self.occupied)(range.end - range.start);
        }
        match (expected, digest) {
            (Some(expected), Some(digest)) if digest_means_something => {
                let got = digest.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
                if got == expected {
                    return Ok(true);
                }
                Err(Fault::Changed(format!(
                    "object {:?} of bucket {} at {}: the bytes that came have the MD5 digest {got}, the store's ETag is {expected}",
                    item.object.key,
                    self.source.bucket,
                    self.source.address()
                )))
            }
            _ => Ok(false),
        }
    }

    /// One GET: moves `at` on as bytes come. Says why it ended before `end`, when asking again may help.
    #[allow(clippy::too_many_arguments, reason = "the state of one part, which outlives its requests")]
    async fn stream(
        &self,
        item: &Item,
        asked: Option<Range<u64>>,
        at: &mut u64,
        end: u64,
        sink: &mut Sink,
        patience: &mut Patience,
        digest_means_something: &mut bool,
    ) -> Result<Option<String>, Fault> {
        let what = || format!("object {:?} of bucket {} at {}", item.object.key, self.source.bucket, self.source.address());
        let _one_request = patience.turn(&self.requests).await;
        let mut body = match self.client.get(&self.source, &item.object, asked).await {
            Ok(body) => body,
            Err(Fault::Away(why)) => return Ok(Some(why)),
            Err(fault) => return Err(fault),
        };
        *digest_means_something &= body.etag_may_be_md5;
        loop {
            let so_far = |why: &str, at: u64| Some(format!("{}: {why} after {} of {}", what(), ByteSize(at), item.object.size));
            match self.client.next(&mut body, patience.left()).await {
                Ok(None) => return Ok(so_far("the answer ended", *at).filter(|_| *at < end)),
                Err(why) => return Ok(so_far(&why, *at)),
                Ok(Some(bytes)) => {
                    let length = bytes.len() as u64;
                    if length > end - *at {
                        return Err(Fault::Final(PullError::Corrupt(format!("{}: more bytes came than were asked for", what()))));
                    }
                    *at += length;
                    (self.received)(length);
                    sink.push(bytes, &self.written).await?;
                    patience.progress(); // after the push: a slow disk is not the store's fault either
                }
            }
        }
    }

    /// Every file is there with the length that was listed.
    async fn check(&self, items: &[Item]) -> Result<(), Fault> {
        let expected: Vec<(PathBuf, u64)> = items.iter().map(|item| (self.folder.join(&item.file), item.object.size.0)).collect();
        let odd = blocking(&self.folder, move || {
            for (path, size) in expected {
                let length = std::fs::symlink_metadata(&path)?.len();
                if length != size {
                    return Ok(Some(format!("{} has {length} bytes, {size} were listed", path.display())));
                }
            }
            Ok(None)
        })
        .await?;
        match odd {
            Some(odd) => Err(Fault::Final(PullError::Corrupt(odd))),
            None => Ok(()),
        }
    }
}

/// Runs `work` on a thread that may block; its failure is the local disk's.
async fn blocking<T: Send + 'static>(folder: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Fault> {
    let failed = |fault: &dyn std::fmt::Display| Fault::Final(PullError::Disk(format!("writing under {}: {fault}", folder.display())));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(fault)) => Err(failed(&fault)),
        Err(fault) => Err(failed(&fault)),
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

async fn preallocate(path: PathBuf, size: u64) -> Result<Allocated, Fault> {
    let shown = path.clone();
    blocking(&shown, move || {
        let file = create(&path)?;
        // Not every file system can; then the file grows as it is written, and the length is right all the same.
        let in_full = match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
            Ok(()) => true,
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                file.set_len(size)?;
                false
            }
            Err(fault) => return Err(fault.into()),
        };
        Ok(Allocated { file: Arc::new(file), in_full })
    })
    .await
}

enum Target {
    New(PathBuf),
    Open(Arc<File>),
}

struct Written {
    file: Arc<File>,
    digest: Option<Md5>,
}

/// Writes a run of bytes in order, one batch behind the network.
struct Sink {
    folder: PathBuf,
    offset: u64,
    batch: Vec<Bytes>,
    batched: usize,
    state: State,
}

enum State {
    Ready(Target, Option<Md5>),
    Writing(JoinHandle<io::Result<Written>>),
    /// A batch failed, or the sink is finished.
    Over,
}

impl Sink {
    fn new(folder: &Path, target: Target, offset: u64, digest: Option<Md5>) -> Self {
        Sink { folder: folder.to_owned(), offset, batch: Vec::new(), batched: 0, state: State::Ready(target, digest) }
    }

    async fn push(&mut self, bytes: Bytes, written: &(dyn Fn() + Send + Sync)) -> Result<(), Fault> {
        self.batched += bytes.len();
        self.batch.push(bytes);
        if self.batched >= BATCH { self.flush(written).await } else { Ok(()) }
    }

    /// Waits for the batch being written, then starts on the next.
    async fn flush(&mut self, written: &(dyn Fn() + Send + Sync)) -> Result<(), Fault> {
        let (target, mut digest) = self.ready(written).await?;
        let batch = std::mem::take(&mut self.batch);
        let offset = self.offset;
        self.offset += std::mem::take(&mut self.batched) as u64;
        self.state = State::Writing(tokio::task::spawn_blocking(move || {
            let file = match target {
                Target::New(path) => Arc::new(create(&path)?),
                Target::Open(file) => file,
            };
            let mut at = offset;
            for bytes in batch {
                if let Some(digest) = &mut digest {
                    digest.update(&bytes);
                }
                file.write_all_at(&bytes, at)?;
                at += bytes.len() as u64;
            }
            Ok(Written { file, digest })
        }));
        Ok(())
    }

    async fn ready(&mut self, written: &(dyn Fn() + Send + Sync)) -> Result<(Target, Option<Md5>), Fault> {
        let failed = |folder: &Path, why: &dyn std::fmt::Display| Fault::Final(PullError::Disk(format!("writing under {}: {why}", folder.display())));
        match std::mem::replace(&mut self.state, State::Over) {
            State::Ready(target, digest) => Ok((target, digest)),
            State::Writing(batch) => match batch.await {
                Ok(Ok(Written { file, digest })) => {
                    written();
                    Ok((Target::Open(file), digest))
                }
                Ok(Err(fault)) => Err(failed(&self.folder, &fault)),
                Err(fault) => Err(failed(&self.folder, &fault)),
            },
            State::Over => Err(failed(&self.folder, &"an earlier write failed")),
        }
    }

    /// Writes what is left; the digest of all that was pushed, where one was asked for.
    async fn finish(mut self, written: &(dyn Fn() + Send + Sync)) -> Result<Option<Vec<u8>>, Fault> {
        if self.batched > 0 {
            self.flush(written).await?;
        }
        let (_, digest) = self.ready(written).await?;
        Ok(digest.map(|digest| digest.finalize().to_vec()))
    }
}
