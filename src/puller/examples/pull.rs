//! scratch
use berth_puller::*;
use berth_telemetry::{Clock, Metrics};
use berth_types::*;
#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let mut config = PullerConfig::new(&args[1], ByteSize::mib(20_000));
    config.storage_config = Some(args[2].clone().into());
    let puller = Puller::open(config, Clock::system(), Metrics::default()).await.expect("open");
    for (n, path) in args[4..].iter().enumerate() {
        let model = Registration {
            id: ModelId::new(format!("{n}{path}x").replace('/', "_")).expect("id"),
            format: ModelFormat { name: "onnx".into(), version: None },
            placement: Placement::Format { protocol: None },
            storage: StorageRef { key: Some(args[3].as_str().into()), parameters: Default::default(), path: path.as_str().into(), schema_path: None },
            declared_size: None,
        };
        let clock = Clock::system();
        let begin = clock.now();
        let outcome = puller.fetch(&model).await;
        println!("{path}: {:?} {:?}", clock.now() - begin, outcome.map(|p| (p.model, p.size, p.from_disk)));
    }
}
