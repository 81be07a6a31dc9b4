//! What a path and a method stand for.

use http::Method;

use crate::codes::{Fault, Quoted};

/// What a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `GET /v2`
    Server,
    /// `GET /v2/health/live`
    Live,
    /// `GET /v2/health/ready`
    Ready,
    /// `GET /v2/models/{model}[/versions/{version}]`, also with `?version=`
    Model { model: String, version: Option<String> },
    /// `GET /v2/models/{model}[/versions/{version}]/ready`
    ModelReady { model: String, version: Option<String> },
    /// `POST /v2/models/{model}[/versions/{version}]/infer`
    Infer { model: String, version: Option<String> },
    /// `GET` or `POST /v2/repository/index`
    Index,
    /// `OPTIONS` of any of these: what it takes besides.
    Options(&'static str),
}

impl Target {
    const fn allow(&self) -> &'static str {
        match self {
            Target::Server | Target::Live | Target::Ready | Target::Model { .. } | Target::ModelReady { .. } => "GET, HEAD",
            Target::Infer { .. } => "POST",
            Target::Index => "GET, HEAD, POST",
            Target::Options(allow) => allow,
        }
    }
}

/// Reads a request line. A model's name is one segment, percent-encoded where it must be; a slash at the end is ignored.
///
/// # Errors
/// No such path, another method, or a segment that is no text.
pub(super) fn target(method: &Method, path: &str, query: Option<&str>) -> Result<Target, Fault> {
    let segments: Vec<&str> = path.strip_suffix('/').unwrap_or(path).split('/').skip(1).collect();
    let target = match segments[..] {
        ["v2"] => Target::Server,
        ["v2", "health", "live"] => Target::Live,
        ["v2", "health", "ready"] => Target::Ready,
        ["v2", "repository", "index"] => Target::Index,
        ["v2", "models", model] if !model.is_empty() => {
            let version = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("version="));
            Target::Model { model: decoded(model)?, version: version.map(decoded).transpose()? }
        }
        ["v2", "models", model, "versions", version] => Target::Model { model: decoded(model)?, version: Some(decoded(version)?) },
        ["v2", "models", model, "ready"] => Target::ModelReady { model: decoded(model)?, version: None },
        ["v2", "models", model, "versions", version, "ready"] => Target::ModelReady { model: decoded(model)?, version: Some(decoded(version)?) },
        ["v2", "models", model, "infer"] => Target::Infer { model: decoded(model)?, version: None },
        ["v2", "models", model, "versions", version, "infer"] => Target::Infer { model: decoded(model)?, version: Some(decoded(version)?) },
        _ => return Err(Fault::UnknownPath(Quoted::new(path))),
    };
    let allow = target.allow();
    if *method == Method::OPTIONS {
        Ok(Target::Options(allow))
    } else if allow.split(", ").any(|allowed| allowed == method.as_str()) {
        Ok(target)
    } else {
        Err(Fault::WrongMethod { method: method.to_string(), allow })
    }
}

fn decoded(segment: &str) -> Result<String, Fault> {
    let bad = || Fault::BadRequest(format!("{} in the path is not percent-encoded UTF-8", Quoted::new(segment)));
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(*digit).to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(bad()) };
        bytes.push(high << 4 | low);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_what_the_protocol_says() {
        let model = |model: &str, version: Option<&str>| Target::Model { model: model.to_owned(), version: version.map(str::to_owned) };
        let infer = |model: &str, version: Option<&str>| Target::Infer { model: model.to_owned(), version: version.map(str::to_owned) };
        let ready = |model: &str, version: Option<&str>| Target::ModelReady { model: model.to_owned(), version: version.map(str::to_owned) };
        for (method, path, query, expected) in [
            ("GET", "/v2", None, Target::Server),
            ("GET", "/v2/", None, Target::Server),
            ("HEAD", "/v2/health/live", None, Target::Live),
            ("GET", "/v2/health/ready", None, Target::Ready),
            ("GET", "/v2/models/m", None, model("m", None)),
            ("GET", "/v2/models/m/", Some("x=1&version=2"), model("m", Some("2"))),
            ("GET", "/v2/models/m/versions/3", None, model("m", Some("3"))),
            ("GET", "/v2/models/m/ready", None, ready("m", None)),
            ("GET", "/v2/models/m/versions/3/ready", None, ready("m", Some("3"))),
            ("POST", "/v2/models/m/infer", None, infer("m", None)),
            ("POST", "/v2/models/m/versions/3/infer", None, infer("m", Some("3"))),
            ("POST", "/v2/models/a%2Fb%20c%c3%bc+/infer", None, infer("a/b cü+", None)),
            ("POST", "/v2/repository/index", None, Target::Index),
            ("GET", "/v2/repository/index", Some("ready=true"), Target::Index),
            ("OPTIONS", "/v2/models/m/infer", None, Target::Options("POST")),
        ] {
            assert_eq!(target(&method.parse().unwrap(), path, query), Ok(expected), "{method} {path}");
        }
    }

    #[test]
    fn other_paths_methods_and_encodings_are_told_apart() {
        for (method, path, expected) in [
            ("GET", "/", "no such path: \"/\""),
            ("GET", "/v1/models/m:predict", "no such path: \"/v1/models/m:predict\""),
            ("GET", "/v2/models", "no such path: \"/v2/models\""),
            ("GET", "/v2/models//", "no such path: \"/v2/models//\""),
            ("GET", "/v2/models/m/generate", "no such path: \"/v2/models/m/generate\""),
            ("GET", "/v2/models/m/infer", "GET is not allowed here, POST is"),
            ("DELETE", "/v2/health/live", "DELETE is not allowed here, GET, HEAD is"),
            ("POST", "/v2/models/%zz/infer", "\"%zz\" in the path is not percent-encoded UTF-8"),
            ("POST", "/v2/models/%e/infer", "\"%e\" in the path is not percent-encoded UTF-8"),
            ("POST", "/v2/models/%ff/infer", "\"%ff\" in the path is not percent-encoded UTF-8"),
        ] {
            assert_eq!(target(&method.parse().unwrap(), path, None).unwrap_err().to_string(), expected, "{method} {path}");
        }
    }
}
