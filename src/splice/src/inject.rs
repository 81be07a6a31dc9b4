//! A body passed on with an id appended to each message.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::budget::Budget;
use crate::error::SpliceError;
use crate::inflate::{Encoding, Means, Packed};
use crate::messages::{Messages, Part, Prefix};
use crate::pace::Pace;
use crate::path::FieldPath;
use crate::walk::{Limits, Walk};

/// What every message of a body may name: the ids that the call began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Where messages name an id.
    pub path: FieldPath,
    /// The ids that are right. A message that names none is right, too.
    pub ids: Vec<String>,
    /// The first message's id is known to be right, as [`Extract`](crate::Extract) told it. Where receivers read what is
    /// appended that is all there is to know of it; else its further values are looked at all the same.
    pub knows_first: bool,
    /// How much is followed and kept.
    pub limits: Limits,
}

/// Passes one body on, frame by frame, with a suffix appended to each of its messages.
///
/// Bytes of uncompressed messages go out as they come: large ones as slices, small ones joined with what stands before and
/// after them, so that a small request stays one frame. A compressed message that has to grow is inflated first, which
/// gathers it, and goes out uncompressed, which `grpc-encoding` allows for any message.
///
/// Where nothing is appended, receivers read what is there, and of several ids in one message the last: such a message may name
/// one id only.
///
/// A message must end where its last field ends, else the receiver would never see it whole: what is appended could be
/// swallowed by a field that was cut on purpose. With an empty suffix and no watch, nothing but lengths is looked at.
///
/// After a fault nothing more passes: the same fault is told again. What went out before it is a body cut in the middle of
/// a message, so the call on the other side is to be reset.
pub struct Injector {
    suffix: Bytes,
    max_message: u64,
    watched: Option<Vec<String>>,
    /// Nothing is sought in the first message.
    knows_first: bool,
    messages: Messages,
    walk: Walk,
    /// `None`: no message may be compressed if it has to be read.
    means: Option<Means>,
    current: Current,
    pace: Pace,
    /// What goes out next but is not large enough to go alone; empty between calls that went well.
    joint: BytesMut,
    failed: Option<SpliceError>,
}

/// The message that is being passed on.
enum Current {
    /// As it comes.
    Plain,
    /// Inflated, to be sent when it is whole.
    Gathered(Box<Packed>),
    /// As it comes, and inflated on the side to see what it names.
    Aside(Box<Packed>),
}

/// Up to this many bytes are copied rather than sent as a slice of their own: a frame costs more than the copy.
const SMALL: usize = 4 << 10;

/// Joined pieces go out together up to this many bytes.
const JOINT: usize = 16 << 10;

impl Injector {
    /// For one body whose messages have at most `max_message` bytes each, before `suffix` is appended and after inflating.
    #[must_use]
    pub fn new(suffix: Bytes, max_message: u64, watch: Option<Watch>) -> Injector {
        let (path, limits, watched, knows_first) = match watch {
            Some(watch) => (Some(watch.path), watch.limits, Some(watch.ids), watch.knows_first && !suffix.is_empty()),
            None => (None, Limits::default(), None, false),
        };
        let walk = Walk::whole(path, limits);
        Injector {
            // What is appended is what receivers read. Without it they read what is there.
            walk: if suffix.is_empty() { walk.agreeing() } else { walk },
            suffix,
            max_message,
            watched,
            knows_first,
            messages: Messages::new(max_message),
            means: None,
            current: Current::Plain,
            pace: Pace::any(),
            joint: BytesMut::new(),
            failed: None,
        }
    }

    /// Compressed messages that have to be read are inflated by `encoding` (`None`: its name is not known here), with memory
    /// that `budget` lends until the last slice of it is dropped. Without this they are refused.
    #[must_use]
    pub fn compressed(mut self, encoding: Option<Encoding>, budget: Arc<dyn Budget>) -> Injector {
        self.means = Some(Means { encoding, budget });
        self
    }

    /// Inflates about so many bytes at a time, half a megabyte more at worst: see [`Injector::is_behind`].
    #[must_use]
    pub fn at_a_time(self, bytes: u64) -> Injector {
        Injector { pace: Pace::of(bytes), ..self }
    }

    /// Whether the frames so far inflate to more than is inflated at a time. [`Injector::push`] goes on with them, so an
    /// empty frame will do; until it has, the body is not over.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.pace.is_behind()
    }

    /// How many messages have begun.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.messages.begun()
    }

    /// Bytes lent for the message that is being inflated.
    #[must_use]
    pub fn held(&self) -> usize {
        match &self.current {
            Current::Plain => 0,
            Current::Gathered(packed) | Current::Aside(packed) => packed.held(),
        }
    }

    /// Takes the next frame of the body and appends to `out` what is to be sent on, in order.
    pub fn push(&mut self, frame: Bytes, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let passed = self.pass(frame, out);
        match &passed {
            Ok(()) => self.flush(out),
            Err(fault) => {
                self.failed = Some(fault.clone());
                self.current = Current::Plain;
                self.pace.clear();
            }
        }
        passed
    }

    /// The body has ended: wrong in the middle of a message.
    pub fn end(&self) -> Result<(), SpliceError> {
        self.failed.clone().map_or_else(|| self.messages.end(), Err)
    }

    fn pass(&mut self, frame: Bytes, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        if self.suffix.is_empty() && self.watched.is_none() {
            return self.meter(frame, out);
        }
        if let Some(prefix) = self.is_one(&frame) {
            return self.pass_one(prefix, &frame, out);
        }
        self.pace.take(frame);
        while let Some(part) = self.pace.next(&mut self.messages, !matches!(self.current, Current::Plain))? {
            match part {
                Part::Start(prefix) => self.start(prefix, out)?,
                Part::Data(data) => self.data(data, out)?,
                Part::End => self.finish(out)?,
            }
        }
        Ok(())
    }

    /// Whether a frame is all of one uncompressed message that goes out as a copy: most requests are.
    fn is_one(&self, frame: &[u8]) -> Option<Prefix> {
        let fits = frame.len() <= SMALL && matches!(self.current, Current::Plain) && !self.pace.is_behind();
        if fits { self.messages.is_one(frame).filter(|prefix| !prefix.compressed) } else { None }
    }

    /// Passes such a frame on, as the steps of any other would.
    fn pass_one(&mut self, prefix: Prefix, frame: &[u8], out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        let (length, payload) = (u64::from(prefix.length), self.messages.take_one(frame)?);
        self.restart(length);
        self.look(payload)?;
        let message = self.messages.begun();
        self.walk.end().map_err(|fault| SpliceError::Wire { message, fault })?;
        let grown = Prefix { compressed: false, length: self.grown(length)? };
        let mut one = BytesMut::with_capacity(frame.len() + self.suffix.len());
        one.extend_from_slice(&grown.to_bytes());
        one.extend_from_slice(payload);
        one.extend_from_slice(&self.suffix);
        out.push(one.freeze());
        Ok(())
    }

    /// Begins to look at a message of `length` bytes.
    fn restart(&mut self, length: u64) {
        self.walk.restart(Some(length));
        if self.knows_first && self.messages.begun() == 1 {
            self.walk.seeks_nothing();
        }
    }

    /// Looks at bytes of an uncompressed message.
    fn look(&mut self, bytes: &[u8]) -> Result<(), SpliceError> {
        let message = self.messages.begun();
        let found = self.walk.push(bytes).map_err(|fault| SpliceError::Wire { message, fault })?;
        self.right(found)
    }

    /// Whether a message may name this id.
    fn right(&self, found: Option<String>) -> Result<(), SpliceError> {
        match (found, &self.watched) {
            (Some(id), Some(right)) if !right.contains(&id) => Err(SpliceError::AnotherId { message: self.messages.begun(), id }),
            _ => Ok(()),
        }
    }

    /// The length of a message that has `length` bytes before it grows.
    fn grown(&self, length: u64) -> Result<u32, SpliceError> {
        let by = self.suffix.len() as u64;
        u32::try_from(length + by).map_err(|_too_long| SpliceError::CannotGrow { message: self.messages.begun(), length, by })
    }

    /// A frame that passes as it is: only lengths are looked at.
    fn meter(&mut self, frame: Bytes, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        self.messages.count(&frame)?;
        if !frame.is_empty() {
            out.push(frame);
        }
        Ok(())
    }

    fn start(&mut self, prefix: Prefix, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        let message = self.messages.begun();
        if !prefix.compressed {
            self.restart(prefix.length.into());
            return self.begin(prefix.length.into(), out);
        }
        let keep = !self.suffix.is_empty();
        let means = self.means.as_ref().ok_or(SpliceError::Unreadable { message })?;
        let packed = means.packed(message, self.walk.clone(), keep, self.max_message)?;
        if keep {
            self.current = Current::Gathered(packed);
        } else {
            self.current = Current::Aside(packed);
            self.send_small(&prefix.to_bytes(), out);
        }
        Ok(())
    }

    fn data(&mut self, data: Bytes, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        let (found, passes) = match &mut self.current {
            Current::Plain => {
                self.look(&data)?;
                (None, true)
            }
            Current::Gathered(packed) => (inflated(packed, &data, &mut self.pace)?, false),
            Current::Aside(packed) => (inflated(packed, &data, &mut self.pace)?, true),
        };
        self.right(found)?;
        if passes {
            self.send(data, out);
        }
        Ok(())
    }

    /// A message has come to its end.
    fn finish(&mut self, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        let message = self.messages.begun();
        match std::mem::replace(&mut self.current, Current::Plain) {
            Current::Plain => self.walk.end().map_err(|fault| SpliceError::Wire { message, fault })?,
            Current::Aside(packed) => drop(packed.end()?),
            Current::Gathered(packed) => {
                let (pieces, length) = packed.end()?;
                self.begin(length, out)?;
                pieces.into_iter().for_each(|piece| self.send(piece, out));
            }
        }
        let suffix = self.suffix.clone();
        self.send(suffix, out);
        Ok(())
    }

    /// Sends the prefix of an uncompressed message that has `length` bytes before it grows.
    fn begin(&mut self, length: u64, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        let grown = self.grown(length)?;
        // One allocation for what a small message goes out as, or for what stands around a large one.
        let joined = if length <= SMALL as u64 { grown as usize } else { self.suffix.len() };
        self.joint.reserve(joined + 5);
        self.send_small(&Prefix { compressed: false, length: grown }.to_bytes(), out);
        Ok(())
    }

    /// Sends `piece`, in the order of calls.
    fn send(&mut self, piece: Bytes, out: &mut Vec<Bytes>) {
        if piece.len() <= SMALL {
            self.send_small(&piece, out);
        } else {
            self.flush(out);
            out.push(piece);
        }
    }

    fn send_small(&mut self, piece: &[u8], out: &mut Vec<Bytes>) {
        if self.joint.len() + piece.len() > JOINT {
            self.flush(out);
        }
        self.joint.extend_from_slice(piece);
    }

    fn flush(&mut self, out: &mut Vec<Bytes>) {
        if !self.joint.is_empty() {
            out.push(self.joint.split().freeze());
        }
    }
}

/// Inflates `data`, and counts what it becomes.
fn inflated(packed: &mut Packed, data: &[u8], pace: &mut Pace) -> Result<Option<String>, SpliceError> {
    let (before, found) = (packed.length(), packed.push(data)?);
    pace.inflated(packed.length() - before);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::budget::Pool;
    use crate::error::{InflateError, WireError};
    use crate::path::suffix;

    const LIMIT: u64 = 1 << 20;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A message with its prefix.
    fn framed(flag: u8, payload: &[u8]) -> Vec<u8> {
        let [a, b, c, d] = (payload.len() as u32).to_be_bytes();
        [&[flag, a, b, c, d], payload].concat()
    }

    fn path(numbers: &[u32]) -> FieldPath {
        FieldPath::new(numbers).unwrap()
    }

    fn name(value: &str) -> Bytes {
        suffix(&path(&[1]), value)
    }

    fn watch(ids: &[&str]) -> Watch {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        Watch { path: path(&[1]), ids, knows_first: false, limits: Limits::default() }
    }

    /// What goes out when `body` comes in frames of `size` bytes.
    fn pass(injector: &mut Injector, body: &[u8], size: usize) -> Result<Vec<Bytes>, SpliceError> {
        let mut out = Vec::new();
        for frame in body.chunks(size) {
            injector.push(Bytes::copy_from_slice(frame), &mut out)?;
        }
        injector.end()?;
        assert!(out.iter().all(|piece| !piece.is_empty()));
        Ok(out)
    }

    /// A budget that knows the most that was lent at a time.
    struct Peak {
        pool: Pool,
        peak: AtomicUsize,
    }

    impl Peak {
        fn new(limit: usize) -> Arc<Peak> {
            Arc::new(Peak { pool: Pool::new(limit), peak: AtomicUsize::new(0) })
        }
    }

    impl Budget for Peak {
        fn lend(&self, bytes: usize) -> bool {
            let lent = self.pool.lend(bytes);
            self.peak.fetch_max(self.pool.lent(), Ordering::Relaxed);
            lent
        }

        fn take_back(&self, bytes: usize) {
            self.pool.take_back(bytes);
        }
    }

    #[test]
    fn a_body_goes_out_with_the_id_at_the_end_of_each_message() {
        let (plain, tensor) = (&b"\x0a\x01m\x1a\x02q8"[..], [&b"\x3a\x80\x80\x04"[..], &[9; 65_536]].concat());
        let (id, nested) = (&b"\x0a\x04m__x"[..], &b"\x1a\x06\x0a\x04m__x"[..]);
        for (case, suffix, body, expected) in [
            ("no message", name("m__x"), vec![], vec![]),
            ("one", name("m__x"), framed(0, plain), framed(0, &[plain, id].concat())),
            ("an empty one", name("m__x"), framed(0, b""), framed(0, id)),
            ("nested", suffix(&path(&[3, 1]), "m__x"), framed(0, plain), framed(0, &[plain, nested].concat())),
            ("a tensor", name("m__x"), framed(0, &tensor), framed(0, &[&tensor, id].concat())),
            ("a compressed one", name("m__x"), framed(1, &gzip(plain)), framed(0, &[plain, id].concat())),
            ("a compressed tensor", name("m__x"), framed(1, &gzip(&tensor)), framed(0, &[&tensor, id].concat())),
            ("nothing compressed", name("m__x"), framed(1, &gzip(b"")), framed(0, id)),
            (
                "several",
                name("m__x"),
                [framed(0, plain), framed(0, b""), framed(1, &gzip(plain)), framed(0, &tensor)].concat(),
                [framed(0, &[plain, id].concat()), framed(0, id), framed(0, &[plain, id].concat()), framed(0, &[&tensor, id].concat())].concat(),
            ),
            ("as it is", Bytes::new(), [framed(0, plain), framed(1, b"no gzip")].concat(), [framed(0, plain), framed(1, b"no gzip")].concat()),
        ] {
            for size in [1, 2, 3, 5, 8, 100, 16_384, 1 << 20] {
                let pool = Arc::new(Pool::new(1 << 20));
                let mut injector = Injector::new(suffix.clone(), LIMIT, None).compressed(Some(Encoding::Gzip), pool.clone());
                let out = pass(&mut injector, &body, size).unwrap();
                assert_eq!(out.concat(), expected, "{case}, {size} at a time");
                drop(out);
                assert_eq!((injector.held(), pool.lent()), (0, 0), "{case}");
            }
        }
    }

    #[test]
    fn a_small_message_goes_out_as_one_piece_and_a_large_one_is_not_copied() {
        let mut injector = Injector::new(name("m__x"), LIMIT, None);
        let small = pass(&mut injector, &framed(0, b"\x0a\x01m"), 100).unwrap();
        assert_eq!(small.len(), 1);

        let frame = Bytes::from(framed(0, &[&b"\x3a\x80\x80\x04"[..], &[9; 65_536]].concat()));
        let mut out = Vec::new();
        injector.push(frame.clone(), &mut out).unwrap();
        assert_eq!(out.iter().map(Bytes::len).collect::<Vec<_>>(), [5, 4 + 65_536, 6]);
        assert_eq!(out[1].as_ptr(), frame[5..].as_ptr());
    }

    #[test]
    fn bytes_go_out_as_soon_as_they_come() {
        let body = framed(0, &[&b"\x3a\x0a"[..], &[9; 10]].concat());
        let (mut injector, mut out) = (Injector::new(name("m"), LIMIT, None), Vec::new());
        for (at, byte) in body.iter().enumerate() {
            injector.push(Bytes::copy_from_slice(&[*byte]), &mut out).unwrap();
            let sent: usize = out.iter().map(Bytes::len).sum();
            let expected = if at < 4 { 0 } else { at + 1 };
            assert_eq!(sent, if at + 1 == body.len() { at + 1 + 3 } else { expected }, "after byte {at}");
        }
    }

    #[test]
    fn a_message_that_would_swallow_the_id_does_not_get_it() {
        for (case, message, fault) in [
            ("a cut field", &b"\x0a\x05other\x3a\x06"[..], WireError::Beyond { at: 9 }),
            ("a cut fixed", b"\x0a\x05other\x15", WireError::Beyond { at: 8 }),
            ("a cut length", b"\x0a\x05other\x3a", WireError::Ended { at: 8 }),
            ("a cut varint", b"\x0a\x05other\x10\x80", WireError::Ended { at: 9 }),
            ("an open group", b"\x0a\x05other\x3b", WireError::Unclosed { at: 8, field: 7 }),
        ] {
            for (flag, body) in [(0, message.to_vec()), (1, gzip(message))] {
                let fault = match (flag, &fault) {
                    (1, WireError::Beyond { at }) => WireError::Ended { at: *at }, // how long it is shows at its end only
                    _ => fault.clone(),
                };
                let mut injector = Injector::new(name("m__x"), LIMIT, None).compressed(Some(Encoding::Gzip), Arc::new(Pool::new(1 << 20)));
                let mut out = Vec::new();
                let told = Err(SpliceError::Wire { message: 1, fault });
                assert_eq!(injector.push(framed(flag, &body).into(), &mut out), told, "{case} {flag}");
                assert_eq!(injector.push(framed(0, b"").into(), &mut out), told, "{case}: nothing passes after a fault");
                assert_eq!(injector.end(), told, "{case}");
                assert_eq!(out, Vec::<Bytes>::new(), "{case}");
            }
        }
    }

    #[test]
    fn another_id_later_in_a_stream_is_told() {
        let m = framed(0, b"\x0a\x01m");
        for (case, body, expected) in [
            ("the same id twice", [m.clone(), m.clone()].concat(), Ok(())),
            ("either of two", [m.clone(), framed(0, b"\x0a\x01n")].concat(), Ok(())),
            ("none in the second", [m.clone(), framed(0, b"\x1a\x01z")].concat(), Ok(())),
            ("an empty one in the second", [m.clone(), framed(0, b"\x0a\x00")].concat(), Ok(())),
            ("compressed", [m.clone(), framed(1, &gzip(b"\x0a\x01n"))].concat(), Ok(())),
            ("another one", [m.clone(), framed(0, b"\x0a\x01z")].concat(), Err(SpliceError::AnotherId { message: 2, id: "z".to_owned() })),
            (
                "another one, compressed",
                [m.clone(), framed(1, &gzip(b"\x0a\x01z"))].concat(),
                Err(SpliceError::AnotherId { message: 2, id: "z".to_owned() }),
            ),
            (
                "not text",
                [m.clone(), framed(0, b"\x0a\x01\xff")].concat(),
                Err(SpliceError::Wire { message: 2, fault: WireError::NotUtf8 { at: 3 } }),
            ),
        ] {
            for suffix in [name("m__x"), Bytes::new()] {
                for size in [1, 4, 100] {
                    let pool = Arc::new(Pool::new(1 << 20));
                    let mut injector = Injector::new(suffix.clone(), LIMIT, Some(watch(&["m", "n"]))).compressed(Some(Encoding::Gzip), pool);
                    let passed = pass(&mut injector, &body, size);
                    if suffix.is_empty() && passed.is_ok() {
                        assert_eq!(passed.clone().unwrap_or_default().concat(), body, "{case}: only looked at");
                    }
                    assert_eq!(passed.map(drop), expected, "{case}, {size} at a time");
                }
            }
        }
    }

    #[test]
    fn a_message_that_names_several_ids_passes_only_where_one_is_appended() {
        let another = |at| Err(SpliceError::Wire { message: 1, fault: WireError::Another { at } });
        // 3.1 is the id.
        for (case, message, expected) in [
            ("one", &b"\x1a\x03\x0a\x01m"[..], Ok(())),
            ("the same again", b"\x1a\x06\x0a\x01m\x0a\x01m\x1a\x03\x0a\x01m", Ok(())),
            ("another behind it", b"\x1a\x06\x0a\x01m\x0a\x01n", another(8)),
            ("another in a second message around it", b"\x1a\x03\x0a\x01m\x1a\x03\x0a\x01n", another(10)),
            ("another behind something else", b"\x1a\x0b\x0a\x01m\x12\x03abc\x0a\x01n", another(13)),
            ("an empty one before it", b"\x1a\x05\x0a\x00\x0a\x01m", Ok(())),
            ("an empty one behind it", b"\x1a\x05\x0a\x01m\x0a\x00", another(7)),
            ("a second message around it, without one", b"\x1a\x03\x0a\x01m\x1a\x02\x10\x01", Ok(())),
            ("another that would be right alone", b"\x1a\x03\x0a\x01m\x1a\x03\x0a\x01o", another(10)),
            ("one that is wrong before", b"\x1a\x03\x0a\x01n\x1a\x03\x0a\x01m", Err(SpliceError::AnotherId { message: 1, id: "n".to_owned() })),
        ] {
            for flag in [0, 1] {
                let sent = framed(flag, &if flag == 1 { gzip(message) } else { message.to_vec() });
                for size in 1..=sent.len() {
                    let injector = |suffix| {
                        let watch = Watch { path: path(&[3, 1]), ..watch(&["m", "o"]) };
                        Injector::new(suffix, LIMIT, Some(watch)).compressed(Some(Encoding::Gzip), Arc::new(Pool::new(1 << 20)))
                    };
                    let told = pass(&mut injector(Bytes::new()), &sent, size).map(drop);
                    assert_eq!(told, expected, "{case} {flag}, {size} at a time");
                    let first = if case.starts_with("one that is wrong") { expected.clone() } else { Ok(()) };
                    assert_eq!(pass(&mut injector(suffix(&path(&[3, 1]), "x")), &sent, size).map(drop), first, "{case} {flag}, {size} at a time");
                }
            }
        }
    }

    #[test]
    fn what_inflates_to_much_is_inflated_in_steps_and_comes_out_the_same() {
        let plain = [&b"\x3a\x80\x80\x80\x02"[..], &[0; 4 << 20], b"\x0a\x01m"].concat();
        let sent = [framed(1, &gzip(&plain)), framed(0, b"\x0a\x01m"), framed(1, &gzip(b"\x0a\x01m"))].concat();
        let injector = |watched: Option<Watch>, suffix| {
            let budget = Arc::new(Pool::new(16 << 20));
            Injector::new(suffix, 8 << 20, watched).compressed(Some(Encoding::Gzip), budget)
        };
        for (suffix, watched) in [(name("m__x"), None), (Bytes::new(), Some(watch(&["m"])))] {
            let at_once = pass(&mut injector(watched.clone(), suffix.clone()), &sent, sent.len()).unwrap().concat();
            for size in [600, 7, sent.len()] {
                let (mut paced, mut out, mut steps) = (injector(watched.clone(), suffix.clone()).at_a_time(256 << 10), Vec::new(), 0);
                for frame in sent.chunks(size) {
                    paced.push(Bytes::copy_from_slice(frame), &mut out).unwrap();
                    while paced.is_behind() {
                        steps += 1;
                        paced.push(Bytes::new(), &mut out).unwrap();
                    }
                }
                paced.end().unwrap();
                assert!(out.concat() == at_once, "{size} at a time");
                assert!(size == 7 || (4..64).contains(&steps), "{steps} steps of {size}");
            }
        }
    }

    #[test]
    fn what_stands_behind_an_id_in_the_messages_around_it_is_not_taken_for_fields_of_the_top_message() {
        // 3.3.1 is `m`; behind it in the outer message 3 stand a field that is cut there and the beginning of a group.
        let message = framed(0, b"\x1a\x08\x1a\x03\x0a\x01m\x13\x12\x05\x10\x01");
        let watch = Watch { path: path(&[3, 3, 1]), ..watch(&["m"]) };
        for size in 1..=message.len() {
            let mut injector = Injector::new(name("m__x"), LIMIT, Some(watch.clone()));
            let out = pass(&mut injector, &message, size).unwrap().concat();
            assert_eq!(out[5..], [&message[5..], &name("m__x")].concat(), "{size} at a time");
        }
    }

    #[test]
    fn a_compressed_message_that_cannot_be_read_is_told() {
        let plain = b"\x0a\x01m";
        let gzipped = Some((Some(Encoding::Gzip), 1 << 20));
        for (case, means, body, expected) in [
            ("an unknown encoding", Some((None, 1 << 20)), framed(1, &gzip(plain)), SpliceError::Unreadable { message: 1 }),
            ("nothing to inflate with", None, framed(1, &gzip(plain)), SpliceError::Unreadable { message: 1 }),
            ("no encoding", Some((Some(Encoding::Identity), 1 << 20)), framed(1, plain), SpliceError::NoEncoding { message: 1 }),
            ("not gzip", gzipped, framed(1, plain), SpliceError::Inflate { message: 1, encoding: Encoding::Gzip, fault: InflateError::Header }),
            (
                "an empty one",
                gzipped,
                framed(1, b""),
                SpliceError::Inflate { message: 1, encoding: Encoding::Gzip, fault: InflateError::Ended { after: 0 } },
            ),
            ("too large inflated", gzipped, framed(1, &gzip(&[0; 101])), SpliceError::TooLargeInflated { message: 1, limit: 100 }),
            (
                "no room to begin with",
                Some((Some(Encoding::Gzip), 1000)),
                framed(1, &gzip(plain)),
                SpliceError::NoRoom { message: 1, bytes: 48 << 10 },
            ),
            (
                "no room for the bytes",
                Some((Some(Encoding::Gzip), 50_000)),
                framed(1, &gzip(plain)),
                SpliceError::NoRoom { message: 1, bytes: 4 << 10 },
            ),
        ] {
            let mut injector = Injector::new(name("m__x"), 100, None);
            if let Some((encoding, room)) = means {
                injector = injector.compressed(encoding, Arc::new(Pool::new(room)));
            }
            assert_eq!(pass(&mut injector, &body, 100), Err(expected), "{case}");
            assert_eq!(injector.held(), 0, "{case}");
        }
    }

    #[test]
    fn a_zip_bomb_is_refused_within_its_limit() {
        let bomb = framed(1, &gzip(&[&b"\x3a\x80\x80\x80\x20"[..], &vec![0; 64 << 20]].concat()));
        assert!(bomb.len() < 100 << 10);
        let peak = Peak::new(usize::MAX);
        let mut injector = Injector::new(name("m__x"), LIMIT, None).compressed(Some(Encoding::Gzip), peak.clone());
        assert_eq!(pass(&mut injector, &bomb, 16_384), Err(SpliceError::TooLargeInflated { message: 1, limit: LIMIT }));
        let most = peak.peak.load(Ordering::Relaxed);
        assert!(most > 1 << 20 && most <= (1 << 20) + (256 << 10) + (48 << 10), "{most}");
        assert_eq!(peak.pool.lent(), 0);
    }

    #[test]
    fn what_is_inflated_stays_charged_until_it_is_sent() {
        let pool = Arc::new(Pool::new(1 << 20));
        let body = framed(1, &gzip(&[&b"\x3a\xa0\x8d\x06"[..], &[9; 100_000]].concat()));
        let mut injector = Injector::new(name("m__x"), LIMIT, None).compressed(Some(Encoding::Gzip), pool.clone());
        let (head, tail) = body.split_at(body.len() - 4);
        let mut out = Vec::new();
        injector.push(Bytes::copy_from_slice(head), &mut out).unwrap();
        assert_eq!(out, Vec::<Bytes>::new());
        assert_eq!(injector.held(), pool.lent());
        assert!(injector.held() > 100_000, "{}", injector.held());
        injector.push(Bytes::copy_from_slice(tail), &mut out).unwrap();
        assert_eq!(injector.held(), 0);
        assert!(pool.lent() >= 100_000 - 4096, "{}", pool.lent());
        out.clear();
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_message_that_cannot_grow_is_told() {
        let mut injector = Injector::new(name("m"), u64::MAX, None);
        let told = Err(SpliceError::CannotGrow { message: 1, length: u64::from(u32::MAX) - 2, by: 3 });
        assert_eq!(injector.push(Bytes::from_static(b"\x00\xff\xff\xff\xfd"), &mut Vec::new()), told);
        let mut injector = Injector::new(name("m"), u64::MAX, None);
        let mut out = Vec::new();
        assert_eq!(injector.push(Bytes::from_static(b"\x00\xff\xff\xff\xfc"), &mut out), Ok(()));
        assert_eq!(out, [b"\x00\xff\xff\xff\xff".as_slice()]);
    }
}
