//! Which model a request asks for.
//!
//! | metadata | meaning |
//! |---|---|
//! | `mm-model-id`, else `mm-model-id-bin` | one exact version |
//! | `mm-vmodel-id`, else `mm-vmodel-id-bin` | a name |
//! | `tas-model-id` | one exact version; only when none of the above is there |
//!
//! Without any of them the message's own `model_name` or `name` counts: a name, else the id of a version.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;

use crate::codes::{Fault, Quoted};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// The version with this id, nothing else.
    Version(Cow<'a, str>),
    /// What this name stands for, else the version with this id.
    Name(Cow<'a, str>),
}

impl Asked<'_> {
    /// The id as the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Asked::Version(id) | Asked::Name(id) => id,
        }
    }

    /// The same without what it was read from.
    #[cfg(test)]
    pub(crate) fn into_owned(self) -> Asked<'static> {
        match self {
            Asked::Version(id) => Asked::Version(Cow::Owned(id.into_owned())),
            Asked::Name(id) => Asked::Name(Cow::Owned(id.into_owned())),
        }
    }
}

/// What `headers` ask for, else `in_message`.
///
/// # Errors
/// [`Fault::BadRequest`]: no id, several, or one that is no text.
pub fn asked<'a>(headers: &'a HeaderMap, in_message: &'a str) -> Result<Asked<'a>, Fault> {
    match in_headers(headers)? {
        Some(asked) => Ok(asked),
        None if in_message.is_empty() => Err(none()),
        None => Ok(Asked::Name(Cow::Borrowed(in_message))),
    }
}

/// What a request asks for that names no model anywhere.
pub(crate) fn none() -> Fault {
    Fault::BadRequest("must include a model: mm-vmodel-id or mm-model-id header, or the name in the message".to_owned())
}

/// What `headers` ask for, where they ask for anything.
///
/// # Errors
/// [`Fault::BadRequest`]: several ids, or one that is no text.
pub(crate) fn in_headers(headers: &HeaderMap) -> Result<Option<Asked<'_>>, Fault> {
    let model = either(headers, "mm-model-id", "mm-model-id-bin")?;
    let name = either(headers, "mm-vmodel-id", "mm-vmodel-id-bin")?;
    match (model, name) {
        (Some(_), Some(_)) => bad("mm-model-id and mm-vmodel-id were both sent: send one of them".to_owned()),
        (Some(id), None) => Ok(Some(Asked::Version(id))),
        (None, Some(id)) => Ok(Some(Asked::Name(id))),
        (None, None) => Ok(text(headers, "tas-model-id")?.map(Asked::Version)),
    }
}

/// What a request asks for that names its model at most once and in plain text, as nearly all do: one look at its headers.
/// `None`: it may be any other.
pub(crate) fn plain(headers: &HeaderMap) -> Option<Option<Asked<'_>>> {
    let mut found = None;
    for (name, value) in headers {
        let is_name = match name.as_str() {
            "mm-model-id" | "tas-model-id" => false,
            "mm-vmodel-id" => true,
            "mm-model-id-bin" | "mm-vmodel-id-bin" => return None,
            _ => continue,
        };
        let id = Cow::Borrowed(std::str::from_utf8(value.as_bytes()).ok().filter(|id| !id.is_empty() && id.is_ascii())?);
        if found.replace(if is_name { Asked::Name(id) } else { Asked::Version(id) }).is_some() {
            return None;
        }
    }
    Some(found)
}

/// The ids of a request that goes to several models, in their order; `None` where it names one or none.
///
/// # Errors
/// [`Fault::BadRequest`]: more than [`MOST`], ids of both kinds, or one that is no text.
pub(crate) fn several(headers: &HeaderMap) -> Result<Option<Vec<Asked<'_>>>, Fault> {
    let all = |name: &'static str, is_name: bool| -> Result<Vec<Asked<'_>>, Fault> {
        let mut asked = Vec::new();
        for value in headers.get_all(name) {
            // Binary values may be joined by commas.
            let parts = if name.ends_with("-bin") { value.as_bytes().split(|byte| *byte == b',').collect() } else { vec![value.as_bytes()] };
            for part in parts {
                let id = if name.ends_with("-bin") { of_base64(name, part.trim_ascii())? } else { of_text(name, part)? };
                asked.push(if is_name { Asked::Name(id) } else { Asked::Version(id) });
            }
        }
        Ok(asked)
    };
    let kind = |plain, binary, is_name| {
        let ids = all(plain, is_name)?;
        if ids.is_empty() { all(binary, is_name) } else { Ok(ids) }
    };
    let (models, names) = (kind("mm-model-id", "mm-model-id-bin", false)?, kind("mm-vmodel-id", "mm-vmodel-id-bin", true)?);
    match (models.len(), names.len()) {
        (0 | 1, 0 | 1) => Ok(None),
        (1.., 1..) => bad("mm-model-id and mm-vmodel-id were both sent: send one of them".to_owned()),
        (count, other) if count + other > MOST => bad(format!("{} models were asked for at once, at most {MOST} are", count + other)),
        (0, _) => Ok(Some(names)),
        _ => Ok(Some(models)),
    }
}

/// Models that one request may go to.
const MOST: usize = 64;

fn bad<T>(message: String) -> Result<T, Fault> {
    Err(Fault::BadRequest(message))
}

/// The text header, else the binary one.
fn either<'a>(headers: &'a HeaderMap, plain: &'static str, binary: &'static str) -> Result<Option<Cow<'a, str>>, Fault> {
    match text(headers, plain)? {
        Some(id) => Ok(Some(id)),
        None => decoded(headers, binary),
    }
}

fn only<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a [u8]>, Fault> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(http::HeaderValue::as_bytes);
    if values.next().is_some() {
        return several_of(name);
    }
    Ok(first)
}

fn several_of<T>(name: &str) -> Result<T, Fault> {
    bad(format!("{name} was sent with several ids: this takes one"))
}

fn checked<'a>(name: &str, id: Cow<'a, str>) -> Result<Cow<'a, str>, Fault> {
    if id.is_empty() { bad(format!("{name} is empty")) } else { Ok(id) }
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<Cow<'a, str>>, Fault> {
    only(headers, name)?.map(|value| of_text(name, value)).transpose()
}

fn of_text<'a>(name: &str, value: &'a [u8]) -> Result<Cow<'a, str>, Fault> {
    match std::str::from_utf8(value) {
        Ok(id) if id.is_ascii() => checked(name, Cow::Borrowed(id)),
        _ => bad(format!("{name} holds other characters than visible ASCII: send {name}-bin")),
    }
}

/// gRPC sends binary metadata in base64, with or without padding, several values joined by commas.
fn decoded<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<Cow<'a, str>>, Fault> {
    let Some(value) = only(headers, name)? else { return Ok(None) };
    if value.contains(&b',') {
        return several_of(name);
    }
    of_base64(name, value).map(Some)
}

fn of_base64<'a>(name: &str, value: &[u8]) -> Result<Cow<'a, str>, Fault> {
    const ANY_PADDING: GeneralPurpose =
        GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));
    let shown = || Quoted::new(&String::from_utf8_lossy(value));
    let Ok(bytes) = ANY_PADDING.decode(value) else { return bad(format!("{name} is {}, that is not base64", shown())) };
    match String::from_utf8(bytes) {
        Ok(id) => checked(name, Cow::Owned(id)),
        Err(_) => bad(format!("{name} is {}, that is not UTF-8 in base64", shown())),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn the_id_comes_from_the_first_header_that_has_one_and_else_from_the_message() {
        let version = |id: &'static str| Asked::Version(id.into());
        let name = |id: &'static str| Asked::Name(id.into());
        for (pairs, in_message, expected) in [
            (&[][..], "m", name("m")),
            (&[("mm-model-id", "a")], "m", version("a")),
            (&[("mm-model-id", "a"), ("mm-model-id-bin", "Yg")], "m", version("a")),
            (&[("mm-model-id-bin", "Yg")], "m", version("b")),
            (&[("mm-model-id-bin", "Yg==")], "", version("b")),
            (&[("mm-vmodel-id", "n")], "m", name("n")),
            (&[("mm-vmodel-id-bin", "bcO8")], "", name("mü")),
            (&[("tas-model-id", "t")], "m", version("t")),
            (&[("tas-model-id", "t"), ("mm-vmodel-id", "n")], "m", name("n")),
            (&[("tas-model-id", "t"), ("mm-model-id-bin", "Yg")], "", version("b")),
            (&[("x-model", "t")], "m", name("m")),
        ] {
            let sent = headers(pairs);
            if let Some(plain) = plain(&sent) {
                assert_eq!(plain.unwrap_or(Asked::Name(in_message.into())), expected, "{pairs:?}, by one look");
            }
            assert_eq!(asked(&sent, in_message), Ok(expected), "{pairs:?}");
        }
    }

    #[test]
    fn a_request_may_go_to_several_models_named_in_one_way() {
        let names = |ids: &[&'static str]| ids.iter().map(|id| Asked::Name((*id).into())).collect::<Vec<_>>();
        let versions = |ids: &[&'static str]| ids.iter().map(|id| Asked::Version((*id).into())).collect::<Vec<_>>();
        for (pairs, expected) in [
            (&[][..], None),
            (&[("mm-model-id", "a")], None),
            (&[("mm-model-id", "a"), ("mm-vmodel-id", "b")], None),
            (&[("mm-model-id", "a"), ("mm-model-id", "b")], Some(versions(&["a", "b"]))),
            (&[("mm-model-id", "a"), ("mm-model-id", "a"), ("mm-model-id-bin", "Yg")], Some(versions(&["a", "a"]))),
            (&[("mm-vmodel-id-bin", "YQ, bcO8"), ("mm-vmodel-id-bin", "Yg==")], Some(names(&["a", "mü", "b"]))),
        ] {
            let mut sent = HeaderMap::new();
            for (name, value) in pairs {
                sent.append(*name, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(several(&sent).map(|asked| asked.map(|ids| ids.into_iter().map(Asked::into_owned).collect())), Ok(expected), "{pairs:?}");
        }
        let mut many = HeaderMap::new();
        for at in 0..=MOST {
            many.append("mm-model-id", HeaderValue::from_str(&format!("m{at}")).unwrap());
        }
        assert!(matches!(several(&many), Err(Fault::BadRequest(text)) if text == "65 models were asked for at once, at most 64 are"));
        let mut both = HeaderMap::new();
        for (name, value) in [("mm-model-id", "a"), ("mm-model-id", "b"), ("mm-vmodel-id", "c")] {
            both.append(name, HeaderValue::from_static(value));
        }
        assert!(matches!(several(&both), Err(Fault::BadRequest(text)) if text.contains("both")));
    }

    #[test]
    fn no_id_two_ids_and_ids_that_are_no_text_are_refused_with_the_header_named() {
        for (pairs, text) in [
            (&[][..], "must include a model"),
            (&[("mm-model-id", "a"), ("mm-vmodel-id", "b")], "both"),
            (&[("mm-model-id-bin", "YQ"), ("mm-vmodel-id-bin", "YQ")], "both"),
            (&[("mm-model-id", "a"), ("mm-model-id", "b")], "mm-model-id was sent with several ids"),
            (&[("mm-vmodel-id-bin", "YQ,Yg")], "mm-vmodel-id-bin was sent with several ids"),
            (&[("mm-model-id", "")], "mm-model-id is empty"),
            (&[("mm-vmodel-id-bin", "")], "mm-vmodel-id-bin is empty"),
            (&[("mm-model-id-bin", "*")], "\"*\", that is not base64"),
            (&[("mm-model-id-bin", "/w==")], "not UTF-8"),
            (&[("mm-model-id", "mü")], "send mm-model-id-bin"),
        ] {
            match asked(&headers(pairs), "") {
                Err(Fault::BadRequest(message)) => assert!(message.contains(text), "{pairs:?}: {message}"),
                other => panic!("{pairs:?}: {other:?}"),
            }
        }
    }
}
