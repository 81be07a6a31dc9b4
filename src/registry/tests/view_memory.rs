//! What a registered model costs in the view, alone in its process so that nothing else moves the numbers.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_registry::{NameEntry, Views};
use berth_types::{ModelFormat, ModelId, Name, Placement, Registration, StorageRef};

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn add(views: &Views, numbers: std::ops::Range<u32>) {
    views.update(|view| {
        view.with_names(numbers.map(|n| {
            let registration = Registration::new(
                ModelId::new(format!("sentiment-{n:06}__isvc-{n:010x}")).unwrap(),
                ModelFormat { name: "onnx".into(), version: Some("1".into()) },
                Placement::Format { protocol: None },
                StorageRef {
                    key: Some("localMinIO".into()),
                    parameters: Arc::new(BTreeMap::from([("bucket".to_owned(), "models".to_owned()), ("type".to_owned(), "s3".to_owned())])),
                    path: format!("tenants/sentiment-{n:06}/model.onnx").into(),
                    schema_path: None,
                },
                None,
            );
            let entry = NameEntry { active: Some(Arc::new(registration)), target: None, failure: None };
            (Name::new(format!("sentiment-{n:06}")).unwrap(), Some(entry))
        }))
    });
}

#[test]
fn a_registered_model_takes_less_than_400_bytes_between_10_000_and_100_000() {
    let views = Views::in_epoch(1);
    add(&views, 0..10_000);
    let before = resident_bytes();
    add(&views, 10_000..100_000);
    let each = resident_bytes().saturating_sub(before) / 90_000;
    assert_eq!(views.current().model_count(), 100_000);
    println!("{each} bytes per registered model");
    assert!((1..400).contains(&each), "{each} bytes per registered model");
}
