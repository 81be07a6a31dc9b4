use berth_telemetry::HostNet;
use berth_types::ByteSize;

use super::scripted::{BROKEN, SLOW, Scripted};
use super::*;
use crate::conformance::registration;
use crate::layout::ovms;

const PATIENCE: Duration = Duration::from_secs(30);

/// The adapter before a scripted server. There is nothing at the port for requests.
struct Place {
    folder: tempfile::TempDir,
    server: Arc<Scripted>,
    clock: Clock,
}

impl Place {
    fn new() -> Self {
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::system());
        let server = Scripted::new(folder.path().join("config.json"), clock.clone());
        std::fs::write(folder.path().join("model.onnx"), "x").expect("written");
        Place { folder, server, clock }
    }

    fn config(&self) -> OvmsConfig {
        OvmsConfig {
            name: "ovms-1.x".into(),
            repository: self.folder.path().join("models"),
            config_file: self.folder.path().join("config.json"),
            capacity: None,
            load_concurrency: NonZeroU32::MIN,
            load_timeout: PATIENCE,
            start_timeout: PATIENCE,
            size_percent: 125,
            max_concurrency: None,
        }
    }

    async fn start(&self) -> Result<OvmsServer, StartError> {
        let nowhere =
            Server::new("unix:/nowhere".parse().expect("a target"), berth_upstream::Config::default(), self.clock.clone(), HostNet::shared());
        let rpc = Rpc::new(nowhere, self.clock.clone());
        OvmsServer::start_with(self.config(), Arc::clone(&self.server) as _, "here".to_owned(), rpc, self.clock.clone()).await
    }

    async fn load(&self, server: &OvmsServer, id: &str) -> Result<Loaded, LoadError> {
        let model = registration(id);
        let artifacts = Artifacts { model: self.folder.path().join("model.onnx"), schema: None, size: ByteSize(1000) };
        let laid_out = server.lay_out(&model, &artifacts).await.expect("it can be laid out");
        server.load(&model, &laid_out).await
    }

    /// Two callers load what is laid out once.
    async fn load_twice(&self, server: &OvmsServer, id: &str) -> (Result<Loaded, LoadError>, Result<Loaded, LoadError>) {
        let model = registration(id);
        let artifacts = Artifacts { model: self.folder.path().join("model.onnx"), schema: None, size: ByteSize(1000) };
        let laid_out = server.lay_out(&model, &artifacts).await.expect("it can be laid out");
        tokio::join!(server.load(&model, &laid_out), server.load(&model, &laid_out))
    }
}

fn id(text: &str) -> ModelId {
    ModelId::new(text).expect("valid")
}

#[tokio::test(start_paused = true)]
async fn a_model_is_in_the_file_by_its_id_and_gone_when_the_server_says_end() {
    let place = Place::new();
    let server = place.start().await.expect("it answers");
    assert_eq!((server.info().version.as_ref(), server.index().await.expect("it answers").iter().count()), ("unknown", 0));
    // An id that no folder can have is the server's name all the same: requests carry it.
    for model in ["digits__isvc-3d2daa3370", "team/model"] {
        place.load(&server, model).await.expect("it loads");
        assert_eq!(server.index().await.expect("it answers").get(&id(model)), Some(IndexEntry::Ready));
    }
    let written = ovms::models(&std::fs::read(&place.config().config_file).expect("there")).expect("whole");
    assert_eq!(written["team/model"], place.config().repository.join("team~2Fmodel"));
    assert!(written["team/model"].join("1/model.onnx").is_file());
    server.unload(&id("team/model")).await.expect("it is told");
    assert!(server.index().await.expect("it answers").unloaded(&id("team/model")).is_some());
    assert_eq!(place.server.available(), ["digits__isvc-3d2daa3370"]);
    assert_eq!(server.estimate(&Artifacts { model: PathBuf::new(), schema: None, size: ByteSize(54321) }), Some(Footprint::host(ByteSize(67902))));
}

#[tokio::test(start_paused = true)]
async fn a_load_is_one_until_the_server_has_answered_and_then_unloaded_if_nobody_wants_it() {
    let place = Place::new();
    let server = place.start().await.expect("it answers");
    place.server.shut();
    let model = format!("m{SLOW}");
    let both = place.load_twice(&server, &model);
    let meanwhile = async {
        place.server.at_the_door().await;
        assert_eq!(server.index().await.expect("it answers").get(&id(&model)), Some(IndexEntry::Loading));
        server.unload(&id(&model)).await.expect("it is taken");
        assert!(server.index().await.expect("it answers").unloaded(&id(&model)).is_none(), "a look before the end proves nothing");
        place.server.let_in();
    };
    let ((one, other), ()) = tokio::join!(both, meanwhile);
    assert!(one.is_err() && other.is_err(), "it was unloaded meanwhile");
    assert!(server.index().await.expect("it answers").unloaded(&id(&model)).is_some());
    assert!(place.server.available().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unload_that_was_taken_while_the_server_reloads_is_listed_as_under_way() {
    let place = Place::new();
    let server = place.start().await.expect("it answers");
    place.load(&server, "held").await.expect("it loads");
    place.server.shut();
    let slow = format!("m{SLOW}");
    let meanwhile = async {
        place.server.at_the_door().await;
        server.unload(&id("held")).await.expect("it is taken");
        assert_eq!(server.index().await.expect("it answers").get(&id("held")), Some(IndexEntry::Unloading));
        place.server.let_in();
    };
    let (loaded, ()) = tokio::join!(place.load(&server, &slow), meanwhile);
    loaded.expect("it loads");
    while server.index().await.expect("it answers").unloaded(&id("held")).is_none() {
        server.index_changed().await;
    }
    assert_eq!(place.server.available(), [slow]);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_cannot_be_loaded_takes_no_memory() {
    let place = Place::new();
    let server = place.start().await.expect("it answers");
    let model = format!("m{BROKEN}");
    let refused = place.load(&server, &model).await.expect_err("it is broken");
    assert!(refused.message.contains("no such network"), "{refused}");
    assert!(server.index().await.expect("it answers").unloaded(&id(&model)).is_some());
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_process_left_is_gone_before_the_first_order_and_what_is_anothers_is_refused() {
    let place = Place::new();
    let config = place.config();
    let old: file::Models = [("old".to_owned(), config.repository.join("old"))].into();
    file::write(&config.config_file, &old).await.expect("written");
    place.server.reload(place.clock.deadline_in(PATIENCE)).await.expect("it reads it");
    assert_eq!(place.server.available(), ["old"]);
    drop(place.start().await.expect("it is ours"));
    assert!(place.server.available().is_empty());

    let foreign: file::Models = [("theirs".to_owned(), PathBuf::from("/srv/theirs"))].into();
    file::write(&config.config_file, &foreign).await.expect("written");
    let refused = place.start().await.err().expect("it is not ours").to_string();
    assert!(refused.contains("lists theirs, which Berth did not put there"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_come_is_told_by_its_port() {
    let place = Place::new();
    place.server.be_away(true);
    let refused = place.start().await.err().expect("nobody is there").to_string();
    assert_eq!(refused, "OpenVINO Model Server at here does not answer after 30s: refused");
}
