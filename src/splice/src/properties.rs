//! What must hold for any message, path, cut and compression, judged by a second reader (`reference`).

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;

use crate::reference::{Decoded, fields, first, messages};
use crate::{Encoding, Extract, FieldPath, Finder, Injector, Limits, Meter, Pool, Progress, SpliceError, Watch, suffix};

const LIMIT: u64 = 1 << 16;

/// What the budget lends at most in these tests: room for one decoder and the largest message that they make.
const ROOM: usize = 256 << 10;

/// Makes messages from random bytes; where they run out it rolls zeros, so that fewer bytes are simpler messages.
struct Dice<'b>(std::slice::Iter<'b, u8>);

impl Dice<'_> {
    /// One of `0..sides`.
    fn roll(&mut self, sides: u8) -> u8 {
        self.0.next().map_or(0, |byte| byte % sides)
    }

    fn bytes(&mut self, count: u8) -> Vec<u8> {
        (0..count).map(|_| self.0.next().copied().unwrap_or_default()).collect()
    }

    /// A varint, now and then in more bytes than it needs.
    fn varint(&mut self, out: &mut Vec<u8>, value: u64) {
        let needed = (64 - (value | 1).leading_zeros()).div_ceil(7);
        let bytes = if self.roll(8) == 7 { needed + u32::from(self.roll(3)) } else { needed }.min(10);
        for byte in 0..bytes {
            let more = if byte + 1 < bytes { 0x80 } else { 0 };
            out.push((value.checked_shr(7 * byte).unwrap_or_default() & 0x7f) as u8 | more);
        }
    }

    fn tag(&mut self, out: &mut Vec<u8>, number: u32, wire: u8) {
        self.varint(out, u64::from(number) << 3 | u64::from(wire));
    }

    fn length(&mut self, out: &mut Vec<u8>, content: &[u8]) {
        self.varint(out, content.len() as u64);
        out.extend(content);
    }

    /// A valid message with any fields and, along `path`, its strings and messages. In a group (`path` is empty there) any
    /// number may stand, those of the path too.
    fn message(&mut self, path: &[u32], depth: u8) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..self.roll(6) {
            let number = [2, 1, 3, 4, 15, 16, 2047, 536_870_911][usize::from(self.roll(8))];
            let on_path = path.first().is_some_and(|next| *next == number || self.roll(2) == 1);
            match (path, self.roll(6)) {
                ([next, rest @ ..], _) if on_path => {
                    self.tag(&mut out, *next, 2);
                    let content = match rest {
                        [] => ["m", "", "model-b", "modèle", "n"][usize::from(self.roll(5))].as_bytes().to_vec(),
                        rest => self.message(rest, depth),
                    };
                    self.length(&mut out, &content);
                }
                (_, 0) => {
                    self.tag(&mut out, number, 0);
                    let value = u64::from_le_bytes([self.roll(255), self.roll(255), 0, 0, 0, 0, 0, self.roll(255)]);
                    self.varint(&mut out, value);
                }
                (_, 1) => {
                    self.tag(&mut out, number, 1);
                    out.extend(self.bytes(8));
                }
                (_, 2) => {
                    self.tag(&mut out, number, 5);
                    out.extend(self.bytes(4));
                }
                (_, 3) if depth > 0 => {
                    self.tag(&mut out, number, 3);
                    out.extend(self.message(&[], depth - 1));
                    self.tag(&mut out, number, 4);
                }
                _ => {
                    self.tag(&mut out, number, 2);
                    let count = self.roll(200);
                    let content = self.bytes(count);
                    self.length(&mut out, &content);
                }
            }
        }
        out
    }
}

fn paths() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop::sample::select(vec![1, 2, 3, 16, 536_870_911]), 1..5)
}

/// A path and a valid message for it.
fn path_and_message() -> impl Strategy<Value = (Vec<u32>, Vec<u8>)> {
    (paths(), prop::collection::vec(any::<u8>(), 0..400)).prop_map(|(path, bytes)| {
        let message = Dice(bytes.iter()).message(&path, 3);
        (path, message)
    })
}

#[derive(Clone, Copy, Debug)]
enum Packing {
    Plain,
    Packed,
    /// As several gzip members, where the encoding has such.
    Members,
}

fn pack(encoding: Encoding, packing: Packing, message: &[u8]) -> (u8, Vec<u8>) {
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    match (packing, encoding) {
        (Packing::Plain, _) | (_, Encoding::Identity) => (0, message.to_vec()),
        (Packing::Members, Encoding::Gzip) => {
            let (head, tail) = message.split_at(message.len() / 2);
            (1, [gzip(head), gzip(tail)].concat())
        }
        (Packing::Packed, Encoding::Gzip) => (1, gzip(message)),
        (Packing::Packed | Packing::Members, Encoding::Deflate) => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(message).unwrap();
            (1, encoder.finish().unwrap())
        }
    }
}

fn framed(flag: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b, c, d] = (payload.len() as u32).to_be_bytes();
    [&[flag, a, b, c, d], payload].concat()
}

/// A body: its path, its messages as they are before compression, how they are compressed, and the bytes.
#[derive(Clone, Debug)]
struct Body {
    path: Vec<u32>,
    messages: Vec<Vec<u8>>,
    encoding: Encoding,
    bytes: Vec<u8>,
}

fn bodies() -> impl Strategy<Value = Body> {
    let packing = prop::sample::select(vec![Packing::Plain, Packing::Packed, Packing::Members]);
    let message = (prop::collection::vec(any::<u8>(), 0..400), packing);
    let encoding = prop::sample::select(vec![Encoding::Gzip, Encoding::Deflate, Encoding::Identity]);
    (paths(), prop::collection::vec(message, 0..4), encoding).prop_map(|(path, messages, encoding)| {
        let mut body = Body { path, messages: Vec::new(), encoding, bytes: Vec::new() };
        for (bytes, packing) in messages {
            let message = Dice(bytes.iter()).message(&body.path, 3);
            let (flag, packed) = pack(encoding, packing, &message);
            body.bytes.extend(framed(flag, &packed));
            body.messages.push(message);
        }
        body
    })
}

/// Where a body is cut into frames: some frames may be empty.
fn cuts() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 0..12)
}

fn frames(body: &[u8], cuts: &[Index]) -> Vec<Bytes> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    places.extend([0, body.len()]);
    places.sort_unstable();
    let body = Bytes::copy_from_slice(body);
    places.windows(2).map(|pair| body.slice(pair[0]..pair[1])).collect()
}

fn injector(body: &Body, id: &str, watch: Option<Watch>, pool: &Arc<Pool>) -> Injector {
    let path = FieldPath::new(&body.path).unwrap();
    Injector::new(suffix(&path, id), LIMIT, watch).compressed(Some(body.encoding), pool.clone())
}

/// All that goes out for `frames`, or the fault.
fn pass(injector: &mut Injector, frames: Vec<Bytes>) -> Result<Vec<u8>, SpliceError> {
    let mut out = Vec::new();
    for frame in frames {
        injector.push(frame, &mut out)?;
    }
    injector.end()?;
    Ok(out.concat())
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 1000, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_goes_out_decodes_as_what_came_in_with_the_field_set(body in bodies(), cuts in cuts(), id in "[a-z]{0,12}") {
        let pool = Arc::new(Pool::new(ROOM));
        let mut injector = injector(&body, &id, None, &pool);
        let out = pass(&mut injector, frames(&body.bytes, &cuts)).unwrap();
        let out = messages(&out).expect("whole messages");
        prop_assert_eq!(out.len(), body.messages.len());
        prop_assert_eq!(injector.begun(), body.messages.len() as u64);
        for ((compressed, message), original) in out.into_iter().zip(&body.messages) {
            prop_assert!(!compressed);
            let expected = Decoded::of(original, &body.path).expect("made valid").set(&body.path, &id);
            prop_assert_eq!(Decoded::of(message, &body.path), Some(expected));
        }
        prop_assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn the_finder_finds_what_the_reference_finds_first((path, message) in path_and_message(), cuts in cuts()) {
        let expected = first(&message, &path).expect("made valid").map_or(Progress::Absent, |id| Progress::Found(String::from_utf8(id).unwrap()));
        let mut finder = Finder::new(FieldPath::new(&path).unwrap(), Limits::default());
        for frame in frames(&message, &cuts) {
            finder.push(&frame).unwrap();
        }
        prop_assert_eq!(finder.end(), Ok(expected));
    }

    #[test]
    fn the_id_of_a_body_is_that_of_its_first_message(body in bodies(), cuts in cuts()) {
        let id = body.messages.first().and_then(|message| first(message, &body.path).expect("made valid"));
        let expected = id.map_or(Progress::Absent, |id| Progress::Found(String::from_utf8(id).unwrap()));
        let path = FieldPath::new(&body.path).unwrap();
        let mut extract = Extract::new(path, Limits::default(), LIMIT, Some(body.encoding), Arc::new(Pool::new(52 << 10)));
        for frame in frames(&body.bytes, &cuts) {
            extract.push(&frame).unwrap();
        }
        prop_assert_eq!(extract.end(), Ok(expected));
    }

    #[test]
    fn a_message_that_names_another_id_is_told_and_no_other(body in bodies(), cuts in cuts(), knows_first in any::<bool>()) {
        let ids = vec!["m".to_owned(), "modèle".to_owned()];
        let other = body.messages.iter().zip(1..).find_map(|(message, number)| {
            let id = String::from_utf8(first(message, &body.path).expect("made valid")?).unwrap();
            (!ids.contains(&id)).then_some(SpliceError::AnotherId { message: number, id })
        });
        // To know of one that is wrong that it is right would be a lie.
        let knows_first = knows_first && !matches!(other, Some(SpliceError::AnotherId { message: 1, .. }));
        let watch = Watch { path: FieldPath::new(&body.path).unwrap(), ids, knows_first, limits: Limits::default() };
        let mut injector = injector(&body, "x", Some(watch), &Arc::new(Pool::new(ROOM)));
        prop_assert_eq!(pass(&mut injector, frames(&body.bytes, &cuts)).err(), other);
    }

    #[test]
    fn a_prefix_of_a_body_is_wrong_at_its_end_and_not_before(body in bodies()) {
        let (mut injector, mut meter) = (injector(&body, "m__x", None, &Arc::new(Pool::new(ROOM))), Meter::new(LIMIT));
        let mut out = Vec::new();
        for (at, byte) in body.bytes.iter().enumerate() {
            let whole = messages(&body.bytes[..at]).is_some();
            prop_assert_eq!(injector.end().is_ok(), whole, "after {} bytes", at);
            prop_assert_eq!(meter.end(), injector.end());
            prop_assert_eq!(meter.push(&[*byte]), Ok(()));
            prop_assert_eq!(injector.push(Bytes::copy_from_slice(&[*byte]), &mut out), Ok(()));
        }
        prop_assert_eq!((injector.end(), meter.end()), (Ok(()), Ok(())));
    }

    #[test]
    fn a_prefix_of_a_message_is_a_message_only_where_a_field_ends((path, message) in path_and_message()) {
        let path = FieldPath::new(&path).unwrap();
        let mut finder = Finder::new(path, Limits::default());
        for (at, byte) in message.iter().enumerate() {
            let expected = fields(&message[..at]).is_some();
            let found = matches!(finder.end(), Ok(Progress::Found(_)));
            prop_assert!(found || finder.end().is_ok() == expected, "after {at} bytes");
            prop_assert!(finder.push(&[*byte]).is_ok());
        }
    }

    #[test]
    fn the_cut_of_damaged_bytes_makes_no_difference_and_what_passes_has_the_id(
        body in bodies(),
        damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
        cut_off in prop::option::of(any::<Index>()),
        cuts in cuts(),
    ) {
        let mut bytes = body.bytes.clone();
        bytes.truncate(cut_off.map_or(bytes.len(), |at| at.index(bytes.len() + 1)));
        for (at, byte) in damage.iter().filter(|_| !body.bytes.is_empty()) {
            let at = at.index(body.bytes.len());
            bytes.get_mut(at).into_iter().for_each(|damaged| *damaged = *byte);
        }
        let pool = Arc::new(Pool::new(ROOM));
        let (mut at_once, mut cut) = (injector(&body, "m__x", None, &pool), injector(&body, "m__x", None, &pool));
        let (mut one, mut other) = (Vec::new(), Vec::new());
        let first_fault = at_once.push(Bytes::copy_from_slice(&bytes), &mut one).and_then(|()| at_once.end());
        let mut second_fault = Ok(());
        for frame in frames(&bytes, &cuts) {
            second_fault = cut.push(frame, &mut other);
        }
        prop_assert_eq!(&second_fault.and_then(|()| cut.end()), &first_fault);
        let ours = suffix(&FieldPath::new(&body.path).unwrap(), "m__x");
        if first_fault.is_ok() {
            prop_assert_eq!(one.concat(), other.concat());
            for (_, message) in messages(&one.concat()).expect("whole messages") {
                // The appended bytes are the message's last field, or a receiver would read them as something else.
                let read = fields(message).expect("a message");
                let last = read.last().expect("one at least");
                prop_assert!(message.ends_with(&ours) && last.number == body.path[0] && ours.ends_with(last.content));
                prop_assert!(fields(&message[..message.len() - ours.len()]).is_some());
            }
        }
        drop((one, other));
        prop_assert_eq!(pool.lent(), at_once.held() + cut.held());
    }

    #[test]
    fn garbage_is_an_answer_too(path in paths(), bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in cuts()) {
        let path = FieldPath::new(&path).unwrap();
        let (mut whole, mut finder) = (Finder::new(path.clone(), Limits::default()), Finder::new(path.clone(), Limits::default()));
        let at_once = whole.push(&bytes).and_then(|_| whole.end());
        for frame in frames(&bytes, &cuts) {
            let _so_far = finder.push(&frame);
        }
        prop_assert_eq!(&finder.end(), &at_once);
        if let Some(expected) = first(&bytes, path.numbers()).and_then(|id| id.map(String::from_utf8).transpose().ok()) {
            prop_assert_eq!(at_once, Ok(expected.map_or(Progress::Absent, Progress::Found)));
        } else if let Ok(progress) = at_once {
            prop_assert!(matches!(progress, Progress::Found(_)), "what the reference refuses is not whole");
        }
        for (encoding, flag) in [(Encoding::Gzip, 0), (Encoding::Gzip, 1), (Encoding::Deflate, 1)] {
            let pool = Arc::new(Pool::new(ROOM));
            let mut injector = Injector::new(suffix(&path, "m"), LIMIT, None).compressed(Some(encoding), pool.clone());
            let mut out = Vec::new();
            // A header that fits, so that garbage gets as far as the decoder.
            let body = framed(flag, &[if encoding == Encoding::Gzip { &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0][..] } else { &[0x78, 0x9c] }, &bytes].concat());
            for frame in frames(&body, &cuts) {
                let told = injector.push(frame, &mut out);
                prop_assert!(pool.lent() <= ROOM);
                prop_assert!(told.is_ok() || injector.end() == told);
            }
            prop_assert!(out.iter().map(Bytes::len).sum::<usize>() <= body.len() + 100 || flag == 1);
        }
        let _told = Meter::new(LIMIT).push(&bytes);
    }
}
