//! What is held against the bytes that come. Pure.
//!
//! A file is hashed in grains of one size, each on its own, in whatever order they come: the CRCs, and our own digest which
//! is made of them, are put together from those of the grains, so ranges that were fetched apart (or by an earlier process)
//! need no second pass. SHA-256 and MD5 cannot be put together; they need the bytes in order.

use std::ops::Range;

use berth_disk::digest;
use berth_stores::{Composite, OfParts, Sums, Verify};
use crc_fast::{CrcAlgorithm, Digest as Crc};
use md5::{Digest as _, Md5};

use crate::crc;

/// Length of what a [`GrainSum`] becomes.
const NOTE: usize = 13;

/// The statement that is checked: the cheapest of the ones that the store makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Crc64Nvme(u64),
    Crc32c(u32),
    Crc32(u32),
    Sha256([u8; 32]),
    Md5([u8; 16]),
    /// A checksum of the checksums of the parts that it was uploaded in.
    Parts(Composite),
    /// There is nothing to hold against the bytes but their number.
    Nothing,
}

impl Check {
    pub(crate) fn of(stated: &Sums, verify: Verify) -> Self {
        let Verify::Content = verify else { return Check::Nothing };
        let parts = |wanted: fn(&OfParts) -> bool| stated.composite.filter(|of| wanted(&of.value)).map(Check::Parts);
        let cheap = |of: &OfParts| matches!(of, OfParts::Crc32(_) | OfParts::Crc32c(_));
        None.or(stated.crc64nvme.map(Check::Crc64Nvme))
            .or(stated.crc32c.map(Check::Crc32c))
            .or(parts(cheap))
            .or(stated.crc32.map(Check::Crc32))
            .or(stated.sha256.map(Check::Sha256))
            .or(parts(|of| matches!(of, OfParts::Sha256(_))))
            .or(stated.md5.map(Check::Md5))
            .or(parts(|of| matches!(of, OfParts::Md5(_))))
            .unwrap_or(Check::Nothing)
    }

    /// The word for content that passed.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Check::Crc64Nvme(_) => "crc64nvme",
            Check::Crc32c(_) => "crc32c",
            Check::Crc32(_) => "crc32",
            Check::Sha256(_) => "sha256",
            Check::Md5(_) => "md5",
            Check::Parts(Composite { value: OfParts::Crc32(_), .. }) => "crc32 of parts",
            Check::Parts(Composite { value: OfParts::Crc32c(_), .. }) => "crc32c of parts",
            Check::Parts(Composite { value: OfParts::Sha256(_), .. }) => "sha256 of parts",
            Check::Parts(Composite { value: OfParts::Md5(_), .. }) => "md5 of parts",
            Check::Nothing => "unverified",
        }
    }

    /// The hash that must see the bytes in order, where this check needs one.
    pub(crate) fn ordered(self) -> Option<Ordered> {
        match self {
            Check::Crc32(_) => Some(Ordered::Whole(Box::new(Hash::Crc32(Crc::new(CrcAlgorithm::Crc32IsoHdlc))))),
            Check::Sha256(_) => Some(Ordered::Whole(Box::new(Hash::sha256()))),
            Check::Md5(_) => Some(Ordered::Whole(Box::new(Hash::Md5(Md5::new())))),
            Check::Parts(of) => {
                let hash = PartsHash { of, inner: Hash::of(&of.value), outer: Hash::of(&of.value), left: of.part.0 };
                Some(Ordered::Parts(Box::new(hash)))
            }
            Check::Crc64Nvme(_) | Check::Crc32c(_) | Check::Nothing => None,
        }
    }

    /// Whether grains of this length are enough for it, in whatever order they come.
    pub(crate) fn is_of_grains(self, grain: u64) -> bool {
        match self {
            Check::Crc64Nvme(_) | Check::Crc32c(_) | Check::Nothing => true,
            Check::Parts(Composite { value: OfParts::Crc32c(_), part, .. }) => part.0.is_multiple_of(grain),
            Check::Crc32(_) | Check::Sha256(_) | Check::Md5(_) | Check::Parts(_) => false,
        }
    }

    /// Holds what was computed against the statement.
    ///
    /// # Errors
    /// Both values in words; also when what the check needs was not computed.
    pub(crate) fn judge(self, computed: &Sums) -> Result<(), String> {
        let differ = |name: &str, got: Option<String>, stated: String| match got {
            Some(got) if got == stated => Ok(()),
            Some(got) => Err(format!("the bytes that came have the {name} {got}, the store states {stated}")),
            None => Err(format!("the {name} of the bytes that came is not known")),
        };
        match self {
            Check::Crc64Nvme(stated) => differ("CRC-64/NVME", computed.crc64nvme.map(|crc| format!("{crc:016x}")), format!("{stated:016x}")),
            Check::Crc32c(stated) => differ("CRC-32C", computed.crc32c.map(|crc| format!("{crc:08x}")), format!("{stated:08x}")),
            Check::Crc32(stated) => differ("CRC-32", computed.crc32.map(|crc| format!("{crc:08x}")), format!("{stated:08x}")),
            Check::Sha256(stated) => differ("SHA-256 digest", computed.sha256.map(|digest| hex(&digest)), hex(&stated)),
            Check::Md5(stated) => differ("MD5 digest", computed.md5.map(|digest| hex(&digest)), hex(&stated)),
            Check::Parts(stated) => {
                let got = computed.composite.map(|of| of_parts(&of.value));
                differ(&format!("checksum of {} parts", stated.parts), got, of_parts(&stated.value))
            }
            Check::Nothing => Ok(()),
        }
    }
}

/// A hash over bytes in order.
#[derive(Clone)]
pub(crate) enum Ordered {
    Whole(Box<Hash>),
    /// Each part on its own, and the parts' values.
    Parts(Box<PartsHash>),
}

#[derive(Clone)]
pub(crate) struct PartsHash {
    of: Composite,
    inner: Hash,
    outer: Hash,
    /// Bytes until the part is full.
    left: u64,
}

#[derive(Clone)]
pub(crate) enum Hash {
    Sha256(ring::digest::Context),
    Md5(Md5),
    Crc32(Crc),
    Crc32c(Crc),
}

impl Hash {
    fn sha256() -> Self {
        Hash::Sha256(ring::digest::Context::new(&ring::digest::SHA256))
    }

    fn of(value: &OfParts) -> Self {
        match value {
            OfParts::Crc32(_) => Hash::Crc32(Crc::new(CrcAlgorithm::Crc32IsoHdlc)),
            OfParts::Crc32c(_) => Hash::Crc32c(Crc::new(CrcAlgorithm::Crc32Iscsi)),
            OfParts::Sha256(_) => Self::sha256(),
            OfParts::Md5(_) => Hash::Md5(Md5::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(context) => context.update(bytes),
            Hash::Md5(context) => context.update(bytes),
            Hash::Crc32(crc) | Hash::Crc32c(crc) => crc.update(bytes),
        }
    }

    fn finish(self) -> OfParts {
        match self {
            Hash::Sha256(context) => {
                let mut digest = [0; 32];
                digest.copy_from_slice(context.finish().as_ref());
                OfParts::Sha256(digest)
            }
            Hash::Md5(context) => OfParts::Md5(context.finalize().into()),
            Hash::Crc32(crc) => OfParts::Crc32(narrow(crc.finalize())),
            Hash::Crc32c(crc) => OfParts::Crc32c(narrow(crc.finalize())),
        }
    }
}

/// A value as its bytes, as the checksum of the parts is made of them.
fn bytes_of(value: &OfParts) -> Vec<u8> {
    match value {
        OfParts::Crc32(crc) | OfParts::Crc32c(crc) => crc.to_be_bytes().to_vec(),
        OfParts::Sha256(digest) => digest.to_vec(),
        OfParts::Md5(digest) => digest.to_vec(),
    }
}

fn of_parts(value: &OfParts) -> String {
    let name = match value {
        OfParts::Crc32(_) => "CRC-32",
        OfParts::Crc32c(_) => "CRC-32C",
        OfParts::Sha256(_) => "SHA-256",
        OfParts::Md5(_) => "MD5",
    };
    format!("{name} {}", hex(&bytes_of(value)))
}

impl Ordered {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        match self {
            Ordered::Whole(hash) => hash.update(bytes),
            Ordered::Parts(hash) => {
                let PartsHash { of, inner, outer, left } = &mut **hash;
                while !bytes.is_empty() {
                    let (these, rest) = bytes.split_at(usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len()));
                    inner.update(these);
                    *left -= these.len() as u64;
                    if *left == 0 {
                        let full = std::mem::replace(inner, Hash::of(&of.value));
                        outer.update(&bytes_of(&full.finish()));
                        *left = of.part.0;
                    }
                    bytes = rest;
                }
            }
        }
    }

    pub(crate) fn finish(self) -> Sums {
        match self {
            Ordered::Whole(hash) => match hash.finish() {
                OfParts::Sha256(digest) => Sums { sha256: Some(digest), ..Sums::default() },
                OfParts::Md5(digest) => Sums { md5: Some(digest), ..Sums::default() },
                OfParts::Crc32c(crc) => Sums { crc32c: Some(crc), ..Sums::default() },
                OfParts::Crc32(crc) => Sums { crc32: Some(crc), ..Sums::default() },
            },
            Ordered::Parts(hash) => {
                let PartsHash { of, inner, mut outer, left } = *hash;
                if left < of.part.0 {
                    outer.update(&bytes_of(&inner.finish()));
                }
                Sums { composite: Some(Composite { value: outer.finish(), ..of }), ..Sums::default() }
            }
        }
    }
}

/// Everything about bytes that are all in memory: our own digest where they are `hashed`, and what `check` needs.
pub(crate) fn of_whole<'a>(frames: impl Iterator<Item = &'a [u8]> + Clone, check: Check, hashed: bool) -> (Option<[u8; 32]>, Sums) {
    let crc = |algorithm| {
        let mut crc = Crc::new(algorithm);
        frames.clone().for_each(|frame| crc.update(frame));
        crc.finalize()
    };
    let sums = match check.ordered() {
        None => Sums::default(),
        Some(mut ordered) => {
            frames.clone().for_each(|frame| ordered.update(frame));
            ordered.finish()
        }
    };
    if !hashed {
        return (None, sums);
    }
    let crc64nvme = crc(CrcAlgorithm::Crc64Nvme);
    let bytes = frames.clone().map(|frame| frame.len() as u64).sum();
    let crc32c = matches!(check, Check::Crc32c(_)).then(|| narrow(crc(CrcAlgorithm::Crc32Iscsi)));
    (Some(digest(bytes, crc64nvme)), Sums { crc32c, crc64nvme: Some(crc64nvme), ..sums })
}

/// What grains are hashed for; a later one includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kinds {
    /// Nothing: they are only counted.
    None,
    /// Our own digest, and a statement of the same checksum.
    Crc64,
    /// That, and a statement of CRC-32C.
    Both,
}

impl Kinds {
    /// What bytes must be hashed for that come while a store states `stated`. As long as it is not known what it will say,
    /// it may be either.
    pub(crate) fn of(stated: &Sums, verify: Verify) -> Self {
        match (verify, Check::of(stated, verify)) {
            (Verify::Length, _) => Kinds::None,
            (Verify::Content, Check::Nothing | Check::Crc32c(_) | Check::Parts(Composite { value: OfParts::Crc32c(_), .. })) => Kinds::Both,
            (Verify::Content, Check::Crc64Nvme(_) | Check::Crc32(_) | Check::Sha256(_) | Check::Md5(_) | Check::Parts(_)) => Kinds::Crc64,
        }
    }

    /// Whether what was hashed for `self` is enough for `wanted`.
    fn covers(self, wanted: Kinds) -> bool {
        self >= wanted
    }
}

/// What is known of one grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GrainSum {
    /// What of the rest was computed.
    kinds: Kinds,
    crc32c: u32,
    crc64nvme: u64,
}

impl GrainSum {
    /// As the disk tier keeps it.
    pub(crate) fn note(&self) -> [u8; NOTE] {
        let mut note = [0; NOTE];
        note[..4].copy_from_slice(&self.crc32c.to_le_bytes());
        note[4..12].copy_from_slice(&self.crc64nvme.to_le_bytes());
        note[12] = match self.kinds {
            Kinds::None => 0,
            Kinds::Crc64 => 1,
            Kinds::Both => 3,
        };
        note
    }

    /// `None` for what is no note of ours, or says less than is `wanted`.
    pub(crate) fn of_note(note: &[u8], wanted: Kinds) -> Option<Self> {
        let note: &[u8; NOTE] = note.try_into().ok()?;
        let kinds = match note[12] {
            0 => Kinds::None,
            1 => Kinds::Crc64,
            3 => Kinds::Both,
            _ => return None,
        };
        let (crc32c, crc64nvme) = (u32::from_le_bytes(note[..4].try_into().ok()?), u64::from_le_bytes(note[4..12].try_into().ok()?));
        kinds.covers(wanted).then_some(GrainSum { kinds, crc32c, crc64nvme })
    }
}

/// Hashes a run of bytes of one file, from the beginning of a grain on.
pub(crate) struct Run {
    /// What the grain that is begun is hashed for.
    kinds: Kinds,
    /// What those after it are.
    next: Kinds,
    grain: u64,
    /// Length of the file.
    total: u64,
    /// Where the next byte belongs.
    at: u64,
    crc32c: Crc,
    crc64nvme: Crc,
}

impl Run {
    /// `grain`: a power of two of at least 1 KiB. `start`: a multiple of it.
    pub(crate) fn new(kinds: Kinds, grain: u64, total: u64, start: u64) -> Self {
        let (crc32c, crc64nvme) = (Crc::new(CrcAlgorithm::Crc32Iscsi), Crc::new(CrcAlgorithm::Crc64Nvme));
        Run { kinds, next: kinds, grain, total, at: start, crc32c, crc64nvme }
    }

    /// Where the next byte belongs.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// From the next grain on no CRC-32C is needed.
    pub(crate) fn narrow(&mut self) {
        self.next = self.next.min(Kinds::Crc64);
        if self.at.is_multiple_of(self.grain) {
            self.kinds = self.next;
        }
    }

    /// Takes the next bytes; `done` is told each grain that they complete.
    pub(crate) fn push<E>(&mut self, mut bytes: &[u8], mut done: impl FnMut(Range<u64>, GrainSum) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            let end = (self.at - self.at % self.grain).saturating_add(self.grain).min(self.total);
            let take = usize::try_from(end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(bytes.len());
            if take == 0 {
                break; // beyond the file's end: whoever counts bytes says so
            }
            let (these, rest) = bytes.split_at(take);
            if self.kinds == Kinds::Both {
                self.crc32c.update(these);
            }
            if self.kinds != Kinds::None {
                self.crc64nvme.update(these);
            }
            self.at += take as u64;
            bytes = rest;
            if self.at == end {
                let start = (end - 1) - (end - 1) % self.grain;
                let sum = GrainSum { kinds: self.kinds, crc32c: narrow(self.crc32c.finalize()), crc64nvme: self.crc64nvme.finalize() };
                self.crc32c.reset();
                self.crc64nvme.reset();
                self.kinds = self.next;
                done(start..end, sum)?;
            }
        }
        Ok(())
    }
}

/// Puts the grains of a whole file together: our own digest and the CRCs, where they were hashed. `grains` are all of the
/// file's, in order. `check`: what they are for; the checksum of parts is made where grains suffice for it.
pub(crate) fn of_grains(grain: u64, total: u64, grains: &[GrainSum], check: Check) -> (Option<[u8; 32]>, Sums) {
    let have = |kinds: Kinds| grains.iter().all(|sum| sum.kinds.covers(kinds));
    if !have(Kinds::Crc64) {
        return (None, Sums::default());
    }
    let both = have(Kinds::Both);
    let length = |at: usize| grain.min(total.saturating_sub(grain.saturating_mul(at as u64)));
    let rest = |pieces: usize| length(pieces.saturating_sub(1));
    let composite = match check {
        Check::Parts(of) if both && check.is_of_grains(grain) => {
            let mut outer = Hash::of(&of.value);
            let per_part = usize::try_from(of.part.0 / grain).unwrap_or(usize::MAX).max(1);
            for (n, part) in grains.chunks(per_part).enumerate() {
                let crc = crc::join(crc::Kind::Crc32c, part.iter().map(|sum| u64::from(sum.crc32c)), grain, rest(n * per_part + part.len()));
                outer.update(&narrow(crc).to_be_bytes());
            }
            Some(Composite { value: outer.finish(), ..of })
        }
        _ => None,
    };
    let crc32c = both.then(|| narrow(crc::join(crc::Kind::Crc32c, grains.iter().map(|sum| u64::from(sum.crc32c)), grain, rest(grains.len()))));
    let crc64nvme = crc::join(crc::Kind::Crc64Nvme, grains.iter().map(|sum| sum.crc64nvme), grain, rest(grains.len()));
    (Some(digest(total, crc64nvme)), Sums { composite, crc32c, crc64nvme: Some(crc64nvme), ..Sums::default() })
}

/// A CRC of 32 bits, which is never more.
fn narrow(crc: u64) -> u32 {
    u32::try_from(crc).unwrap_or(0)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    /// Grains of `bytes`, hashed in runs that begin at the multiples of `part`.
    fn grains(bytes: &[u8], grain: u64, part: u64, frame: usize) -> Vec<GrainSum> {
        let total = bytes.len() as u64;
        let mut all = Vec::new();
        // Backwards: the order must not matter.
        for start in (0..total).step_by(usize::try_from(part).expect("small")).collect::<Vec<_>>().into_iter().rev() {
            let end = (start + part).min(total);
            let mut run = Run::new(Kinds::Both, grain, total, start);
            for piece in bytes[start as usize..end as usize].chunks(frame) {
                let told: Result<(), ()> = run.push(piece, |range, sum| {
                    all.push((range, GrainSum::of_note(&sum.note(), Kinds::Both).expect("a note")));
                    Ok(())
                });
                told.expect("nothing fails");
            }
        }
        all.sort_by_key(|(range, _)| range.start);
        let mut at = 0;
        for (range, _) in &all {
            assert_eq!((range.start, range.end - range.start), (at, grain.min(total - at)));
            at = range.end;
        }
        assert_eq!(at, total, "every byte is in a grain");
        all.into_iter().map(|(_, sum)| sum).collect()
    }

    #[test]
    fn known_answers() {
        let (own, sums) = of_whole([&b"123456789"[..]].into_iter(), Check::Crc32c(0xe306_9283), true);
        assert_eq!((sums.crc32c, own), (Some(0xe306_9283), Some(digest(9, 0xae8b_1486_0a79_9888))));
        let (_, sums) = of_whole([&b"1234"[..], b"56789"].into_iter(), Check::Crc64Nvme(0), true);
        assert_eq!(sums.crc64nvme, Some(0xae8b_1486_0a79_9888));
        let (_, sums) = of_whole([&b"1234"[..], b"56789"].into_iter(), Check::Crc32(0), true);
        assert_eq!(sums.crc32, Some(0xcbf4_3926));
        let (_, sums) = of_whole([&b""[..]].into_iter(), Check::Md5([0; 16]), true);
        assert_eq!(sums.md5.map(|digest| hex(&digest)).as_deref(), Some("d41d8cd98f00b204e9800998ecf8427e"));
        let (_, sums) = of_whole(std::iter::empty(), Check::Sha256([0; 32]), true);
        assert_eq!(sums.sha256.map(|digest| hex(&digest)).as_deref(), Some("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
    }

    #[test]
    fn the_cheapest_statement_is_checked_and_none_is_unverified() {
        let of = |value| Some(Composite { value, part: berth_types::ByteSize(5), parts: 2 });
        let all = Sums {
            crc32c: Some(1),
            crc32: Some(6),
            crc64nvme: Some(2),
            sha256: Some([3; 32]),
            md5: Some([4; 16]),
            composite: of(OfParts::Crc32c(5)),
        };
        for (stated, verify, word) in [
            (all, Verify::Content, "crc64nvme"),
            (Sums { crc64nvme: None, ..all }, Verify::Content, "crc32c"),
            (Sums { crc64nvme: None, crc32c: None, ..all }, Verify::Content, "crc32c of parts"),
            (Sums { crc32: Some(6), sha256: Some([3; 32]), ..Sums::default() }, Verify::Content, "crc32"),
            (Sums { sha256: Some([3; 32]), md5: Some([4; 16]), ..Sums::default() }, Verify::Content, "sha256"),
            (Sums { composite: of(OfParts::Md5([0; 16])), md5: Some([4; 16]), ..Sums::default() }, Verify::Content, "md5"),
            (Sums { composite: of(OfParts::Md5([0; 16])), ..Sums::default() }, Verify::Content, "md5 of parts"),
            (Sums { md5: Some([4; 16]), ..Sums::default() }, Verify::Content, "md5"),
            (Sums::default(), Verify::Content, "unverified"),
            (all, Verify::Length, "unverified"),
        ] {
            assert_eq!(Check::of(&stated, verify).word(), word);
        }
    }

    #[test]
    fn bytes_are_hashed_for_what_may_be_stated_and_for_our_own_digest() {
        let stated = |crc32c, crc64nvme| Sums { crc32c, crc64nvme, ..Sums::default() };
        for (sums, verify, kinds) in [
            (stated(None, None), Verify::Content, Kinds::Both),
            (stated(Some(1), None), Verify::Content, Kinds::Both),
            (stated(Some(1), Some(2)), Verify::Content, Kinds::Crc64),
            (Sums { md5: Some([4; 16]), ..Sums::default() }, Verify::Content, Kinds::Crc64),
            (stated(Some(1), Some(2)), Verify::Length, Kinds::None),
        ] {
            assert_eq!(Kinds::of(&sums, verify), kinds, "{sums:?}");
        }
    }

    #[test]
    fn grains_of_which_less_was_asked_later_make_the_same_digest_and_no_more_than_all_of_them_have() {
        let (bytes, grain) = (noise(10_000), 1024);
        let (mut run, mut all) = (Run::new(Kinds::Both, grain, 10_000, 0), Vec::new());
        for (at, piece) in bytes.chunks(700).enumerate() {
            if at >= 5 {
                run.narrow();
            }
            let told: Result<(), ()> = run.push(piece, |_, sum| {
                all.push(sum);
                Ok(())
            });
            told.expect("nothing fails");
        }
        let (own, sums) = of_grains(grain, 10_000, &all, Check::Nothing);
        assert!(all.iter().any(|sum| sum.kinds == Kinds::Both) && all.iter().any(|sum| sum.kinds == Kinds::Crc64));
        assert_eq!((own, sums), of_whole([&bytes[..]].into_iter(), Check::Nothing, true));
        assert_eq!(sums.crc32c, None);
        assert!(Check::Crc32c(0).judge(&sums).is_err());
    }

    #[test]
    fn a_difference_is_told_with_both_values_and_what_was_not_computed_is_no_match() {
        let told = Check::Crc32c(0xabcd).judge(&Sums { crc32c: Some(0x1234), ..Sums::default() }).expect_err("they differ");
        assert!(told.contains("0000abcd") && told.contains("00001234"), "{told}");
        for check in [Check::Crc32c(0), Check::Crc64Nvme(0), Check::Sha256([0; 32]), Check::Md5([0; 16])] {
            assert!(check.judge(&Sums::default()).is_err(), "{check:?}");
        }
        assert_eq!(Check::Nothing.judge(&Sums::default()), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn grains_in_any_order_make_what_one_pass_makes(length in 0_usize..70_000, grains_per_part in 1_u64..5, exponent in 10_u32..14, frame in 1_usize..9_000) {
            let (bytes, grain) = (noise(length), 1_u64 << exponent);
            let parts = grains(&bytes, grain, grain * grains_per_part, frame);
            let (own, sums) = of_grains(grain, length as u64, &parts, Check::Nothing);
            prop_assert_eq!(own, of_whole([bytes.as_slice()].into_iter(), Check::Nothing, true).0);
            prop_assert!(own.is_some());
            let whole = |check| of_whole([bytes.as_slice()].into_iter(), check, true).1;
            prop_assert_eq!(sums.crc32c, whole(Check::Crc32c(0)).crc32c);
            prop_assert_eq!(sums.crc64nvme, whole(Check::Crc64Nvme(0)).crc64nvme);
            // And a checksum of the checksums of parts, in every way that it can be computed.
            let part = berth_types::ByteSize(grain * grains_per_part);
            let check = Check::Parts(Composite { value: OfParts::Crc32c(0), part, parts: 1 });
            let by_hand: Vec<u8> = bytes.chunks(usize::try_from(part.0).expect("small")).flat_map(|part| crc_fast::crc32_iscsi(part).to_be_bytes()).collect();
            let expected = Some(OfParts::Crc32c(crc_fast::crc32_iscsi(&by_hand)));
            prop_assert_eq!(of_grains(grain, length as u64, &parts, check).1.composite.map(|of| of.value), expected);
            prop_assert_eq!(whole(check).composite.map(|of| of.value), expected);
        }
    }
}
