//! Pods that serve other bytes than the first good ones of a model id.

use berth_registry::Store as _;
use berth_types::CopyState;

use super::world::{World, digest, isvc, loaded, loaded_from, onnx, secs};

/// A leader with one resource, which nothing is loaded of.
async fn world_with(name: &str) -> World {
    let world = World::start().await;
    world.answer(name, super::world::Answer::Silence);
    world.apply(isvc(name, onnx("1"))).await;
    world
}

#[tokio::test(start_paused = true)]
async fn another_pod_with_other_bytes_drifts_is_told_once_and_serves() {
    let world = world_with("digits").await;
    let model = world.model("digits");
    let (p1, p2) = (world.pod(), world.other_pod("p2"));
    world.report_from(&p1, &model, loaded_from(1)).await;
    assert_eq!(world.drifts(&model), (vec![], 0));
    let drift = ("p2".to_owned(), digest(1), digest(2));
    for _ in 0..3 {
        world.report_from(&p2, &model, loaded_from(2)).await;
        assert_eq!(world.drifts(&model), (vec![drift.clone()], 1), "told once");
        world.report_from(&p2, &model, CopyState::Absent).await;
        assert_eq!(world.drifts(&model), (vec![drift.clone()], 1), "its files are still there");
    }
    world.report_from(&p1, &model, loaded_from(1)).await;
    assert_eq!((world.drifts(&model).0, world.last("digits").as_str()), (vec![drift], "Loaded/ UpToDate True"), "it blocks nothing");
    // Bytes that nobody made a digest of say nothing.
    world.report_from(&p2, &model, loaded()).await;
    assert_eq!(world.drifts(&model).1, 1);
    world.report_from(&p2, &model, loaded_from(3)).await;
    assert_eq!(world.drifts(&model), (vec![("p2".to_owned(), digest(1), digest(3))], 2), "yet other bytes are news");
    world.report_from(&p2, &model, loaded_from(1)).await;
    assert_eq!(world.drifts(&model), (vec![], 2), "settled");
    world.report_from(&p2, &model, loaded_from(2)).await;
    world.pods_are_gone().await;
    assert_eq!(world.drifts(&model), (vec![], 3), "a pod that is gone serves nothing");
}

#[tokio::test(start_paused = true)]
async fn other_bytes_after_an_eviction_are_drift_on_the_same_pod() {
    let world = world_with("digits").await;
    let model = world.model("digits");
    for (content, drifts) in [(1, 0), (1, 0), (2, 1), (2, 1), (1, 1)] {
        world.report_of(&model, loaded_from(content)).await;
        world.report_of(&model, CopyState::Absent).await;
        assert_eq!(world.drifts(&model).1, drifts);
    }
    let line = world.controller.drifts();
    world.report_of(&model, loaded_from(2)).await;
    let line = line.borrow().of(&model)[0].to_string();
    assert!(line.starts_with(&format!("pod p1 serves {} (md5), the first good content was {}", digest(2), digest(1))), "{line}");
}

#[tokio::test(start_paused = true)]
async fn the_first_good_content_outlives_the_leader() {
    let world = world_with("digits").await;
    let model = world.model("digits");
    world.report_of(&model, loaded_from(1)).await;
    assert_eq!(world.kept_contents("digits").await, [(model.clone(), digest(1))].into());
    let world = world.restart_silent().await;
    world.report_of(&model, loaded_from(2)).await;
    assert_eq!(world.drifts(&model), (vec![("p1".to_owned(), digest(1), digest(2))], 1));
    assert_eq!(world.kept_contents("digits").await, [(model, digest(1))].into(), "the first one stays the first");
}

#[tokio::test(start_paused = true)]
async fn a_content_that_could_not_be_written_is_written_later() {
    let world = world_with("digits").await;
    let model = world.model("digits");
    world.store.break_contents(true);
    world.report_of(&model, loaded_from(1)).await;
    assert_eq!((world.kept_contents("digits").await.len(), world.last("digits").as_str()), (0, "Loaded/ UpToDate True"));
    world.store.break_contents(false);
    world.pass(secs(6)).await;
    assert_eq!(world.kept_contents("digits").await, [(model, digest(1))].into());
}

#[tokio::test(start_paused = true)]
async fn the_first_good_content_goes_with_its_version() {
    let world = world_with("digits").await;
    let old = world.model("digits");
    world.report_of(&old, loaded_from(1)).await;
    world.apply(isvc("digits", onnx("2"))).await;
    let versions = world.store.alias(&world.key("digits")).expect("both are kept");
    let new = versions.target.expect("the new version").id.clone();
    // Another version has other bytes: no drift.
    world.report_of(&new, loaded_from(2)).await;
    assert_eq!((world.model("digits"), world.drifts(&new).1), (new.clone(), 0));
    assert_eq!(world.kept_contents("digits").await, [(new, digest(2))].into());
    // Back to the first spec: the id is the same as before and begins anew.
    world.apply(isvc("digits", onnx("1"))).await;
    world.report_of(&old, loaded_from(3)).await;
    assert_eq!((world.model("digits"), world.drifts(&old)), (old.clone(), (vec![], 0)));
    assert_eq!(world.kept_contents("digits").await, [(old.clone(), digest(3))].into());
    world.report_of(&old, loaded_from(4)).await;
    assert_eq!(world.drifts(&old).0.len(), 1);
    world.delete("digits").await;
    assert_eq!((world.drifts(&old).0, world.store.contents().await.expect("in memory").len()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_of_a_version_that_an_edit_replaced_while_no_leader_ran_goes() {
    let world = world_with("digits").await;
    world.report_of(&world.model("digits"), loaded_from(1)).await;
    let world = world.restart_after(Some(isvc("digits", onnx("2")))).await;
    world.answer("digits", super::world::Answer::Silence);
    world.controller.report(&world.pod(), Vec::new()).await;
    world.pass(secs(1)).await;
    assert_eq!(world.kept_contents("digits").await, [].into());
}
