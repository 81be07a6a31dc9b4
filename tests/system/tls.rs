//! TLS on the inference ports, as clients meet it: curl, the public Python client, and `berth infer`.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::{Context, Result};
use berth_testkit::{Authority, Berth, Exit, Found, Process, TlsIdentity, curl, eventually, python, root};

use crate::fixture::{Fixture, ROOMY, SOON};
use crate::refusals::USAGE;

const MODEL: &str = "digits-mlp";

/// A secret as a kubelet mounts it, beside the folders of a test, and the files of clients.
struct Secret {
    authority: Authority,
    versions: usize,
}

impl Secret {
    fn new(fixture: &Fixture) -> Result<Self> {
        let mut secret = Secret { authority: Authority::make()?, versions: 0 };
        fs::create_dir_all(fixture.path("tls"))?;
        secret.mount(fixture)?;
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(format!("..data/{name}"), fixture.path("tls").join(name))?;
        }
        Ok(secret)
    }

    /// Puts a new pair and its authority in the place of the present ones, all at once.
    fn mount(&mut self, fixture: &Fixture) -> Result<()> {
        self.versions += 1;
        let (folder, version) = (fixture.path("tls"), format!("..{}", self.versions));
        fs::create_dir(folder.join(&version))?;
        let pair = self.authority.server(&[])?;
        for (name, text) in [("tls.crt", &*pair.certificate), ("tls.key", &pair.key), ("ca.crt", self.authority.pem())] {
            fs::write(folder.join(&version).join(name), text)?;
        }
        symlink(&version, folder.join("..data_tmp"))?;
        fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
        // What clients have does not change with it.
        fs::write(fixture.path(&format!("ca-{}.crt", self.versions)), self.authority.pem())?;
        Ok(())
    }

    fn replace_authority(&mut self, fixture: &Fixture) -> Result<()> {
        self.authority = Authority::make()?;
        self.mount(fixture)
    }
}

fn path(fixture: &Fixture, name: &str) -> String {
    fixture.path(name).display().to_string()
}

/// Asks for liveness over REST with curl.
async fn live(fixture: &Fixture, berth: &Berth, ca: &str, more: &[&str]) -> Result<String> {
    let (url, ca) = (format!("https://{}/v2/health/live", berth.rest()), path(fixture, ca));
    curl(&[&["--fail-with-body", "--cacert", &ca, &url][..], more].concat()).await
}

/// Waits until the server shows a certificate of that authority.
async fn becomes_trusted(fixture: &Fixture, berth: &Berth, ca: &str) -> Result<()> {
    eventually(&format!("a certificate for {ca}"), SOON, || async {
        Ok(match live(fixture, berth, ca, &[]).await {
            Ok(_) => Found::Yes(()),
            Err(fault) => Found::NotYet(fault.to_string()),
        })
    })
    .await
}

/// Runs the Python client.
async fn python_answers(fixture: &Fixture, berth: &Berth, ca: &str, more: &[&str]) -> Result<()> {
    let (ca, request, grpc) = (path(fixture, ca), request(), berth.grpc());
    let arguments = [&["--grpc", &grpc, "--ca", &ca, "--request", &request][..], more, &[MODEL]].concat();
    python(&fixture.parts, &root().join("tests/system/tls.py"), arguments).await?;
    Ok(())
}

fn request() -> String {
    root().join(format!("examples/quickstart/requests/{MODEL}.json")).display().to_string()
}

/// Runs `berth infer`.
async fn infer(fixture: &Fixture, berth: &Berth, more: &[&str]) -> Result<(Exit, String)> {
    let mut command = Command::new(&fixture.parts.bin);
    command.args(["infer", MODEL, "--input", &request(), "--server", &berth.api("")]).args(more);
    let mut process = Process::start("berth infer", command)?;
    let exit = process.exit(SOON).await?;
    Ok((exit, process.written()))
}

#[tokio::test]
async fn with_the_variables_of_modelmesh_both_ports_speak_tls_to_every_client() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let _secret = Secret::new(&fixture)?;
    // As with a secret made from an encrypted key.
    let encrypted = Command::new("openssl")
        .args(["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:open-sesame", "-in"])
        .args([fixture.path("tls/tls.key"), "-out".into(), fixture.path("encrypted.key")])
        .status()?;
    assert!(encrypted.success());
    let mut berth = fixture
        .serve(ROOMY)
        .env("MM_TLS_KEY_CERT_PATH", &path(&fixture, "tls/tls.crt"))
        .env("MM_TLS_PRIVATE_KEY_PATH", &path(&fixture, "encrypted.key"))
        .env("MM_TLS_PRIVATE_KEY_PASSPHRASE", "open-sesame")
        .start()
        .await?;
    assert_eq!(live(&fixture, &berth, "ca-1.crt", &[]).await?, r#"{"live":true}"#);
    assert_eq!(live(&fixture, &berth, "ca-1.crt", &["--http2"]).await?, r#"{"live":true}"#);
    python_answers(&fixture, &berth, "ca-1.crt", &[]).await?;
    let ca = path(&fixture, "ca-1.crt");
    let (exit, written) = infer(&fixture, &berth, &["--cacert", &ca]).await?;
    assert!(exit == Exit::Code(0) && written.contains("\"outputs\""), "{written}");
    // The certificate itself will do, and without either nobody is trusted.
    let (exit, written) = infer(&fixture, &berth, &["--cacert", &path(&fixture, "tls/tls.crt")]).await?;
    assert_eq!(exit, Exit::Code(0), "{written}");
    let (exit, written) = infer(&fixture, &berth, &[]).await?;
    assert!(exit == Exit::Code(1) && written.contains("UnknownIssuer"), "{written}");
    let (exit, written) = infer(&fixture, &berth, &["--cacert", &ca, "--tls-server-name", "elsewhere.example"]).await?;
    assert!(exit == Exit::Code(1) && written.contains("elsewhere.example"), "{written}");

    let plain = curl(&[&format!("http://{}/v2/health/live", berth.rest())]).await?;
    assert_eq!(plain, "this port speaks TLS only: use https");
    berth.process().line("that a client spoke no TLS", SOON, |line| line.contains("it spoke HTTP without TLS to a port that speaks TLS")).await?;
    let resource = berth.resource(MODEL).await?;
    assert!(resource.to_string().contains(&format!("https://{}", berth.rest())), "{resource}");
    assert!(berth.metric("berth_tls_certificate_expiry_seconds").await? > 1e9);
    assert_eq!(berth.metric("berth_tls_files_faulty").await?, 0.0);

    // The line to paste works as it is.
    let line = berth.process().line("a curl line", SOON, |line| line.contains("curl ")).await?;
    let mut shell = Command::new("sh");
    shell.args(["-c", &line[line.find("curl ").context("chosen by it")?..]]);
    let mut shell = Process::start("the pasted line", shell)?;
    assert_eq!(shell.exit(SOON).await?, Exit::Code(0), "{line}: {}", shell.written());
    assert!(shell.out().contains("\"outputs\""), "{}", shell.written());
    assert!(!berth.process().written().contains("sesame"), "{}", berth.process().written());
    Ok(())
}

#[tokio::test]
async fn clients_must_show_a_certificate_where_that_is_required() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let secret = Secret::new(&fixture)?;
    let berth = fixture
        .serve(ROOMY)
        .flag("--tls-cert", fixture.path("tls/tls.crt"))
        .flag("--tls-key", fixture.path("tls/tls.key"))
        .flag("--tls-client-auth", "Require")
        .flag("--tls-client-ca", format!("{},{}", path(&fixture, "tls/tls.crt"), path(&fixture, "tls/ca.crt")))
        .start()
        .await?;
    let write = |name: &str, identity: &TlsIdentity| -> Result<[String; 2]> {
        fs::create_dir(fixture.path(name))?;
        let (certificate, key) = identity.write(&fixture.path(name))?;
        Ok([certificate, key].map(|file| file.display().to_string()))
    };
    let known = write("known", &secret.authority.client()?)?;
    let unknown = write("unknown", &Authority::make()?.client()?)?;
    // Upstream's own clients show the server's pair.
    let same = ["tls/tls.crt", "tls/tls.key"].map(|name| path(&fixture, name));
    let ca = path(&fixture, "ca-1.crt");
    for (case, pair, served) in
        [("none", None, false), ("known", Some(&known), true), ("unknown", Some(&unknown), false), ("same", Some(&same), true)]
    {
        let options: Vec<&str> = pair.iter().flat_map(|[cert, key]| ["--cert", cert, "--key", key]).collect();
        let told = live(&fixture, &berth, "ca-1.crt", &options).await;
        assert_eq!(told.is_ok(), served, "{case}: {told:?}");
        let told = python_answers(&fixture, &berth, "ca-1.crt", &options).await;
        assert_eq!(told.is_ok(), served, "{case}: {told:?}");
        let (exit, written) = infer(&fixture, &berth, &[&["--cacert", &ca][..], &options].concat()).await?;
        assert_eq!(exit == Exit::Code(0), served, "{case}: {written}");
    }
    assert!(berth.metric("berth_tls_refused_total").await? >= 6.0);
    Ok(())
}

#[tokio::test]
async fn a_new_certificate_counts_for_new_connections_and_a_broken_one_for_none() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut secret = Secret::new(&fixture)?;
    let serve = fixture.serve(ROOMY).flag("--tls-cert", fixture.path("tls/tls.crt")).flag("--tls-key", fixture.path("tls/tls.key"));
    let mut berth = serve.start().await?;
    let mut held = Command::new(&fixture.parts.python);
    held.args(["-B", &root().join("tests/system/tls.py").display().to_string(), "--grpc", &berth.grpc(), "--ca", &path(&fixture, "ca-1.crt")]);
    held.args(["--request", &request(), "--again", &path(&fixture, "again"), MODEL]);
    let mut held = Process::start("a client that stays", held)?;
    held.line("the first answer", SOON, |line| line == "answered").await?;

    secret.replace_authority(&fixture)?;
    becomes_trusted(&fixture, &berth, "ca-2.crt").await?;
    assert!(live(&fixture, &berth, "ca-1.crt", &[]).await.is_err(), "the old authority is not that of new connections");
    fs::write(fixture.path("again"), "")?;
    assert_eq!(held.exit(SOON).await?, Exit::Code(0), "{}", held.written());
    assert_eq!(held.out().matches("answered").count(), 2, "{}", held.written());

    // A key that does not fit, then one that does.
    fs::write(fixture.path("tls/..data/tls.key"), secret.authority.server(&[])?.key)?;
    berth.process().line("that the files cannot be used", SOON, |line| line.contains("the TLS files cannot be used as they are now")).await?;
    assert_eq!(berth.metric("berth_tls_files_faulty").await?, 1.0);
    live(&fixture, &berth, "ca-2.crt", &[]).await?;
    secret.replace_authority(&fixture)?;
    becomes_trusted(&fixture, &berth, "ca-3.crt").await?;
    assert_eq!(berth.metric("berth_tls_files_faulty").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn all_that_is_wrong_with_tls_is_told_at_the_start_with_the_rest() -> Result<()> {
    let fixture = Fixture::empty()?;
    let secret = Secret::new(&fixture)?;
    fs::write(fixture.path("other.key"), secret.authority.server(&[])?.key)?;
    let mut berth = fixture
        .serve(ROOMY)
        .flag("--grpc", "nowhere")
        .flag("--tls-client-auth", "sometimes")
        .env("MM_TLS_KEY_CERT_PATH", &path(&fixture, "tls/tls.crt"))
        .env("MM_TLS_PRIVATE_KEY_PATH", &path(&fixture, "other.key"))
        .spawn()?;
    assert_eq!(berth.process().exit(SOON).await?, USAGE, "{}", berth.process().written());
    for part in [
        "--grpc: \"nowhere\" is not an address",
        "--tls-client-auth: \"sometimes\" is none of NONE, OPTIONAL and REQUIRE",
        "MM_TLS_PRIVATE_KEY_PATH: ",
        "the key does not fit the first certificate in ",
    ] {
        assert!(berth.process().errors().contains(part), "{part:?} is missing in {}", berth.process().errors());
    }
    Ok(())
}
