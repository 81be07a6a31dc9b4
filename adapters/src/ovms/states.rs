//! What the server's answers say of its models.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::IndexEntry;

/// How the server sees a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It takes no memory there.
    Absent,
    Is(IndexEntry),
    /// It could not be loaded, in the server's words.
    Failed(String),
}

/// Every model that the server has heard of, by its own name for it.
pub(super) type States = BTreeMap<String, State>;

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    model_version_status: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    state: String,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    error_code: String,
    #[serde(default)]
    error_message: String,
}

/// The states in an answer to either call.
///
/// # Errors
/// What is wrong with it.
pub(super) fn states(body: &[u8]) -> Result<States, String> {
    if body.trim_ascii().is_empty() {
        return Ok(States::new());
    }
    let models: BTreeMap<String, Model> = serde_json::from_slice(body).map_err(|fault| fault.to_string())?;
    Ok(models.into_iter().map(|(name, model)| (name, state(&model.model_version_status))).collect())
}

/// Of several versions the one counts that takes memory, or else the one that failed.
fn state(versions: &[Version]) -> State {
    let (mut best, mut rank) = (State::Absent, 0);
    for version in versions {
        let (state, its) = match version.state.as_str() {
            "AVAILABLE" => (State::Is(IndexEntry::Ready), 4),
            "UNLOADING" => (State::Is(IndexEntry::Unloading), 3),
            // A version that cannot be loaded stays in this state, with an error.
            "START" | "LOADING" if version.status.is_fault() => (State::Failed(version.status.words()), 1),
            "START" | "LOADING" => (State::Is(IndexEntry::Loading), 2),
            _ => (State::Absent, 0),
        };
        if its > rank {
            (best, rank) = (state, its);
        }
    }
    best
}

impl Status {
    fn is_fault(&self) -> bool {
        !matches!(self.error_code.as_str(), "" | "OK" | "0")
    }

    fn words(&self) -> String {
        if self.error_message.is_empty() || self.error_message == self.error_code {
            self.error_code.clone()
        } else {
            format!("{}: {}", self.error_code, self.error_message)
        }
    }
}

/// The words of an answer that is an error.
pub(super) fn error(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Error {
        error: String,
    }
    match serde_json::from_slice::<Error>(body) {
        Ok(Error { error }) => error,
        Err(_other) => String::from_utf8_lossy(&body[..body.len().min(LONGEST)]).trim().to_owned(),
    }
}

/// How much is shown of an answer that is not what it should be.
const LONGEST: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_the_server_writes_them() {
        let read = |text: &str| states(text.as_bytes()).expect("it can be read");
        let ready = State::Is(IndexEntry::Ready);
        assert_eq!(read(include_str!("golden/available.json")), [("digits__isvc-3d2daa3370".to_owned(), ready.clone())].into());
        assert_eq!(read(include_str!("golden/nothing.json")), States::new());
        assert_eq!(read(""), States::new());
        let several = read(include_str!("golden/several.json"));
        for (name, expected) in [
            ("absent", State::Absent),
            ("began", State::Is(IndexEntry::Loading)),
            ("broken", State::Failed("UNKNOWN: Cannot compile model into target device".to_owned())),
            ("ended", State::Absent),
            ("leaving", State::Is(IndexEntry::Unloading)),
            ("loading", State::Is(IndexEntry::Loading)),
            ("renewed", ready),
        ] {
            assert_eq!(several[name], expected, "{name}");
        }
        assert_eq!(several.len(), 7);
    }

    #[test]
    fn an_error_is_told_in_the_servers_words_and_an_odd_answer_in_its_first() {
        assert_eq!(error(include_bytes!("golden/error.json")), "Reloading config file failed. Check server logs for more info.");
        assert_eq!(error(b"<html>502</html>\n"), "<html>502</html>");
        assert_eq!(error(&b"x".repeat(1000)).len(), LONGEST);
        assert!(states(b"<html>").is_err() && states(include_bytes!("golden/error.json")).is_err());
    }
}
