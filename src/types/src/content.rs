//! What the files of a model are, told by a digest of our own. What goes into it, the disk tier's `digest` says.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How a digest's text begins.
const ALGORITHM: &str = "crc64:";

/// The digest of a model's files and their names, made of each file's length and CRC-64. Two copies with one
/// digest were loaded from the same bytes, on whichever pods they are, unless somebody forged them. Printed as `crc64:` and
/// 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentDigest(pub [u8; 32]);

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALGORITHM)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a content digest: write crc64: and 64 hexadecimal digits")]
pub struct ParseContentDigestError(pub String);

impl ContentDigest {
    /// Whether a text is a digest by an algorithm that is not known here: other releases write down others.
    #[must_use]
    pub fn is_of_another_release(text: &str) -> bool {
        let Some((name, digits)) = text.split_once(':') else { return false };
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let is_digest = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_name && is_digest && !text.starts_with(ALGORITHM)
    }
}

impl FromStr for ContentDigest {
    type Err = ParseContentDigestError;

    fn from_str(text: &str) -> Result<Self, ParseContentDigestError> {
        let fault = || ParseContentDigestError(text.chars().take(80).collect());
        let digits = text.strip_prefix(ALGORITHM).filter(|digits| digits.len() == 64).ok_or_else(fault)?;
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let [high, low] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16));
            *byte = u8::try_from(high.ok_or_else(fault)? << 4 | low.ok_or_else(fault)?).map_err(|_| fault())?;
        }
        Ok(ContentDigest(digest))
    }
}

impl TryFrom<String> for ContentDigest {
    type Error = ParseContentDigestError;

    fn try_from(text: String) -> Result<Self, ParseContentDigestError> {
        text.parse()
    }
}

impl From<ContentDigest> for String {
    fn from(digest: ContentDigest) -> String {
        digest.to_string()
    }
}

/// What a copy was loaded from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Our own digest of the files.
    pub digest: ContentDigest,
    /// What the store stated about them that was held against them: `crc32c`, `md5`, or `unverified`.
    pub checked: Arc<str>,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.digest, self.checked)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_digest_is_printed_with_the_name_of_its_algorithm() {
        let mut bytes = [0; 32];
        (bytes[0], bytes[31]) = (0xab, 0x01);
        let digest = ContentDigest(bytes);
        let text = format!("crc64:ab{}01", "0".repeat(60));
        assert_eq!((digest.to_string(), format!("{digest:?}")), (text.clone(), text.clone()));
        assert_eq!(Content { digest, checked: "md5".into() }.to_string(), format!("{text} (md5)"));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let zeros = "0".repeat(64);
        let long = "é".repeat(200);
        for text in [
            "",
            "crc64:",
            zeros.as_str(),
            &format!("sha256:{zeros}"),
            &format!("crc64:{zeros}0"),
            &format!("crc64:{}", &zeros[1..]),
            &format!("crc64:{}g", &zeros[1..]),
            &format!("crc64:{}+", &zeros[1..]),
            &format!("crc64:{}é", &zeros[2..]),
            long.as_str(),
        ] {
            let fault = text.parse::<ContentDigest>().expect_err(text);
            assert!(fault.0.chars().count() <= 80, "{fault}");
        }
        assert!(serde_json::from_str::<ContentDigest>("\"crc64:00\"").is_err());
    }

    #[test]
    fn a_digest_of_another_release_is_known_by_its_form() {
        for (text, expected) in [
            ("blake3:00ff", true),
            ("sha256:0", true),
            ("crc64:00ff", false),
            ("", false),
            (":00", false),
            ("x:", false),
            ("x:yz", false),
            ("a b:00", false),
        ] {
            assert_eq!(ContentDigest::is_of_another_release(text), expected, "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn a_printed_digest_is_read_back(bytes in any::<[u8; 32]>(), upper in any::<bool>()) {
            let digest = ContentDigest(bytes);
            let text = digest.to_string();
            let hexadecimal = &text[ALGORITHM.len()..];
            let text = if upper { format!("{ALGORITHM}{}", hexadecimal.to_uppercase()) } else { text };
            prop_assert_eq!(text.parse(), Ok(digest));
            let json = serde_json::to_string(&digest).expect("a text");
            prop_assert_eq!(serde_json::from_str::<ContentDigest>(&json).ok(), Some(digest));
        }
    }
}
