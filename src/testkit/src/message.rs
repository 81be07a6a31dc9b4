//! Protobuf messages made by hand: for what a parser reads but no encoder writes.

/// A field that holds bytes: a text, or a message.
#[must_use]
pub fn field(number: u32, value: &[u8]) -> Vec<u8> {
    let mut made = varint(u64::from(number) << 3 | 2);
    made.extend(varint(value.len() as u64));
    made.extend(value);
    made
}

/// A field that holds a text.
#[must_use]
pub fn text(number: u32, value: &str) -> Vec<u8> {
    field(number, value.as_bytes())
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut made = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            made.push(low);
            return made;
        }
        made.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written_as_the_protocol_says() {
        assert_eq!(text(1, "ab"), [0x0a, 2, b'a', b'b']);
        assert_eq!(field(3, &text(1, "a")), [0x1a, 3, 0x0a, 1, b'a']);
        assert_eq!(field(1000, &[0; 300])[..4], [0xc2, 0x3e, 0xac, 0x02]);
    }
}
