//! Objects into blobs: in ranges, several at once, each byte written where it belongs as it arrives and hashed there.
//!
//! Memory is bounded: two batches for each range under way, and for small objects their bytes while one download's window
//! of requests is open. A range that breaks goes on where it broke; every GET
//! insists on the version that was found. What is in a file is recorded grain by grain, so that another process can go on.
//! Lengths are always checked; content against what the store states of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_disk::{DiskError, Gathering, Note, Opened, Record, Writer, digest};
use berth_stores::{Answer, Ask, Fault, FaultKind, Object, Remote, Sums, Verify};
use berth_telemetry::{Clock, Counter, Metrics};
use berth_types::ByteSize;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::check::{self, Check, GrainSum, Kinds, Ordered, Run};
use crate::listing::{First, seed};
use crate::pace::{Lane, Turn};
use crate::paths::Item;
use crate::patience::Patience;
use crate::progress::Reporter;
use crate::tally::Tally;
use crate::{PullError, PullerConfig};

/// Bytes gathered before they are handed to a thread that writes them.
const BATCH: usize = 512 << 10;

/// Objects up to this size do not count against the ranges of one model: for them the round trip is what costs.
const MEDIUM: u64 = 1 << 20;

/// Why a download ends, or begins anew.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The store's content is not what was found before, or came differently: only a new look helps.
    Changed(String),
    /// Starting over is of no use.
    Final(PullError),
    /// The store answers with all bytes, whatever range it is asked for. Ends no download: the object is fetched in one
    /// answer then.
    Unranged,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        match fault.kind {
            FaultKind::Changed => Stop::Changed(fault.to_string()),
            _ => Stop::Final(fault.into()),
        }
    }
}

impl From<DiskError> for Stop {
    fn from(fault: DiskError) -> Self {
        Stop::Final(fault.into())
    }
}

/// One model's download.
pub(crate) struct Transfer<'a> {
    pub(crate) remote: &'a dyn Remote,
    pub(crate) verify: Verify,
    pub(crate) lane: &'a Lane,
    pub(crate) tally: &'a Tally,
    pub(crate) config: &'a PullerConfig,
    pub(crate) clock: &'a Clock,
    pub(crate) metrics: &'a Metrics,
    pub(crate) reporter: &'a Reporter,
    /// Told when bytes are in a file.
    pub(crate) written: Arc<dyn Fn() + Send + Sync>,
}

/// How a range of one object is fetched.
struct Part {
    range: Range<u64>,
    /// The first request's answer, where it was asked for already.
    first: Option<First>,
}

impl Transfer<'_> {
    /// Brings all of `items`, which are the files of the gathering in the same order. `first`: the answer of the only one.
    pub(crate) async fn run(&self, items: &[Item], gathering: &Gathering, first: Option<First>) -> Result<(), Stop> {
        let mut first = first;
        futures::stream::iter(0..items.len())
            .map(|at| self.blob(&items[at].object, at, gathering, if at == 0 { first.take() } else { None }))
            .buffer_unordered(self.config.requests)
            .try_collect::<()>()
            .await
    }

    async fn blob(&self, object: &Object, at: usize, gathering: &Gathering, first: Option<First>) -> Result<(), Stop> {
        let mut first = first;
        let writer = match crate::listing::keep(self.clock, &mut first, gathering.open(at)).await? {
            Opened::Whole(_) => return Ok(()),
            Opened::Partial(writer) => writer,
        };
        let size = object.size.0;
        if size == 0 {
            self.metrics.add(Counter::FetchedObjects, &[], 1);
            return Ok(writer.put(Vec::new(), record(object, self.hashed().then(|| digest(0, 0)), Check::Nothing.word())).await?);
        }
        let small = size <= self.config.small.min(self.config.part_size.0);
        let outcome = if small && writer.done().is_empty() {
            self.small(object, writer, first).await
        } else if object.version.is_none() || is_unranged(&first, self.config.part_size.0) {
            self.in_one_answer(object, self.unmarked(writer, at, gathering).await?, first).await
        } else {
            match self.ranges(object, writer, first).await {
                Err(Stop::Unranged) => match gathering.open(at).await? {
                    Opened::Whole(_) => return Ok(()),
                    Opened::Partial(writer) => self.in_one_answer(object, self.unmarked(writer, at, gathering).await?, None).await,
                },
                outcome => outcome,
            }
        };
        outcome.inspect(|()| self.metrics.add(Counter::FetchedObjects, &[], 1))
    }

    /// The writer of a blob of which nothing is recorded: what is written from the beginning must not be taken for what an
    /// earlier attempt had recorded.
    async fn unmarked(&self, writer: Writer, at: usize, gathering: &Gathering) -> Result<Writer, Stop> {
        if writer.done().is_empty() {
            return Ok(writer);
        }
        writer.spoil().await;
        match gathering.open(at).await? {
            Opened::Partial(writer) if writer.done().is_empty() => Ok(writer),
            _ => Err(Stop::Changed("another download came first".to_owned())),
        }
    }

    /// Fetches an object into memory, checks it and makes a file of it.
    async fn small(&self, object: &Object, writer: Writer, first: Option<First>) -> Result<(), Stop> {
        let (mut frames, mut stated) = (Vec::new(), object.sums);
        let mut patience = self.patience(object, 0);
        let mut stream = Stream { object, range: 0..object.size.0, at: 0, first };
        let mut anew = Anew::new(self.config);
        while stream.at < stream.range.end {
            // Without a version nothing says that the rest would belong to what came before.
            let gone_on = if stream.at > 0 && object.version.is_none() {
                Err(Stop::Unranged)
            } else {
                self.stream(&mut stream, &mut patience, &mut stated, false, &mut Taker::Memory(&mut frames)).await
            };
            match gone_on {
                Err(Stop::Unranged) => {
                    anew.again(|| self.named(object, "it breaks off each time"))?;
                    stream.at = 0;
                    frames.clear();
                }
                outcome => outcome?,
            }
        }
        (self.written)();
        let check = self.check_of(object, stated).await?;
        let (digest, sums) = check::of_whole(frames.iter().map(|frame| &frame[..]), check, self.hashed());
        if let Err(why) = check.judge(&sums) {
            self.metrics.add(Counter::WastedBytes, &[], object.size.0);
            writer.spoil().await;
            return Err(Stop::Changed(self.named(object, &why)));
        }
        Ok(writer.put(frames, record(object, digest, check.word())).await?)
    }

    /// Fetches an object in ranges, those that an earlier attempt recorded excepted.
    async fn ranges(&self, object: &Object, writer: Writer, first: Option<First>) -> Result<(), Stop> {
        let (size, grain) = (object.size.0, self.config.grain);
        let known = Check::of(&object.sums, self.verify);
        // Of several statements the one that grains are enough for.
        let settled = known != Check::Nothing && known.is_of_grains(grain);
        let kinds = if settled { Kinds::of(&object.sums, self.verify) } else { self.kinds() };
        // What an earlier attempt did not hash for, the store had not stated: it says the same of the same version.
        let wanted = if settled { kinds } else { kinds.min(Kinds::Crc64) };
        let done = usable(writer.done(), wanted, size, grain);
        let missing = missing(&done, size, grain, self.config.part_size.0);
        // Asked beside the ranges: what comes with the answer to a range is no statement about the whole.
        let one_piece = missing.len() == 1 && missing[0] == (0..size);
        let ask = self.hashed() && !one_piece && !settled;
        let mut first = first.filter(|first| missing.first().is_some_and(|range| *range == first.answer.range));
        let parts: Vec<Part> = missing.into_iter().map(|range| Part { first: if range.start == 0 { first.take() } else { None }, range }).collect();
        let target = Target { file: writer.file().await?, writer: Arc::new(writer), grains: Arc::new(Mutex::new(done)), is_crc64: Arc::default() };
        let stated = async {
            if !ask {
                return Ok(object.sums);
            }
            let stated = self.sums(object).await;
            let is_crc64 = stated.as_ref().is_ok_and(|stated| Kinds::of(stated, self.verify) == Kinds::Crc64);
            target.is_crc64.store(is_crc64, Ordering::Relaxed);
            stated
        };
        let fetch = async {
            let fetches = futures::stream::iter(parts).map(|part| {
                let sink = Sink::new(target.clone(), Run::new(kinds, grain, size, part.range.start));
                self.part(object, part, sink, one_piece)
            });
            let mut fetches = std::pin::pin!(fetches.buffer_unordered(self.config.parts_per_model));
            let mut last = None;
            while let Some(part) = fetches.try_next().await? {
                last = Some(part);
            }
            Ok::<_, Stop>(last)
        };
        let (stated, fetched) = tokio::join!(stated, fetch);
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(stop @ (Stop::Changed(_) | Stop::Unranged)) => {
                target.spoil().await;
                return Err(stop);
            }
            Err(stop) => return Err(stop),
        };
        let (in_order, said) = match fetched {
            Some((sums, said)) if one_piece => (sums, said),
            _ => (None, Sums::default()),
        };
        let mut check = if settled { known } else { Check::of(&stated?.or(said), self.verify) };
        if check == Check::Nothing && one_piece {
            check = Check::of(&self.statement(object, said).await?, self.verify);
        }
        self.conclude(object, target, check, in_order).await
    }

    /// Fetches an object of a store that tells versions not apart, or knows no ranges: in one answer, from the beginning
    /// each time.
    async fn in_one_answer(&self, object: &Object, writer: Writer, first: Option<First>) -> Result<(), Stop> {
        let (size, grain) = (object.size.0, self.config.grain);
        let (file, writer, mut first) = (writer.file().await?, Arc::new(writer), first);
        let mut patience = self.patience(object, 0);
        let mut anew = Anew::new(self.config);
        let (target, stated, in_order) = loop {
            anew.again(|| self.named(object, "it breaks off each time"))?;
            let target = Target { file: Arc::clone(&file), writer: Arc::clone(&writer), grains: Arc::default(), is_crc64: Arc::default() };
            let mut sink = Sink::new(target.clone(), Run::new(self.kinds(), grain, size, 0));
            sink.unrecorded();
            let mut stated = object.sums;
            let whole = first.take().filter(|first| first.answer.range == (0..size));
            let mut stream = Stream { object, range: 0..size, at: 0, first: whole };
            self.stream(&mut stream, &mut patience, &mut stated, size > MEDIUM, &mut Taker::File { sink: &mut sink, whole: true }).await?;
            let in_order = sink.finish(&self.written).await?;
            if stream.at == size {
                break (target, stated, in_order);
            }
        };
        let check = self.check_of(object, stated).await?;
        drop((file, writer));
        self.conclude(object, target, check, in_order).await
    }

    /// Holds a whole file against `check` and makes a blob of it. `in_order`: what was computed of its bytes on the way.
    async fn conclude(&self, object: &Object, target: Target, check: Check, in_order: Option<Sums>) -> Result<(), Stop> {
        let (size, grain) = (object.size.0, self.config.grain);
        let mut grains = std::mem::take(&mut *target.grains.lock());
        grains.sort_unstable_by_key(|(at, _)| *at);
        let (digest, computed) = check::of_grains(grain, size, &grains.into_iter().map(|(_, sum)| sum).collect::<Vec<_>>(), check);
        let computed = match (check.ordered().filter(|_| !check.is_of_grains(grain)), in_order) {
            (None, _) => computed,
            (Some(_), Some(sums)) => sums,
            (Some(ordered), None) => in_one_pass(&target.file, size, ordered).await?,
        };
        if let Err(why) = check.judge(&computed) {
            self.metrics.add(Counter::WastedBytes, &[], size);
            target.spoil().await;
            return Err(Stop::Changed(self.named(object, &why)));
        }
        let writer =
            Arc::into_inner(target.writer).ok_or_else(|| Stop::Final(PullError::Disk(self.named(object, "a write goes on after its end"))))?;
        Ok(writer.finish(record(object, digest, check.word())).await?)
    }

    /// Fetches one range. Says what was computed of it in order, where it is all of the object, and what the store stated.
    async fn part(&self, object: &Object, part: Part, sink: Sink, one_piece: bool) -> Result<(Option<Sums>, Sums), Stop> {
        let mut sink = sink;
        let mut patience = self.patience(object, part.range.start);
        let mut stated = object.sums;
        let mut stream = Stream { object, at: part.range.start, range: part.range, first: part.first };
        let (large, mut taker) = (object.size.0 > MEDIUM, Taker::File { sink: &mut sink, whole: one_piece });
        while stream.at < stream.range.end {
            self.stream(&mut stream, &mut patience, &mut stated, large, &mut taker).await?;
        }
        Ok((sink.finish(&self.written).await?, stated))
    }

    /// One GET: moves `stream.at` on as bytes come, each handed to `taker`. Returns before the end when asking again may
    /// help, after a pause.
    async fn stream(
        &self,
        stream: &mut Stream<'_>,
        patience: &mut Patience,
        stated: &mut Sums,
        large: bool,
        taker: &mut Taker<'_>,
    ) -> Result<(), Stop> {
        let object = stream.object;
        let (mut answer, turn) = match stream.first.take() {
            Some(First { answer, turn }) => (answer, turn),
            None => {
                let turn = patience.turn(self.lane, large).await;
                match self.ask(object, stream.at..stream.range.end).await {
                    Ok(answer) => (answer, turn),
                    Err(fault) => return Ok(self.pause(fault, turn, patience).await?),
                }
            }
        };
        self.fits(&answer, object, stream.at..stream.range.end)?;
        *stated = stated.or(answer.object.sums);
        let broke = |why: &str, at: u64| self.fault(object, &format!("{why} after {} of {}", ByteSize(at), object.size));
        loop {
            let within = self.config.stall_timeout.min(patience.left());
            let next = match self.clock.until(self.clock.deadline_in(within), answer.frames.next()).await {
                Some(next) => next,
                None => return Ok(self.pause(broke(&format!("no byte came for {within:?}"), stream.at), turn, patience).await?),
            };
            match next {
                None if stream.at == stream.range.end => {
                    turn.fine();
                    return Ok(());
                }
                None => return Ok(self.pause(broke("the answer ended", stream.at), turn, patience).await?),
                Some(Err(why)) => return Ok(self.pause(broke(&why, stream.at), turn, patience).await?),
                Some(Ok(bytes)) => {
                    let length = bytes.len() as u64;
                    if length > stream.range.end - stream.at {
                        let why = self.named(object, "more bytes came than were asked for");
                        return Err(Stop::Final(PullError::Corrupt(why)));
                    }
                    self.lane.bytes(length).await;
                    stream.at += length;
                    self.metrics.add(Counter::FetchedBytes, &[], length);
                    self.reporter.received(length);
                    self.take(taker, bytes, stated).await?;
                    patience.progress(); // after that: a slow disk is not the store's fault either
                    if stream.at == stream.range.end {
                        turn.fine();
                        // The body's own end is not waited for: the length that was stated has come.
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn take(&self, taker: &mut Taker<'_>, bytes: Bytes, stated: &Sums) -> Result<(), Stop> {
        match taker {
            Taker::Memory(frames) => {
                frames.push(bytes);
                Ok(())
            }
            Taker::File { sink, whole } => {
                if *whole {
                    sink.expect(Check::of(stated, self.verify), self.config.grain);
                }
                sink.push(bytes, &self.written).await
            }
        }
    }

    async fn ask(&self, object: &Object, rest: Range<u64>) -> Result<Answer, Fault> {
        // Asked for without a range, stores state the checksums of the whole.
        let range = if rest == (0..object.size.0) { None } else { Some(&rest) };
        self.remote.get(Ask { key: &object.key, range, version: object.version.as_ref() }).await
    }

    /// An answer is what was asked for, or says why not.
    fn fits(&self, answer: &Answer, object: &Object, wanted: Range<u64>) -> Result<(), Stop> {
        if answer.object.size != object.size {
            return Err(Stop::Changed(self.named(object, &format!("it has {} bytes now, {} were listed", answer.object.size.0, object.size.0))));
        }
        if answer.range == (0..object.size.0) && wanted != answer.range {
            return Err(Stop::Unranged);
        }
        if answer.range != wanted {
            let (from, to, got) = (wanted.start, wanted.end, &answer.range);
            let why = format!("asked for bytes {from}..{to}, the store answered with {}..{}", got.start, got.end);
            return Err(Stop::Final(PullError::Corrupt(self.named(object, &why))));
        }
        Ok(())
    }

    /// Lets the store rest before the next try, or gives it up.
    async fn pause(&self, fault: Fault, turn: Turn, patience: &mut Patience) -> Result<(), Fault> {
        self.reporter.retried(&fault);
        if let FaultKind::Busy { pause } = fault.kind {
            turn.busy(pause);
        }
        drop(turn);
        patience.pause(fault).await
    }

    /// What is held against the bytes of an object that came in one piece, of which the store stated `stated` so far.
    async fn check_of(&self, object: &Object, stated: Sums) -> Result<Check, Stop> {
        Ok(Check::of(&self.statement(object, stated).await?, self.verify))
    }

    /// What the store states, asked for where it has said nothing so far.
    async fn statement(&self, object: &Object, stated: Sums) -> Result<Sums, Stop> {
        if self.verify == Verify::Length || !stated.is_empty() { Ok(stated) } else { self.sums(object).await }
    }

    /// What bytes are hashed for while it is not known what the store will state.
    fn kinds(&self) -> Kinds {
        Kinds::of(&Sums::default(), self.verify)
    }

    /// Whether bytes are hashed as they come.
    fn hashed(&self) -> bool {
        self.verify == Verify::Content
    }

    /// The store's word on the whole object. A store that gives none leaves it unverified, which is said.
    async fn sums(&self, object: &Object) -> Result<Sums, Stop> {
        let work = || self.remote.sums(object);
        match self.patience(object, 1).hold(self.lane, work).await {
            Ok((sums, _turn)) => Ok(sums.or(object.sums)),
            // It may not be asked, or knows no such question. A store that is away is another matter: what it would have
            // said is not known, and content is not called unverified for that.
            Err(fault) if matches!(fault.kind, FaultKind::Config | FaultKind::Missing | FaultKind::Denied) => {
                tracing::warn!(step = "fetch", error = %fault, "the store does not state a checksum");
                Ok(object.sums)
            }
            Err(fault) => Err(fault.into()),
        }
    }

    fn patience(&self, object: &Object, offset: u64) -> Patience {
        Patience::new(self.config, self.clock, self.tally, seed(&object.key, offset))
    }

    fn named(&self, object: &Object, why: &str) -> String {
        format!("object {:?} of {}: {why}", object.key, self.remote.place())
    }

    fn fault(&self, object: &Object, why: &str) -> Fault {
        Fault::new(FaultKind::Away, format!("object {:?} of {}", object.key, self.remote.place()), why)
    }
}

/// Counts how often an object is begun anew: its bytes are no progress, so patience alone would never end.
struct Anew {
    left: u32,
    tries: u32,
}

impl Anew {
    fn new(config: &PullerConfig) -> Self {
        Anew { left: config.tries, tries: config.tries }
    }

    fn again(&mut self, why: impl FnOnce() -> String) -> Result<(), Stop> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            let why = format!("{} and cannot be gone on with (tried {} times)", why(), self.tries);
            Stop::Final(PullError::Unavailable(why))
        })?;
        Ok(())
    }
}

/// Whether the answer to a request for one part is of more than that.
fn is_unranged(first: &Option<First>, part: u64) -> bool {
    first.as_ref().is_some_and(|First { answer, .. }| answer.object.size.0 > part && answer.range == (0..answer.object.size.0))
}

/// Where bytes go.
enum Taker<'a> {
    Memory(&'a mut Vec<Bytes>),
    /// `whole`: the sink sees all bytes of the object, in order.
    File {
        sink: &'a mut Sink,
        whole: bool,
    },
}

/// A range on its way.
struct Stream<'a> {
    object: &'a Object,
    range: Range<u64>,
    /// Where the next byte belongs.
    at: u64,
    first: Option<First>,
}

fn record(object: &Object, digest: Option<[u8; 32]>, checked: &str) -> Record {
    Record { bytes: object.size, digest, checked: checked.to_owned() }
}

/// Grains that an earlier attempt recorded, by where they begin, as far as they are of our kind.
fn usable(done: &[(Range<u64>, Note)], wanted: Kinds, size: u64, grain: u64) -> Vec<(u64, GrainSum)> {
    let whole = |range: &Range<u64>| range.start.is_multiple_of(grain) && range.end == range.start.saturating_add(grain).min(size);
    done.iter().filter(|(range, _)| whole(range)).filter_map(|(range, note)| Some((range.start, GrainSum::of_note(&note.0, wanted)?))).collect()
}

/// What is still to be fetched, in ranges of at most `part` (a multiple of `grain`) that begin and end where grains do.
fn missing(done: &[(u64, GrainSum)], size: u64, grain: u64, part: u64) -> Vec<Range<u64>> {
    let done: std::collections::HashSet<u64> = done.iter().map(|(at, _)| *at).collect();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for start in (0..size.div_ceil(grain)).map(|at| at * grain).filter(|start| !done.contains(start)) {
        let end = start.saturating_add(grain).min(size);
        match ranges.last_mut() {
            Some(range) if range.end == start && !start.is_multiple_of(part) => range.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// A blob that is being written.
#[derive(Clone)]
struct Target {
    file: Arc<File>,
    writer: Arc<Writer>,
    /// What was hashed of it so far, by where each grain begins.
    grains: Arc<Mutex<Vec<(u64, GrainSum)>>>,
    /// Set once the store has stated something that takes no CRC-32C.
    is_crc64: Arc<AtomicBool>,
}

impl Target {
    async fn spoil(self) {
        // Whoever still writes holds on to it; then what is wrong is overwritten, or goes with the blob's room.
        if let Some(writer) = Arc::into_inner(self.writer) {
            writer.spoil().await;
        }
    }
}

/// Reads a whole file for a hash that needs its bytes in order.
async fn in_one_pass(file: &Arc<File>, size: u64, ordered: Ordered) -> Result<Sums, Stop> {
    let (file, mut ordered) = (Arc::clone(file), ordered);
    blocking(move || {
        let mut buffer = vec![0; BATCH];
        let mut at = 0;
        while at < size {
            let length = usize::try_from(size - at).unwrap_or(BATCH).min(BATCH);
            file.read_exact_at(&mut buffer[..length], at)?;
            ordered.update(&buffer[..length]);
            at += length as u64;
        }
        Ok(ordered.finish())
    })
    .await
}

/// Runs `work` on a thread that may block; its failure is the local disk's.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Stop> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(fault)) => Err(disk(&fault)),
        Err(fault) => Err(disk(&fault)),
    }
}

fn disk(fault: &dyn std::fmt::Display) -> Stop {
    Stop::Final(PullError::Disk(format!("disk tier: {fault}")))
}

/// What the thread that writes needs; it travels there and back with each batch.
struct Hand {
    target: Target,
    run: Run,
    ordered: Option<Ordered>,
    recorded: bool,
}

impl Hand {
    fn write(&mut self, offset: u64, batch: &[Bytes]) -> io::Result<()> {
        let mut at = offset;
        if self.target.is_crc64.load(Ordering::Relaxed) {
            self.run.narrow();
        }
        for bytes in batch {
            self.target.file.write_all_at(bytes, at)?;
            at += bytes.len() as u64;
            if let Some(ordered) = &mut self.ordered {
                ordered.update(bytes);
            }
            let (Target { writer, grains, .. }, recorded) = (&self.target, self.recorded);
            self.run.push(bytes, |range, sum| {
                if recorded {
                    writer.record(range.clone(), Note(sum.note().into()))?;
                }
                grains.lock().push((range.start, sum));
                Ok::<(), io::Error>(())
            })?;
        }
        Ok(())
    }
}

enum State {
    Ready(Box<Hand>),
    Writing(JoinHandle<io::Result<Box<Hand>>>),
    /// A batch failed, or the sink is finished.
    Over,
}

/// Writes a run of bytes in order, one batch behind the network.
struct Sink {
    offset: u64,
    batch: Vec<Bytes>,
    batched: usize,
    state: State,
}

impl Sink {
    fn new(target: Target, run: Run) -> Self {
        let offset = run.at();
        let hand = Hand { target, run, ordered: None, recorded: true };
        Sink { offset, batch: Vec::new(), batched: 0, state: State::Ready(Box::new(hand)) }
    }

    /// Hashes all bytes in order too, where `check` needs that. Has an effect before the first byte only.
    fn expect(&mut self, check: Check, grain: u64) {
        if let State::Ready(hand) = &mut self.state
            && hand.run.at() == 0
            && self.batched == 0
            && hand.ordered.is_none()
            && !check.is_of_grains(grain)
        {
            hand.ordered = check.ordered();
        }
    }

    /// Records nothing: another attempt could not go on. Before the first byte.
    fn unrecorded(&mut self) {
        if let State::Ready(hand) = &mut self.state {
            hand.recorded = false;
        }
    }

    async fn push(&mut self, bytes: Bytes, written: &Arc<dyn Fn() + Send + Sync>) -> Result<(), Stop> {
        self.batched += bytes.len();
        self.batch.push(bytes);
        if self.batched >= BATCH { self.flush(written).await } else { Ok(()) }
    }

    /// Waits for the batch being written, then starts on the next.
    async fn flush(&mut self, written: &Arc<dyn Fn() + Send + Sync>) -> Result<(), Stop> {
        let mut hand = self.ready().await?;
        let batch = std::mem::take(&mut self.batch);
        let offset = self.offset;
        self.offset += std::mem::take(&mut self.batched) as u64;
        let written = Arc::clone(written);
        self.state = State::Writing(tokio::task::spawn_blocking(move || {
            hand.write(offset, &batch)?;
            written();
            Ok(hand)
        }));
        Ok(())
    }

    async fn ready(&mut self) -> Result<Box<Hand>, Stop> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Ready(hand) => Ok(hand),
            State::Writing(batch) => match batch.await {
                Ok(Ok(hand)) => Ok(hand),
                Ok(Err(fault)) => Err(disk(&fault)),
                Err(fault) => Err(disk(&fault)),
            },
            State::Over => Err(disk(&"an earlier write failed")),
        }
    }

    /// Writes what is left; what was computed in order, where that was asked for.
    async fn finish(mut self, written: &Arc<dyn Fn() + Send + Sync>) -> Result<Option<Sums>, Stop> {
        if self.batched > 0 {
            self.flush(written).await?;
        }
        let hand = self.ready().await?;
        Ok(hand.ordered.map(Ordered::finish))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_begins_and_ends_where_grains_do_and_never_crosses_a_part() {
        let run = |size: u64| {
            let mut all = Vec::new();
            let bytes = vec![7; size as usize];
            let told: Result<(), ()> = Run::new(Kinds::Both, 1024, size, 0).push(&bytes, |range, sum| {
                all.push((range.start, sum));
                Ok(())
            });
            told.expect("nothing fails");
            all
        };
        let all = run(10_000);
        assert_eq!(all.len(), 10);
        assert_eq!(missing(&[], 10_000, 1024, 4096), [0..4096, 4096..8192, 8192..10_000]);
        assert_eq!(missing(&all, 10_000, 1024, 4096), Vec::<Range<u64>>::new());
        assert_eq!(missing(&all[1..3], 10_000, 1024, 4096), [0..1024, 3072..4096, 4096..8192, 8192..10_000]);
        assert_eq!(missing(&all[..9], 10_000, 1024, 4096).first(), Some(&(9216..10_000)));
        assert_eq!(missing(&[], 0, 1024, 4096), Vec::<Range<u64>>::new());
    }

    #[test]
    fn what_an_earlier_attempt_recorded_in_another_form_is_fetched_again() {
        let of = |kinds: u8| {
            let mut note = [7; 13];
            note[12] = kinds;
            note
        };
        let sum = GrainSum::of_note(&of(3), Kinds::Both).expect("a note of one with both checksums");
        let note = |bytes: &[u8]| Note(bytes.into());
        let done = [
            (0..1024, note(&sum.note())),
            (1024..2048, note(b"short")),
            (2048..2500, note(&sum.note())),
            (3072..4096, note(&of(1))),
            (4096..5120, note(&of(0))),
            (5120..6144, note(&of(2))),
        ];
        assert_eq!(usable(&done, Kinds::Both, 10_000, 1024), [(0, sum)], "what was not hashed for that is no answer");
        let starts = |done: Vec<(u64, GrainSum)>| done.into_iter().map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(starts(usable(&done, Kinds::Crc64, 10_000, 1024)), [0, 3072]);
        assert_eq!(starts(usable(&done, Kinds::None, 10_000, 1024)), [0, 3072, 4096]);
    }
}
