use proptest::prelude::*;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

use super::super::scripted::{BROKEN, SLOW, Scripted};
use super::*;
use crate::layout::ovms;

/// A desk before a scripted server.
struct Office {
    folder: TempDir,
    server: Arc<Scripted>,
    desk: Desk,
    clock: Clock,
    health: watch::Sender<Health>,
    _at_work: AbortOnDropHandle<()>,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl Office {
    fn open() -> Self {
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::system());
        let file = folder.path().join("config.json");
        let server = Scripted::new(file.clone(), clock.clone());
        let (health, beats) = watch::channel(Health::Up);
        let (desk, at_work) = open(Deps { api: Arc::clone(&server) as _, clock: clock.clone(), file, patience: PATIENCE, health: beats });
        Office { folder, server, desk, clock, health, _at_work: AbortOnDropHandle::new(tokio::spawn(at_work)) }
    }

    fn load(&self, name: &str) -> impl Future<Output = Result<(), LoadError>> + Send + use<> {
        let (desk, name, folder) = (self.desk.clone(), name.to_owned(), self.folder.path().join(name));
        async move { desk.load(name, folder).await }
    }

    /// The order is in the queue when this returns.
    async fn begin(&self, name: &str) -> AbortOnDropHandle<Result<(), LoadError>> {
        let load = AbortOnDropHandle::new(tokio::spawn(self.load(name)));
        tokio::task::yield_now().await;
        load
    }

    fn file(&self) -> Vec<String> {
        let text = std::fs::read(self.folder.path().join("config.json")).expect("it is there");
        ovms::models(&text).expect("it is whole").into_keys().collect()
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_order_goes_out_at_once_and_what_comes_meanwhile_with_the_next_one() {
    let office = Office::open();
    let began = office.clock.now();
    office.load("first").await.expect("it loads");
    assert_eq!(office.clock.now(), began, "nothing waits for more to come");
    office.server.shut();
    let slow = office.begin("a-slow").await;
    office.server.at_the_door().await;
    let mut others = Vec::new();
    for number in 0..50 {
        others.push(office.begin(&format!("m{number}")).await);
    }
    office.server.let_in();
    slow.await.expect("no panic").expect("it loads");
    for other in others {
        other.await.expect("no panic").expect("it loads");
    }
    assert_eq!(office.server.reloads().len(), 3, "one, one, and fifty together");
    assert_eq!(office.server.available().len(), 52, "earlier models survive later loads");
}

#[tokio::test(start_paused = true)]
async fn each_model_of_a_reload_has_a_verdict_of_its_own() {
    let office = Office::open();
    office.server.shut();
    let slow = office.begin("z-slow").await;
    office.server.at_the_door().await;
    let (good, broken) = (office.begin("good").await, office.begin("m-broken").await);
    office.server.let_in();
    slow.await.expect("no panic").expect("it loads");
    good.await.expect("no panic").expect("another's failure is none of its own");
    let refused = broken.await.expect("no panic").expect_err("it cannot be loaded");
    assert_eq!((refused.fault, refused.nothing_attempted), (LoadFault::BadModel, false));
    assert!(refused.message.contains("no such network"), "{refused}");
    office.load("later").await.expect("it loads");
    assert_eq!(office.file(), ["good", "later", "z-slow"], "what failed is not tried again with every reload");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_there_does_not_wait_for_a_slower_one_of_the_same_reload() {
    let office = Office::open();
    office.server.shut();
    let first = office.begin("first-slow").await;
    office.server.at_the_door().await;
    let (slow, quick) = (office.begin("other-slow").await, office.begin("quick").await);
    office.server.let_one_in();
    first.await.expect("no panic").expect("it loads");
    quick.await.expect("no panic").expect("it is there while the slow one loads");
    assert!(office.server.reloads().len() == 2 && !slow.is_finished());
    office.server.let_in();
    slow.await.expect("no panic").expect("it loads");
}

#[tokio::test(start_paused = true)]
async fn an_order_to_unload_is_taken_while_a_slow_model_loads_and_carried_out_after_it() {
    let office = Office::open();
    for name in ["held", "kept", "again"] {
        office.load(name).await.expect("it loads");
    }
    office.server.shut();
    let slow = office.begin("a-slow").await;
    office.server.at_the_door().await;
    let began = office.clock.now();
    for _time in 0..3 {
        assert_eq!(office.desk.unload("held".to_owned()).await, Ok(()));
    }
    assert_eq!(office.desk.unload("again".to_owned()).await, Ok(()));
    let again = office.begin("again").await;
    assert_eq!((office.clock.now(), office.server.reloads().len()), (began, 4), "answered before the server was told");
    assert!(office.desk.is_leaving("held") && office.desk.is_leaving("again") && !office.desk.is_leaving("kept"));
    assert!(!slow.is_finished() && !again.is_finished());
    office.server.let_in();
    slow.await.expect("no panic").expect("it loads");
    again.await.expect("no panic").expect("a load after an unload is a load");
    assert_eq!(office.server.available(), ["a-slow", "again", "kept"]);
    assert!(!office.desk.is_leaving("held") && !office.desk.is_leaving("again"));
    assert_eq!(office.server.reloads().len(), 6, "one for both unloads, one for the load");
}

/// Upstream's adapter dies when an unload meets a load that is still waiting.
#[tokio::test(start_paused = true)]
async fn an_unload_that_meets_a_waiting_load_ends_it_and_nothing_else() {
    let office = Office::open();
    office.server.shut();
    let slow = office.begin("a-slow").await;
    office.server.at_the_door().await;
    let (loads, other) = ([office.begin("m").await, office.begin("m").await], office.begin("other").await);
    let unload = AbortOnDropHandle::new(tokio::spawn({
        let desk = office.desk.clone();
        async move { desk.unload("m".to_owned()).await }
    }));
    tokio::task::yield_now().await;
    let again = office.begin("m").await;
    let withdrawn = office.begin("n").await;
    office.desk.withdraw("n".to_owned()).await;
    office.server.let_in();
    slow.await.expect("no panic").expect("it loads");
    for load in loads {
        let refused = load.await.expect("no panic").expect_err("it was unloaded");
        assert_eq!((refused.fault, refused.nothing_attempted), (LoadFault::NotNow, true), "{refused}");
    }
    assert_eq!(unload.await.expect("no panic"), Ok(()));
    other.await.expect("no panic").expect("it loads");
    again.await.expect("no panic").expect("a load after the unload is a load");
    withdrawn.await.expect("no panic").expect_err("it was withdrawn");
    assert_eq!(office.server.reloads().last(), Some(&vec!["a-slow".to_owned(), "m".to_owned(), "other".to_owned()]));
    assert_eq!(office.server.available(), ["a-slow", "m", "other"]);
}

/// Upstream's adapter gives up the whole batch and forgets models that the server has loaded.
#[tokio::test(start_paused = true)]
async fn a_reload_without_an_answer_is_no_failure_of_models_that_load() {
    let office = Office::open();
    office.server.lose_answers(true);
    office.load("m").await.expect("it is there, whatever became of the answer");
    let broken = office.load(&format!("x{BROKEN}")).await.expect_err("its state says so");
    assert_eq!(broken.fault, LoadFault::BadModel, "{broken}");
    assert_eq!(office.desk.unload("m".to_owned()).await, Ok(()), "its state says so");
    office.server.be_away(true);
    let refused = office.load("y").await.expect_err("there is no server");
    assert_eq!(refused.fault, LoadFault::RuntimeDown, "{refused}");
    assert!(office.desk.unload("m".to_owned()).await.is_err());
    assert!(office.file().is_empty(), "a server that starts now loads nothing that was refused: {:?}", office.file());
}

#[tokio::test(start_paused = true)]
async fn a_load_that_does_not_end_is_told_so_in_time_and_others_go_on() {
    let office = Office::open();
    office.server.shut();
    let began = office.clock.now();
    let refused = office.load(&format!("m{SLOW}")).await.expect_err("it never ends");
    assert_eq!(refused.fault, LoadFault::TimedOut, "{refused}");
    assert!(office.clock.now() - began < PATIENCE + Duration::from_secs(1));
    office.load("other").await.expect("it loads");
}

#[tokio::test(start_paused = true)]
async fn the_successor_of_a_dead_server_finds_an_empty_file() {
    let office = Office::open();
    office.load("held").await.expect("it loads");
    office.server.shut();
    let slow = office.begin(&format!("m{SLOW}")).await;
    office.server.at_the_door().await;
    assert_eq!(office.file(), ["held", "m-slow"]);
    office.server.be_away(true);
    office.health.send_replace(Health::Down { why: "reset".into() });
    let refused = slow.await.expect("no panic").expect_err("its server is gone");
    assert_eq!(refused.fault, LoadFault::RuntimeDown, "{refused}");
    while !office.file().is_empty() {
        office.clock.sleep(Duration::from_millis(1)).await;
    }
    office.server.be_away(false);
    office.server.let_in();
    office.health.send_replace(Health::Up);
    office.load("new").await.expect("it loads");
    assert_eq!(office.file(), ["new"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(11), ..Default::default() })]

    /// Whatever comes at once: every order is answered, and in the end the server holds what was last ordered of each model.
    #[test]
    fn the_last_order_about_each_model_counts(orders in prop::collection::vec((0_u8..6, any::<bool>(), 0_u64..4), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let office = Office::open();
            let (mut expected, mut answers) = (BTreeMap::new(), Vec::new());
            for (model, loads, pause) in orders {
                let name = if model == 0 { format!("m{BROKEN}") } else { format!("m{model}") };
                expected.insert(name.clone(), loads && model != 0);
                let (load, desk) = (office.load(&name), office.desk.clone());
                let order = async move { if loads { load.await.map_err(|why| why.fault) } else { desk.unload(name).await.map_err(|_| LoadFault::RuntimeDown) } };
                answers.push((model, loads, AbortOnDropHandle::new(tokio::spawn(order))));
                tokio::task::yield_now().await;
                if pause == 0 {
                    office.clock.sleep(Duration::from_millis(1)).await;
                }
            }
            for (model, loads, answer) in answers {
                match answer.await.expect("no panic") {
                    Ok(()) => assert!(model != 0 || !loads),
                    Err(fault) => assert!(loads && (model == 0 || fault == LoadFault::NotNow), "{fault:?}"),
                }
            }
            let expected: Vec<String> = expected.into_iter().filter(|(_, held)| *held).map(|(name, _)| name).collect();
            assert_eq!(office.server.available(), expected);
        });
    }
}
