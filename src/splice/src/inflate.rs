//! Compressed messages, inflated as they come: never more than the limit, and each buffer asked for before it is taken.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flate2::{Crc, Decompress, FlushDecompress, Status};

use crate::budget::{Budget, Lent, Loan, Pool};
use crate::error::{InflateError, SpliceError};
use crate::walk::Walk;

/// How messages are compressed, by `grpc-encoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// RFC 1952; several members in a row are one message.
    Gzip,
    /// RFC 1950: gRPC means deflate with a zlib header and checksum.
    Deflate,
}

impl Encoding {
    /// Reads a `grpc-encoding` header's value. `None`: not known here. A call without that header has [`Encoding::Identity`].
    #[must_use]
    pub fn parse(header: &str) -> Option<Encoding> {
        match header.trim() {
            name if name.eq_ignore_ascii_case("identity") => Some(Encoding::Identity),
            name if name.eq_ignore_ascii_case("gzip") => Some(Encoding::Gzip),
            name if name.eq_ignore_ascii_case("deflate") => Some(Encoding::Deflate),
            _ => None,
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
        })
    }
}

/// Inflates `bytes` whole, to at most `limit` bytes.
pub fn inflate(encoding: Encoding, bytes: &[u8], limit: u64) -> Result<Bytes, InflateError> {
    let Some(format) = Format::of(encoding) else {
        let fits = bytes.len() as u64 <= limit;
        return if fits { Ok(Bytes::copy_from_slice(bytes)) } else { Err(InflateError::TooLarge { limit }) };
    };
    let budget: Arc<dyn Budget> = Arc::new(Pool::new(usize::MAX));
    let mut inflater = Inflater::new(format, None, true, limit, budget)?;
    inflater.push(bytes)?;
    let (mut pieces, length) = inflater.end()?;
    if pieces.len() == 1 {
        return Ok(pieces.swap_remove(0));
    }
    let mut whole = BytesMut::with_capacity(length as usize);
    pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
    Ok(whole.freeze())
}

/// What a message's compression needs for being read: how, within what, and who lends memory for it.
#[derive(Clone)]
pub(crate) struct Means {
    /// `None`: a name that is not known here.
    pub(crate) encoding: Option<Encoding>,
    pub(crate) budget: Arc<dyn Budget>,
}

impl Means {
    /// What inflates `message`, keeping the bytes if `keep`, and following its fields with `walk`.
    pub(crate) fn packed(&self, message: u64, walk: Walk, keep: bool, limit: u64) -> Result<Box<Packed>, SpliceError> {
        let encoding = self.encoding.ok_or(SpliceError::Unreadable { message })?;
        let format = Format::of(encoding).ok_or(SpliceError::NoEncoding { message })?;
        let inflater = Inflater::new(format, Some(walk), keep, limit, Arc::clone(&self.budget));
        let inflater = inflater.map_err(|fault| told(message, encoding, fault))?;
        Ok(Box::new(Packed { message, encoding, inflater, failed: None }))
    }
}

/// A fault of inflating `message`, as a caller is told.
fn told(message: u64, encoding: Encoding, fault: InflateError) -> SpliceError {
    match fault {
        InflateError::TooLarge { limit } => SpliceError::TooLargeInflated { message, limit },
        InflateError::NoRoom { bytes } => SpliceError::NoRoom { message, bytes },
        InflateError::Wire(fault) => SpliceError::Wire { message, fault },
        fault => SpliceError::Inflate { message, encoding, fault },
    }
}

/// An [`Inflater`] that tells faults as those of its message.
pub(crate) struct Packed {
    message: u64,
    encoding: Encoding,
    inflater: Inflater,
    /// What was wrong behind a value that was sought: told after that value.
    failed: Option<SpliceError>,
}

impl Packed {
    /// What its memory is charged with now, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.inflater.held()
    }

    /// How many bytes it has become.
    pub(crate) fn length(&self) -> u64 {
        self.inflater.length
    }

    /// Takes the next compressed bytes. `Some` once: the value that was sought.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Option<String>, SpliceError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let pushed = self.inflater.push(bytes).map_err(|fault| told(self.message, self.encoding, fault));
        match (self.inflater.found.take(), pushed) {
            (found @ Some(_), Err(fault)) => {
                self.failed = Some(fault);
                Ok(found)
            }
            (found, pushed) => pushed.map(|()| found),
        }
    }

    /// The message is over: its inflated bytes, if they were to be kept, and how many there were.
    pub(crate) fn end(self) -> Result<(Vec<Bytes>, u64), SpliceError> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        self.inflater.end().map_err(|fault| told(self.message, self.encoding, fault))
    }
}

/// What a decoder's state and window are charged with, in bytes: about 43 KiB as measured, and some bookkeeping.
const DECODER: usize = 48 << 10;

/// The first buffer for inflated bytes, and the largest: each is twice the one before.
const BUFFERS: (usize, usize) = (4 << 10, 256 << 10);

/// The most members of one gzip message: block gzip has one in 64 KiB at most, and each costs a decoder's reset.
const MEMBERS: u32 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gzip,
    Zlib,
}

impl Format {
    fn of(encoding: Encoding) -> Option<Format> {
        match encoding {
            Encoding::Identity => None,
            Encoding::Gzip => Some(Format::Gzip),
            Encoding::Deflate => Some(Format::Zlib),
        }
    }
}

/// Inflates one message as its bytes arrive, and follows its fields if asked to.
struct Inflater {
    format: Format,
    decoder: Decompress,
    stage: Stage,
    /// Of the gzip member that is being read.
    crc: Crc,
    members: u32,
    walk: Option<Walk>,
    /// Set once, when the walk finds a value.
    found: Option<String>,
    /// Whether inflated bytes are kept.
    keep: bool,
    full: Vec<Bytes>,
    /// What `full` is charged with.
    charged: usize,
    open: Option<Lent>,
    /// Bytes of `open` that are filled.
    filled: usize,
    length: u64,
    limit: u64,
    budget: Arc<dyn Budget>,
    _decoder: Loan,
}

/// Where in a compressed stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In the ten bytes that begin a gzip member, with `at` of them read.
    Fixed { at: u8, flags: u8 },
    /// In a part of the header that may follow, by the flags that are left.
    Option { flags: u8, part: Optional },
    /// In the compressed data.
    Body,
    /// In a gzip member's checksum and length.
    Trailer { at: usize, bytes: [u8; 8] },
    /// Behind the end of a zlib stream.
    Over,
}

/// The optional parts of a gzip member's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Optional {
    ExtraLength {
        at: u8,
        length: u16,
    },
    /// So many bytes to skip: an extra field, or the header's checksum.
    Skip(u16),
    /// A name or a comment, up to a zero byte.
    Text,
}

/// Flags of a gzip member's header (RFC 1952, 2.3.1), and those that must be zero.
const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

impl Stage {
    /// Before the first byte of a gzip member.
    const MEMBER: Stage = Stage::Fixed { at: 0, flags: 0 };

    /// The header part that comes next by the flags that are left, or the body.
    fn after(flags: u8) -> Stage {
        // In the order in which they stand in the header.
        for (flag, part) in
            [(FEXTRA, Optional::ExtraLength { at: 0, length: 0 }), (FNAME, Optional::Text), (FCOMMENT, Optional::Text), (FHCRC, Optional::Skip(2))]
        {
            if flags & flag != 0 {
                return Stage::Option { flags: flags & !flag, part };
            }
        }
        Stage::Body
    }

    /// Takes one byte of a gzip member's header.
    fn header(self, byte: u8) -> Result<Stage, InflateError> {
        Ok(match self {
            Stage::Fixed { at, flags } => {
                let fits = match at {
                    0 => byte == 0x1f,
                    1 => byte == 0x8b,
                    2 => byte == 8,
                    3 => byte & RESERVED == 0,
                    _ => true,
                };
                if !fits {
                    return Err(InflateError::Header);
                }
                let flags = if at == 3 { byte } else { flags };
                if at == 9 { Stage::after(flags) } else { Stage::Fixed { at: at + 1, flags } }
            }
            Stage::Option { flags, part } => match part {
                Optional::ExtraLength { at: 0, .. } => Stage::Option { flags, part: Optional::ExtraLength { at: 1, length: byte.into() } },
                Optional::ExtraLength { length, .. } => match length | u16::from(byte) << 8 {
                    0 => Stage::after(flags),
                    length => Stage::Option { flags, part: Optional::Skip(length) },
                },
                Optional::Skip(1) | Optional::Skip(0) => Stage::after(flags),
                Optional::Skip(left) => Stage::Option { flags, part: Optional::Skip(left - 1) },
                Optional::Text if byte == 0 => Stage::after(flags),
                Optional::Text => self,
            },
            other => other,
        })
    }
}

impl Inflater {
    fn new(format: Format, mut walk: Option<Walk>, keep: bool, limit: u64, budget: Arc<dyn Budget>) -> Result<Inflater, InflateError> {
        let decoder = Loan::take(&budget, DECODER).ok_or(InflateError::NoRoom { bytes: DECODER })?;
        if let Some(walk) = &mut walk {
            walk.restart(None);
        }
        Ok(Inflater {
            format,
            decoder: Decompress::new(format == Format::Zlib),
            stage: if format == Format::Zlib { Stage::Body } else { Stage::MEMBER },
            crc: Crc::new(),
            members: 0,
            walk,
            found: None,
            keep,
            full: Vec::new(),
            charged: 0,
            open: None,
            filled: 0,
            length: 0,
            limit,
            budget,
            _decoder: decoder,
        })
    }

    /// What it is charged with now, in bytes.
    fn held(&self) -> usize {
        DECODER + self.charged + self.open.as_ref().map_or(0, Lent::charged)
    }

    /// Takes the next compressed bytes.
    fn push(&mut self, mut bytes: &[u8]) -> Result<(), InflateError> {
        while let Some(&first) = bytes.first() {
            match self.stage {
                Stage::Fixed { .. } | Stage::Option { .. } => {
                    self.stage = self.stage.header(first)?;
                    bytes = &bytes[1..];
                }
                Stage::Body => bytes = self.body(bytes)?,
                Stage::Trailer { at, bytes: mut trailer } => {
                    trailer[at] = first;
                    bytes = &bytes[1..];
                    self.stage = Stage::Trailer { at: at + 1, bytes: trailer };
                    if at + 1 == trailer.len() {
                        self.member_ends(trailer)?;
                    }
                }
                Stage::Over => return Err(InflateError::Trailing),
            }
        }
        Ok(())
    }

    /// The message is over: its inflated bytes, if they were to be kept, and how many there were.
    fn end(mut self) -> Result<(Vec<Bytes>, u64), InflateError> {
        let whole = match self.format {
            Format::Zlib => self.stage == Stage::Over,
            Format::Gzip => self.stage == Stage::MEMBER && self.members > 0,
        };
        if !whole {
            return Err(InflateError::Ended { after: self.length });
        }
        if let Some(walk) = &self.walk {
            walk.end()?;
        }
        self.seal();
        Ok((self.full, self.length))
    }

    /// Inflates from `bytes` and gives back what is left of them.
    fn body<'b>(&mut self, mut bytes: &'b [u8]) -> Result<&'b [u8], InflateError> {
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.buffer()?,
            };
            let (taken, made) = (self.decoder.total_in(), self.decoder.total_out());
            let status = self.decoder.decompress(bytes, &mut open.bytes[self.filled..], FlushDecompress::None);
            let taken = (self.decoder.total_in() - taken) as usize;
            let made = (self.decoder.total_out() - made) as usize;
            bytes = &bytes[taken..];
            self.inflated(open, made)?;
            let corrupt = InflateError::Corrupt { after: self.length };
            match status.map_err(|_fault| corrupt.clone())? {
                Status::StreamEnd => {
                    self.stage = if self.format == Format::Zlib { Stage::Over } else { Stage::Trailer { at: 0, bytes: [0; 8] } };
                    return Ok(bytes);
                }
                Status::Ok | Status::BufError if taken > 0 || made > 0 => {}
                // Neither read nor written: all is read, or it would go round for ever.
                Status::Ok | Status::BufError if bytes.is_empty() => return Ok(bytes),
                Status::Ok | Status::BufError => return Err(corrupt),
            }
        }
    }

    /// `made` more bytes stand in `open`.
    fn inflated(&mut self, open: Lent, made: usize) -> Result<(), InflateError> {
        let new = &open.bytes[self.filled..self.filled + made];
        self.length += made as u64;
        if self.length > self.limit {
            return Err(InflateError::TooLarge { limit: self.limit });
        }
        if self.format == Format::Gzip {
            self.crc.update(new);
        }
        if let Some(walk) = &mut self.walk
            && let Some(found) = walk.push(new)?
        {
            self.found = Some(found);
        }
        self.filled = if self.keep { self.filled + made } else { 0 };
        let full = self.filled == open.bytes.len();
        self.open = Some(open);
        if full {
            self.seal();
        }
        Ok(())
    }

    /// A buffer for what comes next.
    fn buffer(&mut self) -> Result<Lent, InflateError> {
        let (first, largest) = BUFFERS;
        let bytes = (first << self.full.len().min(16)).min(largest);
        Lent::zeroed(&self.budget, bytes).ok_or(InflateError::NoRoom { bytes })
    }

    /// What is filled of the open buffer goes to the full ones.
    fn seal(&mut self) {
        let filled = std::mem::take(&mut self.filled);
        if let Some(open) = self.open.take()
            && filled > 0
        {
            self.charged += open.charged();
            self.full.push(open.freeze(filled));
        }
    }

    /// A gzip member's last byte has come.
    fn member_ends(&mut self, trailer: [u8; 8]) -> Result<(), InflateError> {
        let [a, b, c, d, e, f, g, h] = trailer;
        let (sum, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        if sum != self.crc.sum() || length != self.crc.amount() {
            return Err(InflateError::Checksum);
        }
        self.members += 1;
        if self.members == MEMBERS {
            return Err(InflateError::Members { limit: MEMBERS - 1 });
        }
        self.crc.reset();
        self.decoder.reset(false);
        self.stage = Stage::MEMBER;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::{GzEncoder, ZlibEncoder};
    use flate2::{Compression, GzBuilder};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Some text that is longer than the first buffers and compresses neither well nor badly.
    fn text(length: usize) -> Vec<u8> {
        (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 27) as u8).collect()
    }

    #[test]
    fn encodings_are_known_by_their_grpc_names() {
        for (name, expected) in [
            ("identity", Some(Encoding::Identity)),
            ("gzip", Some(Encoding::Gzip)),
            (" GZIP ", Some(Encoding::Gzip)),
            ("deflate", Some(Encoding::Deflate)),
            ("snappy", None),
            ("gzip, deflate", None),
            ("", None),
        ] {
            assert_eq!(Encoding::parse(name), expected, "{name:?}");
            if let Some(encoding) = expected {
                assert_eq!(Encoding::parse(&encoding.to_string()), expected);
            }
        }
    }

    #[test]
    fn what_was_compressed_comes_out_whole_however_it_is_cut() {
        let long = text(700_000);
        let mut named = GzBuilder::new().filename("a name").comment("a comment").extra(vec![7; 300]).write(Vec::new(), Compression::fast());
        named.write_all(b"abc").unwrap();
        // The header's checksum, which no encoder here writes: two bytes behind a flag.
        let mut summed = gzip(b"abc");
        summed[3] = FHCRC;
        summed.splice(10..10, [1, 2]);
        let mut extra_of_none = gzip(b"abc");
        extra_of_none[3] = FEXTRA;
        extra_of_none.splice(10..10, [0, 0]);
        for (case, encoding, bytes, expected) in [
            ("nothing", Encoding::Gzip, gzip(b""), &b""[..]),
            ("a few bytes", Encoding::Gzip, gzip(b"abc"), b"abc"),
            ("many bytes", Encoding::Gzip, gzip(&long), &long),
            ("two members", Encoding::Gzip, [gzip(b"ab"), gzip(b"c")].concat(), b"abc"),
            ("a name, a comment and more", Encoding::Gzip, named.finish().unwrap(), b"abc"),
            ("a checksum of the header", Encoding::Gzip, summed, b"abc"),
            ("an extra field of nothing", Encoding::Gzip, extra_of_none, b"abc"),
            ("nothing by zlib", Encoding::Deflate, zlib(b""), b""),
            ("many bytes by zlib", Encoding::Deflate, zlib(&long), &long),
            ("as it is", Encoding::Identity, b"abc".to_vec(), b"abc"),
        ] {
            assert_eq!(inflate(encoding, &bytes, expected.len() as u64).as_deref(), Ok(expected), "{case}");
            let Some(format) = Format::of(encoding) else { continue };
            for size in [1, 2, 3, 7, 1000] {
                let mut inflater = Inflater::new(format, None, true, 1 << 20, Arc::new(Pool::new(1 << 21))).unwrap();
                bytes.chunks(size).for_each(|piece| inflater.push(piece).unwrap());
                let (pieces, length) = inflater.end().unwrap();
                assert_eq!((&pieces.concat()[..], length), (expected, expected.len() as u64), "{case}, {size} at a time");
            }
        }
    }

    #[test]
    fn what_is_not_compressed_rightly_is_told_so() {
        let (gz, zl) = (gzip(b"abcabcabc"), zlib(b"abcabcabc"));
        let with = |bytes: &[u8], at: usize, byte: u8| {
            let mut bytes = bytes.to_vec();
            bytes[at] = byte;
            bytes
        };
        let (last, ended) = (gz.len() - 1, InflateError::Ended { after: 9 });
        for (case, encoding, bytes, expected) in [
            ("nothing at all", Encoding::Gzip, vec![], InflateError::Ended { after: 0 }),
            ("nothing at all by zlib", Encoding::Deflate, vec![], InflateError::Ended { after: 0 }),
            ("not gzip", Encoding::Gzip, b"abc".to_vec(), InflateError::Header),
            ("another method", Encoding::Gzip, with(&gz, 2, 7), InflateError::Header),
            ("flags that nobody knows", Encoding::Gzip, with(&gz, 3, 0x20), InflateError::Header),
            ("zlib as gzip", Encoding::Gzip, zl.clone(), InflateError::Header),
            ("gzip as zlib", Encoding::Deflate, gz.clone(), InflateError::Corrupt { after: 0 }),
            ("a block of no type", Encoding::Gzip, with(&gz, 10, 0xff), InflateError::Corrupt { after: 0 }),
            ("cut in its header", Encoding::Gzip, gz[..5].to_vec(), InflateError::Ended { after: 0 }),
            ("cut in its checksum", Encoding::Gzip, gz[..last].to_vec(), ended.clone()),
            ("cut in its checksum by zlib", Encoding::Deflate, zl[..zl.len() - 1].to_vec(), ended.clone()),
            ("cut in its second member", Encoding::Gzip, [&gz[..], &gz[..4]].concat(), ended),
            ("a wrong checksum", Encoding::Gzip, with(&gz, last - 5, !gz[last - 5]), InflateError::Checksum),
            ("a wrong length", Encoding::Gzip, with(&gz, last, 1), InflateError::Checksum),
            ("something behind", Encoding::Gzip, [&gz[..], b"x"].concat(), InflateError::Header),
            ("something behind zlib", Encoding::Deflate, [&zl[..], b"x"].concat(), InflateError::Trailing),
            ("more members than anybody needs", Encoding::Gzip, gzip(b"").repeat(4096), InflateError::Members { limit: 4095 }),
            ("a byte too many", Encoding::Gzip, gzip(&[0; 101]), InflateError::TooLarge { limit: 100 }),
            ("a byte too many as it is", Encoding::Identity, vec![0; 101], InflateError::TooLarge { limit: 100 }),
        ] {
            assert_eq!(inflate(encoding, &bytes, 100), Err(expected), "{case}");
        }
        let wrong_sum = with(&zl, zl.len() - 1, !zl[zl.len() - 1]);
        assert!(inflate(Encoding::Deflate, &wrong_sum, 100).is_err());
    }
}
