//! Statuses as resources hold them: the JSON of both kinds, and back.
//!
//! Only our own members are written; what others put into a status stays as it is. InferenceServices get both spellings
//! of two members (`copies` and `modelCopies`, `modelRevisionName` and `modelId`): the CRD's and the documentation's.

use berth_types::{Location, ModelId, Owner, Reason, UnixMillis};
use serde_json::{Map, Value, json};

use super::{FailureInfo, ModelState, Status, Transition};
use crate::resource::OtherParts;

/// The condition of the only part that we answer for.
const PREDICTOR_READY: &str = "PredictorReady";
/// The condition that says whether every part that the resource asks for is ready.
const READY: &str = "Ready";
/// Why the condition of another part is false when nobody runs that part.
pub const NOT_SERVED: &str = "NotServed";

/// Where clients reach what the statuses describe; the same for every resource. `None` where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// gRPC, as a URL: `grpc://host:8033`.
    pub grpc: Option<String>,
    /// REST, as a URL: `http://host:8008`.
    pub rest: Option<String>,
}

impl ModelState {
    /// The word as it stands in a status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ModelState::Pending => "Pending",
            ModelState::Standby => "Standby",
            ModelState::Loading => "Loading",
            ModelState::Loaded => "Loaded",
            ModelState::FailedToLoad => "FailedToLoad",
        }
    }

    fn read(value: Option<&Value>) -> Option<Self> {
        let text = value?.as_str()?;
        [ModelState::Pending, ModelState::Standby, ModelState::Loading, ModelState::Loaded, ModelState::FailedToLoad]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

impl Transition {
    /// The word as it stands in a status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Transition::UpToDate => "UpToDate",
            Transition::InProgress => "InProgress",
            Transition::BlockedByFailedLoad => "BlockedByFailedLoad",
            Transition::InvalidSpec => "InvalidSpec",
        }
    }

    fn read(value: Option<&Value>) -> Option<Self> {
        let text = value?.as_str()?;
        [Transition::UpToDate, Transition::InProgress, Transition::BlockedByFailedLoad, Transition::InvalidSpec]
            .into_iter()
            .find(|transition| transition.as_str() == text)
    }
}

/// What a status document says beside the status itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circumstances<'a> {
    /// Where clients connect.
    pub endpoints: &'a Endpoints,
    /// What else the resource asks for.
    pub others: OtherParts,
    /// The time of conditions that change with this document.
    pub now: UnixMillis,
}

/// The status document of a resource, with what others wrote into `existing` left in place. A condition keeps its time
/// for as long as its status stays what it is.
#[must_use]
pub fn to_json(owner: Owner, existing: Option<&Value>, status: &Status, around: &Circumstances<'_>) -> Value {
    let mut document = existing.and_then(Value::as_object).cloned().unwrap_or_default();
    match owner {
        Owner::Ksp => predictor(&mut document, status, around.endpoints),
        Owner::Isvc => inference_service(&mut document, status, around),
    }
    Value::Object(document)
}

/// Sets a member, or removes it.
fn put(map: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    match value {
        Some(value) => map.insert(name.to_owned(), value),
        None => map.remove(name),
    };
}

fn predictor(document: &mut Map<String, Value>, status: &Status, endpoints: &Endpoints) {
    let text = |text: &Option<String>| text.as_deref().map(Value::from);
    put(document, "observedGeneration", status.observed_generation.map(Value::from));
    put(document, "available", Some(status.available.into()));
    put(document, "transitionStatus", Some(status.transition.as_str().into()));
    put(document, "activeModelState", Some(status.active.as_str().into()));
    put(document, "targetModelState", Some(status.target.map_or("", ModelState::as_str).into()));
    put(document, "failedCopies", Some(status.failed_copies.into()));
    put(document, "totalCopies", Some(status.total_copies.into()));
    put(document, "grpcEndpoint", text(&endpoints.grpc));
    put(document, "httpEndpoint", text(&endpoints.rest));
    put(document, "lastFailureInfo", status.failure.as_ref().map(|info| failure(info, &["modelId"])));
}

fn inference_service(document: &mut Map<String, Value>, status: &Status, around: &Circumstances<'_>) {
    let endpoints = around.endpoints;
    put(document, "observedGeneration", status.observed_generation.map(Value::from));
    let primary = endpoints.grpc.as_deref().or(endpoints.rest.as_deref());
    put(document, "url", primary.filter(|_| status.available).map(Value::from));

    let mut components = document.get("components").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut ours = Map::new();
    put(&mut ours, "url", primary.map(Value::from));
    put(&mut ours, "grpcUrl", endpoints.grpc.as_deref().map(Value::from));
    put(&mut ours, "restUrl", endpoints.rest.as_deref().map(Value::from));
    put(&mut components, "predictor", status.available.then_some(ours.into()));
    put(document, "components", (!components.is_empty()).then_some(components.into()));

    let existing = document.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    put(document, "conditions", Some(conditions(existing, status.available, around).into()));

    let mut states = Map::from_iter([("activeModelState".to_owned(), Value::from(status.active.as_str()))]);
    put(&mut states, "targetModelState", status.target.map(|target| target.as_str().into()));
    let mut copies = Map::from_iter([("failedCopies".to_owned(), Value::from(status.failed_copies))]);
    put(&mut copies, "totalCopies", (status.total_copies > 0).then_some(status.total_copies.into()));
    let mut model = json!({
        "transitionStatus": status.transition.as_str(),
        "states": states,
        "copies": copies,
        "modelCopies": copies,
    });
    if let (Some(info), Some(model)) = (&status.failure, model.as_object_mut()) {
        model.insert("lastFailureInfo".to_owned(), failure(info, &["modelRevisionName", "modelId"]));
    }
    put(document, "modelStatus", Some(model));
}

fn member<'a>(condition: &'a Value, name: &str) -> &'a str {
    condition.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The conditions of an InferenceService, sorted by type.
///
/// A transformer or explainer that is asked for and that nobody else reports on gets a condition that says it is not
/// served; one that another controller runs and reports on is taken at its word. `Ready` is false while any part is.
fn conditions(existing: Vec<Value>, available: bool, around: &Circumstances<'_>) -> Vec<Value> {
    let parts = [
        (around.others.transformer, "TransformerReady", "the transformer is not run here: requests reach the predictor without it"),
        (around.others.explainer, "ExplainerReady", "the explainer is not run here: there are predictions without explanations"),
    ];
    let (mine, mut all): (Vec<Value>, Vec<Value>) = existing.into_iter().partition(|condition| {
        let kind = member(condition, "type");
        kind == PREDICTOR_READY || kind == READY || parts.iter().any(|(_, part, _)| *part == kind) && member(condition, "reason") == NOT_SERVED
    });
    let mut ready = (available, None);
    let mut ours = vec![(PREDICTOR_READY, available, None)];
    for (_, part, message) in parts.into_iter().filter(|(asked, ..)| *asked) {
        match all.iter().find(|condition| member(condition, "type") == part) {
            Some(theirs) => ready.0 &= member(theirs, "status") == "True",
            None => {
                ours.push((part, false, Some(message)));
                ready = (false, ready.1.or(Some(message)));
            }
        }
    }
    ours.push((READY, ready.0, ready.1));
    for (kind, holds, message) in ours {
        let status = if holds { "True" } else { "False" };
        let before = mine.iter().find(|condition| member(condition, "type") == kind && member(condition, "status") == status);
        let since = before.map(|condition| member(condition, "lastTransitionTime")).filter(|time| !time.is_empty());
        let since = since.map_or_else(|| around.now.rfc3339(), str::to_owned);
        let mut condition = json!({ "type": kind, "status": status, "lastTransitionTime": since });
        if let (Some(message), Some(members)) = (message, condition.as_object_mut()) {
            members.extend([("reason".to_owned(), NOT_SERVED.into()), ("message".to_owned(), message.into())]);
        }
        all.push(condition);
    }
    all.sort_by(|a, b| member(a, "type").cmp(member(b, "type")));
    all
}

fn failure(info: &FailureInfo, id_names: &[&str]) -> Value {
    let mut written =
        Map::from_iter([("reason".to_owned(), Value::from(info.reason.as_str())), ("message".to_owned(), Value::from(info.message.as_str()))]);
    put(&mut written, "location", info.location.as_ref().map(|location| location.as_str().into()));
    put(&mut written, "time", info.time.map(|time| time.rfc3339().into()));
    for name in id_names {
        put(&mut written, name, info.model.as_ref().map(|model| model.as_str().into()));
    }
    written.into()
}

/// What a status document says; the default for members that are missing or not ours to understand.
#[must_use]
pub fn from_json(owner: Owner, document: &Value) -> Status {
    let count = |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
    let observed_generation = document.get("observedGeneration").and_then(Value::as_u64);
    match owner {
        Owner::Ksp => Status {
            observed_generation,
            active: ModelState::read(document.get("activeModelState")).unwrap_or_default(),
            target: ModelState::read(document.get("targetModelState")),
            transition: Transition::read(document.get("transitionStatus")).unwrap_or_default(),
            available: document.get("available").and_then(Value::as_bool).unwrap_or(false),
            failed_copies: count(document.get("failedCopies")),
            total_copies: count(document.get("totalCopies")),
            failure: document.get("lastFailureInfo").and_then(read_failure),
        },
        Owner::Isvc => {
            let at = |path: &str| document.pointer(path);
            let conditions = at("/conditions").and_then(Value::as_array);
            let ready = conditions.into_iter().flatten().find(|condition| member(condition, "type") == PREDICTOR_READY);
            Status {
                observed_generation,
                active: ModelState::read(at("/modelStatus/states/activeModelState")).unwrap_or_default(),
                target: ModelState::read(at("/modelStatus/states/targetModelState")),
                transition: Transition::read(at("/modelStatus/transitionStatus")).unwrap_or_default(),
                available: ready.is_some_and(|ready| member(ready, "status") == "True"),
                failed_copies: count(at("/modelStatus/copies/failedCopies")),
                total_copies: count(at("/modelStatus/copies/totalCopies")),
                failure: at("/modelStatus/lastFailureInfo").and_then(read_failure),
            }
        }
    }
}

fn read_failure(document: &Value) -> Option<FailureInfo> {
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    let id = text("modelId").or_else(|| text("modelRevisionName"));
    Some(FailureInfo {
        reason: serde_json::from_value::<Reason>(document.get("reason")?.clone()).ok()?,
        location: text("location").map(Location::of_pod_name),
        message: text("message").unwrap_or_default().to_owned(),
        model: id.and_then(|id| ModelId::new(id).ok()),
        time: text("time").and_then(read_time),
    })
}

/// Reads `2026-11-22T07:43:44Z`, the only form that we write; `None` for others and for times before 1970.
fn read_time(text: &str) -> Option<UnixMillis> {
    let bytes = text.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:ddZ";
    if bytes.len() != shape.len() || !bytes.iter().zip(shape).all(|(byte, shape)| if *shape == b'd' { byte.is_ascii_digit() } else { byte == shape })
    {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to).and_then(|digits| digits.parse::<u64>().ok());
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Years that begin in March put the leap day last: the days before a month are then (153 m + 2) / 5.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + (day - 1);
    let since_epoch = days.checked_sub(719_468)?; // from 0000-03-01 to 1970-01-01
    Some(UnixMillis((since_epoch * 86_400 + hour * 3600 + minute * 60 + second) * 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: UnixMillis = UnixMillis(1_795_333_400_000);

    fn written(owner: Owner, existing: Option<&Value>, status: &Status) -> Value {
        written_with(owner, existing, status, OtherParts::default(), THEN)
    }

    fn written_with(owner: Owner, existing: Option<&Value>, status: &Status, others: OtherParts, now: UnixMillis) -> Value {
        let endpoints = Endpoints { grpc: Some("grpc://localhost:8033".to_owned()), rest: Some("http://localhost:8008".to_owned()) };
        to_json(owner, existing, status, &Circumstances { endpoints: &endpoints, others, now })
    }

    fn failed() -> Status {
        Status {
            observed_generation: Some(3),
            active: ModelState::Loaded,
            target: Some(ModelState::FailedToLoad),
            transition: Transition::BlockedByFailedLoad,
            available: true,
            failed_copies: 1,
            total_copies: 2,
            failure: Some(FailureInfo {
                reason: Reason::ModelLoadFailed,
                location: Some(Location::of_pod_name("5d4f-abcdefgh")),
                message: "no such object".to_owned(),
                model: ModelId::new("m__isvc-1").ok(),
                time: Some(UnixMillis(1_795_333_424_000)),
            }),
        }
    }

    #[test]
    fn an_inference_service_gets_exactly_the_documented_members() {
        assert_eq!(
            written(Owner::Isvc, None, &failed()),
            json!({
                "observedGeneration": 3,
                "url": "grpc://localhost:8033",
                "components": { "predictor": { "url": "grpc://localhost:8033", "grpcUrl": "grpc://localhost:8033", "restUrl": "http://localhost:8008" } },
                "conditions": [
                    { "type": "PredictorReady", "status": "True", "lastTransitionTime": "2026-11-22T07:43:20Z" },
                    { "type": "Ready", "status": "True", "lastTransitionTime": "2026-11-22T07:43:20Z" }
                ],
                "modelStatus": {
                    "transitionStatus": "BlockedByFailedLoad",
                    "states": { "activeModelState": "Loaded", "targetModelState": "FailedToLoad" },
                    "copies": { "failedCopies": 1, "totalCopies": 2 },
                    "modelCopies": { "failedCopies": 1, "totalCopies": 2 },
                    "lastFailureInfo": { "reason": "ModelLoadFailed", "location": "d4f-abcdefgh", "message": "no such object",
                        "modelRevisionName": "m__isvc-1", "modelId": "m__isvc-1", "time": "2026-11-22T07:43:44Z" }
                }
            })
        );
        let nowhere = Circumstances { endpoints: &Endpoints::default(), others: OtherParts::default(), now: UnixMillis(0) };
        assert_eq!(
            to_json(Owner::Isvc, None, &Status::default(), &nowhere),
            json!({
                "conditions": [
                    { "type": "PredictorReady", "status": "False", "lastTransitionTime": "1970-01-01T00:00:00Z" },
                    { "type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:00:00Z" }
                ],
                "modelStatus": { "transitionStatus": "UpToDate", "states": { "activeModelState": "Pending" }, "copies": { "failedCopies": 0 }, "modelCopies": { "failedCopies": 0 } }
            })
        );
    }

    #[test]
    fn a_predictor_gets_exactly_the_documented_members() {
        assert_eq!(
            written(Owner::Ksp, None, &failed()),
            json!({
                "observedGeneration": 3, "available": true, "transitionStatus": "BlockedByFailedLoad", "activeModelState": "Loaded", "targetModelState": "FailedToLoad",
                "failedCopies": 1, "totalCopies": 2, "grpcEndpoint": "grpc://localhost:8033", "httpEndpoint": "http://localhost:8008",
                "lastFailureInfo": { "reason": "ModelLoadFailed", "location": "d4f-abcdefgh", "message": "no such object", "modelId": "m__isvc-1", "time": "2026-11-22T07:43:44Z" }
            })
        );
        assert_eq!(
            to_json(
                Owner::Ksp,
                None,
                &Status::default(),
                &Circumstances { endpoints: &Endpoints::default(), others: OtherParts::default(), now: THEN }
            ),
            json!({ "available": false, "transitionStatus": "UpToDate", "activeModelState": "Pending", "targetModelState": "", "failedCopies": 0, "totalCopies": 0 })
        );
    }

    #[test]
    fn what_others_wrote_stays_and_what_we_no_longer_say_goes() {
        let existing = json!({
            "deploymentMode": "ModelMesh", "url": "grpc://old", "components": { "transformer": { "url": "http://t" }, "predictor": { "url": "grpc://old" } },
            "conditions": [{ "type": "IngressReady", "status": "Unknown", "reason": "NotServed" }, { "type": "Ready", "status": "True" }], "modelStatus": { "lastFailureInfo": {} }
        });
        let written = written(Owner::Isvc, Some(&existing), &Status { active: ModelState::FailedToLoad, ..Status::default() });
        assert_eq!(written["deploymentMode"], "ModelMesh");
        assert_eq!(written["components"], json!({ "transformer": { "url": "http://t" } }));
        assert!(written.get("url").is_none() && written["modelStatus"].get("lastFailureInfo").is_none());
        let kinds: Vec<&str> = written["conditions"].as_array().expect("a list").iter().filter_map(|one| one["type"].as_str()).collect();
        assert_eq!(kinds, ["IngressReady", "PredictorReady", "Ready"]);
    }

    fn times(document: &Value) -> Vec<(&str, &str, &str)> {
        let conditions = document["conditions"].as_array().expect("a list").iter();
        conditions.map(|one| (member(one, "type"), member(one, "status"), member(one, "lastTransitionTime"))).collect()
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let up = failed();
        let down = Status { available: false, ..failed() };
        let (t0, t1) = ("2026-11-22T07:43:20Z", "2026-11-22T07:44:20Z");
        let minute = |n: u64| UnixMillis(THEN.0 + n * 60_000);
        let at = |existing: Option<&Value>, status: &Status, now| written_with(Owner::Isvc, existing, status, OtherParts::default(), now);
        let first = at(None, &up, minute(0));
        assert_eq!(times(&first), [("PredictorReady", "True", t0), ("Ready", "True", t0)]);
        let same = at(Some(&first), &Status { total_copies: 7, ..up }, minute(1));
        assert_eq!(times(&same), times(&first));
        let lost = at(Some(&same), &down, minute(1));
        assert_eq!(times(&lost), [("PredictorReady", "False", t1), ("Ready", "False", t1)]);
    }

    #[test]
    fn a_transformer_or_explainer_that_nobody_runs_is_said_not_to_be_served() {
        let transformer = OtherParts { transformer: true, explainer: false };
        let both = OtherParts { transformer: true, explainer: true };
        let first = written_with(Owner::Isvc, None, &failed(), both, THEN);
        let kinds = |document: &Value| times(document).iter().map(|(kind, status, _)| format!("{kind}={status}")).collect::<Vec<_>>();
        assert_eq!(kinds(&first), ["ExplainerReady=False", "PredictorReady=True", "Ready=False", "TransformerReady=False"]);
        for (at, part) in [(0, "explainer"), (2, "transformer"), (3, "transformer")] {
            let condition = &first["conditions"][at];
            assert_eq!(condition["reason"], NOT_SERVED);
            assert!(condition["message"].as_str().is_some_and(|message| message.contains(part)), "{condition}");
        }
        let one = written_with(Owner::Isvc, Some(&first), &failed(), transformer, THEN);
        assert_eq!(kinds(&one), ["PredictorReady=True", "Ready=False", "TransformerReady=False"]);
        assert_eq!(from_json(Owner::Isvc, &one), failed(), "the predictor itself is ready");
        let minute_later = UnixMillis(THEN.0 + 60_000);
        let none = written_with(Owner::Isvc, Some(&one), &failed(), OtherParts::default(), minute_later);
        assert_eq!(times(&none), [("PredictorReady", "True", "2026-11-22T07:43:20Z"), ("Ready", "True", "2026-11-22T07:44:20Z")]);
        assert!(none["conditions"][1].get("reason").is_none());
    }

    #[test]
    fn a_transformer_that_another_controller_runs_is_taken_at_its_word() {
        let transformer = OtherParts { transformer: true, explainer: false };
        for (theirs, ready) in [("True", "True"), ("False", "False"), ("Unknown", "False")] {
            let existing = json!({ "conditions": [{ "type": "TransformerReady", "status": theirs, "reason": "Deployed" }] });
            let document = written_with(Owner::Isvc, Some(&existing), &failed(), transformer, THEN);
            assert_eq!(document["conditions"][2], existing["conditions"][0]);
            assert_eq!((member(&document["conditions"][1], "type"), member(&document["conditions"][1], "status")), ("Ready", ready));
        }
    }

    #[test]
    fn what_was_written_is_read_back_and_garbage_is_the_default() {
        for owner in [Owner::Isvc, Owner::Ksp] {
            for status in [failed(), Status::default()] {
                assert_eq!(from_json(owner, &written(owner, None, &status)), status, "{owner}");
            }
            for garbage in [
                json!(null),
                json!([]),
                json!({ "observedGeneration": "2", "modelStatus": 5, "activeModelState": "Sleeping", "failedCopies": -1, "conditions": [7] }),
            ] {
                assert_eq!(from_json(owner, &garbage), Status::default());
            }
        }
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for seconds in [0, 951_782_399, 951_782_400, 1_709_251_199, 1_795_333_424, 4_107_542_400] {
            let time = UnixMillis(seconds * 1000);
            assert_eq!(read_time(&time.rfc3339()), Some(time));
        }
        assert_eq!(read_time("2016-12-31T23:59:60Z"), Some(UnixMillis(1_483_228_800_000)), "a leap second is the next one");
        for other in [
            "",
            "2026-11-22",
            "2026-11-22T07:43:44+01:00",
            "2026-11-22T07:43:44z",
            "2026-11-22 07:43:44Z",
            "2026-1a-22T07:43:44Z",
            "2026-13-22T07:43:44Z",
            "2026-00-22T07:43:44Z",
            "2026-11-00T07:43:44Z",
            "2026-11-32T07:43:44Z",
            "2026-11-22T24:43:44Z",
            "2026-11-22T07:60:44Z",
            "2026-11-22T07:43:61Z",
            "1969-12-31T23:59:59Z",
            "2026-11-22T07:43:4\u{e9}",
        ] {
            assert_eq!(read_time(other), None, "{other}");
        }
    }
}
