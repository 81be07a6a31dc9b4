//! What the words of servers mean.

use tonic::Code;

use super::State;
use crate::{IndexEntry, LoadFault};

/// A state of the index. MLServer on newer Pythons prints the name of its enumeration in front.
pub(super) fn state(word: &str) -> State {
    match word.strip_prefix("State.").unwrap_or(word) {
        "READY" => State::Is(IndexEntry::Ready),
        "LOADING" => State::Is(IndexEntry::Loading),
        "UNLOADING" => State::Is(IndexEntry::Unloading),
        // Never loaded, unloaded, failed to load, and MLServer's word for what it found but did not load.
        _ => State::Absent,
    }
}

/// What kept a load from ending well.
pub(crate) fn load_fault(code: Code, message: &str) -> LoadFault {
    if is_out_of_memory(message) {
        return LoadFault::OutOfMemory;
    }
    match code {
        Code::ResourceExhausted => LoadFault::OutOfMemory,
        Code::DeadlineExceeded => LoadFault::TimedOut,
        // It answers, so it is there.
        Code::Unavailable | Code::Cancelled | Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented => LoadFault::NotNow,
        _ => LoadFault::BadModel,
    }
}

/// Whether a server's words say that memory ran out. A process of Triton's Python backend that is killed while it loads says
/// only that it is not healthy: that is what the kernel's end of a process without memory looks like.
pub(crate) fn is_out_of_memory(message: &str) -> bool {
    const WORDS: [&str; 9] = [
        "out of memory",
        "outofmemory",
        "memoryerror",
        "bad_alloc",
        "cannot allocate memory",
        "failed to allocate",
        "unable to allocate",
        "cuda_error_out_of_memory",
        "is not healthy",
    ];
    let said = message.to_ascii_lowercase();
    WORDS.iter().any(|word| said.contains(word))
}

/// Whether Triton says that it has no GPU at all, as one that was built or started without: it lists those that it has.
pub(super) fn has_no_gpu(message: &str) -> bool {
    let list = message.split_once("unsupported gpu id").and_then(|(_, rest)| rest.split_once(" are: "));
    let none = list.is_some_and(|(_, list)| list.trim_start().starts_with(';'));
    none || ["no GPUs are available", "server does not support GPUs"].iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_understood_however_they_are_printed() {
        for (word, expected) in [
            ("READY", State::Is(IndexEntry::Ready)),
            ("State.READY", State::Is(IndexEntry::Ready)),
            ("LOADING", State::Is(IndexEntry::Loading)),
            ("UNLOADING", State::Is(IndexEntry::Unloading)),
            ("UNAVAILABLE", State::Absent),
            ("State.UNAVAILABLE", State::Absent),
            ("UNKNOWN", State::Absent),
            ("", State::Absent),
        ] {
            assert_eq!(state(word), expected, "{word}");
        }
    }

    #[test]
    fn a_server_without_a_gpu_is_told_from_one_that_lacks_the_one_that_was_named() {
        let with = |those: &str| {
            let wrong = "instance group m_0 of model m specifies invalid or unsupported gpu id 3.";
            format!("load failed: {wrong} GPUs with at least the minimum required CUDA compute compatibility of 6.000000 are: {those};\n")
        };
        assert!(has_no_gpu("load failed: instance group m_0 of model m has kind KIND_GPU but no GPUs are available"));
        assert!(has_no_gpu(&with("")) && !has_no_gpu(&with("0 1")) && !has_no_gpu("unsupported gpu id"));
    }

    #[test]
    fn faults_of_a_load_are_told_apart_by_what_can_be_done_about_them() {
        for (code, message, expected) in [
            (Code::Internal, "failed to load 'x', failed to poll from model repository", LoadFault::BadModel),
            (Code::InvalidArgument, "load failed for model 'x': version 1 is at UNAVAILABLE state: Internal: ValueError", LoadFault::BadModel),
            (Code::InvalidArgument, "Stub process 'x_0' is not healthy.", LoadFault::OutOfMemory),
            (Code::Internal, "CUDA error: out of memory", LoadFault::OutOfMemory),
            (Code::InvalidArgument, "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 8 GiB", LoadFault::OutOfMemory),
            (Code::Internal, "std::bad_alloc", LoadFault::OutOfMemory),
            (Code::ResourceExhausted, "", LoadFault::OutOfMemory),
            (Code::Unavailable, "explicit model load / unload is not allowed if polling is enabled", LoadFault::NotNow),
            (Code::DeadlineExceeded, "", LoadFault::TimedOut),
            (Code::Unknown, "No module named 'mlserver_x'", LoadFault::BadModel),
        ] {
            assert_eq!(load_fault(code, message), expected, "{code:?} {message}");
        }
    }
}
