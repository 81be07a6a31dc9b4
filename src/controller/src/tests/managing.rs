//! Models and names that calls manage, beside a leader.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use berth_plan::managed::{Doing, ModelInfo, NameDoing, NewModel, Refused, SetName};
use berth_registry::{Managed as _, Management, Resolved};
use berth_types::{ModelId, Name, UnixMillis};

use super::world::{Answer, World, isvc, loaded, onnx, secs};
use crate::Manager;

fn id(text: &str) -> ModelId {
    ModelId::new(text).expect("valid")
}

fn model(text: &str, path: &str) -> NewModel {
    let info = ModelInfo { kind: "mt:onnx".to_owned(), path: path.to_owned(), key: String::new() };
    NewModel { id: id(text), info, last_used: UnixMillis(1) }
}

/// A target that is made for the name.
fn to(name: &str, target: &str) -> SetName {
    SetName {
        name: Name::new(name).expect("valid"),
        target: id(target),
        info: Some(model(target, target).info),
        last_used: UnixMillis(1),
        update_only: false,
        auto_delete: true,
        force: false,
        expected: None,
        owner: None,
    }
}

/// `active>target doing`.
fn standing(manager: &Manager, name: &str) -> String {
    let Some(standing) = manager.name(name, None).expect("ready") else { return "none".to_owned() };
    let id = |version: &Option<(ModelId, berth_plan::managed::ModelStanding)>| version.as_ref().map(|(id, _)| id.to_string()).unwrap_or_default();
    let doing = match standing.doing {
        NameDoing::Defined => "defined",
        NameDoing::Transitioning => "transitioning",
        NameDoing::TransitionFailed => "failed",
    };
    format!("{}>{} {doing}", id(&standing.active), id(&standing.target))
}

fn doing(manager: &Manager, id: &str) -> Doing {
    manager.model(id).expect("ready").doing
}

#[tokio::test(start_paused = true)]
async fn a_name_switches_when_its_target_is_loaded_and_what_was_made_for_it_goes() {
    let world = World::start().await;
    let manager = world.manager().await;
    manager.set_name(to("n", "a")).await.expect("new");
    assert_eq!((standing(&manager, "n").as_str(), doing(&manager, "a")), ("a> defined", Doing::NotLoaded));
    world.report_of(&id("a"), loaded()).await;
    world.answer_all(Answer::LoadsIn(secs(30)));
    manager.set_name(to("n", "b")).await.expect("a change");
    world.pass(secs(29)).await;
    assert_eq!((standing(&manager, "n"), world.loads()), ("a>b transitioning".to_owned(), vec!["b".to_owned()]));
    let target = id("b");
    let settled = manager.name_settles("n", &target);
    world.pass(secs(2)).await;
    settled.await;
    assert_eq!((standing(&manager, "n"), world.retired()), ("b> defined".to_owned(), vec!["a".to_owned()]));
    assert_eq!(doing(&manager, "a"), Doing::NotFound);
    assert!(matches!(world.resolve("n"), Resolved::Model(serving) if serving.id == id("b")));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_does_not_switch_while_agents_of_before_may_have_what_is_missing() {
    let world = World::start().await;
    let manager = world.manager().await;
    manager.set_name(to("n", "a")).await.expect("new");
    world.report_of(&id("a"), loaded()).await;
    world.answer_all(Answer::LoadsIn(secs(1)));
    world.awaits(true);
    manager.set_name(to("n", "b")).await.expect("a change");
    world.pass(secs(60)).await;
    assert_eq!((standing(&manager, "n"), world.loads()), ("a>b transitioning".to_owned(), Vec::<String>::new()));
    world.awaits(false);
    world.pass(secs(10)).await;
    assert_eq!((standing(&manager, "n"), world.loads()), ("b> defined".to_owned(), vec!["b".to_owned()]));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_fails_is_tried_again_as_seldom_as_a_resources_and_takes_over_when_it_loads() {
    let world = World::start().await;
    let manager = world.manager().await;
    manager.set_name(to("n", "a")).await.expect("new");
    world.report_of(&id("a"), loaded()).await;
    world.answer_all(Answer::Fails);
    manager.set_name(to("n", "b")).await.expect("a change");
    world.pass(secs(1)).await;
    assert_eq!((standing(&manager, "n").as_str(), world.loads().len()), ("a>b failed", 1));
    assert_eq!(manager.model("b").expect("ready").errors, ["no such object"]);
    assert_eq!(manager.model_is("b", &[Doing::LoadingFailed]).await.doing, Doing::LoadingFailed);
    world.pass(secs(8 * 60)).await;
    assert_eq!(world.loads().len(), 1, "no try within nine minutes");
    world.answer_all(Answer::Loads);
    world.pass(secs(3 * 60 + 1)).await;
    assert_eq!((standing(&manager, "n").as_str(), world.loads().len()), ("b> defined", 2));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_without_room_is_asked_for_at_doubling_distances() {
    let world = World::start().await;
    let manager = world.manager().await;
    manager.set_name(to("n", "a")).await.expect("new");
    world.report_of(&id("a"), loaded()).await;
    world.answer_all(Answer::NoRoom);
    manager.set_name(to("n", "b")).await.expect("a change");
    for (after, loads) in [(1, 1), (28, 1), (2, 2), (58, 2), (3, 3), (117, 3), (4, 4)] {
        world.pass(secs(after)).await;
        assert_eq!((standing(&manager, "n").as_str(), world.loads().len()), ("a>b transitioning", loads));
    }
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_on_its_way_goes_on_after_a_restart() {
    let world = World::start().await;
    let manager = world.manager().await;
    manager.set_name(to("n", "a")).await.expect("new");
    world.report_of(&id("a"), loaded()).await;
    world.answer_all(Answer::Silence);
    manager.set_name(to("n", "b")).await.expect("a change");
    assert_eq!(standing(&manager, "n"), "a>b transitioning");
    let world = world.restart().await;
    world.answer_all(Answer::LoadsIn(secs(5)));
    let manager = world.manager().await;
    assert!(matches!(world.resolve("n"), Resolved::Model(kept) if kept.id == id("a")));
    assert_eq!((standing(&manager, "n").as_str(), world.loads()), ("a>b transitioning", vec!["b".to_owned()]));
    world.pass(secs(6)).await;
    assert_eq!((standing(&manager, "n").as_str(), world.retired()), ("b> defined", vec!["a".to_owned()]));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_while_resources_are_read_is_told_to_come_again() {
    let world = World::start().await;
    let views = berth_registry::Views::in_epoch(2);
    let manager = Manager::open(crate::ManagerDeps { views, ..world.manager_deps() });
    assert!(matches!(manager.register(model("m", "m")).await, Err(Refused::NotReady(_))));
    assert!(matches!(manager.model("m"), Err(Refused::NotReady(_))));
    assert!(matches!(manager.name("n", None), Err(Refused::NotReady(_))));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_nothing_half_done() {
    let world = World::start().await;
    let manager = world.manager().await;
    {
        let mut call = pin!(manager.register(model("m", "m")));
        poll_fn(|cx| {
            assert!(call.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    }
    world.pass(secs(0)).await;
    assert_eq!(doing(&manager, "m"), Doing::NotLoaded);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_id_stands_for_something_else_only_when_what_it_was_has_been_retired() {
    let world = World::start().await;
    let manager = world.manager().await;
    manager.register(model("m", "old")).await.expect("new");
    let (gone, anew) = tokio::join!(manager.unregister(id("m")), async {
        while let Err(Refused::Exists(_)) = manager.register(model("m", "new")).await {
            tokio::task::yield_now().await;
        }
    });
    gone.expect("there");
    let () = anew;
    let path = world.views.current().model("m").map(|shown| Arc::clone(&shown.path));
    assert_eq!((path.as_deref(), world.retired()), (Some("new"), vec!["m".to_owned()]));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_resource_waits_for_a_name_that_calls_hold_and_gets_it_when_they_let_go() {
    let world = World::start().await;
    let manager = world.manager().await;
    manager.set_name(to("n", "a")).await.expect("new");
    world.apply(isvc("n", onnx("1"))).await;
    assert_eq!(world.last("n"), "Pending/ UpToDate False");
    let message = world.status("n")["modelStatus"]["lastFailureInfo"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.ends_with("a vmodel n has it: give one of them another name"), "{message}");
    assert!(matches!(world.resolve("n"), Resolved::Model(serving) if serving.id == id("a")));
    manager.delete_name(Name::new("n").expect("valid"), None).await.expect("there");
    world.pass(secs(1)).await;
    assert_eq!(world.last("n"), "Loaded/ UpToDate True");
    assert!(matches!(manager.set_name(to("n", "a")).await, Err(Refused::Exists(text)) if text.contains("InferenceService default/n")));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_gets_the_name_while_a_call_is_being_kept_keeps_it_and_the_call_is_taken_back() {
    let world = World::start().await;
    let manager = world.manager().await;
    world.store.hold_calls(true);
    let call = tokio::spawn({
        let manager = manager.clone();
        async move { manager.set_name(to("n", "a")).await }
    });
    world.pass(secs(0)).await;
    assert!(world.store.managed_name("n").is_some() && manager.name("n", None) == Ok(None), "kept, and not shown yet");
    world.apply(isvc("n", onnx("1"))).await;
    let theirs = world.model("n");
    world.store.hold_calls(false);
    let refused = call.await.expect("no panic").expect_err("the resource was first");
    assert!(matches!(&refused, Refused::Exists(text) if text.contains("InferenceService default/n")), "{refused}");
    assert!(matches!(world.resolve("n"), Resolved::Model(serving) if serving.id == theirs));
    assert_eq!((world.store.managed(), doing(&manager, "a")), ((Vec::new(), Vec::new()), Doing::NotFound));

    let world = world.restart().await;
    let _manager = world.manager().await;
    world.pass(secs(1)).await;
    assert!(matches!(world.resolve("n"), Resolved::Model(serving) if serving.id == theirs));
    assert_eq!(world.last("n"), "Loaded/ UpToDate True");
    world.stop().await;
}
