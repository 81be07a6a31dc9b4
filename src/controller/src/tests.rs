//! The leader with a store in memory, agents that do as they are told, and paused time.

mod drifting;
mod managing;
mod world;

use std::time::Duration;

use berth_registry::{Desired, Json, Resolved, Store};
use berth_types::{ByteSize, CopyState, UnixMillis};
use serde_json::json;

use self::world::{Answer, World, isvc, onnx, predictor, runtime, secs, with_uri};

#[tokio::test(start_paused = true)]
async fn a_new_inference_service_is_loaded_and_shows_each_step_although_the_load_takes_no_time() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    assert_eq!(world.history("digits"), ["Loading/ UpToDate True", "Loaded/ UpToDate True"]);
    assert_eq!(world.loads(), ["digits"]);
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id.as_str().starts_with("digits__isvc-")));
    let status = world.status("digits");
    assert_eq!(status["components"]["predictor"]["grpcUrl"], "grpc://localhost:8033");
    assert_eq!(status["modelStatus"]["copies"]["totalCopies"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_predictor_begins_as_pending() {
    let world = World::start().await;
    world.apply(predictor("digits", "1")).await;
    assert_eq!(world.history("digits"), ["Pending/ UpToDate False", "Loading/ UpToDate True", "Loaded/ UpToDate True"]);
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id.as_str().starts_with("digits__ksp-")));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_loaded_and_nothing_lowered_before_every_pod_has_reported() {
    let world = World::silent().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.pass(secs(9)).await;
    assert!(world.loads().is_empty() && world.history("digits").is_empty());
    world.pass(secs(2)).await;
    assert_eq!(world.loads(), ["digits"], "a pod that never reports is not waited for for ever");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_concluded_while_agents_of_before_may_come_back() {
    let world = World::silent().await;
    world.awaits(true);
    world.controller.report(&world.pod(), Vec::new()).await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.pass(secs(5)).await;
    assert!(world.loads().is_empty() && world.history("digits").is_empty());
    world.awaits(false);
    world.controller.report(&world.pod(), Vec::new()).await;
    world.pass(secs(0)).await;
    assert_eq!(world.loads(), ["digits"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_to_hold_off_is_asked_when_that_is_over() {
    let world = World::start().await;
    world.hold_off(None, secs(60));
    world.apply(isvc("digits", onnx("1"))).await;
    world.pass(secs(59)).await;
    assert!(world.loads().is_empty());
    world.pass(secs(2)).await;
    assert_eq!(world.loads(), ["digits"]);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_failed_and_that_nobody_else_may_try_has_failed() {
    let world = World::start().await;
    let other = world.pod_like_it("pod-2");
    world.controller.report(&other, Vec::new()).await;
    world.answer("digits", Answer::Fails);
    world.hold_off(Some(&other), secs(3600));
    world.apply(isvc("digits", onnx("1"))).await;
    assert_eq!((world.loads().len(), world.last("digits").as_str()), (1, "FailedToLoad/ UpToDate False"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_turn_sees_what_follows_from_reports_before_it() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let failed = |world: &World| matches!(world.resolve("digits"), Resolved::Unservable(_));
    world.controller.turned().await;
    assert!(!failed(&world));
    for hidden in [true, false] {
        world.hide(hidden);
        world.controller.report(&world.pod(), Vec::new()).await;
        world.controller.turned().await;
        assert_eq!(failed(&world), hidden);
    }
}

#[tokio::test(start_paused = true)]
async fn an_evicted_model_is_on_standby_until_room_appears() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.free(ByteSize::mib(12));
    world.report("digits", CopyState::Absent).await;
    assert_eq!(world.last("digits"), "Standby/ UpToDate True");
    world.pass(secs(600)).await;
    assert_eq!(world.loads().len(), 1, "10 MiB and a tenth of 100 MiB do not fit into 12 MiB");
    world.free(ByteSize::mib(21));
    world.controller.report(&world.pod(), Vec::new()).await;
    world.pass(secs(1)).await;
    assert_eq!(world.loads().len(), 2);
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
    assert_eq!(world.history("digits")[2..], ["Standby/ UpToDate True", "Loading/ UpToDate True", "Loaded/ UpToDate True"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_just_evicted_is_not_warmed_at_once() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.report("digits", CopyState::Absent).await;
    world.pass(secs(28)).await;
    assert_eq!(world.loads().len(), 1);
    world.pass(secs(3)).await;
    assert_eq!(world.loads().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_is_reported_and_tried_again_after_about_ten_minutes() {
    let world = World::start().await;
    world.answer("digits", Answer::Fails);
    world.apply(isvc("digits", onnx("1"))).await;
    assert_eq!(world.history("digits"), ["Loading/ UpToDate True", "FailedToLoad/ UpToDate False"]);
    let info = world.status("digits")["modelStatus"]["lastFailureInfo"].clone();
    assert_eq!((&info["reason"], &info["message"], &info["location"]), (&json!("ModelLoadFailed"), &json!("no such object"), &json!("pod-1")));
    assert_eq!(world.status("digits")["modelStatus"]["copies"], json!({ "failedCopies": 1 }));
    world.pass(secs(535)).await;
    assert_eq!(world.loads().len(), 1);
    world.answer("digits", Answer::Loads);
    world.pass(secs(130)).await;
    assert_eq!(world.loads().len(), 2);
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
    assert_eq!(world.status("digits")["modelStatus"].get("lastFailureInfo"), None);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_was_loaded_stays_available_while_the_storage_is_away_and_is_tried_again_soon() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.free(ByteSize::ZERO);
    world.report("digits", CopyState::Absent).await;
    world.answer("digits", Answer::StorageAway);
    world.storage_was_away_for(&world.model("digits")).await;
    assert_eq!(world.last("digits"), "Standby/ UpToDate True");
    let status = world.status("digits")["modelStatus"].clone();
    assert_eq!((&status["lastFailureInfo"]["message"], &status["copies"]["failedCopies"]), (&json!("connection refused"), &json!(1)));
    // About 30 s, and again, then twice as long each time.
    for (seconds, loads) in [(26, 1), (8, 2), (19, 2), (17, 3), (32, 3), (44, 4)] {
        world.pass(secs(seconds)).await;
        assert_eq!(world.loads().len(), loads, "{seconds} s later");
        assert_eq!(world.last("digits"), "Standby/ UpToDate True");
    }
    world.answer("digits", Answer::Loads);
    world.pass(secs(200)).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
    assert_eq!(world.status("digits")["modelStatus"].get("lastFailureInfo"), None);
}

#[tokio::test(start_paused = true)]
async fn what_failed_for_want_of_its_files_is_tried_again_at_once_when_the_storage_was_mended() {
    for (case, answer) in [("refused", Answer::Fails), ("away", Answer::StorageAway)] {
        let world = World::start().await;
        world.answer("digits", answer);
        world.apply(isvc("digits", onnx("1"))).await;
        world.pass(secs(1)).await;
        assert_eq!((world.loads().len(), world.last("digits")), (1, "FailedToLoad/ UpToDate False".to_owned()), "{case}");
        let failure = world.failure("digits");
        // Still not mended: one try, and then the usual times count again.
        world.mend(&world.model("digits"), failure.clone()).await;
        assert_eq!(world.loads().len(), 2, "{case}");
        world.pass(secs(25)).await;
        assert_eq!(world.loads().len(), 2, "{case}");
        world.answer("digits", Answer::Loads);
        world.mend(&world.model("digits"), failure).await;
        assert_eq!(world.last("digits"), "Loaded/ UpToDate True", "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn mended_models_are_tried_as_few_at_a_time_as_others() {
    let world = World::start().await;
    world.answer_all(Answer::Fails);
    for number in 0..7 {
        world.apply(isvc(&format!("m{number}"), onnx("1"))).await;
    }
    world.answer_all(Answer::LoadsIn(secs(10)));
    let failure = world.failure("m0");
    for number in 0..7 {
        world.mend(&world.model(&format!("m{number}")), failure.clone()).await;
    }
    assert_eq!(world.loads().len(), 7 + 2);
    world.pass(secs(40)).await;
    assert!((0..7).all(|number| world.last(&format!("m{number}")) == "Loaded/ UpToDate True"));
}

#[tokio::test(start_paused = true)]
async fn a_first_load_without_storage_has_failed_and_is_tried_again_soon() {
    let world = World::start().await;
    world.answer("digits", Answer::StorageAway);
    world.apply(isvc("digits", onnx("1"))).await;
    assert_eq!(world.history("digits"), ["Loading/ UpToDate True", "FailedToLoad/ UpToDate False"]);
    world.answer("digits", Answer::Loads);
    world.pass(secs(34)).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_is_away_for_both_versions_switches_nothing() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let old = world.model("digits");
    world.answer("digits", Answer::StorageAway);
    world.apply(isvc("digits", onnx("2"))).await;
    assert_eq!(world.last("digits"), "Loaded/FailedToLoad BlockedByFailedLoad True");
    world.report_of(&old, CopyState::Absent).await;
    world.storage_was_away_for(&old).await;
    assert_eq!(world.last("digits"), "Standby/FailedToLoad BlockedByFailedLoad True");
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old));
}

#[tokio::test(start_paused = true)]
async fn a_load_without_room_is_asked_for_again_later_and_less_often() {
    let world = World::start().await;
    world.answer("digits", Answer::NoRoom);
    world.apply(isvc("digits", onnx("1"))).await;
    assert_eq!(world.last("digits"), "Standby/ UpToDate True");
    world.pass(secs(29)).await;
    assert_eq!(world.loads().len(), 1);
    world.pass(secs(2)).await;
    assert_eq!(world.loads().len(), 2);
    world.pass(secs(58)).await;
    assert_eq!(world.loads().len(), 2);
    world.answer("digits", Answer::Loads);
    world.pass(secs(5)).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_answers_does_not_hold_its_place_for_ever() {
    let world = World::start().await;
    world.answer("digits", Answer::Silence);
    world.apply(isvc("digits", onnx("1"))).await;
    world.pass(secs(60)).await;
    assert_eq!(world.last("digits"), "Standby/ UpToDate True");
    world.answer("digits", Answer::Loads);
    world.pass(secs(31)).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
}

#[tokio::test(start_paused = true)]
async fn an_update_serves_the_old_version_until_the_new_one_is_loaded() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let old = world.model("digits");
    world.answer("digits", Answer::Silence);
    world.apply(isvc("digits", onnx("2"))).await;
    assert_eq!(world.last("digits"), "Loaded/Loading InProgress True");
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old));
    let alias = world.store.alias(&world.key("digits")).expect("kept while both differ");
    let new = alias.target.expect("a target").id.clone();
    assert_ne!(old, new);
    world.report_of(&new, world::loaded()).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == new));
    assert_eq!(world.retired(), [old.to_string()]);
    assert_eq!(world.store.alias(&world.key("digits")), None);
    assert_eq!(world.history("digits")[2..], ["Loaded/Loading InProgress True", "Loaded/ UpToDate True"]);
}

#[tokio::test(start_paused = true)]
async fn an_update_that_loads_at_once_still_shows_that_it_was_in_progress() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.apply(isvc("digits", onnx("2"))).await;
    assert_eq!(world.history("digits")[2..], ["Loaded/Loading InProgress True", "Loaded/ UpToDate True"]);
}

#[tokio::test(start_paused = true)]
async fn a_bad_update_is_blocked_while_the_old_version_keeps_serving_even_when_evicted() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let old = world.model("digits");
    world.answer("digits", Answer::Fails);
    world.apply(isvc("digits", onnx("2"))).await;
    assert_eq!(world.history("digits")[2..], ["Loaded/Loading InProgress True", "Loaded/FailedToLoad BlockedByFailedLoad True"]);
    let new = world.status("digits")["modelStatus"]["lastFailureInfo"]["modelId"].clone();
    assert_ne!(new, json!(old.as_str()));
    world.free(ByteSize::ZERO);
    world.report_of(&old, CopyState::Absent).await;
    assert_eq!(world.last("digits"), "Standby/FailedToLoad BlockedByFailedLoad True");
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old));
    // Mended by another update.
    world.answer("digits", Answer::Loads);
    world.apply(isvc("digits", onnx("3"))).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
    let retired = world.retired();
    assert!(retired.contains(&old.to_string()) && retired.len() == 2, "{retired:?}");
}

#[tokio::test(start_paused = true)]
async fn a_blocked_update_stays_blocked_over_a_crash_and_the_old_version_serves() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let old = world.model("digits");
    world.answer("digits", Answer::Fails);
    world.apply(isvc("digits", onnx("2"))).await;
    // Nothing is loaded after a crash, and the failure is forgotten with the process.
    let world = world.restart().await;
    world.answer("digits", Answer::Silence);
    world.pass(secs(1)).await;
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old), "the name went to a version that never loaded");
    // Once it can be loaded it takes over.
    world.answer("digits", Answer::Loads);
    world.pass(secs(1500)).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
    assert!(!matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old));
}

#[tokio::test(start_paused = true)]
async fn going_back_to_the_old_spec_drops_the_target() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.answer("digits", Answer::Fails);
    world.apply(isvc("digits", onnx("2"))).await;
    world.apply(isvc("digits", onnx("1"))).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
    assert_eq!(world.loads().len(), 2);
    assert_eq!(world.store.alias(&world.key("digits")), None);
}

#[tokio::test(start_paused = true)]
async fn a_view_names_the_target_only_once_the_alias_is_kept() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.store.hold_aliases(true);
    world.answer("digits", Answer::Silence);
    world.apply(isvc("digits", onnx("2"))).await;
    assert!(world.views.current().name("digits").expect("known").target.is_none());
    assert_eq!(world.loads().len(), 1);
    world.store.hold_aliases(false);
    world.pass(secs(1)).await;
    assert!(world.views.current().name("digits").expect("known").target.is_some());
    assert_eq!(world.loads().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_resource_says_so_and_gets_an_error_instead_of_not_found() {
    let world = World::start().await;
    world.apply(isvc("digits", json!({ "predictor": {} }))).await;
    assert_eq!(world.last("digits"), "Pending/ InvalidSpec False");
    let info = world.status("digits")["modelStatus"]["lastFailureInfo"].clone();
    assert_eq!(info["reason"], "InvalidPredictorSpec");
    assert!(info["message"].as_str().expect("a text").starts_with("spec.predictor names no model"));
    assert!(matches!(world.resolve("digits"), Resolved::Unservable(failure) if failure.message.contains("spec.predictor")));
    world.apply(isvc("digits", onnx("1"))).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_becomes_invalid_leaves_the_old_version_serving_also_over_a_restart() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let old = world.model("digits");
    world.apply(isvc("digits", json!({ "predictor": {} }))).await;
    assert_eq!(world.last("digits"), "Loaded/ InvalidSpec True");
    let world = world.restart().await;
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old));
    world.pass(secs(1)).await;
    assert_eq!(world.last("digits"), "Loaded/ InvalidSpec True");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_resource_is_retired_and_unknown() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let id = world.model("digits");
    world.delete("digits").await;
    assert_eq!(world.retired(), [id.to_string()]);
    assert!(matches!(world.resolve("digits"), Resolved::Unknown));
    assert!(matches!(world.resolve(id.as_str()), Resolved::Unknown));
    // A request that had resolved the id before loads it once more: it is retired once more.
    world.report_of(&id, world::loaded()).await;
    assert_eq!(world.retired(), [id.to_string(), id.to_string()]);
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_is_replaced_is_another_one() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let (key, object) = (world.key("digits"), isvc("digits", onnx("1")));
    world.store.delete(&key).await.expect("there");
    world.apply(object).await;
    assert_eq!(world.retired().len(), 1);
    assert_eq!(world.loads().len(), 2, "retired first, then loaded again");
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
}

#[tokio::test(start_paused = true)]
async fn a_restart_restores_what_was_and_loads_nothing_for_the_first_time_twice() {
    let world = World::start().await;
    world.apply(isvc("cold", onnx("1"))).await;
    world.report("cold", CopyState::Absent).await;
    world.apply(isvc("digits", onnx("1"))).await;
    let old = world.model("digits");
    world.answer("digits", Answer::Silence);
    world.apply(isvc("digits", onnx("2"))).await;
    let written = world.history("digits").len();
    world.free(ByteSize::ZERO);

    let world = world.restart_silent().await;
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old), "the old version in full, before anybody reported");
    world.pass(secs(1)).await;
    assert_eq!(world.history("digits").len(), written, "no status moves before the pod has reported");
    world.answer("digits", Answer::Silence);
    world.report_of(&old, world::loaded()).await;
    assert_eq!(world.last("digits"), "Loaded/Loading InProgress True");
    assert_eq!(world.loads(), ["digits"], "the target; what was on standby stays there");
    assert_eq!(world.last("cold"), "Standby/ UpToDate True");
}

#[tokio::test(start_paused = true)]
async fn a_version_from_an_edit_made_while_no_leader_ran_gets_its_first_load() {
    for (edited, loads) in [(onnx("1"), vec![]), (onnx("2"), vec!["digits"])] {
        let world = World::start().await;
        world.apply(isvc("digits", onnx("1"))).await;
        assert_eq!(world.status("digits")["observedGeneration"], 1);
        // Without room nothing is warmed.
        world.free(ByteSize::ZERO);
        let world = world.restart_after(Some(isvc("digits", edited))).await;
        world.controller.report(&world.pod(), Vec::new()).await;
        world.pass(secs(1)).await;
        assert_eq!(world.loads(), loads);
        assert_eq!(world.status("digits")["observedGeneration"], 1 + loads.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_that_worked_serves_until_what_was_written_while_no_leader_ran_is_loaded() {
    let invalid = json!({ "predictor": {} });
    for (case, second) in [("a target that failed", onnx("2")), ("an invalid spec", invalid)] {
        let world = World::start().await;
        world.apply(isvc("digits", onnx("1"))).await;
        let old = world.model("digits");
        world.answer("digits", Answer::Fails);
        world.apply(isvc("digits", second)).await;
        let world = world.restart_after(Some(isvc("digits", onnx("3")))).await;
        world.answer("digits", Answer::Silence);
        world.controller.report(&world.pod(), Vec::new()).await;
        world.pass(secs(30)).await;
        assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old), "{case}: what worked was given up");
        assert_eq!(world.last("digits"), "Standby/Loading InProgress True", "{case}");
        world.answer("digits", Answer::Loads);
        world.pass(secs(200)).await;
        assert_eq!(world.last("digits"), "Loaded/ UpToDate True", "{case}");
        assert!(!matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_failed_never_takes_over_unloaded_however_often_it_is_tried_again() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let old = world.model("digits");
    world.answer("digits", Answer::Fails);
    world.apply(isvc("digits", onnx("2"))).await;
    // The version that serves is evicted, as others are used.
    world.free(ByteSize::ZERO);
    world.report_of(&old, CopyState::Absent).await;
    assert_eq!(world.last("digits"), "Standby/FailedToLoad BlockedByFailedLoad True");
    // Tries that fail, one that takes long, and one that nobody answers until its failure is forgotten.
    for answer in [Answer::Fails, Answer::Silence, Answer::Silence] {
        world.answer("digits", answer);
        world.pass(secs(700)).await;
        assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old), "the name went to a version that never loaded");
    }
    world.answer("digits", Answer::Loads);
    world.pass(secs(1_500)).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
    assert!(!matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old));
}

#[tokio::test(start_paused = true)]
async fn what_worked_is_not_given_up_after_a_second_crash_while_it_was_loading_again() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let old = world.model("digits");
    world.answer("digits", Answer::Fails);
    world.apply(isvc("digits", onnx("2"))).await;
    let world = world.restart().await;
    world.answer("digits", Answer::Silence);
    world.controller.report(&world.pod(), Vec::new()).await;
    world.report_of(&old, CopyState::Loading { since: UnixMillis(1) }).await;
    world.pass(secs(1)).await;
    assert!(world.last("digits").starts_with("Loading/"), "{}", world.last("digits"));
    let world = world.restart().await;
    world.answer("digits", Answer::Silence);
    world.controller.report(&world.pod(), Vec::new()).await;
    world.pass(secs(1_000)).await;
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id == old), "{}", world.last("digits"));
}

#[tokio::test(start_paused = true)]
async fn a_late_alias_does_not_reach_a_resource_made_anew() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.store.hold_aliases(true);
    world.apply(isvc("digits", onnx("2"))).await;
    world.delete("digits").await;
    world.apply(isvc("digits", onnx("3"))).await;
    world.store.hold_aliases(false);
    world.pass(secs(1)).await;
    assert_eq!(world.store.alias(&world.key("digits")), None);
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_without_the_copies_models_are_warmed_while_there_is_room() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let world = world.restart().await;
    world.pass(secs(1)).await;
    assert_eq!(world.loads(), ["digits"]);
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
}

#[tokio::test(start_paused = true)]
async fn a_name_belongs_to_the_first_and_goes_to_the_second_when_it_is_free() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.apply(predictor("digits", "1")).await;
    let taken = world.status_of(&world::key(berth_registry::Kind::Predictor, "digits"));
    assert_eq!((&taken["activeModelState"], &taken["available"], &taken["transitionStatus"]), (&json!("Pending"), &json!(false), &json!("UpToDate")));
    let message = taken["lastFailureInfo"]["message"].as_str().expect("a text").to_owned();
    assert_eq!(taken["lastFailureInfo"]["reason"], "InvalidPredictorSpec");
    assert!(message.starts_with("Predictor already exists with the same name from a different source: InferenceService default/digits"), "{message}");
    assert_eq!(world.loads().len(), 1);
    world.delete("digits").await;
    let now = world.status_of(&world::key(berth_registry::Kind::Predictor, "digits"));
    assert_eq!((&now["activeModelState"], now.get("lastFailureInfo")), (&json!("Loaded"), None));
    assert!(matches!(world.resolve("digits"), Resolved::Model(model) if model.id.as_str().starts_with("digits__ksp-")));
}

#[tokio::test(start_paused = true)]
async fn without_a_runtime_a_model_fails_with_the_reason_and_loads_once_there_is_one() {
    let world = World::start().await;
    let spec = json!({ "predictor": { "model": { "modelFormat": { "name": "pmml" }, "storageUri": "s3://b/p" } } });
    world.apply(isvc("scores", spec)).await;
    assert_eq!(world.last("scores"), "FailedToLoad/ UpToDate False");
    assert_eq!(world.status("scores")["modelStatus"]["lastFailureInfo"]["reason"], "NoSupportingRuntime");
    assert!(matches!(world.resolve("scores"), Resolved::Unservable(_)));
    world.apply(runtime("other", "pmml")).await;
    assert_eq!(world.last("scores"), "Loading/ UpToDate False", "a runtime, but no pod of it");
    assert_eq!(world.status("scores")["modelStatus"]["lastFailureInfo"]["reason"], "RuntimeUnhealthy");
    world.apply(runtime("embedded", "pmml")).await;
    assert_eq!(world.last("scores"), "Loaded/ UpToDate True");
    assert!(matches!(world.resolve("scores"), Resolved::Model(_)));
}

#[tokio::test(start_paused = true)]
async fn an_inference_service_of_another_mode_is_left_alone() {
    let world = World::start().await;
    let mut object = isvc("digits", onnx("1"));
    object.annotations = Json::EMPTY;
    world.apply(object).await;
    assert!(world.history("digits").is_empty() && world.loads().is_empty());
    assert!(matches!(world.resolve("digits"), Resolved::Unknown));
    world.apply(isvc("digits", onnx("1"))).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True");
    let mut object = isvc("digits", onnx("1"));
    object.annotations = Json::EMPTY;
    world.apply(object).await;
    assert!(matches!(world.resolve("digits"), Resolved::Unknown));
    assert_eq!(world.retired().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_no_more_first_loads_than_it_may_and_all_get_their_turn() {
    let world = World::start().await;
    world.answer_all(Answer::LoadsIn(secs(10)));
    for number in 0..7 {
        world.apply(isvc(&format!("m{number}"), onnx("1"))).await;
    }
    assert_eq!(world.loads().len(), 2);
    world.pass(secs(10)).await;
    assert_eq!(world.loads().len(), 4);
    world.pass(secs(40)).await;
    assert_eq!(world.loads(), ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    assert!((0..7).all(|number| world.last(&format!("m{number}")) == "Loaded/ UpToDate True"));
}

#[tokio::test(start_paused = true)]
async fn a_status_that_cannot_be_written_is_written_later() {
    let world = World::start().await;
    world.store.break_statuses(true);
    world.apply(isvc("digits", onnx("1"))).await;
    assert!(world.history("digits").is_empty());
    assert!(matches!(world.resolve("digits"), Resolved::Model(_)), "serving does not wait for a status");
    world.store.break_statuses(false);
    world.pass(secs(6)).await;
    assert_eq!(world.history("digits"), ["Loading/ UpToDate True", "Loaded/ UpToDate True"]);
}

#[tokio::test(start_paused = true)]
async fn an_edit_that_lands_together_with_a_status_is_not_taken_for_an_echo() {
    let world = World::start().await;
    // Which of both messages the leader takes first is a matter of chance.
    for number in 0..16 {
        let name = format!("m{number}");
        world.store.edit_with_the_next_status(isvc(&name, onnx("2")));
        world.apply(isvc(&name, onnx("1"))).await;
        let resolved = world.resolve(&name);
        assert!(matches!(&resolved, Resolved::Model(model) if model.path.contains("2.onnx")), "{resolved:?}");
        assert_eq!(world.last(&name), "Loaded/ UpToDate True");
    }
}

#[tokio::test(start_paused = true)]
async fn the_leader_has_not_caught_up_while_a_status_could_not_be_written() {
    let world = World::start().await;
    assert!(*world.controller.caught_up().borrow(), "there is nothing to write");
    world.apply(isvc("digits", onnx("1"))).await;
    world.store.break_statuses(true);
    world.free(ByteSize::ZERO);
    let world = world.restart().await;
    world.pass(secs(1)).await;
    assert_eq!(world.last("digits"), "Loaded/ UpToDate True", "what the leader before it wrote");
    assert!(!*world.controller.caught_up().borrow());
    world.store.break_statuses(false);
    world.pass(secs(6)).await;
    assert_eq!(world.last("digits"), "Standby/ UpToDate True");
    assert!(*world.controller.caught_up().borrow());
}

#[tokio::test(start_paused = true)]
async fn many_resources_come_to_rest_with_two_writes_each_and_statuses_then_stay() {
    let world = World::start().await;
    for number in 0..300 {
        world.put(isvc(&format!("m{number}"), onnx("1"))).await;
    }
    world.pass(secs(1)).await;
    let loaded = (0..300).filter(|number| world.last(&format!("m{number}")) == "Loaded/ UpToDate True").count();
    assert_eq!(loaded, 300);
    assert_eq!(world.status_writes(), 600);
    world.pass(secs(3600)).await;
    assert_eq!(world.status_writes(), 600);
}

#[tokio::test(start_paused = true)]
async fn a_change_looks_at_as_few_resources_among_many_as_among_few() {
    let mut looks = Vec::new();
    for others in [10, 500] {
        let world = World::start().await;
        for number in 0..others {
            world.put(isvc(&format!("m{number}"), onnx("1"))).await;
        }
        world.apply(isvc("digits", onnx("1"))).await;
        world.pass(secs(1)).await;
        let before = world.store.gets();
        world.apply(isvc("digits", onnx("2"))).await;
        world.report("digits", CopyState::Absent).await;
        world.delete("m7").await;
        world.pass(secs(1)).await;
        looks.push(world.store.gets() - before);
    }
    // Which of two messages is taken first decides about one look more or less.
    assert!(looks[0].abs_diff(looks[1]) <= 2 && looks[0] < 10, "{looks:?}");
}

#[tokio::test(start_paused = true)]
async fn a_declared_size_is_passed_on_without_a_new_version() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    let id = world.model("digits");
    let mut object = isvc("digits", onnx("1"));
    let mut annotations = object.annotations.members();
    annotations.insert("berth/model-size".to_owned(), json!("64Mi"));
    object.annotations = annotations.into();
    world.apply(object).await;
    let resolved = world.resolve("digits");
    assert!(matches!(resolved, Resolved::Model(model) if model.id == id && model.declared_size == Some(ByteSize::mib(64))));
    assert_eq!((world.loads().len(), world.retired().len()), (1, 0));
}

/// With one more annotation.
fn annotated(mut object: Desired, name: &str, value: &str) -> Desired {
    let mut annotations = object.annotations.members();
    annotations.insert(name.to_owned(), json!(value));
    object.annotations = annotations.into();
    object
}

#[tokio::test(start_paused = true)]
async fn agents_hear_at_once_that_a_model_is_pinned() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    assert_eq!(world.amended(), Vec::<String>::new());
    world.apply(annotated(isvc("digits", onnx("1")), "berth/pin", "true")).await;
    assert_eq!(world.amended(), ["digits Keep { pinned: true, min_copies: 0, idle_ttl: None }"]);
    assert_eq!((world.loads().len(), world.retired().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_went_because_nobody_used_it_is_not_warmed() {
    let world = World::start().await;
    world.apply(annotated(isvc("short", onnx("1")), "berth/idle-ttl", "60s")).await;
    world.apply(isvc("usual", onnx("2"))).await;
    for name in ["short", "usual"] {
        world.report(name, CopyState::Absent).await;
    }
    world.pass(secs(600)).await;
    let mut loads = world.loads();
    loads.sort();
    assert_eq!(loads, ["short", "usual", "usual"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_forgotten_a_quarter_of_an_hour_after_it() {
    let world = World::start().await;
    world.apply(isvc("digits", onnx("1"))).await;
    world.free(ByteSize::ZERO);
    let failure = world.failure("digits");
    let report = berth_types::CopyReport {
        model: world.model("digits"),
        state: CopyState::Absent,
        failure: Some(failure),
        mended: false,
        last_used: Some(UnixMillis(1)),
    };
    world.answer("digits", Answer::NoRoom);
    world.controller.report(&world.pod(), vec![report]).await;
    world.pass(secs(1)).await;
    assert_eq!(world.last("digits"), "FailedToLoad/ UpToDate False");
    world.pass(Duration::from_secs(16 * 60)).await;
    assert_eq!(world.last("digits"), "Standby/ UpToDate True");
    assert_eq!(world.status("digits")["modelStatus"]["copies"], json!({ "failedCopies": 0 }));
}

#[tokio::test(start_paused = true)]
async fn the_leader_ends_when_told_and_leaves_a_true_status() {
    let world = World::start().await;
    world.apply(isvc("digits", with_uri("s3://b/p"))).await;
    let store = world.store.clone();
    let key = world.key("digits");
    world.stop().await;
    let status = store.get(&key).expect("there").status.clone().expect("written").value();
    assert_eq!(status["modelStatus"]["states"]["activeModelState"], "Loaded");
}
