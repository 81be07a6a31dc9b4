//! S3: ways of addressing, credentials and their change, names, numbers and checksums of objects.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::Result;
use berth_testkit::{Gateway, Relay, Stored, Transport};
use serde_json::{Value, json};

use super::{
    LATER, MODEL, answers, answers_in_the_end, bytes, comes_by_itself, ends_well, fails_with, fetched, folder_with_model, holds, in_a_name_space,
    onnx, serves, tells_no,
};
use crate::fixture::{Fixture, ROOMY};

/// A server with the example in it.
async fn with_model(transport: Transport) -> Result<(Fixture, Gateway)> {
    let fixture = Fixture::empty()?;
    let gateway = Gateway::start(&fixture.parts, transport).await?;
    gateway.put("iris/model.onnx", &onnx(&fixture)).await?;
    Ok((fixture, gateway))
}

/// `entry` with the members of `changes`; null takes one away.
fn with(entry: &Value, changes: Value) -> Value {
    let mut entry = entry.clone();
    for (name, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(entry.as_object_mut().and_then(|entry| entry.remove(name))),
            value => entry[name] = value.clone(),
        }
    }
    entry
}

#[tokio::test]
async fn a_server_with_an_authority_of_its_own_is_trusted_only_where_the_entry_says_so() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Tls).await?;
    let trusting = gateway.storage_entry();
    fixture.storage("trusting", &trusting)?;
    fixture.storage("wary", &with(&trusting, json!({"certificate": null})))?;
    fixture.service("trusted", "trusting", MODEL)?;
    fixture.service("stranger", "wary", MODEL)?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "trusted").await?;
    fails_with(&berth, "stranger", &["certificate", &gateway.address().to_string(), Gateway::BUCKET]).await?;
    tells_no(&mut berth, &["trusted", "stranger"], &[Gateway::SECRET]).await
}

#[tokio::test]
async fn a_bucket_may_be_part_of_the_host_name() -> Result<()> {
    for transport in [Transport::Plain, Transport::Tls] {
        let (mut fixture, gateway) = with_model(transport).await?;
        let (host, port) = (format!("{}.{}", Gateway::BUCKET, Gateway::DOMAIN), gateway.address().port());
        // Only under that name: by path there is no such host.
        let hosts = fixture.path("hosts");
        fs::write(&hosts, format!("127.0.0.1 localhost {host}\n"))?;
        fixture.parts.bin = in_a_name_space(&fixture, &format!("mount --bind {} /etc/hosts", hosts.display()))?;
        let scheme = if transport == Transport::Plain { "http" } else { "https" };
        let endpoint = format!("{scheme}://{}:{port}", Gateway::DOMAIN);
        fixture.storage("virtual", &with(&gateway.storage_entry(), json!({"endpoint_url": endpoint, "addressing": "virtual"})))?;
        fixture.service("virtual", "virtual", MODEL)?;
        let berth = fixture.serve(ROOMY).start().await?;
        serves(&fixture, &berth, "virtual").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_session_token_is_sent_and_signed_with_every_request() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    let relay = Relay::start(gateway.address()).await?;
    let token = "a-token-that-nobody-may-read";
    let endpoint = gateway.endpoint_at(relay.address());
    fixture.storage("session", &with(&gateway.storage_entry(), json!({"endpoint_url": endpoint, "session_token": token})))?;
    fixture.service("session", "session", MODEL)?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    // This server knows of no temporary credentials.
    fails_with(&berth, "session", &["HTTP 400", "session_token"]).await?;
    let heads = relay.heads();
    assert!(!heads.is_empty());
    for head in &heads {
        let head = head.to_ascii_lowercase();
        assert!(head.contains(&format!("x-amz-security-token: {token}")), "no token with a request");
        let signed = head.split("signedheaders=").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or_default();
        assert!(signed.contains("x-amz-security-token"), "signed are {signed}");
    }
    tells_no(&mut berth, &["session"], &[token, Gateway::SECRET]).await?;
    fixture.storage("session", &with(&gateway.storage_entry(), json!({"endpoint_url": endpoint})))?;
    answers_in_the_end(&fixture, &berth, "session").await
}

#[tokio::test]
async fn a_bucket_that_is_open_to_everybody_needs_no_credential() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    let entry = gateway.storage_entry();
    fixture.storage("empty", &with(&entry, json!({"access_key_id": "", "secret_access_key": ""})))?;
    fixture.storage("named", &with(&entry, json!({"access_key_id": null, "secret_access_key": null, "credentials": "anonymous"})))?;
    fixture.service("empty", "empty", MODEL)?;
    fixture.service("named", "named", MODEL)?;
    let berth = fixture.serve(ROOMY).start().await?;
    for name in ["empty", "named"] {
        fails_with(&berth, name, &["HTTP 403", Gateway::BUCKET]).await?;
    }
    gateway.open_to_everybody(&fixture.parts).await?;
    for name in ["empty", "named"] {
        answers_in_the_end(&fixture, &berth, name).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_store_refuses_is_told_with_store_bucket_key_and_status() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    let (entry, address) = (gateway.storage_entry(), gateway.address().to_string());
    let wrong = "a-wrong-secret-of-somebody";
    let cases = [
        ("wrong-secret", json!({"secret_access_key": wrong}), MODEL, vec!["HTTP 403", "models"]),
        // What this server answers: others say 403.
        ("wrong-key-id", json!({"access_key_id": "nobody"}), MODEL, vec!["HTTP 404", "models"]),
        ("wrong-bucket", json!({"default_bucket": "no-such-bucket"}), MODEL, vec!["HTTP 404", "no-such-bucket"]),
        ("wrong-path", json!({}), "tulips/v1", vec!["models", "tulips/v1"]),
    ];
    for (name, changes, path, _) in &cases {
        fixture.storage(name, &with(&entry, changes.clone()))?;
        fixture.service(name, name, path)?;
    }
    let mut berth = fixture.serve(ROOMY).start().await?;
    for (name, _, _, parts) in &cases {
        let standing = fails_with(&berth, name, &[parts.as_slice(), &[&address]].concat()).await?;
        assert_eq!(standing.reason, "ModelLoadFailed", "{standing:?}");
    }
    let names = cases.iter().map(|(name, ..)| *name).collect::<Vec<_>>();
    tells_no(&mut berth, &names, &[wrong, Gateway::SECRET]).await
}

#[tokio::test]
async fn a_mended_credential_counts_on_the_next_try_without_a_restart() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    let entry = gateway.storage_entry();
    fixture.storage("mended", &with(&entry, json!({"secret_access_key": "wrong"})))?;
    fixture.service("mended", "mended", MODEL)?;
    let berth = fixture.serve(ROOMY).start().await?;
    fails_with(&berth, "mended", &["HTTP 403"]).await?;
    fixture.storage("mended", &entry)?;
    answers_in_the_end(&fixture, &berth, "mended").await
}

#[tokio::test]
async fn a_mounted_secret_that_is_flipped_as_a_whole_mends_a_model_that_nobody_asks_for() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    let entry = gateway.storage_entry();
    // As Kubernetes mounts a secret: files are links into `..data`, which is a link that one rename replaces.
    let folder = fixture.path("storage-config");
    let version = |name: &str, entry: &Value| -> Result<()> {
        fs::create_dir(folder.join(name))?;
        fs::write(folder.join(name).join("flipped"), entry.to_string())?;
        symlink(name, folder.join("..data_tmp"))?;
        Ok(fs::rename(folder.join("..data_tmp"), folder.join("..data"))?)
    };
    version("..2026_01", &with(&entry, json!({"secret_access_key": "wrong"})))?;
    symlink("..data/flipped", folder.join("flipped"))?;
    fixture.service("flipped", "flipped", MODEL)?;
    let berth = fixture.serve(ROOMY).start().await?;
    fails_with(&berth, "flipped", &["HTTP 403"]).await?;
    version("..2026_02", &entry)?;
    fs::remove_dir_all(folder.join("..2026_01"))?;
    comes_by_itself(&berth, "flipped").await?;
    answers(&fixture, &berth, "flipped").await
}

#[tokio::test]
async fn every_one_of_2500_objects_is_fetched() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    let folder = folder_with_model(&fixture, "many")?;
    for number in 0..2_499_u32 {
        let place = folder.join(MODEL).join(format!("shard-{}", number % 10));
        fs::create_dir_all(&place)?;
        fs::write(place.join(format!("{number:04}.bin")), number.to_le_bytes())?;
    }
    gateway.put_many(&fixture.parts, &folder, "many/").await?;
    fixture.storage("store", &gateway.storage_entry())?;
    fixture.service("many", "store", "many/iris")?;
    let berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "many").await?;
    let place = fetched(&fixture, "model.onnx")?;
    let mut seen = 0;
    for number in 0..2_499_u32 {
        let file = place.with_file_name(format!("shard-{}", number % 10)).join(format!("{number:04}.bin"));
        assert_eq!(fs::read(&file)?, number.to_le_bytes(), "{}", file.display());
        seen += 1;
    }
    assert_eq!(seen, 2_499);
    Ok(())
}

#[tokio::test]
async fn objects_with_unusual_names_and_without_bytes_are_kept_as_they_are() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    let folder = folder_with_model(&fixture, "odd")?;
    let names = ["with space.txt", "ümläut-模型.txt", "100%.txt", "a+b.txt", "a&b=c?.txt", "#hash.txt", "quote'\".txt", "empty.txt", "..two.txt"];
    for name in names {
        fs::write(folder.join(MODEL).join(name), if name == "empty.txt" { "" } else { name })?;
    }
    gateway.put_many(&fixture.parts, &folder, "odd/").await?;
    fixture.storage("store", &gateway.storage_entry())?;
    fixture.service("odd", "store", "odd/iris/")?;
    let berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "odd").await?;
    for name in names {
        let expected = if name == "empty.txt" { "" } else { name };
        assert_eq!(fs::read_to_string(fetched(&fixture, name)?)?, expected, "{name}");
    }
    Ok(())
}

/// Size of a part: the smallest that S3 takes.
const PART: usize = 5 << 20;

/// Every way to store an object. This server adds a CRC-64/NVME of the whole where no checksum is asked for.
const WAYS: [(&str, Stored); 9] = [
    ("whole", Stored::Whole),
    ("whole-nvme", Stored::WholeWith("CRC64NVME")),
    ("whole-c", Stored::WholeWith("CRC32C")),
    ("whole-sha", Stored::WholeWith("SHA256")),
    ("parts", Stored::Parts(PART)),
    ("parts-nvme", Stored::PartsWith(PART, "CRC64NVME")),
    ("parts-c", Stored::PartsWith(PART, "CRC32C")),
    ("composed-c", Stored::PartsComposed(PART, "CRC32C")),
    ("composed-sha", Stored::PartsComposed(PART, "SHA256")),
];

#[tokio::test]
async fn objects_are_served_however_they_were_stored() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    fixture.storage("store", &gateway.storage_entry())?;
    for (seed, (way, stored)) in (1..).zip(WAYS) {
        let ballast = fixture.path(way);
        fs::write(&ballast, bytes(12 << 20, seed))?;
        gateway.put(&format!("{way}/model.onnx"), &onnx(&fixture)).await?;
        gateway.put_as(&fixture.parts, &format!("{way}/{way}.bin"), &ballast, stored).await?;
        fixture.service(way, "store", way)?;
    }
    let berth = fixture.serve(ROOMY).start().await?;
    for (seed, (way, _)) in (1..).zip(WAYS) {
        serves(&fixture, &berth, way).await?;
        holds(&fixture, &format!("{way}.bin"), &bytes(12 << 20, seed))?;
    }
    Ok(())
}

#[tokio::test]
async fn bytes_that_changed_in_the_store_behind_its_back_are_noticed_however_it_was_stored() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    fixture.storage("store", &gateway.storage_entry())?;
    for (seed, (way, stored)) in (1..).zip(WAYS) {
        let ballast = fixture.path(way);
        fs::write(&ballast, bytes(12 << 20, seed))?;
        gateway.put(&format!("{way}/model.onnx"), &onnx(&fixture)).await?;
        let key = format!("{way}/{way}.bin");
        gateway.put_as(&fixture.parts, &key, &ballast, stored).await?;
        // The same length, another byte; what the server says about it stays.
        let mut damaged = bytes(12 << 20, seed);
        damaged[7 << 20] ^= 1;
        use std::os::unix::fs::FileExt;
        fs::File::options().write(true).open(gateway.file(&key))?.write_all_at(&damaged[7 << 20..(7 << 20) + 1], 7 << 20)?;
        fixture.service(way, "store", way)?;
    }
    let berth = fixture.serve(ROOMY).start().await?;
    for (way, _) in WAYS {
        let standing = fails_with(&berth, way, &[&format!("{way}.bin")]).await?;
        let message = standing.message.to_ascii_lowercase().replace(['-', ' ', '/', '_'], "");
        let named = ["md5", "sha256", "crc32c", "crc64nvme"].iter().any(|checksum| message.contains(checksum));
        assert!(named, "{way}: no checksum is named in: {}", standing.message);
    }
    Ok(())
}

#[tokio::test]
async fn an_object_of_more_than_2_gib_comes_whole() -> Result<()> {
    let (fixture, gateway) = with_model(Transport::Plain).await?;
    fixture.storage("store", &gateway.storage_entry())?;
    let ballast = fixture.path("large.bin");
    let size = (2_u64 << 30) + 1;
    // Nothing but what is written here takes room in this file.
    let file = fs::File::create(&ballast)?;
    file.set_len(size)?;
    // The last one lies across the 2 GiB.
    let marks = [0, (1 << 30) + 5, size - 8];
    for (seed, at) in (1..).zip(marks) {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&bytes(8, seed), at)?;
    }
    drop(file);
    gateway.put("large/model.onnx", &onnx(&fixture)).await?;
    gateway.put_as(&fixture.parts, "large/large.bin", &ballast, Stored::PartsWith(64 << 20, "CRC64NVME")).await?;
    fs::remove_file(&ballast)?;
    fixture.service("large", "store", "large")?;
    // What lies beside the model counts as its size.
    let berth = fixture.serve("16GiB").start().await?;
    ends_well(&berth, "large", 3 * LATER).await?;
    answers(&fixture, &berth, "large").await?;
    let path = fetched(&fixture, "large.bin")?;
    assert_eq!(path.metadata()?.len(), size);
    let file = fs::File::open(path)?;
    for (seed, at) in (1..).zip(marks) {
        use std::os::unix::fs::FileExt;
        let mut got = [0; 8];
        file.read_exact_at(&mut got, at)?;
        assert_eq!(got[..], bytes(8, seed)[..], "at {at}");
    }
    Ok(())
}
