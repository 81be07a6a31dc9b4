//! A reader of JSON that goes over a text once, from left to right, and makes nothing of what nobody asks for.
//!
//! It takes what RFC 8259 takes, and three numbers more: `NaN`, `Infinity` and `-Infinity`, which Python writes unless it is
//! told otherwise. Arrays and objects within each other are bounded, so that no text can exhaust the stack.

use std::borrow::Cow;

use crate::codes::Fault;

/// The most arrays and objects within each other.
const DEEPEST: usize = 128;

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stop {
    /// No JSON: what was expected, and before which byte.
    Syntax { what: &'static str, at: usize },
    /// JSON that says something wrong. Begins with the path of the fault where there is one.
    Wrong(String),
    /// No room for what it says.
    NoRoom(Fault),
}

impl Stop {
    /// The same, found within `outer`.
    pub(super) fn within(self, outer: impl std::fmt::Display) -> Self {
        match self {
            Stop::Wrong(text) => Stop::Wrong(format!("{outer}{text}")),
            other => other,
        }
    }
}

impl From<String> for Stop {
    fn from(text: String) -> Self {
        Stop::Wrong(text)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::NoRoom(fault)
    }
}

/// A place in a text. A copy goes its own way, so that a value can be read later.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

/// A number as it stands in the text, and what is known of it by then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Number<'a> {
    pub(super) text: &'a str,
    negative: bool,
    /// The number is `mantissa` times ten to the power of `exponent`; only when `exact`.
    mantissa: u64,
    exponent: i32,
    exact: bool,
    /// Neither a fraction nor an exponent.
    whole: bool,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Cursor { text, at: 0, depth: 0 }
    }

    /// The same, as far as `end` goes: what is left is the text between them, and places stay those of the whole text.
    pub(super) fn up_to(self, end: &Cursor<'a>) -> Self {
        Cursor { text: &self.text[..end.at], ..self }
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.text.len() - self.at
    }

    fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    /// The next byte that is no space; zero at the end. A value is known by it.
    pub(super) fn peek(&mut self) -> u8 {
        loop {
            match self.byte(self.at) {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                other => return other,
            }
        }
    }

    pub(super) fn expected<T>(&self, what: &'static str) -> Result<T, Stop> {
        Err(Stop::Syntax { what, at: self.at })
    }

    /// Nothing but spaces is left.
    pub(super) fn end(&mut self) -> Result<(), Stop> {
        self.peek();
        if self.left() == 0 { Ok(()) } else { self.expected("nothing after the value") }
    }

    fn enter(&mut self) -> Result<(), Stop> {
        if self.depth == DEEPEST {
            return self.expected("at most 128 arrays and objects within each other");
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    fn leave(&mut self) {
        self.depth -= 1;
        self.at += 1;
    }

    /// An object. `each` gets the name of a member and reads its value.
    pub(super) fn object(&mut self, mut each: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), Stop>) -> Result<(), Stop> {
        if self.peek() != b'{' {
            return self.expected("an object");
        }
        self.enter()?;
        if self.peek() == b'}' {
            self.leave();
            return Ok(());
        }
        loop {
            if self.peek() != b'"' {
                return self.expected("the name of a member in quotes");
            }
            let name = self.string()?;
            if self.peek() != b':' {
                return self.expected("a colon");
            }
            self.at += 1;
            each(self, name)?;
            match self.peek() {
                b',' => self.at += 1,
                b'}' => {
                    self.leave();
                    return Ok(());
                }
                _ => return self.expected("a comma or the end of the object"),
            }
        }
    }

    /// An array. `each` gets the place of a member and reads it. Returns how many there were.
    #[inline]
    pub(super) fn array(&mut self, mut each: impl FnMut(&mut Self, usize) -> Result<(), Stop>) -> Result<usize, Stop> {
        if self.peek() != b'[' {
            return self.expected("an array");
        }
        self.enter()?;
        if self.peek() == b']' {
            self.leave();
            return Ok(0);
        }
        let mut count = 0;
        loop {
            each(self, count)?;
            count += 1;
            match self.peek() {
                b',' => self.at += 1,
                b']' => {
                    self.leave();
                    return Ok(count);
                }
                _ => return self.expected("a comma or the end of the array"),
            }
        }
    }

    /// A string, as it stands there with its quotes, and whether there are escapes in it.
    pub(super) fn raw_string(&mut self) -> Result<(&'a str, bool), Stop> {
        if self.peek() != b'"' {
            return self.expected("a string");
        }
        let (start, mut escapes) = (self.at, false);
        self.at += 1;
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            match rest.iter().position(|byte| *byte == b'"' || *byte == b'\\' || *byte < b' ') {
                None => {
                    self.at = self.text.len();
                    return self.expected("the end of a string");
                }
                Some(plain) => self.at += plain,
            }
            match self.byte(self.at) {
                b'"' => {
                    self.at += 1;
                    return Ok((&self.text[start..self.at], escapes));
                }
                b'\\' => {
                    escapes = true;
                    self.at += match self.byte(self.at + 1) {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                        b'u' if (2..6).all(|digit| self.byte(self.at + digit).is_ascii_hexdigit()) => 6,
                        _ => return self.expected("an escape that JSON has"),
                    };
                }
                _ => return self.expected("no control character in a string"),
            }
        }
    }

    /// A string as the text that it means.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>, Stop> {
        let (raw, escapes) = self.raw_string()?;
        if !escapes {
            return Ok(Cow::Borrowed(&raw[1..raw.len() - 1]));
        }
        match serde_json::from_str(raw) {
            Ok(text) => Ok(Cow::Owned(text)),
            Err(_) => Err(Stop::Syntax { what: "surrogates in pairs in a string", at: self.at }),
        }
    }

    /// Whether `null` comes next; then it is read.
    pub(super) fn null(&mut self) -> Result<bool, Stop> {
        if self.peek() != b'n' {
            return Ok(false);
        }
        self.word("null").map(|()| true)
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self) -> Result<bool, Stop> {
        match self.peek() {
            b't' => self.word("true").map(|()| true),
            b'f' => self.word("false").map(|()| false),
            _ => self.expected("true or false"),
        }
    }

    fn word(&mut self, word: &str) -> Result<(), Stop> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return self.expected("a value");
        }
        self.at += word.len();
        Ok(())
    }

    /// A number.
    #[inline]
    pub(super) fn number(&mut self) -> Result<Number<'a>, Stop> {
        self.peek();
        let start = self.at;
        let negative = self.byte(start) == b'-';
        let first = start + usize::from(negative);
        let (mut mantissa, mut at) = self.digits(first, 0);
        if at == first {
            return self.unusual_number(start, first);
        }
        if self.byte(first) == b'0' && at > first + 1 {
            self.at = first + 1;
            return self.expected("no digit after a leading zero");
        }
        let mut digits = if self.byte(first) == b'0' { 0 } else { at - first };
        let (mut exponent, mut whole) = (0i64, true);
        if self.byte(at) == b'.' {
            let fraction = at + 1;
            (mantissa, at) = self.digits(fraction, mantissa);
            digits += at - fraction;
            exponent = -i64::try_from(at - fraction).unwrap_or(i64::MAX);
            whole = false;
            if at == fraction {
                self.at = at;
                return self.expected("a digit after the point");
            }
        }
        if matches!(self.byte(at), b'e' | b'E') {
            at += 1;
            let minus = self.byte(at) == b'-';
            at += usize::from(minus || self.byte(at) == b'+');
            let power = at;
            let mut value = 0i64;
            while let digit @ b'0'..=b'9' = self.byte(at) {
                value = value.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
                at += 1;
            }
            whole = false;
            if at == power {
                self.at = at;
                return self.expected("a digit of the exponent");
            }
            exponent = exponent.saturating_add(if minus { -value } else { value });
        }
        self.at = at;
        let exponent = i32::try_from(exponent);
        Ok(Number {
            text: &self.text[start..at],
            negative,
            mantissa,
            // 19 digits always fit in 64 bits.
            exact: digits <= 19 && exponent.is_ok(),
            exponent: exponent.unwrap_or(0),
            whole,
        })
    }

    /// What is no number for JSON, and one for some who write it.
    #[cold]
    fn unusual_number(&mut self, start: usize, first: usize) -> Result<Number<'a>, Stop> {
        for word in ["Infinity", "NaN"] {
            if self.text.as_bytes()[first..].starts_with(word.as_bytes()) && (word == "Infinity" || start == first) {
                self.at = first + word.len();
                let text = &self.text[start..self.at];
                return Ok(Number { text, negative: start != first, mantissa: 0, exponent: 0, exact: false, whole: false });
            }
        }
        self.at = first;
        self.expected(if start == first { "a value" } else { "a digit" })
    }

    /// Goes over the digits from `at`, and appends them to `mantissa`, which is worth nothing once there are more than 19.
    #[inline]
    fn digits(&self, mut at: usize, mut mantissa: u64) -> (u64, usize) {
        let bytes = self.text.as_bytes();
        while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).and_then(|chunk| eight_digits(*chunk)) {
            mantissa = mantissa.wrapping_mul(100_000_000).wrapping_add(eight);
            at += 8;
        }
        while let digit @ b'0'..=b'9' = self.byte(at) {
            mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            at += 1;
        }
        (mantissa, at)
    }

    /// How many arrays begin before anything else comes, and what that is.
    pub(super) fn openings(&self) -> (usize, u8) {
        let (mut ahead, mut count) = (self.clone(), 0);
        while ahead.peek() == b'[' {
            ahead.at += 1;
            count += 1;
        }
        (count, ahead.peek())
    }

    /// Goes over a value of any kind and says where it stands.
    pub(super) fn skip(&mut self) -> Result<&'a str, Stop> {
        let first = self.peek();
        let start = self.at;
        match first {
            b'{' => self.object(|cursor, _| cursor.skip().map(drop))?,
            b'[' => self.array(|cursor, _| cursor.skip().map(drop)).map(drop)?,
            b'"' => self.raw_string().map(drop)?,
            b't' | b'f' => self.boolean().map(drop)?,
            b'n' => self.word("null")?,
            _ => self.number().map(drop)?,
        }
        Ok(&self.text[start..self.at])
    }
}

/// The number that eight digits stand for, if they are digits. Two, then four, then eight of them are put together at a
/// time.
#[inline]
fn eight_digits(chunk: [u8; 8]) -> Option<u64> {
    const HIGH: u64 = 0xF0F0_F0F0_F0F0_F0F0;
    let word = u64::from_le_bytes(chunk);
    // A digit has 3 in its upper half, also when 6 has been added.
    if (word & HIGH) | ((word.wrapping_add(0x0606_0606_0606_0606) & HIGH) >> 4) != 0x3333_3333_3333_3333 {
        return None;
    }
    let pairs = (word & 0x0F0F_0F0F_0F0F_0F0F).wrapping_mul(10 << 8 | 1) >> 8 & 0x00FF_00FF_00FF_00FF;
    let fours = pairs.wrapping_mul(100 << 16 | 1) >> 16 & 0x0000_FFFF_0000_FFFF;
    Some(fours.wrapping_mul(10_000 << 32 | 1) >> 32)
}

/// The powers of ten that an f64 holds exactly.
const POWERS: [f64; 23] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22];

impl Number<'_> {
    /// As a whole number; `None` for others and beyond 128 bits. `1.0` is not written as one.
    #[inline]
    pub(super) fn integer(&self) -> Option<i128> {
        if self.whole && self.exact {
            let value = i128::from(self.mantissa);
            return Some(if self.negative { -value } else { value });
        }
        if self.whole { self.text.parse().ok() } else { None }
    }

    /// The f64 next to it; infinite only when it says so, `None` when it is too large.
    #[inline]
    pub(super) fn f64(&self) -> Option<f64> {
        const EXACT: u64 = 1 << 53;
        if self.mantissa <= EXACT
            && let Some(value) = self.scaled()
        {
            return Some(value); // both operands are exact, so one rounding is all there is
        }
        self.parsed(f64::is_finite)
    }

    /// The f32 next to it, likewise.
    #[inline]
    pub(super) fn f32(&self) -> Option<f32> {
        if let Some(near) = self.scaled() {
            // Two roundings, by less than four units in the last place: they matter only next to the middle between
            // two f32, where rounding once more could go the wrong way.
            const MIDDLE: u64 = 1 << 28;
            let below_f32 = near.to_bits() & (2 * MIDDLE - 1);
            let value = near as f32;
            if below_f32.abs_diff(MIDDLE) > 4 && value.is_finite() {
                return Some(value);
            }
        }
        self.parsed(f32::is_finite)
    }

    /// Mantissa times power of ten, rounded at most twice. `None` where it might be more.
    #[inline]
    fn scaled(&self) -> Option<f64> {
        if !self.exact {
            return None;
        }
        let power = POWERS.get(self.exponent.unsigned_abs() as usize)?;
        let value = if self.exponent < 0 { self.mantissa as f64 / power } else { self.mantissa as f64 * power };
        Some(if self.negative { -value } else { value })
    }

    #[cold]
    fn parsed<T: std::str::FromStr + Copy>(&self, finite: impl Fn(T) -> bool) -> Option<T> {
        let named = self.text.ends_with(['N', 'y']);
        self.text.parse().ok().filter(|value| named || finite(*value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::value::RawValue;

    use super::*;

    fn config(cases: u32) -> ProptestConfig {
        ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::default() }
    }

    fn whole(text: &str) -> Result<&str, Stop> {
        let mut cursor = Cursor::new(text);
        let value = cursor.skip()?;
        cursor.end().map(|()| value)
    }

    /// Texts that are JSON, nearly JSON, or not.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\"a\"",
            "\"\\u00e9\"",
            "\\",
            "\\u12",
            "0",
            "1",
            "-",
            "12345678",
            "00000000",
            ".",
            "e",
            "E+",
            "e-9",
            " ",
            "\n",
            "true",
            "false",
            "null",
            "nul",
            "ü",
            "\u{1}",
            "[1,2]",
            "{\"a\":1}",
            "[[]]",
            "{}",
            "1.5e3",
            "-0.25",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    /// Decimal numbers of all lengths.
    fn decimals() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<f32>().prop_filter("finite", |number| number.is_finite()).prop_map(|number| format!("{number:e}")),
            any::<f32>().prop_filter("finite", |number| number.is_finite()).prop_map(|number| format!("{}", f64::from(number))),
            any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(|number| format!("{number:?}")),
            (0.0f64..1.0).prop_map(|number| format!("{number}")),
            (0.0f32..1.0).prop_map(|number| format!("{}", f64::from(number))),
            "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?",
        ]
    }

    proptest! {
        #![proptest_config(config(20_000))]

        #[test]
        fn what_is_json_for_serde_is_json_here_and_nothing_else(text in texts()) {
            let theirs = serde_json::from_str::<&RawValue>(&text).map(RawValue::get);
            prop_assert_eq!(whole(&text).ok(), theirs.ok(), "{}", text);
        }

        #[test]
        fn numbers_are_the_ones_that_std_reads(text in decimals()) {
            let number = Cursor::new(&text).number().unwrap();
            let finite = |number: f64| number.is_finite().then_some(number.to_bits());
            prop_assert_eq!(number.f64().map(f64::to_bits), finite(text.parse().unwrap()), "{}", text);
            let wanted: f32 = text.parse().unwrap();
            prop_assert_eq!(number.f32().map(f32::to_bits), wanted.is_finite().then_some(wanted.to_bits()), "{}", text);
            prop_assert_eq!(number.integer(), text.parse().ok(), "{}", text);
        }

        #[test]
        fn the_middle_between_two_f32_is_rounded_as_std_does(bits in 1u32..0x7F00_0000, digits in 17usize..30, nudge in 0usize..3) {
            let (low, high) = (f64::from(f32::from_bits(bits)), f64::from(f32::from_bits(bits + 1)));
            let middle = f64::midpoint(low, high);
            let near = [middle, middle.next_up(), middle.next_down()][nudge];
            for text in [format!("{near}"), format!("{near:e}"), format!("{near:.digits$}"), format!("{near:.digits$e}")] {
                let wanted: f32 = text.parse().unwrap();
                prop_assert_eq!(Cursor::new(&text).number().unwrap().f32(), Some(wanted), "{}", text);
            }
        }

        #[test]
        fn eight_digits_are_the_number_that_they_stand_for(number in 0u64..100_000_000, at in 0usize..8, other in any::<u8>()) {
            let mut chunk: [u8; 8] = format!("{number:08}").into_bytes().try_into().unwrap();
            prop_assert_eq!(eight_digits(chunk), Some(number));
            chunk[at] = other;
            prop_assert_eq!(eight_digits(chunk).is_some(), other.is_ascii_digit());
        }
    }

    #[test]
    fn what_is_no_json_says_what_was_expected_and_where() {
        for (text, what, at) in [
            ("", "a value", 0),
            ("{", "the name of a member in quotes", 1),
            ("{\"a\" 1}", "a colon", 5),
            ("{\"a\":1,}", "the name of a member in quotes", 7),
            ("{\"a\":1 2}", "a comma or the end of the object", 7),
            ("[1 2]", "a comma or the end of the array", 3),
            ("[1,]", "a value", 3),
            ("[01]", "no digit after a leading zero", 2),
            ("[1.]", "a digit after the point", 3),
            ("[1e]", "a digit of the exponent", 3),
            ("[-]", "a digit", 2),
            ("[-NaN]", "a digit", 2),
            ("[nan]", "a value", 1),
            ("tru", "a value", 0),
            ("\"a", "the end of a string", 2),
            ("\"\\x\"", "an escape that JSON has", 1),
            ("\"\\u12g4\"", "an escape that JSON has", 1),
            ("\"a\nb\"", "no control character in a string", 2),
            ("1 1", "nothing after the value", 2),
        ] {
            assert_eq!(whole(text), Err(Stop::Syntax { what, at }), "{text}");
        }
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(whole(&deep(128)).is_ok());
        assert_eq!(whole(&deep(1_000_000)), Err(Stop::Syntax { what: "at most 128 arrays and objects within each other", at: 128 }));
    }

    #[test]
    fn numbers_that_json_has_no_form_for_are_read_as_python_writes_them() {
        for (text, wanted) in [("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)] {
            let number = Cursor::new(text).number().unwrap();
            assert_eq!(number.f64().map(f64::to_bits), Some(wanted.to_bits()), "{text}");
            assert_eq!(number.f32().map(f32::to_bits), Some((wanted as f32).to_bits()), "{text}");
            assert_eq!(number.integer(), None, "{text}");
        }
        for text in ["1e999", "-1e99999999999999999999", "1e39"] {
            assert_eq!(Cursor::new(text).number().unwrap().f32(), None, "{text}: too large");
        }
        assert_eq!(Cursor::new("1e-99999999999999999999").number().unwrap().f64(), Some(0.0));
    }

    #[test]
    fn strings_mean_what_their_escapes_say() {
        for (text, wanted) in [
            (r#""plain""#, Ok("plain")),
            (r#""\u00e9\ud83d\udea2\n\/\"""#, Ok("é🚢\n/\"")),
            (r#""\ud83d""#, Err(Stop::Syntax { what: "surrogates in pairs in a string", at: 8 })),
            (r#""\udea2\ud83d""#, Err(Stop::Syntax { what: "surrogates in pairs in a string", at: 14 })),
        ] {
            assert_eq!(Cursor::new(text).string(), wanted.map(Cow::Borrowed), "{text}");
        }
    }
}
