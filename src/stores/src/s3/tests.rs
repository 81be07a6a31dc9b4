use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_telemetry::{Clock, HostNet, Net as _};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::answers::md5_of_etag;
use super::credentials::{Credentials, Environment};
use super::*;
use crate::{Composite, ConfigFault, OfParts, Patience};

fn patience() -> Patience {
    Patience { connect: Duration::from_secs(10), silence: Duration::from_secs(10) }
}

fn entry(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(entry) => entry,
        other => panic!("{other}"),
    }
}

fn parse(value: Value) -> Result<S3Settings, String> {
    S3Settings::parse(&entry(value), "storage config k").map_err(|fault| fault.to_string())
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::of(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn opened(settings: S3Settings, variables: &[(&str, &str)]) -> Result<S3Remote, ConfigFault> {
    let link = settings.link_in(&environment(variables), patience(), Clock::system())?;
    Ok(S3Remote::new(settings, Arc::new(link)))
}

fn remote(keys: bool) -> S3Remote {
    let (key, secret) = if keys { ("AKID", "sEcReT") } else { ("", "") };
    let value = json!({"endpoint_url": "http://s3.example:9000", "region": "r", "bucket": "b", "access_key_id": key, "secret_access_key": secret});
    opened(parse(value).expect("sound"), &[]).expect("sound")
}

fn refused(status: u16, code: &str) -> Refused {
    let error = ErrorBody { code: code.to_owned(), message: "why not".to_owned(), ..ErrorBody::default() };
    Refused { status: StatusCode::from_u16(status).expect("a status"), pause: None, date: None, region: None, error }
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    /// Path and query.
    target: String,
    headers: HeaderMap,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        text(&self.headers, name).unwrap_or_default()
    }
}

type Reply = http::Response<Full<Bytes>>;

/// A server in this process that imitates a store, and the services that lend credentials.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = HostNet.listen(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (seen, reply) = (Arc::new(Mutex::new(Vec::new())), Arc::new(reply));
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, reply) = (Arc::clone(&log), Arc::clone(&reply));
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (log, reply) = (Arc::clone(&log), Arc::clone(&reply));
                    async move {
                        let (head, body) = request.into_parts();
                        let _ = body.collect().await;
                        let target = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
                        let seen = Seen { method: head.method, target, headers: head.headers };
                        let answer = reply(&seen);
                        log.lock().push(seen);
                        Ok::<_, std::convert::Infallible>(answer)
                    }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Server { address, seen }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests whose target starts so.
    fn seen(&self, target: &str) -> Vec<Seen> {
        self.seen.lock().iter().filter(|seen| seen.target.starts_with(target)).cloned().collect()
    }

    fn remote(&self, more: &[(&str, &str)], variables: &[(&str, &str)]) -> S3Remote {
        let mut config = entry(json!({"endpoint_url": self.url(), "bucket": "b"}));
        config.extend(more.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
        opened(S3Settings::parse(&config, "storage config k").expect("sound"), variables).expect("sound")
    }
}

fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut reply = http::Response::builder().status(status);
    for (name, value) in headers {
        reply = reply.header(*name, *value);
    }
    reply.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).expect("sound")
}

fn error(status: u16, code: &str) -> Reply {
    reply(status, &[], &format!("<Error><Code>{code}</Code><Message>why not</Message></Error>"))
}

/// Keys as the metadata service and the agents of containers and pods lend them.
fn lent(key: &str) -> Reply {
    let keys = json!({"Code": "Success", "AccessKeyId": key, "SecretAccessKey": "sEcReT", "Token": format!("token-of-{key}"), "Expiration": "2999-01-01T00:00:00Z"});
    reply(200, &[], &keys.to_string())
}

/// Keys as the token service lends them.
fn assumed(key: &str) -> Reply {
    let body = format!(
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><SessionToken>token-of-{key}</SessionToken>\
         <SecretAccessKey>sEcReT</SecretAccessKey><Expiration>2999-01-01T00:00:00Z</Expiration><AccessKeyId>{key}</AccessKeyId></Credentials>\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    );
    reply(200, &[], &body)
}

const LISTED: &str = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";

#[test]
fn an_answer_is_judged_by_what_the_caller_can_do_about_it() {
    use FaultKind::{Away, Busy, Config, Denied, Missing};
    for (status, code, expected) in [
        (404, "NoSuchBucket", Missing),
        (404, "NoSuchKey", Missing),
        (404, "", Missing),
        (403, "AccessDenied", Denied),
        (403, "SignatureDoesNotMatch", Denied),
        (403, "RequestTimeTooSkewed", Denied),
        (400, "ExpiredToken", Denied),
        (400, "TokenRefreshRequired", Denied),
        (401, "", Denied),
        (403, "InvalidObjectState", Config),
        (503, "SlowDown", Busy { pause: None }),
        (500, "InternalError", Away),
        (501, "NotImplemented", Config),
        (502, "", Away),
        (429, "", Busy { pause: None }),
        (409, "OperationAborted", Away),
        (400, "AuthorizationHeaderMalformed", Config),
        (301, "PermanentRedirect", Config),
        (307, "TemporaryRedirect", Config),
        (405, "", Config),
    ] {
        let fault = remote(true).judge(&refused(status, code), "listing");
        assert_eq!((fault.kind, fault.status), (expected, Some(status)), "{status} {code}: {fault:?}");
    }
}

#[test]
fn errors_name_bucket_endpoint_and_entry_but_no_key() {
    let error = ErrorBody::parse(b"<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>bad\nsignature</Message><AWSAccessKeyId>AKID</AWSAccessKeyId></Error>");
    let what = "listing \"m\" of bucket b at http://s3.example:9000";
    let fault = remote(true).judge(&Refused { error, ..refused(403, "") }, what);
    let text = format!("{fault} {fault:?} {:?}", remote(true));
    for part in ["bucket b", "http://s3.example:9000", "HTTP 403 SignatureDoesNotMatch: bad signature", "storage config k"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("AKID") && !text.contains("sEcReT"), "{text}");
    let text = remote(false).judge(&Refused { error: ErrorBody::default(), ..refused(403, "") }, "x").to_string();
    assert_eq!(text, "x: HTTP 403 storage config k has no credentials");
    assert_eq!(ErrorBody::parse(b"<html>no XML<br></html>"), ErrorBody::default());
    assert_eq!(ErrorBody::parse(b"\xff\xfe"), ErrorBody::default());
}

#[test]
fn where_the_store_knows_better_its_region_address_and_clock_are_named() {
    let text = |refused: Refused| remote(true).judge(&refused, "x").to_string();
    let redirect = ErrorBody { endpoint: "b.s3.example".to_owned(), ..refused(301, "PermanentRedirect").error };
    let malformed = ErrorBody { region: "eu-9".to_owned(), ..refused(400, "AuthorizationHeaderMalformed").error };
    for (case, got, expected) in [
        ("address", text(Refused { error: redirect, ..refused(301, "") }), "the bucket is at b.s3.example: check endpoint_url"),
        ("region of a body", text(Refused { error: malformed, ..refused(400, "") }), "the bucket is in region eu-9: set region of storage config k"),
        ("region of a header", text(Refused { region: Some("eu-8".to_owned()), ..refused(307, "") }), "the bucket is in region eu-8"),
        ("nothing", text(refused(302, "")), "the bucket is elsewhere"),
        (
            "clock",
            text(Refused { date: Some("Sun, 22 Nov 2026 14:22:12 GMT".to_owned()), ..refused(403, "RequestTimeTooSkewed") }),
            "differ too much (the store's says Sun, 22 Nov 2026 14:22:12 GMT): set the clock",
        ),
        ("ended", text(refused(400, "ExpiredToken")), "the session_token of storage config k ended"),
    ] {
        assert!(got.contains(expected), "{case}: {got}");
    }
}

#[test]
fn a_listing_is_read_with_its_odd_keys_and_its_continuation() {
    let body = br#"<?xml version="1.0" encoding="UTF-8"?>
        <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><IsTruncated>true</IsTruncated><KeyCount>3</KeyCount>
        <NextContinuationToken>a+/=</NextContinuationToken>
        <Contents><Key>m/a &amp; b+%20.txt</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>&quot;x-2&quot;</ETag><Size>5</Size></Contents>
        <Contents><Key>m/../x</Key><Size>0</Size></Contents><CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>
        <Contents><Key>m//</Key><ETag></ETag><Size>1</Size></Contents>
        <Contents><Key>m/weak</Key><ETag>W/"x"</ETag><Size>1</Size></Contents></ListBucketResult>"#;
    let listed = |key: &str, size, etag: Option<&str>| Object {
        key: key.to_owned(),
        size: ByteSize(size),
        version: etag.map(|etag| Version(etag.to_owned())),
        sums: Sums::default(),
    };
    let objects =
        vec![listed("m/a & b+%20.txt", 5, Some("\"x-2\"")), listed("m/../x", 0, None), listed("m//", 1, None), listed("m/weak", 1, Some("\"x\""))];
    assert_eq!(page(body), Ok(Page { objects, next: Some("a+/=".to_owned()) }));
    assert_eq!(page(LISTED.as_bytes()), Ok(Page { objects: vec![], next: None }));
    for body in [
        &b"<html><body>hello</body></html>"[..],
        b"",
        b"{}",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><Contents>",
    ] {
        assert!(page(body).is_err(), "{}", String::from_utf8_lossy(body));
    }
}

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().expect("a value"))).collect()
}

#[test]
fn ranges_and_etags_are_read_from_answers() {
    assert_eq!(answered(StatusCode::PARTIAL_CONTENT, &headers(&[("content-range", "bytes 5-9/100")])), Ok((5..10, 100)));
    assert_eq!(answered(StatusCode::OK, &headers(&[("content-length", "7")])), Ok((0..7, 7)));
    assert!(answered(StatusCode::OK, &HeaderMap::new()).is_err());
    for odd in ["", "bytes 5-", "bytes */100", "items 1-2/3", "bytes 1-18446744073709551615/1", "bytes 5-9/*"] {
        assert!(answered(StatusCode::PARTIAL_CONTENT, &headers(&[("content-range", odd)])).is_err(), "{odd}");
    }
    let empty = [0xd4, 0x1d, 0x8c, 0xd9, 0x8f, 0x00, 0xb2, 0x04, 0xe9, 0x80, 0x09, 0x98, 0xec, 0xf8, 0x42, 0x7e];
    assert_eq!(md5_of_etag("\"D41D8CD98F00B204E9800998ECF8427E\""), Some(empty));
    for other in [
        "\"d41d8cd98f00b204e9800998ecf8427e-2\"",
        "\"\"",
        "W/\"x\"",
        "\"zz1d8cd98f00b204e9800998ecf8427e\"",
        "\"\u{fc}1d8cd98f00b204e9800998ecf8427e\"",
    ] {
        assert_eq!(md5_of_etag(other), None, "{other}");
    }
}

const ETAG: (&str, &str) = ("etag", "\"d41d8cd98f00b204e9800998ecf8427e\"");
const PARTED: (&str, &str) = ("etag", "\"90b5e363ba68f53ea56f802a86222da4-3\"");

#[test]
fn a_checksum_counts_only_where_it_is_of_the_whole_content() {
    let crc = ("x-amz-checksum-crc32c", "AAAABw==");
    let of = |list: &[(&'static str, &str)], whole| {
        let Sums { crc32c, crc32, md5, crc64nvme, sha256, composite } = sums(&headers(list), whole);
        assert_eq!((crc32, crc64nvme, sha256, composite), (None, None, None, None));
        (crc32c, md5.is_some())
    };
    for (case, list, whole, expected) in [
        ("whole", &[crc, ETAG][..], true, (Some(7), true)),
        ("whole and said so", &[crc, ("x-amz-checksum-type", "FULL_OBJECT")], true, (Some(7), false)),
        ("a part of the content", &[crc, ETAG], false, (None, true)),
        ("of the parts' checksums", &[crc, ("x-amz-checksum-type", "COMPOSITE")], true, (None, false)),
        ("of the parts' checksums, by its form", &[("x-amz-checksum-crc32c", "AAAABw==-3"), PARTED], true, (None, false)),
        ("no base64", &[("x-amz-checksum-crc32c", "?")], true, (None, false)),
        ("too long", &[("x-amz-checksum-crc32c", "AAAAAAAAAAA=")], true, (None, false)),
        ("encrypted by the store", &[ETAG, ("x-amz-server-side-encryption", "AES256")], true, (None, true)),
        ("encrypted with a service's key", &[ETAG, ("x-amz-server-side-encryption", "aws:kms")], true, (None, false)),
        ("encrypted with the client's key", &[ETAG, ("x-amz-server-side-encryption-customer-algorithm", "AES256")], true, (None, false)),
    ] {
        assert_eq!(of(list, whole), expected, "{case}");
    }
}

#[test]
fn the_checksum_of_parts_is_taken_only_where_their_lengths_are_certain() {
    let md5 = OfParts::Md5(md5_of_etag("90b5e363ba68f53ea56f802a86222da4").expect("a digest"));
    let sha = format!("{}-3", BASE64_STANDARD.encode([9; 32]));
    for (case, list, expected) in [
        ("the cheapest", &[("x-amz-checksum-crc32c", "AAAABw==-3"), ("x-amz-checksum-sha256", &sha), PARTED][..], Some((OfParts::Crc32c(7), 3))),
        ("CRC-32", &[("x-amz-checksum-crc32", "AAAACQ==-3"), PARTED], Some((OfParts::Crc32(9), 3))),
        ("SHA-256", &[("x-amz-checksum-sha256", &sha), PARTED], Some((OfParts::Sha256([9; 32]), 3))),
        ("the ETag's MD5", &[PARTED], Some((md5, 3))),
        ("encrypted: the ETag is no MD5", &[PARTED, ("x-amz-server-side-encryption", "aws:kms")], None),
        ("no parts", &[ETAG], None),
        ("one part, whose ETag may be anything", &[("etag", "\"90b5e363ba68f53ea56f802a86222da4-1\"")], None),
        ("one part's CRC-32C", &[("x-amz-checksum-crc32c", "AAAABw==-1")], Some((OfParts::Crc32c(7), 1))),
        ("zero parts", &[("x-amz-checksum-crc32c", "AAAABw==-0")], None),
        ("not a number", &[("x-amz-checksum-crc32c", "AAAABw==-x")], None),
    ] {
        assert_eq!(of_parts(&headers(list)), expected, "{case}");
    }
    let part = |length: &str, of: &str| headers(&[("content-length", length), ("x-amz-mp-parts-count", of)]);
    for (case, first, last, size, expected) in [
        ("three", part("5", "3"), part("2", "3"), 12, Some(5)),
        ("the last one full", part("4", "3"), part("4", "3"), 12, Some(4)),
        ("parts of unequal length", part("5", "3"), part("5", "3"), 14, None),
        ("the last one longer", part("3", "3"), part("6", "3"), 12, None),
        ("another number of parts", part("5", "2"), part("2", "3"), 12, None),
        ("a store that tells no number", headers(&[("content-length", "12")]), headers(&[("content-length", "12")]), 12, None),
        ("nothing in them", part("0", "3"), part("0", "3"), 0, None),
        ("beyond all numbers", part("18446744073709551615", "3"), part("2", "3"), 12, None),
    ] {
        let found = composite(md5, 3, ByteSize(size), &first, &last);
        assert_eq!(found, expected.map(|part| Composite { value: md5, part: ByteSize(part), parts: 3 }), "{case}");
    }
}

#[test]
fn keys_are_encoded_as_the_signature_wants_them() {
    assert_eq!(encode("a b/c+d%~ü", true), "a%20b/c%2Bd%25~%C3%BC");
    assert_eq!(encode("a/b", false), "a%2Fb");
}

#[test]
fn an_address_is_made_of_endpoint_region_and_bucket() {
    for (case, value, expected) in [
        ("an endpoint", json!({"endpoint_url": "http://h:9000/", "bucket": "b"}), "http://h:9000/b"),
        ("with a path", json!({"endpoint_url": "https://h/p/", "bucket": "b"}), "https://h/p/b"),
        ("virtual", json!({"endpoint_url": "https://h.example:1/p", "bucket": "b", "addressing": "virtual"}), "https://b.h.example:1/p"),
        ("no endpoint", json!({"bucket": "b"}), "https://b.s3.us-east-1.amazonaws.com"),
        ("an empty one", json!({"endpoint_url": "", "region": "eu-1", "bucket": "b"}), "https://b.s3.eu-1.amazonaws.com"),
        ("in China", json!({"region": "cn-north-1", "bucket": "b"}), "https://b.s3.cn-north-1.amazonaws.com.cn"),
        ("a bucket with dots", json!({"bucket": "b.c"}), "https://s3.us-east-1.amazonaws.com/b.c"),
        ("path", json!({"bucket": "b", "addressing": "path"}), "https://s3.us-east-1.amazonaws.com/b"),
    ] {
        assert_eq!(parse(value).map(|settings| settings.base()), Ok(expected.to_owned()), "{case}");
    }
    for (value, expected) in [
        (json!({"bucket": "b.c", "addressing": "virtual"}), "cannot be part of a host name"),
        (json!({"bucket": "b", "endpoint_url": "http://127.0.0.1:9", "addressing": "virtual"}), "leaves no room for a bucket"),
        (json!({"bucket": "b", "endpoint_url": "http://[::1]:9", "addressing": "virtual"}), "leaves no room for a bucket"),
        (json!({"bucket": ".."}), "is not a bucket name"),
        (json!({"bucket": "a/b"}), "is not a bucket name"),
        (json!({"bucket": "b", "region": "x.evil.example/"}), "is not a region name"),
    ] {
        let fault = parse(value).map(|_| ()).expect_err("refused");
        assert!(fault.contains(expected), "{fault}");
    }
}

#[test]
fn keys_of_the_entry_choose_the_credentials() {
    let role =
        |role: Option<&str>, file: Option<&str>| Credentials::WebIdentity { role: role.map(str::to_owned), token_file: file.map(str::to_owned) };
    for (value, expected) in [
        (json!({}), Ok(Credentials::Environment)),
        (json!({"credentials": ""}), Ok(Credentials::Environment)),
        (json!({"access_key_id": "", "secret_access_key": ""}), Ok(Credentials::Anonymous)),
        (json!({"credentials": "anonymous", "access_key_id": "a", "secret_access_key": "s"}), Ok(Credentials::Anonymous)),
        (json!({"role_arn": "r", "web_identity_token_file": "/t"}), Ok(role(Some("r"), Some("/t")))),
        (json!({"credentials": "web_identity"}), Ok(role(None, None))),
        (json!({"credentials": "instance", "access_key_id": "", "secret_access_key": ""}), Ok(Credentials::Instance)),
        (json!({"credentials": "environment"}), Ok(Credentials::Environment)),
        (json!({"access_key_id": "a"}), Err("must both be given")),
        (json!({"access_key_id": "", "secret_access_key": "s"}), Err("must both be given")),
        (json!({"credentials": "static"}), Err("must both be given")),
        (json!({"credentials": "instance", "access_key_id": "a", "secret_access_key": "s"}), Err("is given too")),
        (json!({"credentials": "odd"}), Err("it can be static, anonymous, environment, web_identity or instance")),
        (json!({"access_key_id": "a", "secret_access_key": "s\n"}), Err("a character that cannot be sent")),
        (json!({"access_key_id": "a", "secret_access_key": "s", "session_token": "t "}), Err("a character that cannot be sent")),
        (json!({"session_token": "t"}), Err("without access_key_id")),
        (json!({"access_key_id": 7, "secret_access_key": "s"}), Err("access_key_id is not a string")),
    ] {
        let mut config = entry(value.clone());
        config.insert("bucket".to_owned(), json!("b"));
        let got = S3Settings::parse(&config, "k").map(|settings| settings.credentials).map_err(|fault| fault.to_string());
        match (got, expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{value}"),
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{value}: {got}"),
            (got, expected) => panic!("{value}: {got:?}, wanted {expected:?}"),
        }
    }
}

#[test]
fn connections_are_shared_only_by_equal_credentials_and_trust() {
    let all = [
        json!({"bucket": "b"}),
        json!({"bucket": "b", "credentials": "instance"}),
        json!({"bucket": "b", "region": "eu-1"}),
        json!({"bucket": "b", "access_key_id": "", "secret_access_key": ""}),
        json!({"bucket": "b", "access_key_id": "a", "secret_access_key": "s"}),
        json!({"bucket": "b", "access_key_id": "as", "secret_access_key": "s"}),
        json!({"bucket": "b", "access_key_id": "a", "secret_access_key": "s", "session_token": "t"}),
        json!({"bucket": "b", "access_key_id": "a", "secret_access_key": "s", "certificate": "t"}),
        json!({"bucket": "b", "role_arn": "a", "web_identity_token_file": "s"}),
        json!({"bucket": "b", "endpoint_url": "http://h"}),
    ];
    let prints: Vec<[u8; 32]> = all.iter().map(|value| parse(value.clone()).expect("sound").fingerprint()).collect();
    for (at, print) in prints.iter().enumerate() {
        assert!(!prints[..at].contains(print), "{}", all[at]);
    }
    let other = parse(json!({"bucket": "c"})).expect("sound");
    assert_eq!(other.fingerprint(), prints[0], "the bucket is no part of it");
}

#[tokio::test]
async fn each_way_to_credentials_signs_with_what_it_is_lent() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "proof").expect("written");
    let file = file.to_str().expect("text");
    let server = Server::start(|seen| match (&seen.method, seen.target.split('?').next().unwrap_or_default()) {
        (&Method::POST, "/sts") => assumed("STS"),
        (&Method::PUT, "/imds/latest/api/token") => reply(200, &[], "proof-of-imds"),
        (&Method::GET, "/imds/latest/meta-data/iam/security-credentials/") => reply(200, &[], "role"),
        (&Method::GET, "/imds/latest/meta-data/iam/security-credentials/role") => lent("IMDS"),
        (&Method::GET, "/pod") if seen.header("authorization") == "proof" => lent("POD"),
        (&Method::GET, "/b") => reply(200, &[], LISTED),
        _ => error(404, "Unexpected"),
    })
    .await;
    let (sts, imds, pod) = (format!("{}/sts", server.url()), format!("{}/imds/", server.url()), format!("{}/pod", server.url()));
    let services = [("AWS_ENDPOINT_URL_STS", sts.as_str()), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.as_str())];
    let role = [("AWS_ROLE_ARN", "arn:env"), ("AWS_WEB_IDENTITY_TOKEN_FILE", file)];
    let agent = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", pod.as_str()), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file)];
    let keys = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "sEcReT")];
    for (case, config, variables, key, token) in [
        (
            "keys and a session",
            &[("access_key_id", "OWN"), ("secret_access_key", "s"), ("session_token", "t")][..],
            [&keys[..], &role].concat(),
            "OWN",
            "t",
        ),
        ("keys of the environment", &[], [&keys[..], &role, &agent].concat(), "ENV", ""),
        ("web identity of the environment", &[], [&role[..], &agent].concat(), "STS", "token-of-STS"),
        ("the pod's agent", &[], agent.to_vec(), "POD", "token-of-POD"),
        ("the instance", &[], vec![], "IMDS", "token-of-IMDS"),
        ("a role without a token file is no web identity", &[], vec![role[0]], "IMDS", "token-of-IMDS"),
        ("the instance, as the entry wants", &[("credentials", "instance")], [&keys[..], &role].concat(), "IMDS", "token-of-IMDS"),
        ("web identity, as the entry wants", &[("credentials", "web_identity")], [&keys[..], &role].concat(), "STS", "token-of-STS"),
        ("the entry's role", &[("role_arn", "arn:own"), ("web_identity_token_file", file)], keys.to_vec(), "STS", "token-of-STS"),
        ("nobody", &[("credentials", "anonymous")], keys.to_vec(), "", ""),
    ] {
        let remote = server.remote(config, &[&services[..], &variables].concat());
        let listed = remote.list("m", None).await;
        assert!(listed.is_ok(), "{case}: {listed:?}");
        let seen = server.seen("/b?").pop().expect("asked");
        let signer = seen.header("authorization").split("Credential=").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
        assert_eq!((signer, seen.header("x-amz-security-token")), (key, token), "{case}");
        assert!(!format!("{remote:?}").contains("sEcReT"), "{remote:?}");
    }
    let asked = server.seen("/sts");
    assert!(asked[0].target.contains("RoleArn=arn%3Aenv") && asked[0].target.contains("WebIdentityToken=proof"), "{asked:?}");
    assert!(asked.last().expect("three").target.contains("RoleArn=arn%3Aown"), "{asked:?}");
    let lent = server.seen("/imds/latest/meta-data/iam/security-credentials/role");
    assert!(lent.iter().all(|seen| seen.header("x-aws-ec2-metadata-token") == "proof-of-imds"), "{lent:?}");
}

#[tokio::test]
async fn a_lent_credential_is_asked_for_once_and_anew_when_the_store_calls_it_ended() {
    // The store accepts the third credential on.
    let turns = Arc::new(Mutex::new(0));
    let asked = Arc::clone(&turns);
    let server = Server::start(move |seen| {
        if seen.target.starts_with("/sts") {
            *asked.lock() += 1;
            assumed(&format!("TURN{}", asked.lock()))
        } else if seen.header("x-amz-security-token") >= "token-of-TURN3" {
            reply(200, &[], LISTED)
        } else {
            error(400, "ExpiredToken")
        }
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "proof").expect("written");
    let sts = format!("{}/sts", server.url());
    let role = [("role_arn", "r"), ("web_identity_token_file", file.to_str().expect("text"))];
    let remote = server.remote(&role, &[("AWS_ENDPOINT_URL_STS", &sts)]);
    let fault = remote.list("m", None).await.expect_err("two credentials were refused");
    assert_eq!(fault.kind, FaultKind::Denied);
    assert!(fault.why.contains("ended, and new ones did too"), "{fault}");
    assert_eq!((*turns.lock(), server.seen("/b").len()), (2, 2), "anew once, no more");
    remote.list("m", None).await.expect("the third is accepted");
    for _ in 0..3 {
        remote.list("m", None).await.expect("accepted");
    }
    assert_eq!(*turns.lock(), 3, "a credential that is accepted is kept");
    // What the entry holds cannot be asked for anew.
    let remote = server.remote(&[("access_key_id", "a"), ("secret_access_key", "s"), ("session_token", "old")], &[]);
    let before = server.seen("/b").len();
    let fault = remote.list("m", None).await.expect_err("ended");
    assert!(fault.why.contains("the session_token of storage config k ended: put new keys there"), "{fault}");
    assert_eq!(server.seen("/b").len(), before + 1, "asked once");
}

#[tokio::test]
async fn a_lender_that_refuses_is_told_from_one_that_is_away() {
    let server = Server::start(|seen| match seen.target.split('?').next().unwrap_or_default() {
        "/denied" => reply(403, &[], "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not this role</Message></Error></ErrorResponse>"),
        "/broken" => reply(500, &[], "oh"),
        "/odd" => assumed("two words"),
        "/long" => reply(200, &[], &"x".repeat(70 << 10)),
        "/longer" => reply(500, &[], &"x".repeat(70 << 10)),
        "/html" => reply(200, &[], "<html>hello</html>"),
        _ => error(404, "Unexpected"),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "pRoOf").expect("written");
    let (file, none) = (file.to_str().expect("text").to_owned(), folder.path().join("none").to_str().expect("text").to_owned());
    for (case, service, file, kind, said) in [
        ("refused", "/denied", &file, FaultKind::Denied, "HTTP 403 AccessDenied: not this role"),
        ("broken", "/broken", &file, FaultKind::Away, "500"),
        ("too long", "/long", &file, FaultKind::Config, "the answer is larger than 64"),
        ("an error too long", "/longer", &file, FaultKind::Config, "the answer is larger than 64"),
        ("keys that cannot be sent", "/odd", &file, FaultKind::Denied, "cannot be sent"),
        ("no answer of its kind", "/html", &file, FaultKind::Denied, "Invalid AssumeRoleWithWebIdentity response"),
        ("no token", "/denied", &none, FaultKind::Denied, "No such file"),
    ] {
        let service = format!("{}{service}", server.url());
        let remote = server.remote(&[("role_arn", "r"), ("web_identity_token_file", file)], &[("AWS_ENDPOINT_URL_STS", &service)]);
        let fault = remote.list("m", None).await.expect_err("no credentials");
        assert_eq!(fault.kind, kind, "{case}: {fault}");
        assert!(fault.why.contains(said) && fault.why.starts_with("no credentials from http"), "{case}: {fault}");
        assert!(fault.why.contains("storage config k wants them") && !fault.to_string().contains("pRoOf"), "{fault}");
    }
    let closed = {
        let listener = HostNet.listen(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        format!("http://{}", listener.local_addr().expect("bound"))
    };
    let remote = server.remote(&[("credentials", "instance")], &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &closed)]);
    let fault = remote.list("m", None).await.expect_err("nobody is there");
    assert_eq!(fault.kind, FaultKind::Away, "{fault}");
    assert_eq!(server.seen("/b?").len(), 0, "the store was not asked");

    let forbidden = [("AWS_EC2_METADATA_DISABLED", "true")];
    for (value, expected) in [
        (json!({"bucket": "b"}), "the environment offers none"),
        (json!({"bucket": "b", "credentials": "instance"}), "AWS_EC2_METADATA_DISABLED"),
        (json!({"bucket": "b", "credentials": "web_identity"}), "no role is named"),
        (json!({"bucket": "b", "credentials": "web_identity", "role_arn": "r"}), "no web_identity_token_file"),
    ] {
        let fault = opened(parse(value).expect("sound"), &forbidden).map(|_| ()).expect_err("nobody lends").to_string();
        assert!(fault.starts_with("storage config k: ") && fault.contains(expected), "{fault}");
    }
}

#[tokio::test]
async fn checksums_are_asked_for_with_the_version_and_only_as_often_as_needed() {
    let size = 12_u64;
    let server = Server::start(move |seen| {
        assert_eq!((&seen.method, seen.header("x-amz-checksum-mode")), (&Method::HEAD, "ENABLED"));
        if seen.header("if-match") != "\"v\"" {
            return reply(412, &[], "");
        }
        let (key, part) = seen.target.split_once("?partNumber=").unwrap_or((&seen.target, ""));
        let body = |length: u64| "x".repeat(usize::try_from(length).expect("small"));
        let of = |length: u64| reply(206, &[("etag", "\"v\""), ("x-amz-mp-parts-count", "3")], &body(length));
        let whole = |more: &[(&str, &str)]| reply(200, &[&[("etag", "\"v\"")], more].concat(), &body(size));
        match (key, part) {
            ("/b/whole", "") => whole(&[("x-amz-checksum-crc64nvme", "AAAAAAAAAAc=")]),
            ("/b/parts" | "/b/unknown", "") => whole(&[("x-amz-checksum-crc32c", "AAAABw==-3"), ("x-amz-checksum-type", "COMPOSITE")]),
            ("/b/parts", "1") => of(5),
            ("/b/parts", "3") => of(2),
            ("/b/unknown", "1") => reply(416, &[], ""),
            ("/b/silent", "") => whole(&[]),
            ("/b/gone", "") => reply(404, &[], ""),
            _ => reply(400, &[], ""),
        }
    })
    .await;
    let remote = server.remote(&[("credentials", "anonymous")], &[]);
    let object = |key: &str, version: &str| Object {
        key: key.to_owned(),
        size: ByteSize(size),
        version: Some(Version(version.to_owned())),
        sums: Sums { md5: Some([1; 16]), ..Sums::default() },
    };
    let listed = Sums { md5: Some([1; 16]), ..Sums::default() };
    let composite = Composite { value: OfParts::Crc32c(7), part: ByteSize(5), parts: 3 };
    for (key, requests, expected) in [
        ("whole", 1, Sums { crc64nvme: Some(7), ..listed }),
        ("parts", 3, Sums { composite: Some(composite), ..listed }),
        ("unknown", 2, listed),
        ("silent", 1, listed),
    ] {
        assert_eq!(remote.sums(&object(key, "\"v\"")).await, Ok(expected), "{key}");
        assert_eq!(server.seen(&format!("/b/{key}")).len(), requests, "{key}");
    }
    for (key, version) in [("whole", "\"old\""), ("gone", "\"v\"")] {
        let fault = remote.sums(&object(key, version)).await.expect_err("another version");
        assert_eq!(fault.kind, FaultKind::Changed, "{fault}");
    }
}

#[tokio::test]
async fn a_lender_whose_answer_a_provider_does_not_survive_is_the_configurations_fault() {
    let server = Server::start(|seen| match (&seen.method, seen.target.as_str()) {
        (&Method::PUT, _) => reply(200, &[], "proof\u{1}of\nimds"),
        (_, "/latest/meta-data/iam/security-credentials/") => reply(200, &[], "ro le\n\u{7f}<"),
        (_, "/pod") => reply(200, &[], "<html>"),
        _ => error(404, "Unexpected"),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "proof").expect("written");
    let (imds, pod) = (server.url(), format!("{}/pod", server.url()));
    for variables in [
        &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.as_str())][..],
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", pod.as_str()), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().expect("text"))],
    ] {
        let remote = server.remote(&[], variables);
        for _ in 0..2 {
            let fault = remote.list("m", None).await.expect_err("no credentials");
            assert_eq!(fault.kind, FaultKind::Config, "{fault}");
            assert!(fault.why.contains("the answer is none that such a service gives"), "{fault}");
        }
    }
}

#[test]
fn a_bucket_that_a_host_name_cannot_hold_stands_in_the_path() {
    let addressed = |value: Value| parse(value).map(|settings| settings.base());
    for (bucket, base) in [
        ("models", "https://models.s3.us-east-1.amazonaws.com"),
        ("my.models", "https://s3.us-east-1.amazonaws.com/my.models"),
        ("xn--a", "https://s3.us-east-1.amazonaws.com/xn--a"),
        ("xn--models", "https://s3.us-east-1.amazonaws.com/xn--models"),
    ] {
        assert_eq!(addressed(json!({"bucket": bucket})).as_deref(), Ok(base));
    }
    let fault = addressed(json!({"bucket": "xn--a", "addressing": "virtual"})).expect_err("no host name");
    assert!(fault.contains("bucket \"xn--a\" cannot be part of a host name: set addressing to path"), "{fault}");
}

#[tokio::test]
async fn a_key_that_no_address_can_name_is_not_asked_for() {
    let server = Server::start(|_| reply(200, &[("etag", "\"v\"")], "content")).await;
    let remote = server.remote(&[("credentials", "anonymous")], &[]);
    for key in ["", ".", "..", "m/../../other/secret", "m/./x", "../x", "m/.."] {
        let fault = remote.get(Ask { key, range: None, version: None }).await.map(|_| ()).expect_err("refused");
        assert_eq!(fault.kind, FaultKind::Config, "{key}: {fault}");
    }
    assert!(server.seen("/").is_empty());
    for (key, target) in [("m/..x/a b%2F+ü?#&=", "/b/m/..x/a%20b%252F%2B%C3%BC%3F%23%26%3D"), ("/m", "/b//m"), ("%2e%2e/x", "/b/%252e%252e/x")] {
        let mut answer = remote.get(Ask { key, range: None, version: None }).await.expect("there");
        assert_eq!(answer.frames.next().await, Some(Ok(Bytes::from_static(b"content"))));
        assert_eq!(server.seen("/").pop().expect("asked").target, target);
    }
}
