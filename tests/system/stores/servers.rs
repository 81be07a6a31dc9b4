//! What the other tests take for granted about the real servers: seen with `curl`, which owes Berth nothing.

use std::fs;

use anyhow::Result;
use berth_testkit::{Access, Azure, Gateway, Gcs, Stored, Transport, Web, curl, http};

use crate::fixture::Fixture;

/// A file of `size` bytes in which no two neighbouring blocks are the same.
fn file(fixture: &Fixture, size: usize) -> Result<std::path::PathBuf> {
    let path = fixture.path(&format!("{size}.bin"));
    fs::write(&path, super::bytes(size, 0))?;
    Ok(path)
}

#[tokio::test]
async fn the_s3_server_keeps_checksums_of_every_kind_and_opens_a_bucket_to_everybody() -> Result<()> {
    let fixture = Fixture::empty()?;
    let gateway = Gateway::start(&fixture.parts, Transport::Plain).await?;
    let path = file(&fixture, 12 << 20)?;
    const PART: usize = 5 << 20;
    for (key, stored, sum, kind) in [
        ("plain", Stored::Whole, "", ""),
        ("nvme", Stored::WholeWith("CRC64NVME"), "ChecksumCRC64NVME", ""),
        ("sha", Stored::WholeWith("SHA256"), "ChecksumSHA256", ""),
        ("parts", Stored::Parts(PART), "", ""),
        ("parts-nvme", Stored::PartsWith(PART, "CRC64NVME"), "ChecksumCRC64NVME", "FULL_OBJECT"),
        ("parts-c", Stored::PartsWith(PART, "CRC32C"), "ChecksumCRC32C", "FULL_OBJECT"),
        ("composed-c", Stored::PartsComposed(PART, "CRC32C"), "ChecksumCRC32C", "COMPOSITE"),
        ("composed-sha", Stored::PartsComposed(PART, "SHA256"), "ChecksumSHA256", "COMPOSITE"),
    ] {
        let answer = gateway.put_as(&fixture.parts, key, &path, stored).await?;
        assert!(sum.is_empty() || answer[sum].is_string(), "{key}: {answer}");
        assert!(kind.is_empty() || answer["ChecksumType"] == kind, "{key}: {answer}");
        assert_eq!(answer["ETag"].as_str().is_some_and(|tag| tag.contains("-3")), !stored_whole(stored), "{key}: {answer}");
    }
    let url = format!("{}/{}/plain", gateway.endpoint(), Gateway::BUCKET);
    assert_eq!(http::get(&url).await?.status, 403);
    gateway.open_to_everybody(&fixture.parts).await?;
    assert_eq!(http::get(&url).await?.body.len(), 12 << 20);
    let listing = http::get(&format!("{}/{}?list-type=2", gateway.endpoint(), Gateway::BUCKET)).await?;
    assert!(listing.status == 200 && listing.text().contains("<Key>composed-sha</Key>"), "{}", listing.text());
    Ok(())
}

fn stored_whole(stored: Stored) -> bool {
    matches!(stored, Stored::Whole | Stored::WholeWith(_))
}

#[tokio::test]
async fn the_azure_server_asks_for_a_credential_unless_the_container_is_public() -> Result<()> {
    let fixture = Fixture::empty()?;
    let folder = fixture.path("files");
    fs::create_dir(&folder)?;
    fs::write(folder.join("a.txt"), "alpha")?;
    for transport in [Transport::Plain, Transport::Tls] {
        let azure = Azure::start(transport).await?;
        let signature = azure.container(&fixture.parts, "private", Access::Private, &folder).await?;
        azure.container(&fixture.parts, "public", Access::Public, &folder).await?;
        let authority = fixture.path("authority.pem");
        fs::write(&authority, azure.storage_entry("x")["certificate"].as_str().unwrap_or_default())?;
        let authority = authority.to_string_lossy();
        let get = async |path: &str| {
            let url = format!("{}/{path}", azure.endpoint());
            let mut args = vec!["--write-out", " %{http_code}", &url];
            if transport == Transport::Tls {
                args.extend(["--cacert", &authority]);
            }
            curl(&args).await
        };
        assert_eq!(get("public/a.txt").await?, "alpha 200");
        assert_eq!(get(&format!("private/a.txt?{signature}")).await?, "alpha 200");
        let refused = get("private/a.txt").await?;
        assert!(refused.ends_with(" 404") || refused.ends_with(" 403") || refused.ends_with(" 409"), "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn the_gcs_server_answers_ranges_listings_and_checksums() -> Result<()> {
    let gcs = Gcs::start().await?;
    gcs.put("folder/a b+ü.txt", b"alpha".to_vec()).await?;
    let listing = http::get(&format!("{}/storage/v1/b/{}/o?prefix=folder/", gcs.endpoint(), Gcs::BUCKET)).await?.good()?;
    let item = &listing["items"][0];
    assert_eq!((item["name"].as_str(), item["size"].as_str()), (Some("folder/a b+ü.txt"), Some("5")), "{listing}");
    assert!(item["crc32c"].is_string() && item["generation"].is_string(), "{listing}");
    let media = http::get(&format!("{}/storage/v1/b/{}/o/folder%2Fa%20b%2B%C3%BC.txt?alt=media", gcs.endpoint(), Gcs::BUCKET)).await?;
    assert_eq!((media.status, media.text().as_str()), (200, "alpha"));
    let range = curl(&["--range", "1-2", "--include", &format!("{}/{}/folder/a%20b%2B%C3%BC.txt", gcs.endpoint(), Gcs::BUCKET)]).await?;
    assert!(range.starts_with("HTTP/1.1 206") && range.ends_with("lp"), "{range}");
    Ok(())
}

#[tokio::test]
async fn every_place_of_the_web_server_does_what_it_is_for() -> Result<()> {
    let fixture = Fixture::empty()?;
    let files = fixture.path("files");
    fs::create_dir(&files)?;
    fs::write(files.join("a.txt"), "alpha")?;
    let web = Web::start(&files).await?;
    let (authority, certificate, key) = (fixture.path("authority.pem"), fixture.path("certificate.pem"), fixture.path("key.pem"));
    fs::write(&authority, web.authority())?;
    fs::write(&certificate, &web.client().certificate)?;
    fs::write(&key, &web.client().key)?;
    let [authority, certificate, key] = [&authority, &certificate, &key].map(|path| path.to_string_lossy());
    let trusting = ["--cacert", &authority];
    let known = [&trusting[..], &["--cert", &certificate, "--key", &key]].concat();
    let header = ["--header", "x-model-key: open sesame"];
    for (case, url, options, expected) in [
        ("a file", format!("{}/a.txt", web.plain()), &[][..], "HTTP/1.1 200"),
        ("a range", format!("{}/a.txt", web.plain()), &["--range", "1-2"], "HTTP/1.1 206"),
        ("no file", format!("{}/b.txt", web.plain()), &[], "HTTP/1.1 404"),
        ("moved", format!("{}/moved/a.txt", web.plain()), &["--location"], "HTTP/1.1 302"),
        ("away", format!("{}/away/a.txt", web.tls()), &[&trusting[..], &["--location"]].concat(), "HTTP/1.1 302"),
        ("round", format!("{}/round/a.txt", web.plain()), &[], "HTTP/1.1 302"),
        ("guarded, closed", format!("{}/guarded/a.txt", web.plain()), &[], "HTTP/1.1 403"),
        ("guarded, open", format!("{}/guarded/a.txt", web.plain()), &header, "HTTP/1.1 200"),
        ("simple", format!("{}/simple/a.txt", web.plain()), &["--range", "1-2"], "HTTP/1.1 200"),
        ("down", format!("{}/down/a.txt", web.plain()), &[], "HTTP/1.1 503"),
        ("tls", format!("{}/a.txt", web.tls()), &trusting, "HTTP/1.1 200"),
        ("mutual, unknown", format!("{}/a.txt", web.mutual()), &trusting, "HTTP/1.1 400"),
        ("mutual, known", format!("{}/a.txt", web.mutual()), &known, "HTTP/1.1 200"),
    ] {
        let url: &str = &url;
        let answer = curl(&[options, &["--include", url]].concat()).await?;
        assert!(answer.starts_with(expected), "{case}: {answer}");
        if expected.ends_with("200") || options.contains(&"--location") {
            assert!(answer.ends_with("alpha"), "{case}: {answer}");
        }
        let lower = answer.to_ascii_lowercase();
        let versions = lower.contains("\netag:") || lower.contains("\nlast-modified:");
        assert_eq!(versions, ["a file", "a range", "moved", "away", "guarded, open", "tls", "mutual, known"].contains(&case), "{case}: {answer}");
    }
    assert!(curl(&[&format!("{}/a.txt", web.tls())]).await.is_err(), "anybody trusts its authority");
    let seen = web.seen()?;
    assert!(seen.iter().any(|seen| seen.status == 200 && seen.target == "/guarded/a.txt" && seen.key == Web::KEY && seen.bytes == 5), "{seen:?}");
    assert!(seen.iter().any(|seen| seen.target == "/a.txt" && seen.host.starts_with("localhost:")), "{seen:?}");
    Ok(())
}
