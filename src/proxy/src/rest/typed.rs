//! Tensor contents in the typed fields of the protocol, as raw bytes.

use berth_proto::inference::InferTensorContents;
use bytes::Bytes;

/// The contents of a tensor of `datatype`; numbers of fewer bits than their field are cut to theirs. Whether there are as
/// many as the shape says is for whoever uses them; a datatype without a typed field has none.
pub(super) fn raw(datatype: &str, typed: &InferTensorContents) -> Bytes {
    fn all<T: Copy, const WIDTH: usize>(numbers: &[T], bytes: impl Fn(T) -> [u8; WIDTH]) -> Vec<u8> {
        numbers.iter().flat_map(|number| bytes(*number)).collect()
    }
    match datatype {
        "BOOL" => all(&typed.bool_contents, |value| [u8::from(value)]),
        "INT8" => all(&typed.int_contents, |number| (number as i8).to_le_bytes()),
        "INT16" => all(&typed.int_contents, |number| (number as i16).to_le_bytes()),
        "INT32" => all(&typed.int_contents, i32::to_le_bytes),
        "INT64" => all(&typed.int64_contents, i64::to_le_bytes),
        "UINT8" => all(&typed.uint_contents, |number| (number as u8).to_le_bytes()),
        "UINT16" => all(&typed.uint_contents, |number| (number as u16).to_le_bytes()),
        "UINT32" => all(&typed.uint_contents, u32::to_le_bytes),
        "UINT64" => all(&typed.uint64_contents, u64::to_le_bytes),
        "FP32" => all(&typed.fp32_contents, f32::to_le_bytes),
        "FP64" => all(&typed.fp64_contents, f64::to_le_bytes),
        "BYTES" => {
            let each = |element: &Bytes| [&u32::try_from(element.len()).unwrap_or(u32::MAX).to_le_bytes()[..], element].concat();
            typed.bytes_contents.iter().flat_map(each).collect()
        }
        _ => Vec::new(),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_datatype_is_taken_from_its_field() {
        let typed = InferTensorContents {
            bool_contents: vec![true, false],
            int_contents: vec![-2],
            int64_contents: vec![-3],
            uint_contents: vec![258],
            uint64_contents: vec![u64::MAX],
            fp32_contents: vec![1.5],
            fp64_contents: vec![2.5],
            bytes_contents: vec![Bytes::from_static(b"ab"), Bytes::new()],
        };
        for (datatype, wanted) in [
            ("BOOL", vec![1, 0]),
            ("INT8", vec![254]),
            ("INT16", vec![254, 255]),
            ("INT32", (-2i32).to_le_bytes().into()),
            ("INT64", (-3i64).to_le_bytes().into()),
            ("UINT8", vec![2]),
            ("UINT16", vec![2, 1]),
            ("UINT32", vec![2, 1, 0, 0]),
            ("UINT64", vec![255; 8]),
            ("FP32", 1.5f32.to_le_bytes().into()),
            ("FP64", 2.5f64.to_le_bytes().into()),
            ("BYTES", b"\x02\0\0\0ab\0\0\0\0".to_vec()),
            ("FP16", vec![]),
        ] {
            assert_eq!(raw(datatype, &typed), wanted, "{datatype}");
        }
    }
}
