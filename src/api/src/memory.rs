//! What memory there is and who has it: the seam to whoever keeps the books, and how they are told.
//!
//! Like downloads this is no part of a resource but a document of its own (`/berth/v1/memory`): sizes change while models
//! compute, and nothing of them is kept.

use async_trait::async_trait;
use berth_types::{ByteSize, Footprint, ModelId, Pool, UnixMillis};
use serde_json::{Map, Value, json};

use crate::fetching::resource_of;

/// Whoever keeps the books of this pod's memory.
#[async_trait]
pub trait Books: Send + Sync + 'static {
    /// How they stand now; `None` when nobody keeps them any more.
    async fn now(&self) -> Option<Memory>;
}

/// The books at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Memory by memory.
    pub pools: Vec<PoolUse>,
    /// Every model that is loaded or on its way.
    pub copies: Vec<CopyUse>,
}

/// One memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// Which one.
    pub pool: Pool,
    /// What models may take of it.
    pub capacity: ByteSize,
    /// What they are charged with.
    pub leased: ByteSize,
    /// The part of that which the runtime does not unload.
    pub unconfirmed: ByteSize,
    /// The part of `capacity` that is not given out, because it is not there in truth.
    pub withheld: ByteSize,
    /// What the runtime holds, where that is measured.
    pub measured: Option<ByteSize>,
    /// The part of that which it held before its first load.
    pub base: Option<ByteSize>,
    /// The part of that which no model has.
    pub retained: ByteSize,
    /// What everybody uses, and all that there is, where that is known.
    pub usage: Option<(ByteSize, ByteSize)>,
    /// It is nearly full.
    pub strained: bool,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyUse {
    /// Which version of it.
    pub model: ModelId,
    /// Where in its life.
    pub phase: String,
    /// What it is charged with, once memory was given to it.
    pub footprint: Option<Footprint>,
    /// Where that number is from, as a word.
    pub from: &'static str,
    /// Last use; `None` until the first.
    pub last_used: Option<UnixMillis>,
}

impl PoolUse {
    fn document(&self) -> Value {
        let mut document = json!({
            "pool": self.pool.to_string(),
            "capacityBytes": self.capacity.0,
            "leasedBytes": self.leased.0,
            "unconfirmedBytes": self.unconfirmed.0,
            "withheldBytes": self.withheld.0,
            "retainedBytes": self.retained.0,
            "nearlyFull": self.strained,
        });
        let known = [
            ("measuredBytes", self.measured),
            ("baseBytes", self.base),
            ("usedBytes", self.usage.map(|usage| usage.0)),
            ("limitBytes", self.usage.map(|usage| usage.1)),
        ];
        for (member, bytes) in known {
            if let Some(bytes) = bytes {
                document[member] = bytes.0.into();
            }
        }
        document
    }
}

impl CopyUse {
    fn document(&self) -> Value {
        let mut document = json!({ "model": self.model.as_str(), "phase": self.phase });
        if let Some((kind, name)) = resource_of(&self.model) {
            document["kind"] = kind.as_str().into();
            document["name"] = name.into();
        }
        if let Some(footprint) = &self.footprint {
            let parts: Map<String, Value> =
                footprint.iter().filter(|(_, bytes)| *bytes > ByteSize::ZERO).map(|(pool, bytes)| (pool.to_string(), bytes.0.into())).collect();
            document["bytes"] = parts.into();
            document["from"] = self.from.into();
            document["summary"] = format!("{footprint} ({})", self.from).into();
        }
        if let Some(last_used) = self.last_used {
            document["lastUsedMillis"] = last_used.0.into();
        }
        document
    }
}

/// All of it, as a document.
pub(crate) async fn document(books: Option<&dyn Books>) -> Value {
    let memory = match books {
        Some(books) => books.now().await.unwrap_or_default(),
        None => Memory::default(),
    };
    let pools: Vec<Value> = memory.pools.iter().map(PoolUse::document).collect();
    let copies: Vec<Value> = memory.copies.iter().map(CopyUse::document).collect();
    json!({ "pools": pools, "items": copies })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Memory);

    #[async_trait]
    impl Books for Fixed {
        async fn now(&self) -> Option<Memory> {
            Some(self.0.clone())
        }
    }

    #[tokio::test]
    async fn memory_is_told_pool_by_pool_and_model_by_model_as_far_as_it_is_known() {
        let pool = |pool, measured: Option<u64>| PoolUse {
            pool,
            capacity: ByteSize(100),
            leased: ByteSize(60),
            unconfirmed: ByteSize(1),
            withheld: ByteSize(2),
            measured: measured.map(ByteSize),
            base: measured.map(|_| ByteSize(10)),
            retained: ByteSize(3),
            usage: measured.map(|used| (ByteSize(used), ByteSize(200))),
            strained: false,
        };
        let copy = |model: &str, footprint| CopyUse {
            model: ModelId::new(model).expect("valid"),
            phase: "Ready".to_owned(),
            footprint,
            from: "measured",
            last_used: Some(UnixMillis(7)),
        };
        let on_gpu = Footprint::of([(Pool::Gpu(1), ByteSize(60))]);
        let books = Fixed(Memory {
            pools: vec![pool(Pool::Host, Some(73)), pool(Pool::Gpu(1), None)],
            copies: vec![copy("iris__isvc-1", Some(on_gpu)), copy("strange", None)],
        });
        let told = document(Some(&books)).await;
        let host = json!({ "pool": "host", "capacityBytes": 100, "leasedBytes": 60, "unconfirmedBytes": 1, "withheldBytes": 2, "retainedBytes": 3,
            "nearlyFull": false, "measuredBytes": 73, "baseBytes": 10, "usedBytes": 73, "limitBytes": 200 });
        assert_eq!(told["pools"][0], host);
        assert_eq!((&told["pools"][1]["pool"], &told["pools"][1]["measuredBytes"]), (&json!("gpu:1"), &Value::Null));
        let iris = json!({ "model": "iris__isvc-1", "phase": "Ready", "kind": "InferenceService", "name": "iris", "bytes": { "gpu:1": 60 },
            "from": "measured", "summary": "60 B gpu:1 (measured)", "lastUsedMillis": 7 });
        assert_eq!(told["items"][0], iris);
        assert_eq!(told["items"][1], json!({ "model": "strange", "phase": "Ready", "lastUsedMillis": 7 }));
        assert_eq!(document(None).await, json!({ "pools": [], "items": [] }));
    }
}
