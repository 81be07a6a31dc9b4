//! Compressed bodies: which coding a header means, a request's body inflated, an answer's deflated.
//!
//! Lengths that the binary tensor extension speaks of are those of the body as it is without its coding, as Triton and its
//! clients have it.

use std::io::{self, Write as _};

use berth_types::ByteSize;
use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::{DeflateDecoder, GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderValue, header};

use crate::budget::Share;
use crate::codes::{Fault, Quoted};

/// Smaller answers are sent as they are. Many clients take compressed answers without having been asked, so this is where
/// the CPU time of all of them is at stake: numbers in JSON shrink to 45 % for about 30 ms per MiB, raw ones to 90 % for 6 ms
/// (measured, FP32 without a pattern), which is sooner there on links below some 100 Mbit/s only.
pub(super) const COMPRESSED_FROM: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    /// The zlib format; on the way in also without its header, as some clients send it.
    Deflate,
}

impl Coding {
    fn named(name: &str) -> Option<Coding> {
        match name.to_ascii_lowercase().as_str() {
            "identity" | "" => Some(Coding::Identity),
            "gzip" | "x-gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            _ => None,
        }
    }

    /// As headers have it; `None` for no coding at all.
    pub(super) const fn name(self) -> Option<&'static str> {
        match self {
            Coding::Identity => None,
            Coding::Gzip => Some("gzip"),
            Coding::Deflate => Some("deflate"),
        }
    }

    /// How the body of a request is coded.
    ///
    /// # Errors
    /// In a way that is not known here, or more than once.
    pub(super) fn of_body(headers: &HeaderMap) -> Result<Coding, Fault> {
        let mut found = Coding::Identity;
        for value in headers.get_all(header::CONTENT_ENCODING) {
            let text = String::from_utf8_lossy(value.as_bytes());
            for name in text.split(',') {
                match Coding::named(name.trim()) {
                    Some(Coding::Identity) => {}
                    Some(coding) if found == Coding::Identity => found = coding,
                    _ => return Err(Fault::Encoded(Quoted::new(&text))),
                }
            }
        }
        Ok(found)
    }

    /// What the answer may be coded with: gzip or deflate where the client names it and does not like it less than none.
    pub(super) fn accepted(headers: &HeaderMap) -> Coding {
        let (mut gzip, mut deflate, mut identity) = (0.0, 0.0, 0.0);
        let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        for offer in values.flat_map(|value| value.split(',')) {
            let mut parts = offer.split(';').map(str::trim);
            let Some(name) = parts.next().filter(|name| !name.is_empty()) else { continue };
            let weight = match parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="))) {
                None => 1.0,
                Some(text) => text.trim().parse().ok().filter(|weight: &f32| (0.0..=1.0).contains(weight)).unwrap_or(0.0),
            };
            match Coding::named(name) {
                Some(Coding::Gzip) => gzip = weight,
                Some(Coding::Deflate) => deflate = weight,
                Some(Coding::Identity) => identity = weight,
                None => {}
            }
        }
        match (gzip.max(deflate), gzip >= deflate) {
            (best, _) if best == 0.0 || best < identity => Coding::Identity,
            (_, true) => Coding::Gzip,
            (_, false) => Coding::Deflate,
        }
    }

    /// `body` without its coding, of at most `limit`. `share` holds the body; after it, only what became of it.
    ///
    /// # Errors
    /// Not what the header says, larger than the limit, or no room.
    pub(super) fn decoded(self, body: Bytes, limit: ByteSize, share: &mut Share) -> Result<Bytes, Fault> {
        let inflated = match self {
            Coding::Identity => return Ok(body),
            Coding::Gzip => members(&body, limit, share),
            Coding::Deflate => {
                let (mut rest, mut all) = (&body[..], Vec::new());
                let inflated = match is_zlib(rest) {
                    true => inflate(&mut ZlibDecoder::new(&mut rest), &mut all, limit, share),
                    false => inflate(&mut DeflateDecoder::new(&mut rest), &mut all, limit, share),
                };
                inflated.and_then(|()| if rest.is_empty() { Ok(all) } else { Err(Stop::Broken(format!("{} bytes follow its end", rest.len()))) })
            }
        };
        let bytes = inflated.map_err(|stop| match stop {
            Stop::Fault(fault) => fault,
            Stop::Broken(why) => {
                Fault::BadRequest(format!("the body is not the {} that content-encoding says: {why}", self.name().unwrap_or("text")))
            }
        })?;
        share.hold(bytes.len() as u64)?;
        Ok(bytes.into())
    }

    /// The pieces, one after the other, compressed.
    pub(super) fn encoded(self, pieces: &[Bytes]) -> io::Result<Bytes> {
        // The lowest level: the usual one costs ten times as much and saves four percent of numbers more.
        let level = Compression::fast();
        let expected = pieces.iter().map(Bytes::len).sum::<usize>() / 2;
        match self {
            Coding::Identity => Ok(pieces.concat().into()),
            Coding::Gzip => {
                let mut encoder = GzEncoder::new(Vec::with_capacity(expected), level);
                pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
                encoder.finish().map(Bytes::from)
            }
            Coding::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::with_capacity(expected), level);
                pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
                encoder.finish().map(Bytes::from)
            }
        }
    }

    /// For `Content-Encoding`.
    pub(super) fn header(self) -> Option<HeaderValue> {
        self.name().map(HeaderValue::from_static)
    }
}

/// Method 8 with a window of at most 32 KiB, and a check sum of the two bytes.
fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [first, second, ..] if first & 0x8F == 8 && (u16::from(*first) << 8 | u16::from(*second)).is_multiple_of(31))
}

enum Stop {
    Fault(Fault),
    Broken(String),
}

/// The most members of one gzip body: block gzip has one in 64 KiB at most, and each costs a new decoder.
const MEMBERS: usize = 4095;

/// The members of a gzip body, one after the other.
fn members(mut body: &[u8], limit: ByteSize, share: &mut Share) -> Result<Vec<u8>, Stop> {
    let mut all = Vec::new();
    for _ in 0..MEMBERS {
        inflate(&mut GzDecoder::new(&mut body), &mut all, limit, share)?;
        if body.is_empty() {
            return Ok(all);
        }
    }
    Err(Stop::Broken(format!("it has more than {MEMBERS} members")))
}

/// Appends to `all` what `decoder` makes, up to its end.
fn inflate(decoder: &mut impl io::Read, all: &mut Vec<u8>, limit: ByteSize, share: &mut Share) -> Result<(), Stop> {
    let mut piece = [0; 16 * 1024];
    loop {
        let read = decoder.read(&mut piece).map_err(|fault| Stop::Broken(fault.to_string()))?;
        if read == 0 {
            return Ok(());
        }
        if (all.len() + read) as u64 > limit.0 {
            return Err(Stop::Fault(Fault::TooLarge { size: None, limit }));
        }
        share.add(read as u64).map_err(Stop::Fault)?;
        all.extend_from_slice(&piece[..read]);
    }
}

#[cfg(test)]
mod tests {
    use flate2::write::DeflateEncoder;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::budget::Budget;

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect()
    }

    fn decoded(coding: Coding, body: &[u8], limit: u64) -> Result<Bytes, Fault> {
        coding.decoded(Bytes::copy_from_slice(body), ByteSize(limit), &mut Budget::of(ByteSize::mib(64)).share())
    }

    #[test]
    fn an_answer_is_coded_as_its_client_likes_best() {
        use Coding::{Deflate, Gzip, Identity};
        for (values, wanted) in [
            (&[][..], Identity),
            (&["gzip, deflate, br, zstd"], Gzip),
            (&["deflate"], Deflate),
            (&["br", "x-gzip"], Gzip),
            (&["gzip;q=0.5, deflate;q=0.8"], Deflate),
            (&["gzip;q=0"], Identity),
            (&["gzip; q=0.2, identity; q=0.9"], Identity),
            (&["gzip;q=1.0, identity;q=0.5"], Gzip),
            (&["GZIP"], Gzip),
            (&["*"], Identity),
            (&["gzip;q=high"], Identity),
            (&["", ",;,"], Identity),
        ] {
            assert_eq!(Coding::accepted(&headers(header::ACCEPT_ENCODING, values)), wanted, "{values:?}");
        }
    }

    #[test]
    fn a_body_is_coded_once_at_most_and_in_a_way_that_is_known() {
        for (values, wanted) in [
            (&[][..], Ok(Coding::Identity)),
            (&["identity"], Ok(Coding::Identity)),
            (&["GZip"], Ok(Coding::Gzip)),
            (&["identity, deflate"], Ok(Coding::Deflate)),
            (&["br"], Err(r#""br""#)),
            (&["gzip, gzip"], Err(r#""gzip, gzip""#)),
            (&["gzip", "deflate"], Err(r#""deflate""#)),
        ] {
            let got = Coding::of_body(&headers(header::CONTENT_ENCODING, values));
            assert_eq!(got, wanted.map_err(|text| Fault::Encoded(Quoted::new(text.trim_matches('"')))), "{values:?}");
        }
    }

    #[test]
    fn what_is_not_coded_as_it_says_is_refused() {
        let zlib = Coding::Deflate.encoded(&[Bytes::from_static(b"hello")]).unwrap();
        let gzip = Coding::Gzip.encoded(&[Bytes::from_static(b"hello")]).unwrap();
        for (coding, body, expected) in [
            (Coding::Gzip, b"{}".to_vec(), "the body is not the gzip that content-encoding says: "),
            (Coding::Deflate, b"\xff{}".to_vec(), "the body is not the deflate that content-encoding says: "),
            (Coding::Gzip, gzip[..gzip.len() - 1].to_vec(), "the body is not the gzip"),
            (Coding::Deflate, zlib[..zlib.len() - 1].to_vec(), "the body is not the deflate"),
            (Coding::Gzip, [&gzip[..], b"more"].concat(), "the body is not the gzip"),
            (Coding::Deflate, [&zlib[..], b"more"].concat(), "4 bytes follow its end"),
            (Coding::Gzip, Vec::new(), "the body is not the gzip"),
        ] {
            let fault = decoded(coding, &body, 100).unwrap_err();
            assert!(matches!(&fault, Fault::BadRequest(text) if text.contains(expected)), "{coding:?} {body:?}: {fault}");
        }
        assert_eq!(decoded(Coding::Gzip, &[&gzip[..], &gzip[..]].concat(), 100).unwrap(), "hellohello", "gzip may have several members");
        let empty = Coding::Gzip.encoded(&[]).unwrap();
        assert_eq!(decoded(Coding::Gzip, &empty.repeat(MEMBERS), 100).unwrap(), "");
        let fault = decoded(Coding::Gzip, &empty.repeat(5000), 100).unwrap_err();
        assert!(matches!(&fault, Fault::BadRequest(text) if text.ends_with("it has more than 4095 members")), "{fault}");
    }

    #[test]
    fn a_bomb_stops_at_the_limit_and_its_memory_is_held_while_it_grows() {
        let bomb = Coding::Gzip.encoded(&[vec![0; 8 << 20].into()]).unwrap();
        assert!(bomb.len() < 64 * 1024);
        assert_eq!(decoded(Coding::Gzip, &bomb, 1 << 20), Err(Fault::TooLarge { size: None, limit: ByteSize::mib(1) }));
        let budget = Budget::of(ByteSize::mib(4));
        let mut share = budget.share();
        assert!(matches!(Coding::Gzip.decoded(bomb.clone(), ByteSize::mib(16), &mut share), Err(Fault::TooHeavy { .. })));
        drop(share);
        let budget = Budget::of(ByteSize::mib(16));
        let mut share = budget.share();
        share.add(bomb.len() as u64).unwrap();
        Coding::Gzip.decoded(bomb, ByteSize::mib(16), &mut share).unwrap();
        assert_eq!(budget.taken(), 8 << 20, "what it was made of is gone");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(23), ..ProptestConfig::default() })]

        #[test]
        fn what_is_encoded_decodes_to_the_same(pieces in prop::collection::vec(prop::collection::vec(0u8..9, 0..3000), 0..5)) {
            let pieces: Vec<Bytes> = pieces.into_iter().map(Bytes::from).collect();
            let whole = pieces.concat();
            for coding in [Coding::Identity, Coding::Gzip, Coding::Deflate] {
                prop_assert_eq!(decoded(coding, &coding.encoded(&pieces).unwrap(), 1 << 20).unwrap(), &whole[..]);
            }
            let mut bare = DeflateEncoder::new(Vec::new(), Compression::fast());
            bare.write_all(&whole).unwrap();
            prop_assert_eq!(decoded(Coding::Deflate, &bare.finish().unwrap(), 1 << 20).unwrap(), &whole[..], "without a header");
        }

        #[test]
        fn no_body_and_no_header_panics(body in prop::collection::vec(any::<u8>(), 0..200), text in "[a-z;,=q0-9. *]{0,40}") {
            for coding in [Coding::Gzip, Coding::Deflate] {
                let _ = decoded(coding, &body, 1 << 20);
            }
            Coding::accepted(&headers(header::ACCEPT_ENCODING, &[&text]));
            let _ = Coding::of_body(&headers(header::CONTENT_ENCODING, &[&text]));
        }
    }
}
