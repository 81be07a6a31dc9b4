//! What a server calls a model.
//!
//! An ordinary id is its own name. Servers keep a model in a folder of its name and find others by looking for folders, so
//! an id that holds a slash, starts with a dot or is longer than a file name may be needs another one. A byte that is not
//! a letter, a digit, `_`, `-` or `.` becomes `~` and two hexadecimal digits, and so does a leading dot; that can be read
//! back. What is too long even so is cut and ends in `~=` and its digest: different for different ids, and known again by
//! whoever knows the id. The parts of an ensemble are named after it, with `~.` between.

use std::fmt::Write as _;

use berth_types::ModelId;

/// In bytes. File systems take 255; some servers append to it.
const LONGEST: usize = 240;

/// What is kept of a name that is too long, for people.
const KEPT: usize = 100;

/// What stands before the name of a part, which itself holds no `~.`.
const PART: &str = "~.";

/// What stands before the digest of a name that is too long.
const DIGEST: &str = "~=";

/// Who a name found in a server belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// The model with this id.
    Model(ModelId),
    /// A part of an ensemble; it comes and goes with the ensemble.
    Part {
        /// The ensemble; `None` where its name is none of ours, or too long to be read back.
        of: Option<ModelId>,
    },
    /// A model with a long id: whoever knows the ids can compare.
    Long,
    /// None of ours.
    Foreign,
}

/// What the server calls the model, and what its folder is called.
pub(crate) fn server_name(id: &ModelId) -> String {
    fit(escaped(id.as_str()), "")
}

/// What the server calls a part of an ensemble.
pub(crate) fn part_name(id: &ModelId, part: &str) -> String {
    let (model, part) = (escaped(id.as_str()), escaped(part));
    fit(format!("{model}{PART}{part}"), PART)
}

/// Whose name it is.
pub(crate) fn named(name: &str) -> Named {
    if let Some((model, _)) = name.split_once(PART) {
        let of = if let Named::Model(model) = named(model) { Some(model) } else { None };
        return Named::Part { of };
    }
    if name.contains(DIGEST) {
        return Named::Long;
    }
    match unescaped(name).and_then(|id| ModelId::new(id).ok()) {
        // Only the one name that we would have given counts.
        Some(id) if server_name(&id) == name => Named::Model(id),
        _ => Named::Foreign,
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && at > 0) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "~{byte:02X}");
        }
    }
    out
}

fn unescaped(name: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(name.len()), name.as_bytes());
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'~' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The name itself, or its beginning and its digest; `end` keeps a part known as one.
fn fit(name: String, end: &str) -> String {
    if name.len() <= LONGEST {
        return name;
    }
    let digest = blake3::hash(name.as_bytes()).to_hex();
    let mut kept = KEPT;
    // Not in the middle of an escape: what is left would read as something else.
    while name.as_bytes()[kept.saturating_sub(2)..kept].contains(&b'~') {
        kept -= 1;
    }
    let kept = name[..kept].replace(PART, "");
    format!("{kept}{DIGEST}{digest}{end}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> ModelId {
        ModelId::new(text).expect("valid")
    }

    #[test]
    fn an_ordinary_id_is_its_own_name_and_any_other_is_escaped() {
        for (text, name) in [
            ("digits__isvc-3d2daa3370", "digits__isvc-3d2daa3370"),
            ("a.b-c_D9", "a.b-c_D9"),
            ("team/model", "team~2Fmodel"),
            (".hidden", "~2Ehidden"),
            ("..", "~2E."),
            ("a~b", "a~7Eb"),
            ("a b\\c", "a~20b~5Cc"),
            ("ü", "~C3~BC"),
        ] {
            assert_eq!(server_name(&id(text)), name, "{text}");
            assert_eq!(named(name), Named::Model(id(text)), "{text}");
        }
    }

    #[test]
    fn names_that_we_do_not_give_are_foreign() {
        for name in ["", ".", "..", ".berth", "a/b", "a~2fb", "a~zz", "a~2", "~61", "a b", "~FF"] {
            assert_eq!(named(name), Named::Foreign, "{name}");
        }
    }

    #[test]
    fn a_long_id_gets_a_name_of_its_own_that_fits() {
        let (one, other) = ("x".repeat(1000), format!("{}y", "x".repeat(999)));
        let (first, second) = (server_name(&id(&one)), server_name(&id(&other)));
        assert!(first != second && first.len() <= LONGEST && second.len() <= LONGEST, "{first} {second}");
        assert_eq!((named(&first), first.starts_with("xxxx")), (Named::Long, true));
        assert_eq!(server_name(&id(&"x".repeat(LONGEST))), "x".repeat(LONGEST));
        let part = part_name(&id(&one), "pre");
        assert!(part != first && part != part_name(&id(&one), "post") && part.len() <= LONGEST, "{part}");
        assert!(matches!(named(&part), Named::Part { .. }));
    }

    #[test]
    fn a_part_is_named_after_its_ensemble_and_never_like_a_model() {
        assert_eq!(part_name(&id("m"), "pre"), "m~.pre");
        assert_eq!(named("m~.pre"), Named::Part { of: ModelId::new("m").ok() });
        assert_eq!(named("m__isvc-1~.first"), Named::Part { of: ModelId::new("m__isvc-1").ok() });
        assert_eq!(named("a~2Fb~.first"), Named::Part { of: ModelId::new("a/b").ok() });
        assert_eq!(named("~.x"), Named::Part { of: None });
        assert_ne!(part_name(&id("a"), "b~.c"), part_name(&id("a~.b"), "c"));
        assert_eq!(named(&server_name(&id("m~.pre"))), Named::Model(id("m~.pre")));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn every_name_is_a_file_name_and_is_read_back(text in "[a-z./~=ü %]{1,40}", other in "[a-z./~=ü %]{1,40}", repeat in 1usize..20) {
            let (text, other) = (text.repeat(repeat), other.repeat(repeat));
            prop_assume!(text.len() <= 1024 && other.len() <= 1024);
            let name = server_name(&id(&text));
            prop_assert!(name.len() <= LONGEST && !name.starts_with('.') && !name.contains('/') && name.is_ascii());
            match named(&name) {
                Named::Model(back) => prop_assert_eq!(back.as_str(), text.as_str()),
                Named::Long => prop_assert!(text.len() * 3 > LONGEST),
                other => prop_assert!(false, "{:?}", other),
            }
            prop_assert_eq!(name == server_name(&id(&other)), text == other);
            let part = part_name(&id(&text), &other);
            let is_part = matches!(named(&part), Named::Part { .. });
            prop_assert!(is_part, "{part}");
            prop_assert!(part.len() <= LONGEST && !part.starts_with('.') && !part.contains('/'));
        }
    }
}
