//! What the two documents that Berth comes from promise about specs and about the words of a status, seen from outside
//! of the crate. `tests/seeds.toml` says which sentence each of these tests belongs to.

use std::time::Duration;

use berth_plan::registration::registration;
use berth_plan::resource::{OtherParts, parse};
use berth_plan::status::document::{Circumstances, Endpoints, to_json};
use berth_plan::status::{FailureInfo, Hosting, ModelState, Observed, SpecState, Status, Transition, VersionFacts, status};
use berth_types::{Location, ModelId, Name, Owner, Placement, Reason, Registration, UnixMillis};
use serde_json::{Map, Value, json};

const NOW: UnixMillis = UnixMillis(1_795_333_424_000);

/// An InferenceService with the storage given in its spec.
fn by_storage() -> (Owner, Value, Value) {
    let storage = json!({ "key": "store", "path": "digits/tf", "schemaPath": "digits/schema.json", "parameters": { "bucket": "models" } });
    let model = json!({ "modelFormat": { "name": "tensorflow", "version": "1.15" }, "runtime": "triton", "storage": storage });
    (Owner::Isvc, json!({}), json!({ "predictor": { "model": model } }))
}

/// The same one with its storage given as a URI and annotations.
fn by_uri() -> (Owner, Value, Value) {
    let annotations = json!({ "serving.kserve.io/secretKey": "store", "serving.kserve.io/schemaPath": "digits/schema.json" });
    let format = json!({ "name": "tensorflow", "version": "1.15" });
    let model = json!({ "modelFormat": format, "runtime": "triton", "storageUri": "s3://models/digits/tf" });
    (Owner::Isvc, annotations, json!({ "predictor": { "model": model } }))
}

/// The same one as a Predictor.
fn as_predictor() -> (Owner, Value, Value) {
    let spec = json!({ "modelType": { "name": "tensorflow", "version": "1.15" }, "runtime": { "name": "triton" }, "path": "digits/tf",
        "schemaPath": "digits/schema.json", "storage": { "s3": { "secretKey": "store", "bucket": "models" } } });
    (Owner::Ksp, json!({}), spec)
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().expect("an object")
}

fn registered((owner, annotations, spec): &(Owner, Value, Value)) -> Registration {
    let spec = parse(*owner, &object(annotations), spec).unwrap_or_else(|fault| panic!("{spec}: {fault}"));
    registration(&Name::new("digits").expect("valid"), *owner, &spec)
}

/// Removes the member at `path`, which must be there.
fn remove(document: &mut Value, path: &str) {
    let (parent, member) = path.rsplit_once('/').expect("a path");
    let parent = document.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
    parent.remove(member).expect("there");
}

#[test]
fn three_ways_to_write_one_model_ask_for_the_same() {
    for way in [by_storage(), by_uri(), as_predictor()] {
        let made = registered(&way);
        assert_eq!(made.format.to_string(), "tensorflow:1.15", "{way:?}");
        assert_eq!(made.placement, Placement::Runtime("triton".into()), "{way:?}");
        let storage = made.storage();
        assert_eq!(
            (storage.key.as_deref(), &*storage.path, storage.schema_path.as_deref()),
            (Some("store"), "digits/tf", Some("digits/schema.json"))
        );
        assert_eq!(storage.parameters.get("bucket").map(String::as_str), Some("models"), "{way:?}");
    }
}

#[test]
fn what_the_examples_mark_as_optional_may_be_left_out() {
    let runtime = |made: &Registration| made.placement != Placement::Format { protocol: None };
    let version = |made: &Registration| made.format.version.is_some();
    let schema = |made: &Registration| made.schema_path.is_some();
    let bucket = |made: &Registration| made.parameters.contains_key("bucket");
    type Asks = fn(&Registration) -> bool;
    let model = "/predictor/model";
    for (way, path, asks) in [
        (by_storage(), format!("{model}/modelFormat/version"), version as Asks),
        (by_storage(), format!("{model}/runtime"), runtime),
        (by_storage(), format!("{model}/storage/schemaPath"), schema),
        (by_storage(), format!("{model}/storage/parameters/bucket"), bucket),
        (as_predictor(), "/modelType/version".to_owned(), version),
        (as_predictor(), "/runtime".to_owned(), runtime),
        (as_predictor(), "/schemaPath".to_owned(), schema),
        (as_predictor(), "/storage/s3/bucket".to_owned(), bucket),
    ] {
        assert!(asks(&registered(&way)), "{path} has an effect");
        let mut without = way;
        remove(&mut without.2, &path);
        assert!(!asks(&registered(&without)), "{path} is left out");
    }
    // Nor does a URI need a key or a schema beside it.
    let mut plain = by_uri();
    plain.1 = json!({});
    let storage = registered(&plain).storage();
    assert_eq!((storage.key, storage.schema_path), (None, None));
}

#[test]
fn annotations_tell_only_what_the_storage_does_not_tell_itself() {
    let mut both = by_storage();
    both.1 = json!({ "serving.kserve.io/secretKey": "other", "serving.kserve.io/schemaPath": "other.json" });
    let storage = registered(&both).storage();
    assert_eq!((storage.key.as_deref(), storage.schema_path.as_deref()), (Some("store"), Some("digits/schema.json")));
    remove(&mut both.2, "/predictor/model/storage/key");
    remove(&mut both.2, "/predictor/model/storage/schemaPath");
    let storage = registered(&both).storage();
    assert_eq!((storage.key.as_deref(), storage.schema_path.as_deref()), (Some("other"), Some("other.json")));
}

#[test]
fn fields_that_the_documents_leave_out_disturb_nothing() {
    for (way, parent) in [(by_storage(), "/predictor"), (by_storage(), "/predictor/model"), (as_predictor(), ""), (as_predictor(), "/storage/s3")] {
        let plain = registered(&way);
        let mut more = way;
        let node = more.2.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
        node.insert("notInTheDocuments".to_owned(), json!({ "replicas": [1, 2] }));
        assert_eq!(registered(&more), plain, "below {parent:?}");
    }
}

#[test]
fn an_id_changes_with_every_part_of_the_predictor_and_with_nothing_else() {
    let hash = |way: &(Owner, Value, Value)| registered(way).id.as_str().rsplit_once('-').expect("a hash").1.to_owned();
    for (way, paths) in [
        (
            by_storage(),
            &["modelFormat/name", "modelFormat/version", "runtime", "storage/key", "storage/path", "storage/schemaPath", "storage/parameters/bucket"]
                [..],
        ),
        (as_predictor(), &["modelType/name", "modelType/version", "runtime/name", "path", "schemaPath", "storage/s3/secretKey", "storage/s3/bucket"]),
    ] {
        let start = if way.0 == Owner::Isvc { "/predictor/model" } else { "" };
        let mut hashes = vec![hash(&way)];
        for path in paths {
            let mut changed = way.clone();
            *changed.2.pointer_mut(&format!("{start}/{path}")).expect("there") = json!("another");
            hashes.push(hash(&changed));
        }
        let count = hashes.len();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), count, "a change of {paths:?} did not show");

        let mut elsewhere = way.clone();
        elsewhere.1 = json!({ "somebody/else": "says this" });
        elsewhere.2["transformer"] = json!({});
        assert_eq!(hash(&elsewhere), hash(&way));
        let (owner, annotations, spec) = &way;
        let other = registration(&Name::new("letters").expect("valid"), *owner, &parse(*owner, &object(annotations), spec).expect("valid"));
        assert_eq!(other.id.as_str(), format!("letters__{owner}-{}", hash(&way)));
    }
}

fn written(owner: Owner, status: &Status, endpoints: &Endpoints) -> Value {
    to_json(owner, None, status, &Circumstances { endpoints, others: OtherParts::default(), now: NOW })
}

/// The member that the InferenceService has at the first path and the Predictor at the second.
fn both<'a>(documents: &'a [Value; 2], isvc: &str, predictor: &str) -> [&'a Value; 2] {
    [documents[0].pointer(isvc).unwrap_or(&Value::Null), documents[1].pointer(predictor).unwrap_or(&Value::Null)]
}

fn in_both(status: &Status) -> [Value; 2] {
    [Owner::Isvc, Owner::Ksp].map(|owner| written(owner, status, &Endpoints::default()))
}

#[test]
fn every_word_of_the_documents_is_written_as_it_stands_there() {
    use ModelState::{FailedToLoad, Loaded, Loading, Pending, Standby};
    for (state, word) in [(Pending, "Pending"), (Standby, "Standby"), (Loading, "Loading"), (Loaded, "Loaded"), (FailedToLoad, "FailedToLoad")] {
        let shown = in_both(&Status { active: state, target: Some(state), ..Status::default() });
        assert_eq!(both(&shown, "/modelStatus/states/activeModelState", "/activeModelState"), [word; 2]);
        assert_eq!(both(&shown, "/modelStatus/states/targetModelState", "/targetModelState"), [word; 2]);
    }
    for (transition, word) in [
        (Transition::UpToDate, "UpToDate"),
        (Transition::InProgress, "InProgress"),
        (Transition::BlockedByFailedLoad, "BlockedByFailedLoad"),
        (Transition::InvalidSpec, "InvalidSpec"),
    ] {
        let shown = in_both(&Status { transition, ..Status::default() });
        assert_eq!(both(&shown, "/modelStatus/transitionStatus", "/transitionStatus"), [word; 2]);
    }
    for (reason, word) in [
        (Reason::ModelLoadFailed, "ModelLoadFailed"),
        (Reason::RuntimeUnhealthy, "RuntimeUnhealthy"),
        (Reason::NoSupportingRuntime, "NoSupportingRuntime"),
        (Reason::RuntimeNotRecognized, "RuntimeNotRecognized"),
        (Reason::InvalidPredictorSpec, "InvalidPredictorSpec"),
    ] {
        let info = FailureInfo { reason, location: None, message: "why".to_owned(), model: None, time: None };
        let shown = in_both(&Status { failure: Some(info), ..Status::default() });
        // What has no value is left out, what happened is always told.
        let failures = both(&shown, "/modelStatus/lastFailureInfo", "/lastFailureInfo");
        assert_eq!(failures, [&json!({ "reason": word, "message": "why" }); 2]);
    }
}

#[test]
fn a_failure_in_a_pod_is_told_with_the_end_of_the_pods_name_the_model_and_the_time() {
    let info = FailureInfo {
        reason: Reason::ModelLoadFailed,
        location: Some(Location::of_pod_name("modelmesh-serving-triton-7d9c5b6f4-x2k9q")),
        message: "no such object".to_owned(),
        model: ModelId::new("digits__isvc-0123456789").ok(),
        time: Some(NOW),
    };
    let shown = in_both(&Status { failure: Some(info), ..Status::default() });
    for failure in both(&shown, "/modelStatus/lastFailureInfo", "/lastFailureInfo") {
        assert_eq!(failure["location"], "c5b6f4-x2k9q");
        assert_eq!((&failure["modelId"], &failure["time"]), (&json!("digits__isvc-0123456789"), &json!("2026-11-22T07:43:44Z")));
    }
}

#[test]
fn the_url_is_one_of_the_endpoints_that_there_are() {
    let up = Status { active: ModelState::Loaded, available: true, ..Status::default() };
    for (grpc, rest, url) in [
        (Some("grpc://here:8033"), Some("http://here:8008"), json!("grpc://here:8033")),
        (Some("grpc://here:8033"), None, json!("grpc://here:8033")),
        (None, Some("http://here:8008"), json!("http://here:8008")),
    ] {
        let endpoints = Endpoints { grpc: grpc.map(str::to_owned), rest: rest.map(str::to_owned) };
        let service = written(Owner::Isvc, &up, &endpoints);
        let predictor = &service["components"]["predictor"];
        assert_eq!(predictor["url"], url);
        assert_eq!((predictor.get("grpcUrl"), predictor.get("restUrl")), (grpc.map(Value::from).as_ref(), rest.map(Value::from).as_ref()));
        let predictor = written(Owner::Ksp, &up, &endpoints);
        assert_eq!((predictor.get("grpcEndpoint"), predictor.get("httpEndpoint")), (grpc.map(Value::from).as_ref(), rest.map(Value::from).as_ref()));
    }
}

fn version(loaded: u32, on_the_way: bool) -> VersionFacts {
    let id = ModelId::new("digits__isvc-0123456789").expect("valid");
    VersionFacts { id, loaded_once: true, loaded, on_the_way, failures: Vec::new(), exhausted: false, hosting: Hosting::Pods }
}

#[test]
fn readiness_is_about_the_endpoint_and_not_about_the_memory() {
    for (loaded, on_the_way, state) in [(0, false, "Standby"), (0, true, "Loading"), (1, false, "Loaded")] {
        let observed = Observed { generation: 1, spec: SpecState::Valid, active: Some(version(loaded, on_the_way)), target: None, settled: true };
        let before = Status { active: ModelState::Loading, ..Status::default() };
        let moved = status(&before, &observed, NOW.after(Duration::from_secs(1)));
        let shown = in_both(&moved.status);
        assert_eq!(both(&shown, "/modelStatus/states/activeModelState", "/activeModelState"), [state; 2]);
        assert_eq!(both(&shown, "/conditions/0/status", "/available"), [&json!("True"), &json!(true)], "{state}");
        assert_eq!(shown[0]["conditions"][0]["type"], "PredictorReady");
    }
}
