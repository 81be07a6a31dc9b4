use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::s3::S3Settings;

const S3: &str = r#"{"type":"s3","access_key_id":"AKIDEXAMPLE","secret_access_key":"sEcReT","endpoint_url":"https://s3.example:9000",
    "region":"eu-1","default_bucket":"main","allowed_hosts":"mirror.example, other.example:9443"}"#;

fn entries(texts: &[(&str, &str)]) -> Entries {
    let texts = texts.iter().map(|(key, text)| ((*key).to_owned(), Ok((*text).to_owned()))).collect();
    Entries { folder: Some("/config".into()), missing: false, texts }
}

fn storage(key: Option<&str>, parameters: &[(&str, &str)]) -> StorageRef {
    StorageRef {
        key: key.map(Arc::from),
        parameters: Arc::new(parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()),
        path: "m".into(),
        schema_path: None,
    }
}

fn resolved(texts: &[(&str, &str)], key: Option<&str>, parameters: &[(&str, &str)]) -> Result<Source, String> {
    resolve(&entries(texts), Path::new("/pvc_mounts"), &storage(key, parameters)).map_err(|fault| fault.to_string())
}

fn s3(source: Result<Source, String>) -> S3Settings {
    match source {
        Ok(Source::Store(Settings::S3(s3))) => s3,
        other => panic!("{other:?}"),
    }
}

fn bucket(source: Result<Source, String>) -> String {
    let s3 = s3(source);
    format!("{} {} {}", s3.address(), s3.region, s3.bucket)
}

fn root(source: Result<Source, String>) -> PathBuf {
    match source {
        Ok(Source::InPlace(place)) => place.root,
        other => panic!("{other:?}"),
    }
}

/// The refusal of one entry `k` with these parameters; empty where it is none.
fn refusal(entry: &str, parameters: &[(&str, &str)]) -> String {
    resolved(&[("k", entry)], Some("k"), parameters).map(|_| ()).err().unwrap_or_default()
}

#[test]
fn a_key_a_default_of_the_type_or_the_default_is_chosen() {
    let other = S3.replace("main", "other");
    let all = [("named", S3), ("default_s3", other.as_str()), ("default", r#"{"type":"pvc","name":"claim"}"#)];
    for (case, key, parameters, expected) in [
        ("a key, the entry's bucket", Some("named"), &[][..], "main"),
        ("a key, the parameters' bucket", Some("named"), &[("bucket", "b")], "b"),
        ("a key wins over a type", Some("named"), &[("type", "s3")], "main"),
        ("the default of the type", None, &[("type", "s3")], "other"),
        ("the default of the type, the parameters' bucket", None, &[("bucket", "b"), ("type", "s3")], "b"),
    ] {
        assert_eq!(bucket(resolved(&all, key, parameters)), format!("https://s3.example:9000 eu-1 {expected}"), "{case}");
    }
    assert_eq!(root(resolved(&all, None, &[])), Path::new("/pvc_mounts/claim"), "the default");
    assert_eq!(root(resolved(&[], None, &[("type", "pvc"), ("name", "c2")])), Path::new("/pvc_mounts/c2"), "parameters alone");
    assert_eq!(bucket(resolved(&[("k.json", S3)], Some("k"), &[])), "https://s3.example:9000 eu-1 main", "a file with an ending");
    let both = S3.replace("\"default_bucket\"", "\"bucket\":\"own\",\"default_bucket\"");
    assert_eq!(s3(resolved(&[("k", &both)], Some("k"), &[])).bucket, "own", "a bucket wins over the default one");
}

#[test]
fn what_cannot_be_resolved_says_what_is_there_instead() {
    for (texts, key, parameters, expected) in [
        (&[("a", S3), ("b", S3)][..], Some("c"), &[][..], "Did not find storage config for key c: folder /config has the keys a, b"),
        (&[], Some("c"), &[], "Did not find storage config for key c: folder /config has no keys"),
        (&[("a", "{")], Some("a"), &[], "storage config a in /config is not valid JSON: line 1, column 1"),
        (&[("a", "[1]")], Some("a"), &[], "storage config a in /config is not a JSON object"),
        (&[], None, &[], "Predictor Storage field missing"),
        (&[("default", r#"{"type":7}"#)], None, &[], "Predictor Storage field missing"),
        (&[("default", r#"{"type":""}"#)], None, &[], "Predictor Storage field missing"),
        (&[], None, &[("type", "ftp")], "storage type \"ftp\" is not known, s3, gcs, azure, http, folder and pvc are"),
        (&[], None, &[("type", "pvc"), ("name", "../etc")], "the model's storage parameters: \"../etc\" is not the name of a volume claim"),
        (&[], None, &[("type", "pvc")], "the model's storage parameters: the name of the volume claim is missing"),
        (&[("a", S3)], Some("a"), &[("allowed_hosts.x", "y")], "parameter allowed_hosts.x leads through allowed_hosts, which is not an object"),
        (
            &[("a", r#"{"type":"http","headers":{"a":"b"}}"#)],
            Some("a"),
            &[("headers", "x")],
            "parameter headers would overwrite a value that is not a string",
        ),
        (&[], None, &[("a", "x"), ("a.b", "y"), ("type", "s3")], "parameter a.b leads through a, which is not an object"),
        (
            &[("a", r#"{"type":"s3","access_key_id":"","region":"a.b","addressing":"odd","verify":"no","endpoint_url":"ftp://x"}"#)],
            Some("a"),
            &[],
            "storage config a: region \"a.b\" is not a region name; endpoint_url is not an http or https URL; no bucket is named: set \
             it in the model's storage parameters or as default_bucket; addressing is \"odd\", it can be path or virtual; access_key_id and \
             secret_access_key must both be given (both empty for a public bucket); verify is \"no\", it can be content or length",
        ),
    ] {
        assert_eq!(resolved(texts, key, parameters).map(|_| ()), Err(expected.to_owned()));
    }
    let unset = resolve(&Entries::default(), Path::new("/"), &storage(Some("c"), &[])).expect_err("no folder");
    assert_eq!(unset.to_string(), "Did not find storage config for key c: no storage config folder is set");
    let gone = Entries::read(Some(Path::new("/there/is/none"))).expect("a missing folder is an empty one");
    let fault = resolve(&gone, Path::new("/"), &storage(Some("k"), &[])).expect_err("missing");
    assert!(fault.to_string().ends_with("none does not exist"), "{fault}");
}

#[test]
fn a_parameter_cannot_send_an_entrys_secret_to_another_host() {
    let plain = S3.replace("https://s3", "http://s3");
    let open = S3.replace(r#""endpoint_url":"https://s3.example:9000","#, "");
    let untyped = S3.replace(r#""type":"s3","#, "");
    for (entry, path, value, allowed) in [
        (S3, "bucket", "other", true),
        (S3, "region", "eu-2", true),
        (S3, "unrelated", "x", true),
        (S3, "type", "s3", true),
        (&untyped, "type", "s3", true),
        (S3, "type", "azure", false),
        (S3, "type", "http", false),
        (S3, "endpoint_url", "https://s3.example:9000", true),
        (S3, "endpoint_url", "https://S3.example:9000/prefix", true),
        (S3, "endpoint_url", "https://s3.example", false),
        (S3, "endpoint_url", "http://s3.example:9000", false),
        (S3, "endpoint_url", "", false),
        (S3, "endpoint_url", "https://mirror.example/x", true),
        (S3, "endpoint_url", "https://MIRROR.example:1/x", true),
        (S3, "endpoint_url", "http://mirror.example/x", false),
        (&plain, "endpoint_url", "http://mirror.example/x", true),
        (&open, "endpoint_url", "http://mirror.example/x", false),
        (&open, "endpoint_url", "https://mirror.example/x", true),
        (S3, "endpoint_url", "https://other.example:9443", true),
        (S3, "endpoint_url", "https://other.example", false),
        (S3, "endpoint_url", "https://evil.example", false),
        (S3, "endpoint_url", "https://mirror.example.evil.example", false),
        (S3, "endpoint_url", "https://evil.example/mirror.example", false),
        (S3, "endpoint_url", "https://mirror.example@evil.example", false),
        (S3, "endpoint_url", "https://evil.example#@mirror.example", false),
        (S3, "endpoint_url", "https:evil.example", false),
        (S3, "endpoint_url", "//mirror.example", false),
        (&open, "endpoint_url", "https://s3.eu-1.amazonaws.com.evil.example", false),
        (S3, "endpoint_url.x", "y", false),
        (S3, "url", "https://evil.example", true), // means nothing to S3, and is held back all the same below
        (S3, "addressing", "virtual", false),
        (S3, "allowed_hosts", "evil.example", false),
        (S3, "certificate", "pem", false),
        (S3, "credentials", "instance", false),
        (S3, "role_arn", "arn:other", false),
        (S3, "secret_access_key", "x", false),
        (S3, "secret_access_key", "sEcReT", true),
        (S3, "session_token", "x", false),
        (S3, "web_identity_token_file", "/etc/passwd", false),
    ] {
        let allowed = allowed && path != "url";
        let refused = refusal(entry, &[(path, value)]);
        assert_eq!(refused.is_empty(), allowed, "{path}={value}: {refused}");
        assert!(!refused.contains("sEcReT") && !refused.contains("AKIDEXAMPLE"), "{refused}");
    }
    let refused = refusal(S3, &[("endpoint_url", "http://evil.example")]);
    assert!(refused.contains("allowed_hosts") && refused.contains("storage config k"), "{refused}");
    // A scheme in the list means it, with whatever protection it has.
    let listed = S3.replace("mirror.example,", "http://mirror.example:9000,");
    assert_eq!(refusal(&listed, &[("endpoint_url", "http://mirror.example:9000/p")]), "");
    assert_ne!(refusal(&listed, &[("endpoint_url", "https://mirror.example:9000")]), "");
    // Where nothing secret is held everything may be set.
    let public = r#"{"type":"s3","access_key_id":"","secret_access_key":"","endpoint_url":"http://a:1","bucket":"b"}"#;
    assert_eq!(bucket(resolved(&[("p", public)], Some("p"), &[("endpoint_url", "http://c:2")])), "http://c:2 us-east-1 b");
}

#[test]
fn the_guard_knows_the_secrets_of_all_types() {
    let header = r#"{"type":"http","url":"https://a.example/x","headers":{"Authorization":"sEcReT"}}"#;
    let flat = r#"{"type":"http","url":"https://a.example/x","headers.Authorization":"sEcReT"}"#;
    let in_url = r#"{"type":"http","url":"https://user:sEcReT@a.example/x"}"#;
    let signed = r#"{"type":"http","url":"https://a.example/x?sig=sEcReT"}"#;
    let principal =
        r#"{"type":"azure","container":"c","client_id":"i","client_secret":"sEcReT","tenant_id":"t","allowed_hosts":"fine.blob.core.windows.net"}"#;
    let connection = r#"{"type":"azure","container":"c","connection_string":"AccountName=acc;AccountKey=c0VjUmVU"}"#;
    let service = r#"{"type":"gcs","bucket":"b","private_key":"sEcReT","client_email":"e"}"#;
    for (entry, path, value, allowed) in [
        (header, "url", "https://a.example/y?q", true),
        (header, "url", "https://evil.example", false),
        (header, "url", "http://a.example/x", false),
        (header, "headers.Host", "evil.example", false),
        (header, "headers.Authorization", "sEcReT", true),
        (flat, "url", "https://evil.example", false),
        (flat, "headers.Authorization", "x", false),
        (in_url, "certificate", "pem", false),
        (signed, "certificate", "pem", false),
        (header, "client_certificate", "pem", false),
        (principal, "container", "other", true),
        (principal, "account_name", "fine", true),
        (principal, "account_name", "evil", false),
        (principal, "account_name", "fine.blob.core.windows.net/?", false),
        (principal, "account_name", "evil.example/", false),
        (principal, "authority_host", "evil.example", false),
        (principal, "endpoint_url", "https://evil.example", false),
        (principal, "connection_string", "BlobEndpoint=https://evil.example", false),
        (principal, "use_emulator", "true", false),
        (principal, "client_id", "other", false),
        (connection, "account_name", "acc", true), // what a storage URI sets
        (connection, "endpoint_url", "https://evil.example", false),
        (service, "token_uri", "https://evil.example", false),
        (service, "endpoint_url", "https://evil.example", false),
        (service, "bucket", "other", true),
    ] {
        let Ok(Value::Object(entry)) = entries(&[]).parse("k", &Ok(entry.to_owned())).map(Value::Object) else { panic!("{entry}") };
        let mut config = entry.clone();
        dot_path::set(&mut config, path, value).expect("sound");
        let kind = text(&config, "type").expect("given");
        let outcome = guard::check(Some(&entry), &config, kind, std::iter::once((path, value)), "storage config k");
        assert_eq!(outcome.is_ok(), allowed, "{path}={value}: {outcome:?}");
        assert!(!format!("{outcome:?}").contains("sEcReT") || value == "sEcReT", "{outcome:?}");
    }
}

#[test]
fn only_an_entry_brings_credentials_of_the_pod_into_play() {
    let evil = ("endpoint_url", "https://evil.example");
    let ours = ("bucket", "b");
    // A model without an entry never gets them, whatever it says.
    for parameters in [
        &[("type", "s3"), ours, evil][..],
        &[("type", "s3"), ours],
        &[("type", "s3"), ours, ("credentials", "")],
        &[("type", "s3"), ours, evil, ("credentials", "instance")],
        &[("type", "s3"), ours, evil, ("credentials", "environment")],
        &[("type", "s3"), ours, ("credentials", "web_identity"), ("role_arn", "r"), ("web_identity_token_file", "/etc/passwd")],
        &[("type", "s3"), ours, ("role_arn", "r"), ("web_identity_token_file", "/etc/passwd")],
        &[("type", "s3"), ours, ("access_key_id", ""), ("secret_access_key", ""), ("credentials", "instance")],
        &[("type", "s3"), ours, ("credentials", "Instance")],
        &[("type", "gcs"), ours, evil, ("credentials", "instance")],
        &[("type", "azure"), ("container", "c"), ("account_name", "evil"), ("credentials", "managed_identity")],
        &[("type", "azure"), ("container", "c"), ("account_name", "evil"), ("credentials", "workload_identity")],
    ] {
        let refused = resolved(&[], None, parameters).map(|_| ()).expect_err("nobody allowed it");
        assert!(refused.contains("credentials"), "{parameters:?}: {refused}");
    }
    // Its own keys, or none, are its own business.
    let own = [("type", "s3"), ours, evil, ("access_key_id", "a"), ("secret_access_key", "s")];
    assert_eq!(bucket(resolved(&[], None, &own)), "https://evil.example us-east-1 b");
    assert_eq!(bucket(resolved(&[], None, &[("type", "s3"), ours, evil, ("credentials", "anonymous")])), "https://evil.example us-east-1 b");

    let chain = r#"{"type":"s3","endpoint_url":"https://s3.example","bucket":"b"}"#;
    let role = r#"{"type":"s3","endpoint_url":"https://s3.example","bucket":"b","role_arn":"r","web_identity_token_file":"/t"}"#;
    let instance = r#"{"type":"s3","endpoint_url":"https://s3.example","bucket":"b","credentials":"instance"}"#;
    let public = r#"{"type":"s3","endpoint_url":"https://s3.example","bucket":"b","access_key_id":"","secret_access_key":""}"#;
    let untyped = r#"{"endpoint_url":"https://s3.example","bucket":"b"}"#;
    let web = r#"{"type":"http","url":"https://s3.example"}"#;
    for (entry, parameters, allowed) in [
        (chain, &[][..], true),
        (chain, &[("bucket", "other")], true),
        (chain, &[evil], false),
        (chain, &[("certificate", "pem")], false),
        (chain, &[("credentials", "instance")], false),
        (chain, &[("role_arn", "r")], false),
        (chain, &[evil, ("access_key_id", "a"), ("secret_access_key", "s")], true),
        (chain, &[evil, ("credentials", "anonymous")], true),
        (role, &[], true),
        (role, &[evil], false),
        (role, &[("web_identity_token_file", "/etc/passwd")], false),
        (role, &[("credentials", "environment")], false),
        (instance, &[], true),
        (instance, &[evil], false),
        (instance, &[("credentials", "environment")], false),
        (instance, &[("access_key_id", "a"), ("secret_access_key", "s")], false),
        (public, &[evil], true),
        (public, &[("credentials", "instance")], false),
        (public, &[evil, ("credentials", "environment")], false),
        (untyped, &[("type", "s3")], false),
        (web, &[("type", "s3"), ours], false),
        (web, &[("type", "s3"), ours, ("credentials", "instance")], false),
    ] {
        let refused = refusal(entry, parameters);
        assert_eq!(refused.is_empty(), allowed, "{entry} {parameters:?}: {refused}");
    }
}

/// Every key that a provider reads must be in a list of the guard: a new one that is in none would be free.
#[test]
fn every_key_that_a_provider_reads_is_known_to_the_guard() {
    let sources = [
        include_str!("../s3/settings.rs"),
        include_str!("../gcs/settings.rs"),
        include_str!("../azure/settings.rs"),
        include_str!("../web/settings.rs"),
        include_str!("keys.rs"),
    ];
    let mut read = BTreeSet::new();
    for source in sources {
        let code = source.split("#[cfg(test)]").next().unwrap_or(source);
        for call in ["(config, \"", "config.get(\"", "named(\"", "id(\""] {
            read.extend(code.split(call).skip(1).filter_map(|rest| rest.split('"').next()));
        }
    }
    assert!(read.len() > 15 && read.contains("endpoint_url") && read.contains("role_arn") && read.contains("authority_host"), "{read:?}");
    let unknown: Vec<&&str> = read.iter().filter(|key| !guard::knows(key)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn secrets_are_in_no_text() {
    let source = resolved(&[("k", S3)], Some("k"), &[]).expect("sound");
    let Source::Store(settings) = &source else { panic!("{source:?}") };
    for text in [format!("{source:?}"), format!("{:?}", entries(&[("k", S3)])), settings.identity()] {
        assert!(!text.contains("sEcReT") && !text.contains("AKIDEXAMPLE"), "{text}");
    }
    for broken in [
        S3.replace("https://s3.example:9000", "https://user:sEcReT@s3.example"),
        S3.replace("https://s3.example:9000", "sEcReT:sEcReT@minio:9000"),
        S3.replace("https://s3.example:9000", "sEcReT://minio:9000"),
        S3.replace("\"region\"", "\"credentials\":\"sEcReT\",\"region\""),
        S3.replace("\"region\"", "\"addressing\":\"sEcReT\",\"region\""),
        S3.replace("\"region\"", "\"verify\":\"sEcReT\",\"region\""),
        S3.replace("sEcReT", "sEcReT\\n"),
        S3.replace("\"sEcReT\"", "[\"sEcReT\"]"),
        S3.replace("\"region\"", "sEcReT"),
        S3.replace("\"region\":\"eu-1\"", "\"region\":\"\\u0001\""),
        S3.replace("\"region\":\"eu-1\"", "\"session_token\":\"sEc ReT\""),
    ] {
        let text = refusal(&broken, &[]);
        assert!(!text.is_empty() && !text.contains("sEc") && !text.contains("AKIDEXAMPLE"), "{text}");
    }
}

#[test]
fn a_folder_is_named_by_its_entry_alone() {
    let texts = [("rel", r#"{"type":"folder","path":"models"}"#), ("abs", r#"{"type":"folder","path":"/srv/m"}"#)];
    for (key, expected) in [("rel", "/config/models"), ("abs", "/srv/m")] {
        assert_eq!(root(resolved(&texts, Some(key), &[])), Path::new(expected));
    }
    assert!(resolved(&texts, Some("rel"), &[("path", "/etc")]).map(|_| ()).expect_err("changed").contains("may not change the folder"));
    assert!(resolved(&[], None, &[("type", "folder"), ("path", "/etc")]).map(|_| ()).expect_err("no entry").contains("storage config entry"));
    let other = r#"{"type":"pvc","name":"c"}"#;
    assert!(refusal(other, &[("type", "folder"), ("path", "/etc")]).contains("storage config entry"));
}
