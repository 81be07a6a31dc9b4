//! What a server of the contract says of itself, checked once.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use berth_proto::mmesh::RuntimeStatusResponse;
use berth_proto::mmesh::runtime_status_response::Status;
use berth_types::ByteSize;

/// What a server that is ready asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    /// What all its models may take.
    pub(super) capacity: ByteSize,
    /// Loads at a time.
    pub(super) load_concurrency: NonZeroU32,
    /// A load that takes longer has failed.
    pub(super) load_timeout: Duration,
    /// What a model takes of which nothing is known.
    pub(super) default_size: ByteSize,
    /// In its own words.
    pub(super) version: String,
    /// Methods by full name, each with the field numbers that lead to the model's id. Empty: any method.
    pub(super) methods: BTreeMap<String, Vec<u32>>,
    /// Whether methods that are not among them may be called, too.
    pub(super) any_method: bool,
    /// Whether a load says how many requests its copy serves at a time.
    pub(super) limits_concurrency: bool,
}

/// How a server stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is to be asked again.
    Starting,
    /// It holds nothing and takes orders.
    Ready(Parameters),
    /// It will not come up.
    Failing,
}

/// The shortest limit of a load that makes sense.
const SHORTEST_LOAD: Duration = Duration::from_millis(100);

/// Below it a server is meant for nothing.
const MODEST: ByteSize = ByteSize::mib(512);

/// Reads an answer.
///
/// # Errors
/// All that cannot be true of a server that is ready.
pub(super) fn standing(answer: RuntimeStatusResponse) -> Result<Standing, String> {
    match answer.status() {
        Status::Starting if answer.status != Status::Starting as i32 => return Ok(Standing::Failing),
        Status::Starting => return Ok(Standing::Starting),
        Status::Failing => return Ok(Standing::Failing),
        Status::Ready => {}
    }
    let mut faults = Vec::new();
    let (capacity, default_size) = (ByteSize(answer.capacity_in_bytes), ByteSize(answer.default_model_size_in_bytes));
    let least = default_size.percent(200).max(default_size.percent(1000).min(MODEST));
    if i64::try_from(answer.capacity_in_bytes).is_err() {
        faults.push(format!("capacityInBytes is {}, as if less than nothing were left: is its memory smaller than its buffer?", capacity.0));
    } else if default_size == ByteSize::ZERO {
        faults.push("defaultModelSizeInBytes is 0".to_owned());
    } else if capacity < least {
        faults.push(format!("capacityInBytes is {capacity}, which holds too few models of the default size, {default_size}"));
    }
    let load_concurrency = NonZeroU32::new(answer.max_loading_concurrency);
    if load_concurrency.is_none() {
        faults.push("maxLoadingConcurrency is 0".to_owned());
    }
    let load_timeout = Duration::from_millis(answer.model_loading_timeout_ms.into());
    if load_timeout < SHORTEST_LOAD {
        faults.push(format!("modelLoadingTimeoutMs is {}, which is no time for a load", answer.model_loading_timeout_ms));
    }
    match load_concurrency {
        Some(load_concurrency) if faults.is_empty() => Ok(Standing::Ready(Parameters {
            capacity,
            load_concurrency,
            load_timeout,
            default_size,
            version: answer.runtime_version,
            methods: answer.method_infos.into_iter().map(|(name, info)| (name, info.id_injection_path)).collect(),
            any_method: answer.allow_any_method,
            limits_concurrency: answer.limit_model_concurrency,
        })),
        _ => Err(faults.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::mmesh::runtime_status_response::MethodInfo;

    use super::*;

    fn ready() -> RuntimeStatusResponse {
        RuntimeStatusResponse {
            status: Status::Ready as i32,
            capacity_in_bytes: 1 << 30,
            max_loading_concurrency: 2,
            model_loading_timeout_ms: 90_000,
            default_model_size_in_bytes: 1_000_000,
            runtime_version: "7".to_owned(),
            method_infos: [("a.S/M".to_owned(), MethodInfo { id_injection_path: vec![1, 2] })].into(),
            limit_model_concurrency: true,
            ..RuntimeStatusResponse::default()
        }
    }

    #[test]
    fn a_server_that_is_ready_says_what_it_asks_for() {
        let expected = Parameters {
            capacity: ByteSize(1 << 30),
            load_concurrency: NonZeroU32::MIN.saturating_add(1),
            load_timeout: Duration::from_secs(90),
            default_size: ByteSize(1_000_000),
            version: "7".to_owned(),
            methods: [("a.S/M".to_owned(), vec![1, 2])].into(),
            any_method: false,
            limits_concurrency: true,
        };
        assert_eq!(standing(ready()), Ok(Standing::Ready(expected)));
    }

    #[test]
    fn what_is_not_ready_is_waited_for_or_given_up_whatever_else_it_says() {
        for (status, expected) in [(0, Standing::Starting), (2, Standing::Failing), (3, Standing::Failing), (-1, Standing::Failing)] {
            assert_eq!(standing(RuntimeStatusResponse { status, ..RuntimeStatusResponse::default() }), Ok(expected), "{status}");
        }
    }

    #[test]
    fn what_cannot_be_true_is_told_all_at_once() {
        type Edit = fn(&mut RuntimeStatusResponse);
        let cases: [(Edit, &[&str]); 7] = [
            (|answer| answer.max_loading_concurrency = 0, &["maxLoadingConcurrency is 0"]),
            (|answer| answer.model_loading_timeout_ms = 99, &["modelLoadingTimeoutMs is 99"]),
            (|answer| answer.default_model_size_in_bytes = 0, &["defaultModelSizeInBytes is 0"]),
            (|answer| answer.capacity_in_bytes = 9_999_999, &["capacityInBytes is", "too few models"]),
            // An adapter whose memory is below its buffer says so in a number of 64 bits.
            (|answer| answer.capacity_in_bytes = u64::MAX - (1 << 20), &["less than nothing", "smaller than its buffer"]),
            (|answer| answer.default_model_size_in_bytes = 600 << 20, &["too few models"]),
            (
                |answer| (answer.max_loading_concurrency, answer.model_loading_timeout_ms) = (0, 0),
                &["maxLoadingConcurrency", "modelLoadingTimeoutMs"],
            ),
        ];
        for (edit, parts) in cases {
            let mut answer = ready();
            edit(&mut answer);
            let told = standing(answer).expect_err("it cannot be true");
            assert!(parts.iter().all(|part| told.contains(part)), "{parts:?} in {told}");
        }
    }
}
