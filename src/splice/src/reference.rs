//! A second reader of protobuf for the tests: whole messages, by recursion, merging as the specification says. It shares no
//! code with the walk that it judges.

/// What a message says by a path: the field that the path leads to, and all else as it stands on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// Fields that are not on the path: number, wire type and bytes, in their order.
    others: Vec<(u32, u8, Vec<u8>)>,
    on_path: Option<Box<OnPath>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum OnPath {
    Value(Vec<u8>),
    Message(Decoded),
}

impl Decoded {
    /// Reads `message`; `None` where no parser should.
    pub(crate) fn of(message: &[u8], path: &[u32]) -> Option<Decoded> {
        let mut decoded = Decoded::default();
        decoded.merge(message, path)?;
        Some(decoded)
    }

    fn merge(&mut self, message: &[u8], path: &[u32]) -> Option<()> {
        for field in fields(message)? {
            match path {
                [number, rest @ ..] if *number == field.number => {
                    let bytes = (field.wire == 2).then_some(field.content)?;
                    if rest.is_empty() {
                        self.on_path = Some(Box::new(OnPath::Value(bytes.to_vec())));
                    } else {
                        self.inner().merge(bytes, rest)?;
                    }
                }
                _ => self.others.push((field.number, field.wire, field.content.to_vec())),
            }
        }
        Some(())
    }

    /// The message on the path, made if it is not there.
    fn inner(&mut self) -> &mut Decoded {
        let made = || Box::new(OnPath::Message(Decoded::default()));
        match &mut **self.on_path.get_or_insert_with(made) {
            OnPath::Message(inner) => inner,
            OnPath::Value(_) => panic!("a path leads to one value"),
        }
    }

    /// Sets the field that `path` leads to, and nothing else.
    pub(crate) fn set(mut self, path: &[u32], value: &str) -> Decoded {
        let mut place = &mut self;
        for _ in 1..path.len() {
            place = place.inner();
        }
        place.on_path = Some(Box::new(OnPath::Value(value.as_bytes().to_vec())));
        self
    }
}

/// The first value at `path` that is not empty, as it stands on the wire; the outer `None`: no message.
pub(crate) fn first(message: &[u8], path: &[u32]) -> Option<Option<Vec<u8>>> {
    let [number, rest @ ..] = path else { return Some(None) };
    for field in fields(message)?.into_iter().filter(|field| field.number == *number) {
        let bytes = (field.wire == 2).then_some(field.content)?;
        let found = if rest.is_empty() { Some(bytes.to_vec()).filter(|value| !value.is_empty()) } else { first(bytes, rest)? };
        if found.is_some() {
            return Some(found);
        }
    }
    Some(None)
}

pub(crate) struct Field<'m> {
    pub(crate) number: u32,
    pub(crate) wire: u8,
    /// Without tag and length; of a group, with its end.
    pub(crate) content: &'m [u8],
}

/// The fields of a message, groups as one; `None`: no message.
pub(crate) fn fields(mut message: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let (field, rest) = field(message)?;
        if field.wire == 4 {
            return None;
        }
        fields.push(field);
        message = rest;
    }
    Some(fields)
}

/// One field and what stands behind it. The end of a group counts as one, without content.
fn field(message: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let (tag, rest) = varint(message)?;
    let number = u32::try_from(tag / 8).ok().filter(|number| (1..1 << 29).contains(number))?;
    let wire = (tag % 8) as u8;
    let (content, rest) = match wire {
        0 => rest.split_at(rest.iter().take(10).position(|byte| *byte < 0x80)? + 1),
        1 => rest.split_at_checked(8)?,
        5 => rest.split_at_checked(4)?,
        2 => {
            let (length, rest) = varint(rest)?;
            rest.split_at_checked(usize::try_from(length).ok()?)?
        }
        3 => {
            let mut left = rest;
            loop {
                let (inner, behind) = field(left)?;
                left = behind;
                if inner.wire == 4 {
                    let same = inner.number == number;
                    break same.then(|| rest.split_at(rest.len() - left.len()))?;
                }
            }
        }
        4 => (&rest[..0], rest),
        _ => return None,
    };
    Some((Field { number, wire, content }, rest))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = bytes.iter().take(10).position(|byte| *byte < 0x80)? + 1;
    let (own, rest) = bytes.split_at(length);
    let value = own.iter().rev().fold(0_u128, |value, byte| value << 7 | u128::from(byte & 0x7f));
    Some((u64::try_from(value).ok()?, rest))
}

/// A body's messages, with whether each is compressed; `None` where one is cut.
pub(crate) fn messages(mut body: &[u8]) -> Option<Vec<(bool, &[u8])>> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let (prefix, rest) = body.split_at_checked(5)?;
        let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
        let (message, rest) = rest.split_at_checked(length as usize)?;
        messages.push((prefix[0] == 1, message));
        body = rest;
    }
    Some(messages)
}
