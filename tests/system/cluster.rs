//! `berth controller` with agents in processes of their own, each beside a real inference server.

use std::fs;

use anyhow::{Result, ensure};
use berth_testkit::{Berth, Contract, Exit, Found, Parts, Serve, eventually, free_port};

use crate::fixture::{Fixture, ROOMY, SOON};

/// An agent with its own server, `berth runtime`, and its own data.
struct Pod {
    server: Contract,
    berth: Berth,
}

async fn pod(fixture: &Fixture, parts: &Parts, number: usize, controller: &Berth, token: Option<&str>) -> Result<Pod> {
    let repository = fixture.path(&format!("repository-{number}"));
    fs::create_dir_all(&repository)?;
    let server = Contract::start(parts, &format!("127.0.0.1:{}", free_port()), &repository).await?;
    let berth = agent(fixture, number, &server.endpoint(), controller, token).await?;
    Ok(Pod { server, berth })
}

async fn agent(fixture: &Fixture, number: usize, server: &str, controller: &Berth, token: Option<&str>) -> Result<Berth> {
    let serve = fixture.serve(ROOMY).beside("modelruntime", server, &fixture.path(&format!("repository-{number}"))).led_by(controller);
    let serve = serve.flag("--serving-runtime", "berth-onnx").flag("--data", fixture.path(&format!("data-{number}")));
    let serve = serve.flag("--pod-name", format!("pod-{number}")).flag("--runtime-process", "off");
    match token {
        Some(token) => serve.env("BERTH_CONTROLLER_TOKEN", token),
        None => serve,
    }
    .start()
    .await
}

#[tokio::test]
async fn agents_serve_what_their_controller_knows_and_go_on_when_it_dies() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let leads = fixture.serve(ROOMY).leads().flag("--grpc-url", "grpc://models.example:8033");
    let at = ["--agents", "--api", "--grpc"].map(|flag| (flag, format!("127.0.0.1:{}", free_port())));
    let same = |serve: Serve| at.iter().fold(serve, |serve, (flag, addr)| serve.flag(flag, addr));
    let mut controller = same(leads).start().await?;
    let agents = controller.agents();
    let mut pods = Vec::new();
    for number in 0..2 {
        pods.push(pod(&fixture, &fixture.parts, number, &controller, None).await?);
    }
    let names = fixture.quickstart.names()?;
    for name in &names {
        let standing = controller.stands(name, SOON, |standing| standing.active == "Loaded" && standing.copies == 1).await?;
        ensure!(standing.reason.is_empty() && standing.available, "{name}: {standing:?}");
    }
    ensure!(controller.resource(&names[0]).await?.to_string().contains("grpc://models.example:8033"), "{}", controller.resource(&names[0]).await?);
    for pod in &pods {
        fixture.all_answer(&pod.berth).await?;
    }
    for name in &names {
        controller.stands(name, SOON, |standing| standing.copies == 2).await?;
    }
    ensure!(controller.metric("berth_agents").await? == 2.0 && pods[0].berth.metric("berth_controller_up").await? == 1.0, "both attend");
    // An agent has no resources: whoever asks it is told who has.
    let refused = berth_testkit::http::get(&pods[0].berth.api("/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices")).await?;
    ensure!(refused.status == 421 && refused.text().contains(&agents), "{} {}", refused.status, refused.text());

    let before = controller.identities().await?;
    controller.process().kill().await?;
    eventually("the agent to notice", SOON, || async {
        let up = pods[0].berth.metric("berth_controller_up").await?;
        Ok(if up == 0.0 { Found::Yes(()) } else { Found::NotYet(up.to_string()) })
    })
    .await?;
    for pod in &pods {
        fixture.all_answer(&pod.berth).await?;
    }
    let unknown = pods[0].berth.infer("nobody", fixture.quickstart.request(&names[0])?).await?;
    ensure!(unknown.status == 503 && unknown.retry_after.is_some(), "it may be known elsewhere by now: {} {}", unknown.status, unknown.text());
    // One that begins while nobody leads serves what it knew.
    let loads = pods[0].berth.metric("berth_loads_total").await?;
    let server = pods[1].server.endpoint();
    ensure!(pods[1].berth.interrupt().await? == Exit::Code(0), "it ends");
    pods[1].berth = agent(&fixture, 1, &server, &controller, None).await?;
    fixture.all_answer(&pods[1].berth).await?;

    controller = same(fixture.serve(ROOMY).leads()).start().await?;
    for name in &names {
        let standing = controller.stands(name, SOON, |standing| standing.copies == 2).await?;
        ensure!(standing.active == "Loaded" && standing.reason.is_empty(), "{name}: {standing:?}");
    }
    ensure!(controller.identities().await? == before, "the resources are the same");
    ensure!(pods[0].berth.metric("berth_loads_total").await? == loads, "nothing was loaded again");
    let refused = pods[0].berth.infer("nobody", fixture.quickstart.request(&names[0])?).await?;
    ensure!(refused.status == 404, "now it is certain: {} {}", refused.status, refused.text());
    fs::remove_file(fixture.manifests().join(format!("{}.yaml", names[0])))?;
    for pod in &pods {
        eventually("the agent to know it no longer", SOON, || async {
            let reply = pod.berth.infer(&names[0], fixture.quickstart.request(&names[0])?).await?;
            Ok(if reply.status == 404 { Found::Yes(()) } else { Found::NotYet(format!("{} {}", reply.status, reply.text())) })
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_may_attend_is_known_by_the_token() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let open = fixture.serve(ROOMY).leads().flag("--agents", format!("0.0.0.0:{}", free_port())).spawn()?.process().exit(SOON).await?;
    ensure!(open == Exit::Code(2), "whoever opens it to others says who may come: {open:?}");
    let controller = fixture.serve(ROOMY).leads().env("BERTH_API_TOKEN", "s3cret").start().await?;
    let mut wrong = fixture.serve(ROOMY).beside("modelruntime", "127.0.0.1:1", &fixture.path("repository-9")).led_by(&controller);
    wrong = wrong.flag("--start-timeout", "1s").flag("--serving-runtime", "berth-onnx").env("BERTH_CONTROLLER_TOKEN", "two words");
    ensure!(wrong.spawn()?.process().exit(SOON).await? == Exit::Code(2), "that cannot be a token");
    let server = Contract::start(&fixture.parts, &format!("127.0.0.1:{}", free_port()), &fixture.path("repository-0")).await?;
    let serve = fixture.serve(ROOMY).beside("modelruntime", &server.endpoint(), &fixture.path("repository-0")).led_by(&controller);
    let serve = serve.flag("--serving-runtime", "berth-onnx").flag("--data", fixture.path("data-0")).flag("--runtime-process", "off");
    let mut stranger = serve.env("BERTH_CONTROLLER_TOKEN", "wr0ng").spawn()?;
    let told = stranger.process().line("that it may not", SOON, |line| line.contains("the agent's token is not the controller's")).await?;
    ensure!(!told.contains("wr0ng") && !told.contains("s3cret"), "{told}");
    ensure!(controller.metric("berth_agents").await.unwrap_or(0.0) == 0.0, "nobody attends");
    ensure!(stranger.interrupt().await? == Exit::Code(0), "it can be ended while it waits");
    let pod = agent(&fixture, 0, &server.endpoint(), &controller, Some("s3cret")).await?;
    fixture.all_answer(&pod).await?;
    Ok(())
}
