use super::*;
use crate::LoadFault;

#[test]
fn the_settings_are_those_that_its_container_waits_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("_torchserve_models");
    claim(&store).expect("made");
    let written = fs::read_to_string(store.join("mmconfig.properties")).expect("it is there");
    for line in [
        "enable_envvars_config=true",
        &format!("model_store={}", store.display()),
        "metric_time_interval=10",
        "inference_address=http://127.0.0.1:8083",
        "number_of_netty_threads=8",
        "job_queue_size=512",
    ] {
        assert!(written.lines().any(|written| written == line), "{line} in {written}");
    }
    fs::write(store.join("old.mar"), "an archive of an earlier process").expect("written");
    claim(&store).expect("ours");
    let mut names: Vec<_> = fs::read_dir(&store).expect("there").map(|entry| entry.expect("read").file_name()).collect();
    names.sort();
    assert_eq!(names, [".berth", "mmconfig.properties"]);
}

#[test]
fn faults_of_a_load_are_told_apart_and_in_the_servers_words() {
    let model = ModelId::new("m").expect("valid");
    let said = |code, message: &str| RpcError::Said { code, message: message.to_owned() };
    for (why, fault, message) in [
        (
            said(Code::Internal, "Failed to start workers for model m version: 1.0\norg.pytorch.serve.http.InternalServerException"),
            LoadFault::BadModel,
            "TorchServe did not load it (Internal): Failed to start workers for model m version: 1.0",
        ),
        (
            said(Code::NotFound, "Model not found at: m.mar\norg.pytorch.serve.archive.model.ModelNotFoundException"),
            LoadFault::BadModel,
            "TorchServe did not load it (NotFound): Model not found at: m.mar",
        ),
        (RpcError::Late, LoadFault::TimedOut, "TorchServe did not answer the load of m"),
        (RpcError::Away("refused".to_owned()), LoadFault::RuntimeDown, "TorchServe is away: refused"),
        (RpcError::Unreadable("short".to_owned()), LoadFault::NotNow, "TorchServe gave no answer to a load: short"),
    ] {
        let error = load_error(&model, why);
        assert_eq!((error.fault, error.message.as_str(), error.nothing_attempted), (fault, message, false));
    }
}
