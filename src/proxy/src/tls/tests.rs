use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::time::Instant;

use berth_proto::inference::ServerLiveRequest;
use berth_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use berth_telemetry::{HostNet, Net};
use berth_types::UnixMillis;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::testing::{Authority, Pair, Secret, by_itself, client, connect, expired, file, get, server};
use super::*;
use crate::scripted::rig;
use crate::{Door, ProxyConfig, serve_grpc, serve_http, serve_rest};

/// Says who its client is.
async fn who(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let who = request.extensions().get::<ClientIdentity>();
    let who = who.map(|who| format!("{} {}", who.common_name().unwrap_or("-"), who.names().collect::<Vec<_>>().join(",")));
    Ok(Response::new(Full::new(Bytes::from(who.unwrap_or_else(|| "nobody".to_owned())))))
}

struct Server {
    addr: SocketAddr,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
}

impl Server {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// What a client is told that trusts `trust` and shows `own`.
    async fn tells(&self, trust: &str, own: Option<&Pair>) -> Result<String, String> {
        let ask = async { get(&mut connect(self.tcp().await, trust, own, &["http/1.1"]).await?, "/").await };
        let answer = ask.await.map_err(|fault| fault.to_string())?;
        Ok(answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.ended.await.unwrap();
    }
}

async fn serve_with(tls: Option<Tls>, config: ProxyConfig) -> Server {
    let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (addr, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
    let stop = shutdown.clone();
    let ended = tokio::spawn(async move { serve_http(Door::new(listener, tls), who, &config, &Clock::system(), stop).await });
    Server { addr, shutdown, ended }
}

async fn serve(tls: &Tls) -> Server {
    serve_with(Some(tls.clone()), ProxyConfig::default()).await
}

/// A client may see the end of its connection before the server has counted it.
async fn counted(metrics: &Metrics, reason: &str, count: u64) {
    let (clock, labels) = (Clock::system(), [("reason", reason)]);
    let counted = async {
        while metrics.count(Counter::TlsRefused, &labels) != count {
            tokio::task::yield_now().await;
        }
    };
    let now = clock.until(clock.deadline_in(Duration::from_secs(20)), counted).await;
    assert!(now.is_some(), "{reason}: {} instead of {count}", metrics.count(Counter::TlsRefused, &labels));
}

#[tokio::test]
async fn a_client_that_trusts_the_authority_is_served_and_another_one_goes_away() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let (tls, metrics) = Secret::new(&ours.server(), "").open(ClientAuth::None);
    let server = serve(&tls).await;
    assert_eq!(server.tells(&ours.pem, None).await.as_deref(), Ok("nobody"));
    // One that shows a certificate unasked is not asked, and stays unknown.
    assert_eq!(server.tells(&ours.pem, Some(&ours.client("me"))).await.as_deref(), Ok("nobody"));
    let fault = server.tells(&other.pem, None).await.unwrap_err();
    assert!(fault.contains("UnknownIssuer"), "{fault}");
    counted(&metrics, "declined", 1).await;
    server.stop().await;
}

#[tokio::test]
async fn whether_a_client_needs_a_certificate_and_which_one_is_as_configured() {
    let (ours, other, itself) = (Authority::new("ours"), Authority::new("other"), by_itself());
    let own = ours.server();
    // As upstream lists them: the pair's own certificate, then the authority's; here also one that has signed itself.
    let trust = [own.certificate.as_str(), &ours.pem, &itself.certificate].concat();
    let secret = Secret::new(&own, &trust);
    let expired_client = ours.sign(expired(client("late")));
    let cases = [
        ("without", None, None),
        ("trusted", Some(ours.client("me")), Some("me client.example")),
        ("of another authority", Some(other.client("me")), None),
        ("expired", Some(expired_client), None),
        ("that signed itself and is listed", Some(itself), Some("itself localhost,127.0.0.1")),
        ("that signed itself and is not", Some(by_itself()), None),
        ("the server's own", Some(own), Some("a server localhost,127.0.0.1")),
    ];
    for (auth, without, wrong_is_refused) in
        [(ClientAuth::None, Some("nobody"), false), (ClientAuth::Optional, Some("nobody"), true), (ClientAuth::Require, None, true)]
    {
        let (tls, metrics) = secret.open(auth);
        let server = serve(&tls).await;
        for (case, pair, known) in &cases {
            let expected = match (pair, wrong_is_refused) {
                (None, _) => without,
                (Some(_), true) => *known,
                (Some(_), false) => Some("nobody"),
            };
            let told = server.tells(&ours.pem, pair.as_ref()).await;
            assert_eq!(told.as_deref().ok(), expected, "{auth:?}, client {case}: {told:?}");
        }
        counted(&metrics, "not_trusted", if wrong_is_refused { 3 } else { 0 }).await;
        counted(&metrics, "no_certificate", u64::from(auth == ClientAuth::Require)).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn both_inference_ports_speak_tls_and_take_only_their_protocols() {
    let ours = Authority::new("ours");
    let (tls, metrics) = Secret::new(&ours.server(), &ours.pem).open(ClientAuth::Require);
    let own = ours.client("me");
    let (rig, shutdown) = (rig(), CancellationToken::new());
    let listen = async || {
        let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        (listener.local_addr().unwrap(), Door::new(listener, Some(tls.clone())))
    };
    let ((grpc, grpc_door), (rest, rest_door)) = (listen().await, listen().await);
    let grpc_ended = tokio::spawn(serve_grpc(Arc::clone(&rig.frontend), grpc_door, shutdown.clone()));
    let rest_ended = tokio::spawn(serve_rest(Arc::clone(&rig.frontend), rest_door, shutdown.clone()));

    let channel = async |own: Option<&Pair>| -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ours.pem)).domain_name("localhost");
        let tls = own.into_iter().fold(tls, |tls, own| tls.identity(Identity::from_pem(&own.certificate, &own.key)));
        Endpoint::from_shared(format!("https://{grpc}")).unwrap().tls_config(tls)?.connect().await
    };
    let mut known = GrpcInferenceServiceClient::new(channel(Some(&own)).await.unwrap());
    assert!(known.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    // A client may learn that it is refused with its first call only.
    let refused = match channel(None).await {
        Ok(channel) => GrpcInferenceServiceClient::new(channel).server_live(ServerLiveRequest {}).await.is_err(),
        Err(_refused) => true,
    };
    assert!(refused);
    counted(&metrics, "no_certificate", 1).await;

    for (addr, offered, agreed) in [
        (rest, &["http/1.1"][..], Some(Some("http/1.1"))),
        (rest, &["h2", "http/1.1"], Some(Some("h2"))),
        (rest, &[], Some(None)),
        (rest, &["spdy/3"], None),
        (grpc, &["h2", "http/1.1"], Some(Some("h2"))),
        (grpc, &["http/1.1"], None),
    ] {
        let stream = TcpStream::connect(addr).await.unwrap();
        let connected = connect(stream, &ours.pem, Some(&own), offered).await;
        let told = connected.map(|stream| stream.get_ref().1.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into_owned()));
        assert_eq!(told.as_ref().ok().map(Option::as_deref), agreed, "{offered:?}: {told:?}");
    }
    counted(&metrics, "incompatible", 2).await;
    let mut stream = connect(TcpStream::connect(rest).await.unwrap(), &ours.pem, Some(&own), &["http/1.1"]).await.unwrap();
    assert!(get(&mut stream, "/v2/health/live").await.unwrap().starts_with("HTTP/1.1 200"));
    drop((stream, known));
    shutdown.cancel();
    let ended = tokio::join!(grpc_ended, rest_ended);
    assert!(ended.0.is_ok() && ended.1.is_ok());
}

#[tokio::test]
async fn new_connections_take_new_files_and_old_ones_go_on() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let mut secret = Secret::new(&first.server(), &first.pem);
    let (tls, metrics) = secret.open(ClientAuth::Require);
    let server = serve(&tls).await;
    let own = first.client("me");
    let mut before = connect(server.tcp().await, &first.pem, Some(&own), &["http/1.1"]).await.unwrap();
    assert!(get(&mut before, "/").await.unwrap().ends_with("me client.example"));
    assert_eq!(tls.look(), News::None);

    secret.flip(&second.server(), &second.pem);
    assert_eq!(tls.look(), News::Replaced);
    assert_eq!(tls.look(), News::None);
    assert!(get(&mut before, "/").await.unwrap().ends_with("me client.example"), "goes on");
    assert!(server.tells(&first.pem, Some(&own)).await.is_err());
    assert!(server.tells(&second.pem, Some(&own)).await.is_err(), "its authority is no longer trusted");
    assert_eq!(server.tells(&second.pem, Some(&second.client("you"))).await.as_deref(), Ok("you client.example"));
    assert_eq!(metrics.count(Counter::TlsReloads, &[("outcome", "replaced")]), 1);
    drop(before);
    server.stop().await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_told_once_and_the_last_good_ones_count() {
    let ours = Authority::new("ours");
    let (good, other) = (ours.server(), ours.server());
    let mut secret = Secret::new(&good, &ours.pem);
    let (tls, metrics) = secret.open(ClientAuth::Require);
    let server = serve(&tls).await;
    let own = ours.client("me");
    let faulty = || metrics.render().lines().find(|line| line.starts_with("berth_tls_files_faulty ")).map(str::to_owned);
    let broken = |certificate: &str, key: &str| Pair { certificate: certificate.to_owned(), key: key.to_owned() };
    let mut refused = 0;
    for (pair, trust, why) in [
        (broken(&good.certificate, &other.key), &*ours.pem, "the key does not fit the first certificate in "),
        (broken("", &good.key), &ours.pem, "holds no certificate"),
        (broken(&good.certificate, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), &ours.pem, "the private key cannot be used"),
        (broken(&good.certificate[..200], &good.key), &ours.pem, "is the file whole?"),
        (good.clone(), "no PEM at all", "ca.crt: holds no certificate"),
        (ours.sign(expired(super::testing::server())), &ours.pem, "has expired: put one in its place that has not"),
    ] {
        secret.flip(&pair, trust);
        assert_eq!(tls.look(), News::None, "{why}: somebody may still be writing");
        let News::Wrong(faults) = tls.look() else { panic!("{why}") };
        assert!(faults.len() == 1 && faults[0].starts_with("MM_TLS_") && faults[0].contains(why), "{faults:?}");
        assert!(!faults[0].contains("AAAA"), "{faults:?}");
        assert_eq!(tls.look(), News::None, "said once");
        refused += 1;
        assert_eq!(metrics.count(Counter::TlsReloads, &[("outcome", "refused")]), refused);
        assert_eq!(faulty().as_deref(), Some("berth_tls_files_faulty 1"));
        assert_eq!(server.tells(&ours.pem, Some(&own)).await.as_deref(), Ok("me client.example"));
    }
    fs::remove_file(secret.path("..data/tls.key")).unwrap();
    tls.look();
    assert!(matches!(tls.look(), News::Wrong(faults) if faults[0].contains("tls.key: No such file")));
    secret.flip(&good, &ours.pem);
    assert_eq!(tls.look(), News::RightAgain);
    assert_eq!(faulty().as_deref(), Some("berth_tls_files_faulty 0"));
    // Written one after the other, the two do not fit for a while: nothing is said of it.
    fs::write(secret.path("tls.crt"), &other.certificate).unwrap();
    assert_eq!(tls.look(), News::None);
    fs::write(secret.path("tls.key"), &other.key).unwrap();
    assert_eq!(tls.look(), News::Replaced);
    server.stop().await;
}

#[test]
fn every_kind_of_key_is_read_and_what_is_not_is_told_with_what_to_do() {
    const PASSPHRASE: &str = "open-sesame";
    let read = |name: &str| fs::read_to_string(format!("{}/src/tls/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let ours = Authority::new("ours");
    for (kind, name, passphrase, expected) in [
        ("rsa-pkcs8", "rsa-pkcs8", None, Ok(())),
        ("rsa-pkcs8", "rsa-pkcs1", None, Ok(())),
        ("ec-pkcs8", "ec-pkcs8", None, Ok(())),
        ("ec-pkcs8", "ec-sec1", None, Ok(())),
        ("ec-pkcs8", "ec-pkcs8", Some(PASSPHRASE), Ok(())),
        ("ec-pkcs8", "ec-aes", Some(PASSPHRASE), Ok(())),
        ("ec-pkcs8", "ec-des3-sha1", Some(PASSPHRASE), Ok(())),
        ("ec-pkcs8", "ec-scrypt", Some(PASSPHRASE), Ok(())),
        ("ec-pkcs8", "ec-aes", None, Err("the private key is encrypted: give its passphrase with BERTH_TLS_KEY_PASSPHRASE or MM_")),
        ("ec-pkcs8", "ec-aes", Some("guessed"), Err("cannot be decrypted: is the passphrase of MM_TLS_PRIVATE_KEY_PASSPHRASE the right one?")),
        ("ec-pkcs8", "ec-pbes1", Some(PASSPHRASE), Err("convert it with openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW")),
        ("ec-pkcs8", "ec-traditional", Some(PASSPHRASE), Err("OpenSSL's old way, which is not read: convert it with openssl pkcs8")),
        ("ec-pkcs8", "p521", None, Err("use RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519")),
        ("ec-pkcs8", "rsa-pkcs8", None, Err("the key does not fit the first certificate in ")),
    ] {
        let pair = ours.sign_for(server(), KeyPair::from_pem(&read(kind)).unwrap());
        // A chain: the server's own first, then who signed it. Text around the sections is skipped.
        let certificate = format!("Certificate:\n    Data:\n{}\n{}", pair.certificate, ours.pem);
        let secret = Secret::new(&Pair { certificate, key: format!("Bag Attributes\n{}", read(name)) }, "");
        let passphrase = passphrase.map(|text| Passphrase::new("MM_TLS_PRIVATE_KEY_PASSPHRASE", text));
        let settings = TlsSettings { passphrase, ..secret.settings(ClientAuth::None) };
        let shown = format!("{settings:?}");
        assert!(!shown.contains(PASSPHRASE) && !shown.contains("guessed"), "{shown}");
        match (Tls::open(settings, &Clock::system(), &Metrics::default()), expected) {
            (Ok(tls), Ok(())) => assert_eq!(tls.names(), ["localhost", "127.0.0.1"]),
            (Err(faults), Err(why)) => {
                assert!(faults.len() == 1 && faults[0].starts_with("MM_TLS_PRIVATE_KEY_PATH: ") && faults[0].contains(why), "{name}: {faults:?}");
                assert!(!faults[0].contains(PASSPHRASE) && !faults[0].contains("guessed"), "{faults:?}");
            }
            (other, _) => panic!("{name}: {:?} instead of {expected:?}", other.err()),
        }
    }
}

#[test]
fn all_faults_of_all_files_are_told_together() {
    let secret = Secret::new(&Pair { certificate: "x".to_owned(), key: "y".to_owned() }, "z");
    let open = |settings| Tls::open(settings, &Clock::system(), &Metrics::default()).err().unwrap();
    let faults = open(secret.settings(ClientAuth::Optional));
    assert_eq!(faults.len(), 3, "{faults:?}");
    for (fault, start) in faults.iter().zip(["MM_TLS_KEY_CERT_PATH: ", "MM_TLS_PRIVATE_KEY_PATH: ", "MM_TLS_TRUST_CERT_PATH: "]) {
        assert!(fault.starts_with(start) && fault.contains("it must be PEM"), "{fault}");
    }
    let nowhere = TlsSettings { key: file("--tls-key", secret.path("none").as_path()), ..secret.settings(ClientAuth::None) };
    let nowhere = TlsSettings { certificate: file("--tls-cert", secret.path("").as_path()), ..nowhere };
    let faults = open(nowhere);
    assert!(faults[0].starts_with("--tls-cert: ") && faults[0].ends_with("is not a regular file"), "{faults:?}");
    assert!(faults[1].starts_with("--tls-key: ") && faults[1].contains("none: No such file"), "{faults:?}");
}

#[test]
fn client_auth_is_read_in_any_case_and_anything_else_is_a_fault() {
    for (text, expected) in [
        ("", Ok(ClientAuth::None)),
        ("none", Ok(ClientAuth::None)),
        ("NONE", Ok(ClientAuth::None)),
        ("Optional", Ok(ClientAuth::Optional)),
        (" REQUIRE ", Ok(ClientAuth::Require)),
        ("true", Err("\"true\" is none of NONE, OPTIONAL and REQUIRE".to_owned())),
    ] {
        assert_eq!(text.parse::<ClientAuth>(), expected);
    }
}

#[tokio::test]
async fn an_expired_certificate_is_served_with_a_warning_and_no_client_takes_it() {
    let ours = Authority::new("ours");
    let secret = Secret::new(&ours.sign(expired(server())), "");
    let (tls, metrics) = secret.open(ClientAuth::None);
    assert_eq!(tls.ends_soon(), Some(Duration::ZERO));
    assert!(metrics.render().contains("berth_tls_certificate_expiry_seconds 1009843200\n"), "2002-01-01");
    let server = serve(&tls).await;
    let fault = server.tells(&ours.pem, None).await.unwrap_err();
    assert!(fault.contains("xpired"), "{fault}");
    counted(&metrics, "declined", 1).await;
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_week_of_a_certificate_is_told_once_a_day_and_its_end_at_once() {
    const HOUR: Duration = Duration::from_secs(3600);
    let ours = Authority::new("ours");
    let mut params = server();
    params.not_after = rcgen::date_time_ymd(2030, 1, 20);
    let secret = Secret::new(&ours.sign(params), "");
    let end = 1_895_097_600_000; // 2030-01-20
    let clock = Clock::starting_at(UnixMillis(end - 8 * 24 * 3_600_000));
    let start: Instant = clock.now();
    let tls = Tls::open(secret.settings(ClientAuth::None), &clock, &Metrics::default()).unwrap();
    let mut said = Vec::new();
    while clock.now() - start <= 9 * 24 * HOUR {
        said.extend(tls.ends_soon().map(|left| left.as_secs() / 3600));
        clock.sleep(HOUR / 2).await;
    }
    assert_eq!(said, [167, 143, 119, 95, 71, 47, 23, 0, 0], "hours; then expired, and again a day later");
    assert_eq!((days(30 * HOUR), days(167 * HOUR)), ("30 hours".to_owned(), "6 days".to_owned()));
}

#[tokio::test]
async fn clients_without_tls_are_told_so_and_garbage_is_cut_off() {
    let ours = Authority::new("ours");
    let (tls, metrics) = Secret::new(&ours.server(), "").open(ClientAuth::None);
    let server = serve(&tls).await;
    let mut plain = server.tcp().await;
    let answer = get(&mut plain, "/").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\nthis port speaks TLS only: use https\n"), "{answer}");
    drop(plain);
    counted(&metrics, "plain_text", 1).await;
    for (sent, reason) in [(&[0u8; 64][..], "garbage"), (&[22, 9, 9, 9, 9, 9, 9, 9, 9], "garbage"), (&[22, 3, 1], "gone")] {
        let before = metrics.count(Counter::TlsRefused, &[("reason", reason)]);
        let mut stream = server.tcp().await;
        stream.write_all(sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await; // an alert, the end, or a reset
        counted(&metrics, reason, before + 1).await;
    }
    assert_eq!(server.tells(&ours.pem, None).await.as_deref(), Ok("nobody"));
    server.stop().await;

    // The other way round: TLS to a port that has none.
    let server = serve_with(None, ProxyConfig::default()).await;
    assert!(server.tells(&ours.pem, None).await.is_err());
    assert!(get(&mut server.tcp().await, "/").await.unwrap().ends_with("nobody"));
    server.stop().await;
}

#[tokio::test]
async fn a_reset_in_the_middle_of_a_handshake_frees_its_place() {
    let ours = Authority::new("ours");
    let (tls, metrics) = Secret::new(&ours.server(), "").open(ClientAuth::None);
    let server = serve_with(Some(tls), ProxyConfig { max_connections: 1, ..ProxyConfig::default() }).await;
    let mut broken = server.tcp().await;
    broken.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    // It holds the one place while its handshake lasts: nobody else is let in, and accepting goes on.
    assert!(server.tells(&ours.pem, None).await.is_err());
    broken.set_zero_linger().unwrap();
    drop(broken);
    counted(&metrics, "gone", 1).await;
    let clock = Clock::system();
    let served = clock.until(clock.deadline_in(Duration::from_secs(20)), async { while server.tells(&ours.pem, None).await.is_err() {} }).await;
    assert!(served.is_some());
    server.stop().await;
}

#[tokio::test]
async fn a_handshake_that_takes_its_time_holds_up_nobody() {
    let ours = Authority::new("ours");
    let (tls, _) = Secret::new(&ours.server(), "").open(ClientAuth::None);
    let server = serve(&tls).await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = server.tcp().await;
        stream.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
        slow.push(stream);
    }
    assert_eq!(server.tells(&ours.pem, None).await.as_deref(), Ok("nobody"));
    drop(slow);
    server.stop().await;
}

#[test]
fn who_a_client_is_comes_from_its_certificate_whatever_that_holds() {
    let ours = Authority::new("ours");
    let mut params = client("Jürgen, with a comma");
    params.subject_alt_names.push(rcgen::SanType::URI("spiffe://cluster/ns/a/sa/b".try_into().unwrap()));
    params.subject_alt_names.push(rcgen::SanType::IpAddress("2001:db8::1".parse().unwrap()));
    params.subject_alt_names.push(rcgen::SanType::Rfc822Name("a@b.example".try_into().unwrap()));
    let pair = ours.sign(params);
    let identity = ClientIdentity::of(&CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap());
    assert_eq!(identity.common_name(), Some("Jürgen, with a comma"));
    let names: Vec<_> = identity.names().collect();
    assert_eq!(names, ["client.example", "spiffe://cluster/ns/a/sa/b", "2001:db8::1", "a@b.example"]);
    let unknown = ClientIdentity::of(&CertificateDer::from(vec![1, 2, 3]));
    assert_eq!((unknown.common_name(), unknown.names().count()), (None, 0));
}
