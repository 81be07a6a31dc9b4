use std::collections::BTreeSet;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn id(text: &str) -> ModelId {
    ModelId::new(text).expect("valid")
}

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

fn info(path: &str) -> ModelInfo {
    ModelInfo { kind: "mt:onnx".to_owned(), path: path.to_owned(), key: String::new() }
}

fn model(text: &str) -> NewModel {
    NewModel { id: id(text), info: info(text), last_used: UnixMillis(7) }
}

/// Records in memory.
#[derive(Clone, Default)]
struct Kept {
    models: BTreeMap<ModelId, ManagedModel>,
    names: BTreeMap<Name, ManagedName>,
}

impl ManagedRecords for Kept {
    fn model(&self, id: &ModelId) -> Option<Arc<ManagedModel>> {
        self.models.get(id).cloned().map(Arc::new)
    }

    fn name(&self, name: &Name) -> Option<Arc<ManagedName>> {
        self.names.get(name).cloned().map(Arc::new)
    }

    fn references(&self, id: &ModelId) -> u32 {
        u32::try_from(self.names.values().flat_map(ManagedName::models).filter(|model| *model == id).count()).expect("few")
    }
}

impl Kept {
    fn take(&mut self, puts: Vec<ManagedPut>) {
        for put in puts {
            match put {
                ManagedPut::Model(model) => drop(self.models.insert(model.id.clone(), model)),
                ManagedPut::NoModel(id) => drop(self.models.remove(&id)),
                ManagedPut::Name(name) => drop(self.names.insert(name.name.clone(), name)),
                ManagedPut::NoName(name) => drop(self.names.remove(&name)),
            }
        }
    }

    /// `a(2) b*(1) n=a>b`: models with how many names refer to them (a star: goes with the last), names with active and target.
    fn shown(&self) -> String {
        let mut text = String::new();
        for model in self.models.values() {
            let _ = write!(text, "{}{}({}) ", model.id, if model.auto_delete { "*" } else { "" }, self.references(&model.id));
        }
        for name in self.names.values() {
            let target = if name.is_moving() { format!(">{}", name.target) } else { String::new() };
            let _ = write!(text, "{}={}{target} ", name.name, name.active);
        }
        text.trim_end().to_owned()
    }
}

/// Models of their own right and a name that goes from the first to the second, where there is one.
fn kept(own: &[&str], moves: &[(&str, &str, &str)]) -> Kept {
    let mut kept = Kept::default();
    for text in own {
        kept.take(register(&kept, &model(text)).expect("new"));
    }
    for (of, active, target) in moves {
        kept.take(set_name(&kept, &ask(of, active), &|_| Held::default()).expect("new"));
        kept.take(set_name(&kept, &ask(of, target), &|_| LOADED).expect("a change"));
        if active != target {
            // Nothing of the target is loaded.
            kept.take(set_name(&kept, &ask(of, active), &|_| LOADED).expect("back"));
            kept.take(set_name(&kept, &ask(of, target), &only(active)).expect("a change"));
        }
    }
    kept
}

fn ask(of: &str, target: &str) -> SetName {
    SetName {
        name: name(of),
        target: id(target),
        info: None,
        last_used: UnixMillis(7),
        update_only: false,
        auto_delete: false,
        force: false,
        expected: None,
        owner: None,
    }
}

const LOADED: Held = Held { loaded: 1, used: 1, since: Some(UnixMillis(1)), failed: false };
const FAILED: Held = Held { loaded: 0, used: 0, since: None, failed: true };

/// One loaded copy of this model only.
fn only(loaded: &str) -> impl Fn(&ModelId) -> Held + use<'_> {
    move |model| if model.as_str() == loaded { LOADED } else { Held::default() }
}

fn word(refused: &Refused) -> &'static str {
    match refused {
        Refused::Invalid(_) => "invalid",
        Refused::NotFound(_) => "not found",
        Refused::Exists(_) => "exists",
        Refused::Blocked(_) => "blocked",
        Refused::NotReady(_) => "not ready",
        Refused::Late => "late",
        Refused::Unkept(_) => "unkept",
    }
}

fn outcome(mut kept: Kept, answer: Result<Vec<ManagedPut>, Refused>) -> String {
    match answer {
        Ok(puts) => {
            kept.take(puts);
            kept.shown()
        }
        Err(refused) => word(&refused).to_owned(),
    }
}

#[test]
fn a_model_is_registered_once_and_removed_when_no_name_refers_to_it() {
    let other = |text: &str| NewModel { info: info("elsewhere"), ..model(text) };
    let made = kept(&["a"], &[("n", "a", "a")]);
    for (case, there, answer, expected) in [
        ("a new one", Kept::default(), register(&Kept::default(), &model("a")), "a(0)"),
        ("the same again", made.clone(), register(&made, &model("a")), "a(1) n=a"),
        ("as something else", made.clone(), register(&made, &other("a")), "exists"),
        ("one that a name refers to is removed", made.clone(), unregister(&made, &id("a")), "blocked"),
        ("one that nobody refers to is removed", kept(&["a"], &[]), unregister(&kept(&["a"], &[]), &id("a")), ""),
        ("one that is not there is removed", made.clone(), unregister(&made, &id("b")), "a(1) n=a"),
    ] {
        assert_eq!(outcome(there, answer), expected, "{case}");
    }
}

#[test]
fn a_path_and_a_key_that_are_empty_are_kept_as_absent() {
    let bare = NewModel { info: info(""), ..model("a") };
    let puts = register(&Kept::default(), &bare).expect("new");
    let [ManagedPut::Model(record)] = &puts[..] else { panic!("{puts:?}") };
    assert_eq!((&record.path, &record.key, record.last_used), (&None, &None, UnixMillis(7)));
}

#[test]
fn a_name_is_set_by_the_rules() {
    let of_info = |path: &str| Some(info(path));
    let expects = |expected: &str, ask: SetName| SetName { expected: Some(id(expected)), ..ask };
    let nothing: fn(&ModelId) -> Held = |_| Held::default();
    let all: fn(&ModelId) -> Held = |_| LOADED;
    let only_a: fn(&ModelId) -> Held = |model| only("a")(model);
    let b_failed: fn(&ModelId) -> Held = |model| if model.as_str() == "b" { FAILED } else { Held::default() };
    let two_of_a: fn(&ModelId) -> Held = |model| if model.as_str() == "a" { Held { loaded: 2, ..LOADED } } else { LOADED };
    let (both, made, moving) = (kept(&["a", "b"], &[]), kept(&["a", "b"], &[("n", "a", "a")]), kept(&["a", "b", "c"], &[("n", "a", "b")]));
    assert_eq!(moving.shown(), "a(1) b(1) c(0) n=a>b");
    let owned = {
        let mut owned = both.clone();
        owned.take(set_name(&both, &SetName { owner: Some("ksp".into()), ..ask("n", "a") }, &nothing).expect("new"));
        owned
    };
    for (case, there, asked, held, expected) in [
        ("a new name", &both, ask("n", "a"), nothing, "a(1) b(0) n=a"),
        ("a new name of a model that is not there", &both, ask("n", "z"), nothing, "not found"),
        ("with its model", &both, SetName { info: of_info("z"), ..ask("n", "z") }, nothing, "a(0) b(0) z(1) n=z"),
        ("with a model that is something else", &both, SetName { info: of_info("z"), ..ask("n", "a") }, nothing, "exists"),
        ("with a model that is the same", &both, SetName { info: of_info("a"), ..ask("n", "a") }, nothing, "a(1) b(0) n=a"),
        ("with a model that goes with it", &both, SetName { info: of_info("z"), auto_delete: true, ..ask("n", "z") }, nothing, "a(0) b(0) z*(1) n=z"),
        ("only an update", &both, SetName { update_only: true, ..ask("n", "a") }, nothing, "not found"),
        ("an update of what is there", &made, SetName { update_only: true, ..ask("n", "b") }, nothing, "a(0) b(1) n=b"),
        ("the same again", &made, ask("n", "a"), all, "a(1) b(0) n=a"),
        ("at once when the active is loaded nowhere", &made, ask("n", "b"), nothing, "a(0) b(1) n=b"),
        ("but not to a target that has failed", &made, ask("n", "b"), b_failed, "a(1) b(1) n=a>b"),
        ("at once when both are loaded once", &made, ask("n", "b"), all, "a(0) b(1) n=b"),
        ("on its way when only the active is loaded", &made, ask("n", "b"), only_a, "a(1) b(1) n=a>b"),
        ("on its way when the target has fewer copies", &made, ask("n", "b"), two_of_a, "a(1) b(1) n=a>b"),
        ("at once by force", &made, SetName { force: true, ..ask("n", "b") }, only_a, "a(0) b(1) n=b"),
        ("by force to one that has failed", &made, SetName { force: true, ..ask("n", "b") }, b_failed, "a(0) b(1) n=b"),
        ("another target on the way", &moving, ask("n", "c"), only_a, "a(1) b(0) c(1) n=a>c"),
        ("back to the active", &moving, ask("n", "a"), only_a, "a(1) b(0) c(0) n=a"),
        ("the same on the way", &moving, ask("n", "b"), only_a, "a(1) b(1) c(0) n=a>b"),
        ("the expected target", &made, expects("a", ask("n", "b")), nothing, "a(0) b(1) n=b"),
        ("the expected target of one on its way", &moving, expects("b", ask("n", "c")), only_a, "a(1) b(0) c(1) n=a>c"),
        ("its active model is not its target", &moving, expects("a", ask("n", "c")), only_a, "blocked"),
        ("another target than expected", &made, expects("b", ask("n", "c")), nothing, "blocked"),
        ("expected to be there and not", &both, expects("b", ask("n", "a")), nothing, "blocked"),
        ("expected not to be there", &both, expects("a", ask("n", "a")), nothing, "a(1) b(0) n=a"),
        ("expected not to be there, or to be the same", &made, expects("a", ask("n", "a")), nothing, "a(1) b(0) n=a"),
        ("expected not to be there and something else", &made, expects("b", ask("n", "b")), nothing, "blocked"),
        ("somebody else's", &owned, ask("n", "b"), nothing, "exists"),
        ("somebody else's, by another one", &owned, SetName { owner: Some("isvc".into()), ..ask("n", "b") }, nothing, "exists"),
        ("one's own", &owned, SetName { owner: Some("ksp".into()), ..ask("n", "b") }, nothing, "a(0) b(1) n=b"),
    ] {
        assert_eq!(outcome(there.clone(), set_name(there, &asked, &held)), expected, "{case}");
    }
}

#[test]
fn what_was_made_for_its_names_goes_with_the_last_one_unless_somebody_registers_it() {
    let temporary = |of: &str, target: &str| SetName { info: Some(info(target)), auto_delete: true, force: true, ..ask(of, target) };
    let none: &dyn Fn(&ModelId) -> Held = &|_| Held::default();
    let mut kept = Kept::default();
    for asked in [temporary("n", "a"), temporary("m", "a"), temporary("n", "b")] {
        let puts = set_name(&kept, &asked, none).expect("a change");
        kept.take(puts);
    }
    assert_eq!(kept.shown(), "a*(1) b*(1) m=a n=b", "the other name still refers to it");
    let stays = register(&kept, &model("a")).expect("the same");
    assert_eq!(outcome(kept.clone(), set_name(&kept, &temporary("m", "b"), none)), "b*(2) m=b n=b");
    kept.take(stays);
    assert_eq!(outcome(kept.clone(), set_name(&kept, &temporary("m", "b"), none)), "a(0) b*(2) m=b n=b");
    assert_eq!(outcome(kept.clone(), Ok(delete_name(&kept, &name("n"), None))), "a(1) m=a");
    assert_eq!(outcome(kept.clone(), Ok(delete_name(&kept, &name("n"), Some("ksp")))), "a(1) b*(1) m=a n=b", "somebody else's counts as none");
    assert_eq!(outcome(kept.clone(), Ok(delete_name(&kept, &name("z"), None))), "a(1) b*(1) m=a n=b");
}

#[test]
fn a_name_takes_over_only_what_it_is_still_on_its_way_to() {
    let moving = kept(&["a", "b"], &[("n", "a", "b")]);
    assert_eq!(outcome(moving.clone(), Ok(take_over(&moving, &name("n"), &id("b")))), "a(0) b(1) n=b");
    assert!(take_over(&moving, &name("n"), &id("a")).is_empty());
    let there = kept(&["a", "b"], &[("n", "b", "b")]);
    assert!(take_over(&there, &name("n"), &id("b")).is_empty());
}

#[test]
fn a_target_takes_over_with_as_many_copies_as_were_used_and_at_the_latest_after_two_minutes() {
    let now = UnixMillis(1_000_000);
    let copies = |loaded, used, ago: u64| Held { loaded, used, since: Some(UnixMillis(now.0 - ago)), failed: false };
    for (case, active, target, pods, expected) in [
        ("nothing of the target is loaded", copies(1, 1, 9), Held::default(), 3, TakeOver::Waits),
        ("nothing of either", Held::default(), FAILED, 3, TakeOver::Waits),
        ("one for one", copies(1, 1, 9), copies(1, 0, 0), 3, TakeOver::Now),
        ("one for two that are used", copies(2, 2, 9), copies(1, 0, 1_000), 3, TakeOver::At(UnixMillis(now.0 + 119_000))),
        ("one for two of which one is used", copies(2, 1, 9), copies(1, 0, 0), 3, TakeOver::Now),
        ("one for two where no more fit", copies(2, 2, 9), copies(1, 0, 0), 1, TakeOver::Now),
        ("one for two after two minutes", copies(2, 2, 9), copies(1, 0, 120_000), 3, TakeOver::Now),
        ("one for what went in between", Held { used: 2, ..Held::default() }, copies(1, 0, 0), 3, TakeOver::Now),
    ] {
        assert_eq!(may_take_over(active, target, pods, now), expected, "{case}");
    }
}

#[test]
fn type_and_key_say_what_a_model_is() {
    let key = r#"{"storage_key":"k","storage_params":{"bucket":"b"},"model_type":{"name":"onnx","version":"1"},"schema_path":"s","x":1}"#;
    let shown = |kind: &str, path: Option<&str>, key: Option<&str>| match registration(&id("m"), kind, path, key) {
        Ok(made) => {
            let placement = match &made.placement {
                Placement::Runtime(runtime) => format!("rt={runtime}"),
                Placement::Format { protocol } => format!("pv={}", protocol.as_deref().unwrap_or("-")),
            };
            let storage = made.storage();
            format!("{} {placement} {:?} {:?} {} {:?}", made.format, storage.key, storage.parameters, storage.path, storage.schema_path)
        }
        Err(refused) => refused.to_string(),
    };
    for (kind, path, key, expected) in [
        ("mt:onnx", None, None, "onnx pv=- None {}  None"),
        ("onnx", Some("p/q"), None, "onnx pv=- None {} p/q None"),
        ("mt:onnx:1.15|pv:grpc-v2", None, Some("{}"), "onnx:1.15 pv=grpc-v2 None {}  None"),
        ("mt:onnx", Some("p"), Some(key), r#"onnx pv=- Some("k") {"bucket": "b"} p Some("s")"#),
        ("rt:mine", None, Some(key), r#"onnx:1 rt=mine Some("k") {"bucket": "b"}  Some("s")"#),
        (
            "rt:mine",
            None,
            Some(r#"{"model_type":"onnx:2","bucket":"old","storage_params":{"bucket":"new"}}"#),
            r#"onnx:2 rt=mine None {"bucket": "new"}  None"#,
        ),
        ("rt:mine", None, None, "modelInfo.type \"rt:mine\" names a runtime and nothing names the format: give modelInfo.key a model_type"),
        ("mt:", None, None, "modelInfo.type is \"mt:\": write mt:FORMAT, mt:FORMAT:VERSION, mt:FORMAT|pv:PROTOCOL or rt:RUNTIME"),
        ("mt:a|b", None, None, "modelInfo.type is \"mt:a|b\": write mt:FORMAT, mt:FORMAT:VERSION, mt:FORMAT|pv:PROTOCOL or rt:RUNTIME"),
        ("mt:onnx", None, Some("[]"), "modelInfo.key is not a JSON object: write {\"storage_key\": ...} or leave it out"),
        ("mt:onnx", None, Some(r#"{"storage_params":{"a":1}}"#), "modelInfo.key: storage_params.a must be a text"),
        ("mt:onnx", None, Some(r#"{"storage_key":7}"#), "modelInfo.key: storage_key must be a text"),
    ] {
        assert_eq!(shown(kind, path, key), expected, "{kind} {key:?}");
    }
    assert!(shown("mt:onnx", None, Some("{")).starts_with("modelInfo.key is no JSON: "));
}

#[test]
fn what_a_resource_registers_is_read_back_from_what_upstream_would_send() {
    let spec = serde_json::json!({ "modelType": { "name": "onnx", "version": "1" }, "path": "p", "protocolVersion": "grpc-v2",
        "storage": { "key": "k", "parameters": { "bucket": "b" }, "schemaPath": "s" } });
    let spec = crate::resource::parse(berth_types::Owner::Ksp, &Map::new(), &spec).expect("valid");
    let made = crate::registration::registration(&name("m"), berth_types::Owner::Ksp, &spec);
    let (kind, key) = (crate::registration::type_string(&made), crate::registration::model_key(&made));
    assert_eq!(registration(&made.id, &kind, Some(&made.path), Some(&key)), Ok(made));
}

#[derive(Clone, Debug)]
enum Call {
    Register(usize),
    Unregister(usize),
    Set {
        name: usize,
        target: usize,
        info: bool,
        auto_delete: bool,
        force: bool,
        update_only: bool,
        expected: Option<usize>,
        owner: bool,
        loaded: u8,
    },
    Delete {
        name: usize,
        owner: bool,
    },
    TakeOver {
        name: usize,
        target: usize,
    },
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let set =
        (0usize..2, 0usize..4, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(0usize..4), any::<bool>(), any::<u8>());
    let set = set.prop_map(|(name, target, info, auto_delete, force, update_only, expected, owner, loaded)| Call::Set {
        name,
        target,
        info,
        auto_delete,
        force,
        update_only,
        expected,
        owner,
        loaded,
    });
    let call = prop_oneof![
        1 => (0usize..4).prop_map(Call::Register),
        1 => (0usize..4).prop_map(Call::Unregister),
        5 => set,
        1 => (0usize..2, any::<bool>()).prop_map(|(name, owner)| Call::Delete { name, owner }),
        1 => (0usize..2, 0usize..4).prop_map(|(name, target)| Call::TakeOver { name, target }),
    ];
    prop::collection::vec(call, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(11), ..Default::default() })]

    #[test]
    fn names_refer_to_models_that_exist_and_what_was_made_for_names_goes_with_the_last(calls in calls()) {
        let (ids, names) = (["a", "b", "c", "d"], ["m", "n"]);
        let owner_of = |given: bool| given.then(|| Arc::<str>::from("ksp"));
        let mut kept = Kept::default();
        for call in calls {
            let before = kept.clone();
            let answer = match &call {
                Call::Register(at) => register(&kept, &model(ids[*at])),
                Call::Unregister(at) => unregister(&kept, &id(ids[*at])),
                Call::Set { name: of, target, info: given, auto_delete, force, update_only, expected, owner, loaded } => {
                    let asked = SetName {
                        info: given.then(|| info(ids[*target])),
                        auto_delete: *auto_delete,
                        force: *force,
                        update_only: *update_only,
                        expected: expected.map(|at| id(ids[at])),
                        owner: owner_of(*owner),
                        ..ask(names[*of], ids[*target])
                    };
                    let held = |model: &ModelId| {
                        let at = ids.iter().position(|text| *text == model.as_str()).unwrap_or_default();
                        if loaded >> at & 1 == 1 { LOADED } else { Held { failed: loaded >> (4 + at) & 1 == 1, ..Held::default() } }
                    };
                    set_name(&kept, &asked, &held)
                }
                Call::Delete { name: of, owner } => Ok(delete_name(&kept, &name(names[*of]), owner_of(*owner).as_deref())),
                Call::TakeOver { name: of, target } => Ok(take_over(&kept, &name(names[*of]), &id(ids[*target]))),
            };
            let Ok(puts) = answer else { continue };
            let touched: BTreeSet<String> = puts.iter().map(|put| format!("{:?}", match put {
                ManagedPut::Model(model) => (model.id.as_str(), 0),
                ManagedPut::NoModel(id) => (id.as_str(), 0),
                ManagedPut::Name(name) => (name.name.as_str(), 1),
                ManagedPut::NoName(name) => (name.as_str(), 1),
            })).collect();
            prop_assert_eq!(touched.len(), puts.len(), "each is put once: {:?}", &puts);
            kept.take(puts);
            for model in kept.models.values() {
                prop_assert!(!model.auto_delete || kept.references(&model.id) > 0, "{} should have gone after {:?}", &model.id, &call);
            }
            for name in kept.names.values() {
                prop_assert!(name.models().all(|id| kept.models.contains_key(id)), "{}", kept.shown());
                if let (Call::Set { force: false, loaded, .. }, Some(before)) = (&call, before.names.get(&name.name)) {
                    let at = |id: &ModelId| ids.iter().position(|text| *text == id.as_str()).unwrap_or_default();
                    let is_loaded = |id: &ModelId| loaded >> at(id) & 1 == 1;
                    prop_assert!(name.active == before.active || !is_loaded(&before.active) || is_loaded(&name.active), "what serves is left only for what is loaded");
                }
            }
        }
    }
}
