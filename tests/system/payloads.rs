//! Payload processors, the log context of requests and the data plane's configuration, as operators meet them.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_proto::inference::model_infer_request::InferInputTensor;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse};
use berth_telemetry::{HostNet, Net as _};
use berth_testkit::{Authority, Berth, Client, Endpoint, Found, Kind, Order, curl, eventually, http};
use prost::Message as _;
use serde_json::{Value, json};

use crate::fixture::{Fixture, ROOMY, SOON};
use crate::refusals::USAGE;

const MODEL: &str = "digits-mlp";
const INFER: &str = "inference.GRPCInferenceService/ModelInfer";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A receiver that takes everything.
async fn taking() -> Result<Endpoint> {
    Endpoint::start(|_| (200, "{}".to_owned())).await
}

/// The posts so far, once there are `count` of them.
async fn posts(receiver: &Endpoint, count: usize) -> Result<Vec<Value>> {
    eventually(&format!("{count} posts"), SOON, || async {
        let asked = receiver.asked();
        if asked.len() < count {
            return Ok(Found::NotYet(format!("{} posts", asked.len())));
        }
        assert!(asked.iter().all(|asked| asked.method == "POST"), "{asked:?}");
        Ok(Found::Yes(asked.iter().map(|asked| serde_json::from_str(&asked.body)).collect::<Result<_, _>>()?))
    })
    .await
}

fn data(post: &Value) -> Result<Vec<u8>> {
    Ok(STANDARD.decode(post["data"].as_str().context("no data")?)?)
}

/// The recorded request as a message of gRPC.
fn message(fixture: &Fixture) -> Result<ModelInferRequest> {
    let recorded: Value = serde_json::from_slice(&fixture.quickstart.request(MODEL)?)?;
    let input = &recorded["inputs"][0];
    assert_eq!(input["datatype"], "FP32");
    let mut numbers = Vec::new();
    let mut rest = vec![&input["data"]];
    while let Some(next) = rest.pop() {
        match next {
            Value::Array(elements) => rest.extend(elements.iter().rev()),
            number => numbers.extend((number.as_f64().context("a number")? as f32).to_le_bytes()),
        }
    }
    let shape = input["shape"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
    let tensor = InferInputTensor {
        name: input["name"].as_str().context("a name")?.to_owned(),
        datatype: "FP32".to_owned(),
        shape,
        ..InferInputTensor::default()
    };
    Ok(ModelInferRequest {
        model_name: MODEL.to_owned(),
        inputs: vec![tensor],
        raw_input_contents: vec![numbers.into()],
        ..ModelInferRequest::default()
    })
}

#[tokio::test]
async fn requests_and_answers_of_both_ports_reach_whoever_was_configured_and_the_log_knows_their_trace() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let (all, one) = (taking().await?, taking().await?);
    let list = format!("{}  {}?{MODEL}#{INFER} logger:///*", all.url("/all").replace("http://", "http://us:s3cret@"), one.url("/one"));
    let mut berth = fixture
        .serve(ROOMY)
        .env("MM_PAYLOAD_PROCESSORS", &list)
        .env("MM_PAYLOAD_PROCESSORS_THREADS", "1")
        .env("MM_PAYLOAD_PROCESSORS_CAPACITY", "32")
        .env("MM_LOG_REQUEST_HEADERS", r#"{"X-Tenant": "tenant"}"#)
        .flag("--log", "info,berth_proxy=debug")
        .flag("--log-format", "json")
        .start()
        .await?;
    let sent = message(&fixture)?;
    let order = Order::new(Kind::Unary, &format!("/{INFER}")).message(sent.encode_to_vec()).metadata("traceparent", TRACEPARENT);
    let order = order.metadata("authorization", "Bearer s3cret").metadata("x-tenant", "grpc");
    let answer = Client::Go.call(&fixture.parts, &berth.grpc(), order).await?;
    let answer = ModelInferResponse::decode(answer.good()?.bytes.as_deref().context("an answer")?)?;
    fs::write(fixture.path("request.json"), fixture.quickstart.request(MODEL)?)?;
    let body = format!("@{}", fixture.path("request.json").display());
    let rest = |model: &str| format!("http://{}/v2/models/{model}/infer", berth.rest());
    let headers = ["-H", &format!("traceparent: {TRACEPARENT}"), "-H", "authorization: Bearer s3cret", "-H", "x-tenant: rest"];
    let rested = curl(&[&["--fail-with-body", "-d", &body, &rest(MODEL)][..], &headers].concat()).await?;
    assert!(rested.contains("\"outputs\""), "{rested}");
    fixture.all_answer(&berth).await?;
    let others = fixture.quickstart.names()?.len();

    let told = posts(&all, 4 + 2 * others).await?;
    for (port, pair) in ["gRPC", "REST"].iter().zip(told.chunks(2)) {
        let [request, response] = pair else { unreachable!("pairs") };
        assert_eq!(
            (&request["kind"], &request["status"], &response["kind"], &response["status"]),
            (&json!("request"), &json!(""), &json!("response"), &json!("OK")),
            "{port}"
        );
        assert_eq!((&request["id"], &request["modelid"]), (&response["id"], &response["modelid"]), "{port}");
        assert_eq!((&request["modelid"], &request["vModelId"]), (&json!(answer.model_name), &json!(MODEL)), "{port}");
        assert_eq!(request["metadata"]["traceparent"], TRACEPARENT, "{port}");
        let got = ModelInferRequest::decode(&*data(request)?)?;
        assert_eq!((&got.model_name, &got.raw_input_contents), (&sent.model_name, &sent.raw_input_contents), "{port}");
        assert_eq!(ModelInferResponse::decode(&*data(response)?)?.raw_output_contents, answer.raw_output_contents, "{port}");
    }
    assert_ne!(told[0]["id"], told[2]["id"]);
    assert!(all.asked().iter().all(|asked| asked.target == "/all" && !asked.body.contains("s3cret")));
    let told = posts(&one, 6).await?;
    assert!(told.len() == 6 && told.iter().all(|post| post["vModelId"] == MODEL), "{told:?}");
    assert_eq!(one.asked()[0].target, format!("/one?{MODEL}"));

    let missing = curl(&[&["-d", &body, &rest("unheard-of")][..], &headers].concat()).await?;
    assert!(missing.contains("not registered"), "{missing}");
    berth.process().line("the error", SOON, |line| line.contains("a request gets an error")).await?;
    assert_eq!(berth.metric("berth_payloads_sent_total").await?, (2 * (4 + 2 * others) + 6) as f64);
    berth.interrupt().await?;
    let errors = berth.process().errors();
    let lines: Vec<Value> = errors.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let about = |message: &str| lines.iter().filter(|line| line["message"] == message).cloned().collect::<Vec<_>>();
    assert_eq!(about("a request gets an error")[0]["span"], json!({"name": "request", "trace_id": TRACE, "tenant": "rest"}));
    let logged = about("payload");
    assert_eq!(logged.len(), 4 + 2 * others);
    assert_eq!((&logged[0]["kind"], &logged[0]["name"], &logged[0]["size"]), (&json!("request"), &json!(MODEL), &json!(sent.encoded_len())));
    assert!(!berth.process().written().contains("s3cret"));
    Ok(())
}

#[tokio::test]
async fn an_https_receiver_is_trusted_by_its_own_authority_and_by_no_other() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let authority = Authority::make()?;
    let receiver = Endpoint::secured(&authority.server(&[])?, |_| (200, "{}".to_owned())).await?;
    fs::write(fixture.path("ca.pem"), authority.pem())?;
    for trusted in [true, false] {
        let serve = fixture.serve(ROOMY).env("MM_PAYLOAD_PROCESSORS", &receiver.url("/"));
        let serve = if trusted {
            serve.flag("--payload-ca", fixture.path("ca.pem"))
        } else {
            serve.env("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        };
        let mut berth = serve.start().await?;
        let before = receiver.asked().len();
        berth.answers(&fixture.quickstart, MODEL).await?;
        if trusted {
            assert_eq!(posts(&receiver, before + 2).await?.len(), before + 2);
        } else {
            dropped(&berth, "unreachable").await?;
            assert_eq!(receiver.asked().len(), before);
        }
        berth.interrupt().await?;
    }
    Ok(())
}

/// Waits until payloads were dropped for that reason.
async fn dropped(berth: &Berth, reason: &str) -> Result<()> {
    let series = format!("reason=\"{reason}\"}}");
    eventually(&format!("dropped payloads: {reason}"), SOON, || async {
        let page = http::get(&berth.metrics("/metrics")).await?.text();
        let found = page.lines().any(|line| line.starts_with("berth_payloads_dropped_total{") && line.contains(&series));
        Ok(if found { Found::Yes(()) } else { Found::NotYet(page) })
    })
    .await
}

#[tokio::test]
async fn a_receiver_that_hangs_delays_nobody_and_its_payloads_are_dropped() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    // Connections are made, as the system makes them; nobody ever reads.
    let silent = HostNet.listen("127.0.0.1:0".parse()?).await?;
    let list = format!("http://{}", silent.local_addr()?);
    let mut berth = fixture.serve(ROOMY).env("MM_PAYLOAD_PROCESSORS", &list).env("MM_PAYLOAD_PROCESSORS_CAPACITY", "4").start().await?;
    for _ in 0..50 {
        berth.answers(&fixture.quickstart, MODEL).await?;
    }
    dropped(&berth, "capacity").await?;
    let line = berth.process().line("the drops", SOON, |line| line.contains("payloads were dropped")).await?;
    assert!(line.contains(&list) && line.contains("capacity"), "{line}");
    berth.interrupt().await?;
    assert_eq!(berth.process().errors().matches("payloads were dropped").count(), 1, "once a minute");
    Ok(())
}

#[tokio::test]
async fn settings_that_cannot_be_meant_are_told_at_the_start_without_what_is_secret_in_them() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let file = fixture.path("dataplane.json").display().to_string();
    fs::write(&file, "{}")?;
    let mut berth = fixture
        .serve(ROOMY)
        .env("MM_PAYLOAD_PROCESSORS", "ftp://us:s3cret@h https://us:s3cret@h:s3cret/")
        .env("MM_PAYLOAD_PROCESSORS_CAPACITY", "many")
        .env("MM_LOG_REQUEST_HEADERS", r#"{"authorization": "who"}"#)
        .env("MM_DATAPLANE_CONFIG", "{}")
        .env("MM_DATAPLANE_CONFIG_PATH", &file)
        .spawn()?;
    assert_eq!(berth.process().exit(SOON).await?, USAGE, "{}", berth.process().written());
    let errors = berth.process().errors();
    for part in [
        "MM_PAYLOAD_PROCESSORS: payload processor 1: scheme \"ftp\" is not known: write http://HOST",
        "payload processor 2: the port of its https URI cannot be read",
        "MM_PAYLOAD_PROCESSORS_CAPACITY: \"many\" is no whole number",
        "MM_LOG_REQUEST_HEADERS: authorization may hold a secret and is never logged: leave it out",
        "MM_DATAPLANE_CONFIG: MM_DATAPLANE_CONFIG_PATH is set as well: give the configuration in one of the two",
    ] {
        assert!(errors.contains(part), "{part:?} is missing in {errors}");
    }
    assert!(!errors.contains("s3cret"), "{errors}");
    for (variable, value, part) in [
        ("MM_LOG_REQUEST_HEADERS", "x-tenant", "MM_LOG_REQUEST_HEADERS: is no JSON object of headers and log keys"),
        ("MM_DATAPLANE_CONFIG", "{", "MM_DATAPLANE_CONFIG: the data plane's configuration cannot be read"),
        ("MM_DATAPLANE_CONFIG_PATH", "/no/such/file", "MM_DATAPLANE_CONFIG_PATH: /no/such/file: No such file"),
        ("BERTH_PAYLOAD_CA", "/no/such/file", "BERTH_PAYLOAD_CA: /no/such/file: No such file"),
    ] {
        let mut berth = fixture.serve(ROOMY).env("BERTH_PAYLOAD_PROCESSORS", "https://h").env(variable, value).spawn()?;
        assert_eq!(berth.process().exit(SOON).await?, USAGE, "{}", berth.process().written());
        assert!(berth.process().errors().contains(part), "{part:?} is missing in {}", berth.process().written());
    }
    Ok(())
}

/// The code of a call of ModelInfer.
async fn code(fixture: &Fixture, berth: &Berth) -> Result<i64> {
    let order = Order::new(Kind::Unary, &format!("/{INFER}")).message(message(fixture)?.encode_to_vec());
    Ok(Client::Go.call(&fixture.parts, &berth.grpc(), order).await?.code)
}

#[tokio::test]
async fn a_mounted_data_plane_configuration_is_followed_and_a_faulty_one_changes_nothing() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let folder = fixture.path("mounted");
    fs::create_dir_all(&folder)?;
    let flip = |version: &str, text: &str| -> Result<()> {
        fs::create_dir(folder.join(version))?;
        fs::write(folder.join(version).join("config"), text)?;
        symlink(version, folder.join("..data_tmp"))?;
        Ok(fs::rename(folder.join("..data_tmp"), folder.join("..data"))?)
    };
    flip("..1", &json!({"rpcConfigs": {INFER: {"idExtractionPath": [1], "vModelId": true}}}).to_string())?;
    symlink("..data/config", folder.join("config"))?;
    let mut berth = fixture.serve(ROOMY).env("MM_DATAPLANE_CONFIG_PATH", &folder.join("config").display().to_string()).start().await?;
    assert_eq!(code(&fixture, &berth).await?, 0);
    flip("..2", r#"{"rpcConfigs": {"other.Service/Method": {}}}"#)?;
    berth.process().line("the change", SOON, |line| line.contains("the data plane's configuration was replaced")).await?;
    assert_eq!(code(&fixture, &berth).await?, 12, "UNIMPLEMENTED");
    flip("..3", r#"{"rpcConfigs": "#)?;
    berth.process().line("the fault", SOON, |line| line.contains("cannot be used as it is now")).await?;
    assert_eq!((code(&fixture, &berth).await?, berth.metric("berth_dataplane_config_faulty").await?), (12, 1.0));
    flip("..4", r#"{"allowOtherRpcs": true}"#)?;
    eventually("the mended file", SOON, || async {
        let faulty = berth.metric("berth_dataplane_config_faulty").await?;
        Ok(if faulty == 0.0 { Found::Yes(()) } else { Found::NotYet(faulty.to_string()) })
    })
    .await?;
    assert_eq!(code(&fixture, &berth).await?, 0);
    assert_eq!(berth.metric("berth_dataplane_config_reloads_total").await?, 3.0);
    Ok(())
}
